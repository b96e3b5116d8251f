"""Peak activation memory against what the storages of a real forward pass say."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import surgeon
from surgeon.modules import as_arguments, evaluating, tensors_in
from surgeon.plan import cost
from tests.zoo import build


class Storages(TorchDispatchMode):
    """Adds up the storages that are alive, below autograd and by their own lifetimes."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self.now = self.peak = 0
        for tensor in tensors_in(inputs):
            self.known.add(tensor.untyped_storage()._cdata)
            self.now += tensor.untyped_storage().nbytes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        for tensor in tensors_in(result):
            storage = tensor.untyped_storage()
            if storage._cdata in self.known or storage._cdata in self.alive:
                continue
            self.alive[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.gone, storage._cdata)
        return result

    def gone(self, storage: int) -> None:
        self.now -= self.alive.pop(storage)


def measured(model: nn.Module, inputs: Any) -> int:
    args, kwargs = as_arguments(inputs)
    with evaluating(model), torch.no_grad(), Storages(model, [args, kwargs]) as seen:
        model(*args, **kwargs)
    return seen.peak


def predicted(model: nn.Module, inputs: Any) -> float:
    graph = surgeon.trace(model, inputs)
    return cost.memory(graph).total(graph.initial)


class Straight(nn.Module):
    """Each activation dies when the next is there; views and in-place calls hold no memory of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 64), nn.Linear(64, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x.relu_().view(x.shape[0], -1)
        x = self.b(x)
        return self.c(x)


def test_views_writes_in_place_and_dead_activations_are_told_apart() -> None:
    # 3 rows of floats: inputs (8), and at the most a's 64 with b's 32.
    assert predicted(Straight(), torch.randn(3, 8)) == 3 * 4 * (8 + 64 + 32)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "regnet_y_400mf"])
def test_peaks_agree_with_storages_before_and_after_a_cut(name: str) -> None:
    torch.manual_seed(0)
    model, x = getattr(torchvision.models, name)(weights=None), torch.randn(2, 3, 64, 64)
    plan = surgeon.plan(graph := surgeon.trace(model, x), surgeon.score(graph), flops=0.5)
    small = surgeon.operate(model, plan)
    before, after = plan.totals["memory"]
    assert (before, after) == (predicted(model, x), predicted(small, x))
    assert before == pytest.approx(measured(model, x), rel=1e-3)
    assert after == pytest.approx(measured(small, x), rel=1e-3)


class Neighbours(nn.Module):
    """A sparse matrix, kept as a buffer and made anew in the forward pass, which has no storage to look at."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adjacency", torch.eye(6).to_sparse())
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sparse.mm(self.adjacency, self.a(x))
        return self.b(torch.sparse.mm(torch.eye(6).to_sparse(), x))


def test_sparse_tensors_are_not_counted_and_stop_nothing() -> None:
    graph = surgeon.trace(Neighbours(), torch.randn(6, 8))
    assert cost.memory(graph).total(graph.initial) > 0
    assert "sparse" in graph.explain("a")


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_memory_budgets_are_kept(share: float) -> None:
    model, x = torchvision.models.resnet18(weights=None), torch.randn(1, 3, 64, 64)
    plan = surgeon.plan(graph := surgeon.trace(model, x), surgeon.score(graph), memory=share)
    before, after = plan.totals["memory"]
    assert (share - 0.03) * before <= after <= share * before
    assert predicted(surgeon.operate(model, plan), x) == after


def test_budgets_combine() -> None:
    model, x = torchvision.models.resnet18(weights=None), torch.randn(1, 3, 64, 64)
    graph = surgeon.trace(model, x)
    asked = {"flops": 0.6, "params": 0.55, "memory": 0.7}
    plan = surgeon.plan(graph, surgeon.score(graph), **asked)
    left = {name: plan.totals[name][1] / plan.totals[name][0] for name in asked}
    assert all(left[name] <= asked[name] for name in asked)
    assert any(left[name] > asked[name] - 0.002 for name in asked)
    for alone in asked:
        assert surgeon.plan(graph, surgeon.score(graph), **{alone: asked[alone]}).loss <= plan.loss + 1e-6


@pytest.mark.parametrize("name", ["resnet20_pad", "two_groupings"])
def test_bytes_are_those_of_the_tensors(name: str) -> None:
    model, inputs = build(name)
    plan = surgeon.plan(graph := surgeon.trace(model, inputs), surgeon.score(graph), flops=0.5)
    for net, total in zip((model, surgeon.operate(model, plan)), plan.totals["bytes"]):
        assert sum(t.numel() * t.element_size() for t in {*net.parameters(), *net.buffers()}) == total
