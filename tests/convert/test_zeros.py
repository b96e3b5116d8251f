"""Zero units are cut where that changes nothing, whatever the inputs are; others stay, and the plan says why."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import surgeon
from surgeon.errors import NothingPrunable
from surgeon.verify.reference import masked_state
from tests.nets import Perceptron, Residual, image
from tests.zoo import MODELS, build


def removed(plan: surgeon.Plan, name: str, dim: int = 0) -> list[int]:
    if name not in plan.cuts:
        return []
    (selection,) = [s for s in plan.cuts[name].selections if s.dims == (dim,)]
    return sorted(set(range(selection.of)) - set(selection.keep.tolist()))


def unchanged(model: nn.Module, plan: surgeon.Plan, x: Tensor) -> bool:
    """Compare on inputs that the plan was not made with."""
    small = surgeon.operate(model, plan)
    found = (torch.allclose(m(x), n(x), rtol=1e-4, atol=1e-5) for m, n in [(model.eval(), small.eval())])
    return all(found)


def trained(seed: int = 0) -> Residual:
    """A network whose norm has seen data, so that nothing is zero by default."""
    torch.manual_seed(seed)
    model = Residual().eval()
    with torch.no_grad():
        model.bn1.running_mean.uniform_(-1, 1)
        model.bn1.bias.uniform_(0.5, 1)
    return model


# -- what a zero channel is ----------------------------------------------------------------------------


def test_filters_and_offsets_of_zero() -> None:
    model = trained()
    with torch.no_grad():
        model.bn1.weight[[1, 4]] = 0
        model.bn1.bias[[1, 4]] = 0
    plan = surgeon.plan_from_zeros(model, image())
    assert removed(plan, "conv1.weight") == [1, 4] and unchanged(model, plan, 5 * image())
    assert plan.settings["skipped"] == [] and plan.settings["source"] == "zeros"


def test_a_constant_that_the_activation_blanks_is_zero_and_another_is_not() -> None:
    model = trained()
    with torch.no_grad():
        model.bn1.weight[[1, 4]] = 0
        model.bn1.bias[1], model.bn1.bias[4] = -1, 1
    plan = surgeon.plan_from_zeros(model, image())
    assert removed(plan, "conv1.weight") == [1] and unchanged(model, plan, 5 * image())
    (why,) = plan.settings["skipped"]
    assert why.startswith("conv1: 1 units with zeros stay") and "conv2d in conv2" in why


def test_zero_filters_before_a_norm_with_a_mean_are_constants() -> None:
    model = trained()
    with torch.no_grad():
        model.conv1.weight[[1, 4]] = 0
        model.bn1.running_mean[1], model.bn1.running_mean[4] = -1.0, 3.0  # 0 becomes 1 and -3, but for the bias
        model.bn1.bias[[1, 4]] = 0.5
    plan = surgeon.plan_from_zeros(model, image())
    assert removed(plan, "conv1.weight") == [4] and unchanged(model, plan, 5 * image())


def test_what_nothing_reads_may_be_anything() -> None:
    model = trained()
    with torch.no_grad():
        model.conv2.weight[:, [0, 7]] = 0
    plan = surgeon.plan_from_zeros(model, image())
    assert removed(plan, "conv1.weight") == [0, 7] and unchanged(model, plan, 5 * image())


def test_a_relu_that_is_off_on_the_example_is_not_zero() -> None:
    """Its filter is in use: other inputs switch it on. A zero column elsewhere makes no candidate of it."""
    model = trained()
    with torch.no_grad():
        model.conv1.weight[2] *= 1e-3
        model.bn1.bias[2] = -5
        model.conv1.weight[2, 0] = 0
        model.bn1.weight[3], model.bn1.bias[3] = 0, 0
    plan = surgeon.plan_from_zeros(model, 1e-3 * image())
    assert removed(plan, "conv1.weight") == [3]
    assert unchanged(model, plan, 1e6 * image())


def test_every_summand_of_a_residual_stream_has_to_be_zero() -> None:
    model = trained()
    with torch.no_grad():
        model.stem.weight[[1, 5]], model.stem.bias[[1, 5]] = 0, 0
        model.conv2.weight[1], model.conv2.bias[1] = 0, 0
    plan = surgeon.plan_from_zeros(model, image())
    assert removed(plan, "stem.weight") == [1] and unchanged(model, plan, 5 * image())
    assert len(plan.settings["skipped"]) == 1


class Activated(nn.Module):
    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.first, self.last, self.activation = nn.Linear(6, 10), nn.Linear(10, 4), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.first(x)))


@pytest.mark.parametrize(
    ("activation", "goes"),
    [
        (F.gelu, True),
        (F.silu, True),
        (torch.tanh, True),
        (torch.sigmoid, False),
        (torch.exp, False),
        (F.softplus, False),
    ],
)
def test_what_an_activation_makes_of_zero(activation: Any, goes: bool) -> None:
    model, x = Activated(activation), torch.randn(3, 6)
    with torch.no_grad():
        model.first.weight[[2, 3]], model.first.bias[[2, 3]] = 0, 0
    if goes:
        plan = surgeon.plan_from_zeros(model, x)
        assert removed(plan, "first.weight") == [2, 3] and unchanged(model, plan, 9 * x)
    else:
        with pytest.raises(NothingPrunable, match="2 units with zeros stay"):
            surgeon.plan_from_zeros(model, x)


class Normed(nn.Module):
    """A layer norm over a stream counts its zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))))


