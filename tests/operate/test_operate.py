"""Surgery on modules: copies, in-place cuts, gradients, ties, dtypes, memory."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import surgeon
from surgeon.operate.select import mask, select
from surgeon.plan.plan import Cut, Selection
from tests.nets import Residual, image


def half(model: nn.Module, **options: Any) -> surgeon.Plan:
    graph = surgeon.trace(model, image())
    return surgeon.plan(graph, surgeon.score(graph), ratio=0.5, scope="local", **options)


def test_the_original_is_untouched() -> None:
    model = Residual()
    before, shown = copy.deepcopy(model.state_dict()), str(model)
    small = surgeon.operate(model, half(model))
    assert str(model) == shown and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert type(small) is Residual and small.conv1.weight.shape == (6, 4, 3, 3)


def test_declared_widths_follow() -> None:
    model = Residual()
    small = surgeon.operate(model, half(model))
    assert (small.stem.out_channels, small.conv1.in_channels, small.conv1.out_channels) == (4, 4, 6)
    assert (small.bn1.num_features, small.conv2.in_channels, small.head.in_features, small.head.out_features) == (
        6,
        6,
        4,
        5,
    )


def test_inplace_equals_copy_and_cuts_gradients() -> None:
    model = Residual()
    model(image()).sum().backward()
    plan = half(model)
    small = surgeon.operate(model, plan)
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert surgeon.operate(model, plan, inplace=True) is model
    for name, p in model.named_parameters():
        twin = small.get_parameter(name)
        assert torch.equal(p, twin) and p.grad is not None and torch.equal(p.grad, twin.grad)
        expected = select(grads[name], plan.cuts[name]) if name in plan.cuts else grads[name]
        assert torch.equal(p.grad, expected) and p.grad.shape == p.shape
    model(image()).sum().backward()


def test_modes_flags_and_dtype_survive() -> None:
    model = Residual().half()
    model.conv1.weight.requires_grad_(False)
    model.bn1.eval()
    model = model.to(memory_format=torch.channels_last)
    plan = half(Residual())
    small = surgeon.operate(model, plan)
    assert small.training and not small.bn1.training
    assert not small.conv1.weight.requires_grad and small.stem.weight.requires_grad
    assert small.conv1.weight.dtype == torch.float16
    assert small.conv1.weight.is_contiguous(memory_format=torch.channels_last)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(7, 8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)
        self.out = nn.Linear(8, 7, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens)
        return self.out(x + self.down(torch.relu(self.up(x))))


def test_tied_weights_stay_tied() -> None:
    model = Tied()
    small = surgeon.prune(model, torch.arange(7)[None], ratio=0.5, scope="local").model
    assert small.emb.weight is small.out.weight and small.emb.weight.shape == (7, 4)
    assert small.up.weight.shape == (6, 4)


def test_frozen_models_are_cut_all_the_same() -> None:
    model = Residual().requires_grad_(False)
    result = surgeon.prune(model, image(), ratio=0.5)
    assert result.report.after.params < result.report.before.params
    assert not any(p.requires_grad for p in result.model.parameters())


def test_single_positions_are_picked_row_by_row() -> None:
    weight = torch.arange(24.0).reshape(4, 3, 2)
    keep = torch.tensor([1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 0, 1], dtype=torch.bool)
    cut = Cut((4, 3, 2), (4, 2, 2), (Selection((0, 1), 12, keep.nonzero().ravel().numpy()),))
    expected = torch.stack([weight[i][keep.view(4, 3)[i]] for i in range(4)])
    assert torch.equal(select(weight, cut), expected)
    assert mask(weight, cut).sum() == 16


class LiveBytes(TorchDispatchMode):
    """Tracks the bytes of tensors made in the block and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in known:
            size = result.untyped_storage().nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(result, self.release, size)
        return result

    def release(self, size: int) -> None:
        self.live -= size


def test_operate_needs_no_more_than_the_small_model() -> None:
    model = Residual(width=64, inner=96)
    plan = half(model)
    with LiveBytes() as made:
        small = surgeon.operate(model, plan)
    size = sum(t.numel() * t.element_size() for t in small.state_dict().values())
    largest = max(p.numel() * 4 for p in model.parameters())
    assert made.peak <= size + largest


def test_tracing_keeps_no_activations() -> None:
    model, x = Residual(), image()
    graph = surgeon.trace(model, x)
    alive = {id(t) for t in graph.flow.values}
    assert alive <= {id(t) for t in (*model.parameters(), *model.buffers(), x)}


class Pair(nn.ModuleList):
    def __init__(self) -> None:
        super().__init__([Residual(), Residual()])

    def forward(self, x: Tensor) -> Tensor:
        return self[0](x) + self[1](x)


@pytest.mark.parametrize("keep", ["0.conv1", "0.conv1.weight", ["0.conv*"], {"out": "0.conv1"}])
def test_kept_layers_stay(keep: Any) -> None:
    conv1 = surgeon.prune(Pair(), image(), ratio=0.5, scope="local", keep=keep).model[0].conv1
    assert (conv1.in_channels, conv1.out_channels) == ((4 if isinstance(keep, dict) else 8), 12)


def test_keeping_a_module_object_and_its_inputs_only() -> None:
    model = Residual()
    assert surgeon.prune(model, image(), ratio=0.5, keep=[model.head]).model.head.in_features == 8
    small = surgeon.prune(model, image(), ratio=0.5, scope="local", keep={"in": ["conv1"]}).model
    assert small.conv1.in_channels == 8 and small.conv1.out_channels == 6


class Hooked(nn.Module):
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.first = norm(nn.Conv2d(3, 8, 3))
        self.last = norm(nn.Conv2d(8, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_computed_weights_are_cut_or_pinned_with_a_reason(norm: Any) -> None:
    model = Hooked(norm).eval()
    model(image())
    try:
        result = surgeon.prune(model, image(), ratio=0.5)
    except surgeon.errors.NothingPrunable as error:
        assert "parametrizations.weight" in str(error)
    else:
        assert result.model(image()).shape == (2, 4, 2, 2)
        assert result.report.after.params < result.report.before.params
