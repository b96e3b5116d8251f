"""Models that are hard to treat: types, layouts, state, ties, hooks, and inputs that are the same for all samples."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import surgeon
from surgeon.errors import DataError
from surgeon.recover import Recovery
from tests.nets import Perceptron, Residual
from tests.recover.test_exact import Net, cut, difference, duplicate, images, settled
from tests.recover.test_layers import Wrapped, recovered, twins, vectors
from tests.recover.test_recover import correlated, error, halves


def told(recovery: Recovery, layer: str) -> str:
    return next(found.note for found in recovery.layers if found.layer == layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    """Fits are judged with the weights as they are written; results come closer though they are rounded."""
    exact = Residual(inner=24).eval()
    model = copy.deepcopy(exact).to(dtype)
    data = [correlated(32).to(dtype) for _ in range(4)]
    small, plan = halves(model, data[0])
    before = error(model, small, correlated(50).to(dtype))
    recovery = surgeon.recover(model, small, plan, data)
    assert all(layer.taken for layer in recovery.layers)
    assert small.head.weight.dtype == dtype
    assert error(model, small, correlated(50).to(dtype)) < 0.6 * before


def test_channels_last_and_strides() -> None:
    model = settled(Net()).to(memory_format=torch.channels_last)
    duplicate(model)
    x = images(24)[::2, :, :, :].transpose(2, 3)
    small, plan = cut(model, x, [1])
    surgeon.recover(model, small, plan, [x[:5], x[5:]])
    assert difference(model, small, images(3)) < 1e-6
    assert small.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_batches_of_one() -> None:
    model = settled(Net())
    duplicate(model)
    x = images(8)
    small, plan = cut(model, x, [1])
    recovery = surgeon.recover(model, small, plan, list(x.split(1)))
    assert recovery.samples == 8 and difference(model, small, images(3)) < 1e-6


class Stateful(nn.Module):
    """Counts calls, keeps a cache, draws random numbers, and has a batch norm that always takes batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)
        self.norm = nn.BatchNorm1d(6, track_running_stats=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("cache", torch.zeros(60, 2))
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        y = self.last(self.norm(torch.relu(self.first(x))))
        self.cache[: len(y)] = y
        return y + 0 * torch.rand_like(y)


def test_state_stays_as_it_was() -> None:
    model = Stateful().double().train()
    twins(model)
    model.first.weight.grad = torch.ones_like(model.first.weight)
    model.last.requires_grad_(False)
    seen: list[int] = []
    handle = model.first.register_forward_hook(lambda *_: seen.append(1))
    x = vectors()
    small, plan = cut(model, x, (1,), "first")
    model.cache += 1
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    buffers = {name: value.clone() for name, value in small.named_buffers()}
    surgeon.recover(model, small, plan, [x])
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, buffers[name]) for name, value in small.named_buffers())
    assert model.training and small.training and model.norm.training
    assert torch.equal(model.first.weight.grad, torch.ones_like(model.first.weight)) and model.last.weight.grad is None
    assert not small.last.weight.requires_grad and not small.last.bias.requires_grad
    assert len(model.first._forward_hooks) == 1
    handle.remove()
    assert difference(model, small, vectors(9)) < 1e-6


class Tied(nn.Module):
    """An embedding whose table is the head's weight as well."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + torch.relu(self.mix(x)))


def test_tables_that_are_heads_as_well_are_left_with_the_reason() -> None:
    model, ids = Tied().eval(), torch.randint(0, 11, (16, 5))
    small, plan = halves(model, ids)
    table = small.head.weight.detach().clone()
    recovery = surgeon.recover(model, small, plan, [ids, torch.randint(0, 11, (16, 5))])
    assert "also given to embedding" in told(recovery, "embed")
    assert torch.equal(small.head.weight, table) and small.head.weight is small.embed.weight
    assert small.head.bias is None


def test_weights_of_two_modules_get_no_bias_that_only_one_would_add() -> None:
    model = Wrapped(
        lambda m, x: m.last(m.a(y := torch.relu(m.first(x))) * torch.sigmoid(m.b(y + 1))),
        first=nn.Linear(5, 6),
        a=nn.Linear(6, 4, bias=False),
        b=nn.Linear(6, 4, bias=False),
        last=nn.Linear(4, 2),
    )
    model.b.weight = model.a.weight
    twins(model)
    small, recovery = recovered(model, vectors())
    assert difference(model, small, vectors(9)) < 1e-6, recovery.layers
    assert small.a.weight is small.b.weight


def test_biases_and_norms_that_others_use_are_not_shifted() -> None:
    """A constant channel is cut; the offsets that make up for it must not reach what shares them."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.relu(m.first(x))
        a = F.linear(y, m.a.weight, m.a.bias)
        b = F.linear(x, m.b.weight, m.a.bias)
        return m.last(m.norm(a) + m.norm(b))

    layers = {"a": nn.Linear(6, 4), "b": nn.Linear(5, 4, bias=False), "norm": nn.BatchNorm1d(4)}
    model = Wrapped(forward, first=nn.Linear(5, 6), **layers, last=nn.Linear(4, 2)).double().eval()
    model.first.weight.data[1], model.first.bias.data[1] = 0, 3
    x = vectors()
    small, plan = cut(model, x, (1,), "first")
    before = difference(model, small, x)
    bias, mean = small.a.bias.detach().clone(), small.norm.running_mean.clone()
    surgeon.recover(model, small, plan, [x])
    assert torch.equal(small.a.bias, bias) and torch.equal(small.norm.running_mean, mean)
    assert difference(model, small, vectors(50)) < before