def test_statistics_count_zeros() -> None:
    model, x = Normed(), torch.randn(4, 6)
    with torch.no_grad():
        model.embed.weight[3], model.embed.bias[3] = 0, 0
        model.down.weight[3], model.down.bias[3] = 0, 0
        model.up.weight[5], model.up.bias[5] = 0, 0
    plan = surgeon.plan_from_zeros(model, x)
    assert removed(plan, "up.weight") == [5] and "embed.weight" not in plan.cuts
    assert "layer_norm" in plan.settings["skipped"][0] and unchanged(model, plan, 9 * x)


class Gated(nn.Module):
    """Squeeze and excite: a gate of one half on a channel of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up, self.head = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 4, 1),
            nn.Conv2d(4, 8, 1),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(x.flatten(2).mean(-1))


def test_gates() -> None:
    model = Gated()
    with torch.no_grad():
        model.conv.weight[[0, 6]], model.conv.bias[[0, 6]] = 0, -0.5
    plan = surgeon.plan_from_zeros(model, image())
    assert removed(plan, "conv.weight") == [0, 6] and unchanged(model, plan, 5 * image())


class Attention(nn.Module):
    def __init__(self, heads: int = 2, width: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.q, self.k, self.v = (nn.Linear(6, heads * width) for _ in range(3))
        self.proj = nn.Linear(heads * width, 6)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (f(x).view(b, t, self.heads, self.width).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, t, self.heads * self.width))


def test_attention() -> None:
    """Values of zero go, as do queries; of rows that are uneven, as many go as every head can lose."""
    model, x = Attention(), torch.randn(2, 5, 6)
    with torch.no_grad():
        for layer, at in ((model.v, [1, 6, 7]), (model.q, [0, 5])):
            layer.weight[at], layer.bias[at] = 0, 0
    plan = surgeon.plan_from_zeros(model, x)
    assert removed(plan, "v.weight") in ([1, 6], [1, 7]) and removed(plan, "k.weight") == [0, 5]
    assert any("so that rows are even" in line for line in plan.settings["skipped"])
    assert unchanged(model, plan, 3 * x)


# -- masks ---------------------------------------------------------------------------------------------


def test_structured_masks() -> None:
    model = Residual().eval()
    prune.ln_structured(model.conv1, "weight", amount=4, n=2, dim=0)
    mask = model.conv1.weight_mask
    zero = sorted(set(torch.nonzero(mask.sum((1, 2, 3)) == 0).flatten().tolist()))
    plan = surgeon.plan_from_zeros(model, image())
    assert removed(plan, "conv1.weight_orig") == removed(plan, "conv1.weight_mask") == zero and len(zero) == 4
    small = surgeon.operate(model, plan)
    assert small.conv1.out_channels == 8 and unchanged(model, plan, 5 * image())
    prune.remove(small.conv1, "weight")
    prune.remove(model.conv1, "weight")
    x = image()
    torch.testing.assert_close(small(x), model(x))


def test_unstructured_masks_with_whole_channels() -> None:
    model = Perceptron()
    mask = (torch.rand_like(model.first.weight) > 0.5).float()
    mask[[2, 8]] = 0
    mask[3, 0] = 1
    prune.custom_from_mask(model.first, "weight", mask)
    prune.custom_from_mask(model.first, "bias", (torch.arange(10) != 2).float())
    with torch.no_grad():
        model.first.bias_orig[8] = -1
    plan = surgeon.plan_from_zeros(model, torch.randn(2, 6))
    assert removed(plan, "first.weight_orig") == [2, 8] and unchanged(model, plan, torch.randn(9, 6))


def test_masks_over_the_whole_model() -> None:
    model = Residual().eval()
    for name in ("conv1", "conv2", "head"):
        prune.l1_unstructured(model.get_submodule(name), "weight", amount=0.1)
    with pytest.raises(NothingPrunable, match="no unit is zero"):
        surgeon.plan_from_zeros(model, image())


def test_exported_programs() -> None:
    model = trained()
    with torch.no_grad():
        model.bn1.weight[[1, 4]], model.bn1.bias[[1, 4]] = 0, 0
    x = image()
    program = torch.export.export(model, (x,))
    plan = surgeon.plan_from_zeros(program, x)
    assert removed(plan, "conv1.weight") == [1, 4]
    torch.testing.assert_close(surgeon.operate(program, plan).module()(x), model(x))


def test_other_paths_than_the_recorded_one_are_refused() -> None:
    runs = []

    class Wavering(Perceptron):
        def forward(self, x: Tensor) -> Tensor:
            runs.append(1)
            return super().forward(x if len(runs) == 1 else torch.relu(x))

    model = Wavering()
    with torch.no_grad():
        model.first.weight[2], model.first.bias[2] = 0, 0
    with pytest.raises(surgeon.SurgeonError, match="another path"):
        surgeon.plan_from_zeros(model, torch.randn(2, 6))


# -- limits --------------------------------------------------------------------------------------------


def test_a_layer_that_is_zero_throughout_keeps_a_unit() -> None:
    model = Perceptron()
    with torch.no_grad():
        model.first.weight.zero_()
        model.first.bias.zero_()
    plan = surgeon.plan_from_zeros(model, torch.randn(2, 6))
    assert len(removed(plan, "first.weight")) == 9 and unchanged(model, plan, torch.randn(9, 6))


def test_layers_to_keep() -> None:
    model = Perceptron()
    with torch.no_grad():
        model.first.weight[2], model.first.bias[2] = 0, 0
    with pytest.raises(surgeon.SurgeonError):
        surgeon.plan_from_zeros(model, torch.randn(2, 6), keep=["first"])


def test_nothing_is_zero() -> None:
    with pytest.raises(NothingPrunable, match="in use"):
        surgeon.plan_from_zeros(trained(), image())


def test_the_plan_replays_and_the_model_is_untouched() -> None:
    model = trained()
    with torch.no_grad():
        model.bn1.weight[1], model.bn1.bias[1] = 0, 0
    before = copy.deepcopy(model.state_dict())
    plan = surgeon.Plan.from_json(surgeon.plan_from_zeros(model, image()).to_json())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert unchanged(model, plan, image())


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_random_zeros_never_change_the_function(seed: int) -> None:
    """Zeros anywhere, in filters, norms, offsets and columns: what goes is not missed on other inputs."""
    generator = torch.Generator().manual_seed(seed)
    model = trained(seed)
    with torch.no_grad():
        for p in model.parameters():
            for dim in range(min(p.dim(), 2)):
                at = torch.rand(p.shape[dim], generator=generator) < 0.4
                p[(slice(None),) * dim + (at,)] = 0
    try:
        plan = surgeon.plan_from_zeros(model, image())
    except NothingPrunable:
        return
    assert unchanged(model, plan, 7 * image())


@pytest.mark.parametrize("name", list(MODELS))
def test_whole_models(name: str) -> None:
    """Everything that a plan takes is blanked, on models of many kinds: what goes then is not missed."""
    model, x = build(name)
    graph = surgeon.trace(model, x)
    plan = surgeon.plan(graph, surgeon.score(graph, "random", seed=1), ratio=0.3, scope="local")
    blanked = masked_state({**dict(model.named_parameters()), **dict(model.named_buffers())}, plan)
    with torch.no_grad():
        for parameter, tensor in model.named_parameters():
            tensor.copy_(blanked[parameter])
    try:
        found = surgeon.plan_from_zeros(model, x)  # which holds the results against each other
    except NothingPrunable as refusal:
        pytest.skip(str(refusal))
    proof = surgeon.verify(model, surgeon.operate(model, found), found, x)
    assert proof.params[1] < sum(p.numel() for p in model.parameters())