def test_weights_that_are_computed_on_the_way_are_left_with_the_reason() -> None:
    layers = {"w": parametrizations.weight_norm(nn.Linear(6, 4)), "last": nn.Linear(4, 2)}
    model = Wrapped(lambda m, x: m.last(m.w(torch.relu(m.first(x)))), first=nn.Linear(5, 6), **layers)
    twins(model)
    small, recovery = recovered(model, vectors())
    assert any("computed on the way" in layer.note for layer in recovery.layers)
    assert torch.isfinite(small(vectors())).all()


def test_what_is_the_same_for_all_samples_is_split_by_rows() -> None:
    """A table of positions goes through layers of its own, whatever the batch."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(1, 40, 3))
            self.first, self.last, self.read = nn.Linear(3, 8), nn.Linear(8, 4), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.read(x).unsqueeze(1) * self.last(torch.relu(self.first(self.table)))

    model = Positions()
    twins(model)
    small, recovery = recovered(model, vectors(16))
    assert difference(model, small, vectors(4)) < 1e-6, recovery.layers
    assert recovery.layers[0].rows == 30


def test_results_that_nobody_reads() -> None:
    """A head that is computed and dropped neither stops the others nor counts."""
    model = Wrapped(
        lambda m, x: (m.dead(y := torch.relu(m.first(x))), m.last(y))[1],
        first=nn.Linear(5, 6),
        dead=nn.Linear(6, 3),
        last=nn.Linear(6, 2),
    )
    twins(model)
    small, recovery = recovered(model, vectors())
    assert [layer.layer for layer in recovery.layers] == ["last"]
    assert difference(model, small, vectors(9)) < 1e-6


def test_inputs_that_are_written_over_before_a_sum() -> None:
    """What a layer was given is gone when the sum comes that it answers for, so it is not fitted to what is there."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.relu(m.first(x))
        z = m.w(y)
        y.mul_(0)
        return m.last(z + m.other(x) + y[:, :4])

    layers = {"w": nn.Linear(6, 4), "other": nn.Linear(5, 4), "last": nn.Linear(4, 2)}
    model = Wrapped(forward, first=nn.Linear(5, 6), **layers)
    twins(model, 5, 4)
    model.double().eval()
    x = vectors()
    small, plan = cut(model, x, (5,), "first")
    recovery = surgeon.recover(model, small, plan, [x])
    assert "overwritten" in told(recovery, "w") or difference(model, small, vectors(9)) < 1e-6


def test_paths_that_depend_on_the_batch() -> None:
    class Branch(Perceptron):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if len(x) % 2 else x * 2 + 1)

    model = Branch().eval()
    small, plan = halves(model, torch.randn(4, 6))
    data = [torch.randn(8, 6), torch.randn(7, 6)]
    with pytest.raises(surgeon.errors.RecoverError, match="calls"):
        surgeon.recover(model, small, plan, data)
    with pytest.raises(DataError, match="paths"):
        surgeon.score(surgeon.trace(model, data[0]), "obs", data=data)


@pytest.mark.parametrize("shape", [(8, 4), (8, 6, 2)])
def test_batches_that_do_not_fit_are_named(shape: tuple[int, ...]) -> None:
    model = Perceptron().eval()
    small, plan = halves(model, torch.randn(4, 6))
    data = [torch.randn(8, 6), torch.randn(shape)]
    with pytest.raises(DataError, match=r"tensors of shapes \[8"):
        surgeon.recover(model, small, plan, data)
    graph = surgeon.trace(model, data[0])
    with pytest.raises(DataError, match=r"tensors of shapes \[8"):
        surgeon.score(graph, "obs", data=data)
    with pytest.raises(DataError, match=r"tensors of shapes \[8"):
        surgeon.score(graph, "taylor", data=[(x, None) for x in data], loss=lambda out, _: out.sum())


@pytest.mark.parametrize("method", ["bias", "merge", "noise"])
@pytest.mark.parametrize("data", [False, True])
def test_statistics_that_are_not_those_of_data_do_no_harm(method: str, data: bool) -> None:
    """Random norms of a model that never saw data tell nothing: what they suggest is refused, layer by layer."""
    model = Residual(inner=24)
    model.bn1.running_var.uniform_(1e-6, 1e-4)
    model.bn1.running_mean.uniform_(-5, 5)
    model.bn1.bias.data.uniform_(-9, 9)
    model.eval()
    x = correlated(64)
    small, plan = halves(model, x)
    before = error(model, small, x)
    given = list(x.split(16)) if data else None
    recovery = surgeon.recover(model, small, plan, given, method=method, example_inputs=x[:2])
    assert error(model, small, x) <= (1 if data else 1.5) * before
    assert all(torch.isfinite(value).all() for value in small.state_dict().values())
    assert all(layer.after <= layer.before for layer in recovery.layers if layer.before == layer.before)


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))


def test_over_the_cap_channels_are_fitted_instead_of_taps() -> None:
    """Duplicated channels are found by their channels alone; the record says how."""
    model = Wide().double().eval()
    twins(model, 1, 4, "conv1")
    x = torch.randn(16, 3, 8, 8, dtype=torch.float64)
    small, plan = cut(model, x, [1], "conv1")
    recovery = surgeon.recover(model, small, plan, [x], memory=8 * 50**2)
    assert "over the memory cap, so it was fitted to channels" in told(recovery, "conv2")
    assert difference(model, small, torch.randn(3, 3, 8, 8, dtype=torch.float64)) < 1e-6
    small, plan = cut(model, x, [1], "conv1")
    recovery = surgeon.recover(model, small, plan, [x], memory=8 * 9**2)
    assert "so only means are met" in told(recovery, "conv2")
