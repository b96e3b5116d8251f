"""A plan found by matching values makes the pruned model of the original, bit for bit; what is ambiguous is refused."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import surgeon
from surgeon.errors import ConvertError
from tests.nets import Perceptron, Residual, image
from tests.zoo import MODELS, build
from tests.zoo.networks import network

torch_pruning = pytest.importorskip("torch_pruning")


def random_plan(model: nn.Module, x: Any, seed: int = 0, ratio: float = 0.4) -> surgeon.Plan:
    graph = surgeon.trace(model, x)
    return surgeon.plan(graph, surgeon.score(graph, "random", seed=seed), ratio=ratio, scope="local")


def same_state(ours: nn.Module, theirs: nn.Module) -> bool:
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def replayed(plan: surgeon.Plan, original: nn.Module) -> nn.Module:
    return surgeon.operate(original, surgeon.Plan.from_json(plan.to_json()))


def cuts(plan: surgeon.Plan) -> dict[str, Any]:
    return {name: cut.to_json() for name, cut in plan.cuts.items()}


# -- torch-pruning -------------------------------------------------------------------------------------


def by_torch_pruning(name: str, steps: int = 2) -> tuple[nn.Module, nn.Module, Tensor, list[Any]]:
    """Return a network before and after torch-pruning, an input, and the history."""
    pruned, x = network(name, torch.float32)
    pruned.requires_grad_(True)
    original = copy.deepcopy(pruned)
    heads = [m for m in pruned.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) == 10]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.MagnitudePruner(
            pruned,
            x,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.4,
            ignored_layers=heads,
            iterative_steps=steps,
        )
        for _ in range(steps):
            pruner.step()
    return original, pruned, x, pruner.pruning_history()


SLOW = [pytest.param(n, marks=pytest.mark.slow) for n in ("mobilenet_v2", "vgg16_bn", "mnasnet0_5")]


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", *SLOW])
def test_models_that_torch_pruning_cut(name: str) -> None:
    original, pruned, x, history = by_torch_pruning(name)
    plans = {
        "pair": surgeon.plan_from_pair(original, pruned, x),
        "history": surgeon.plan_from_history(original, history, x),
    }
    for plan in plans.values():
        small = replayed(plan, original)
        assert same_state(small, pruned) and torch.equal(small(x), pruned(x))
        assert plan.totals["flops"][1] < plan.totals["flops"][0]
    assert cuts(plans["pair"]) == cuts(plans["history"])
    surgeon.verify(original, small, plans["pair"], x)
    # The history says what goes from any checkpoint of the architecture.
    other, _ = network(name, torch.float32)
    for p in other.parameters():
        p.data.normal_()
    assert replayed(plans["history"], other)(x).shape == pruned(x).shape


@pytest.mark.parametrize("name", ["resnet18", pytest.param("densenet121", marks=pytest.mark.slow)])
def test_pairs_without_inputs_replay(name: str) -> None:
    original, pruned, x, _ = by_torch_pruning(name, steps=1)
    small = replayed(surgeon.plan_from_pair(original, pruned), original)
    assert same_state(small, pruned) and torch.equal(small(x), pruned(x))


def test_a_history_of_another_architecture() -> None:
    _, _, x, history = by_torch_pruning("resnet18", steps=1)
    with pytest.raises(ConvertError, match="can't replay"):
        surgeon.plan_from_history(network("vgg16_bn", torch.float32)[0], history, x)


# -- own cuts, found again -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in MODELS if "scale" not in n])
def test_the_plan_is_found_again(name: str) -> None:
    """Of hand-written models, among them grouped layers, heads, tables and tied weights, as far as values tell."""
    model, x = build(name)
    plan = random_plan(model, x)
    small = surgeon.operate(model, plan)
    try:
        found = surgeon.plan_from_pair(model, small, x)
    except ConvertError as refusal:
        assert "ambiguous" in str(refusal) or "only go together" in str(refusal)
        pytest.skip(str(refusal))
    assert cuts(found) == cuts(plan) and set(found.edits) == set(plan.edits)
    assert same_state(surgeon.operate(model, found), small)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), ratio=st.sampled_from([0.1, 0.5, 0.8]), dtype=st.sampled_from(["half", "float"]))
def test_half_precision_repeats_values_and_is_matched_all_the_same(seed: int, ratio: float, dtype: str) -> None:
    torch.manual_seed(seed)
    model, x = Residual(16, 24), image()
    plan = random_plan(model, x, seed, ratio)
    for p in model.parameters():
        p.data = (p.data * 8).round() / 8  # few values, many times each
    model = getattr(model, dtype)()
    small = surgeon.operate(model, plan)
    found = surgeon.plan_from_pair(model.float(), small.float(), x)
    assert same_state(surgeon.operate(model, found), small)
    assert cuts(found) == cuts(plan)


def test_norms_that_were_never_trained_follow_their_layer() -> None:
    model, x = Residual(), image()
    assert bool((model.bn1.weight == 1).all())
    plan = random_plan(model, x)
    small = surgeon.operate(model, plan)
    assert cuts(surgeon.plan_from_pair(model, small, x)) == cuts(plan)
    with pytest.raises(ConvertError, match=r"bn1\.(weight|bias).*ambiguous.*give example_inputs"):
        surgeon.plan_from_pair(model, small)


def test_the_order_tells_equal_rows_apart() -> None:
    model = Perceptron(4, 6)
    with torch.no_grad():
        model.first.weight[1] = model.first.weight[4]
        model.first.bias[1] = model.first.bias[4]
        model.last.weight[:, 1] = model.last.weight[:, 4]
    small = copy.deepcopy(model)
    keep = [0, 2, 4, 5]
    small.first.weight.data, small.first.bias.data = model.first.weight.data[keep], model.first.bias.data[keep]
    small.last.weight.data = model.last.weight.data[:, keep]
    plan = surgeon.plan_from_pair(model, small, torch.randn(1, 4))
    assert plan.cuts["first.weight"].selections[0].keep.tolist() == keep


def test_equal_units_side_by_side_are_ambiguous() -> None:
    model = Perceptron(4, 6)
    with torch.no_grad():
        model.first.weight[3] = model.first.weight[4]
        model.first.bias[3] = model.first.bias[4]
        model.last.weight[:, 3] = model.last.weight[:, 4]
    small = copy.deepcopy(model)
    keep = [0, 1, 2, 4, 5]
    small.first.weight.data, small.first.bias.data = model.first.weight.data[keep], model.first.bias.data[keep]
    small.last.weight.data = model.last.weight.data[:, keep]
    for inputs in (None, torch.randn(1, 4)):
        with pytest.raises(ConvertError, match="positions 3-4 have the same values"):
            surgeon.plan_from_pair(model, small, inputs)


@pytest.mark.parametrize("inputs", [None, image()], ids=["alone", "coupled"])
def test_tuned_weights_are_refused(inputs: Any) -> None:
    model = Residual()
    with torch.no_grad():
        for p in (*model.bn1.parameters(), model.bn1.running_mean, model.bn1.running_var):
            p.normal_()
    small = surgeon.operate(model, random_plan(model, image()))
    tuned = copy.deepcopy(small)
    with torch.no_grad():
        tuned.conv1.weight += 1e-4
        tuned.conv2.weight += 1e-4
    with pytest.raises(ConvertError, match=r"conv\d\.weight.*before it was tuned"):
        surgeon.plan_from_pair(model, tuned, inputs)
    with torch.no_grad():
        small.head.bias += 1
    with pytest.raises(ConvertError, match=r"head\.bias"):
        surgeon.plan_from_pair(model, small, inputs)
    plan = surgeon.plan_from_pair(model, small, inputs, changed=["head.bias"])
    assert torch.equal(surgeon.operate(model, plan).conv1.weight, small.conv1.weight)


def test_recalibrated_norms_may_be_named() -> None:
    model, x = Residual(), image()
    plan = random_plan(model, x)
    small = surgeon.operate(model, plan)
    small.train()(x)
    found = surgeon.plan_from_pair(model, small, x, changed=["*.running_*", "*.num_batches_tracked"])
    assert cuts(found) == cuts(plan)


def test_other_architectures_are_refused() -> None:
    with pytest.raises(ConvertError, match="is only in the original"):
        surgeon.plan_from_pair(Residual(), Perceptron())
    with pytest.raises(ConvertError, match="no part of it"):
        surgeon.plan_from_pair(Perceptron(6, 10), Perceptron(6, 12))
    with pytest.raises(ConvertError, match="no part of it"):
        surgeon.plan_from_pair(Perceptron(), Perceptron().half())
    with pytest.raises(ConvertError, match="meta"):
        surgeon.plan_from_pair(Perceptron(), Perceptron().to("meta"))


def test_what_surgeon_pins_is_named() -> None:
    """Somebody cut the classes: without inputs that replays, with them the graph objects."""
    model, x = Perceptron(), torch.randn(2, 6)
    small = copy.deepcopy(model)
    small.last.weight.data, small.last.bias.data = model.last.weight.data[:3], model.last.bias.data[:3]
    small.last.out_features = 3
    with pytest.raises(ConvertError, match=r"last\.(weight|bias) dim 0"):
        surgeon.plan_from_pair(model, small, x)
    plan = surgeon.plan_from_pair(model, small)
    assert replayed(plan, model).last.out_features == 3 and torch.equal(replayed(plan, model)(x), small(x))


class Auxiliary(Perceptron):
    """A second head that only training runs, as in GoogLeNet: tools that look at eval mode leave it as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.first(x))
        return (self.last(h), self.aux(h)) if self.training else self.last(h)


def test_a_head_that_was_left_as_it_was_is_named() -> None:
    model, x = Auxiliary().eval(), torch.randn(2, 6)
    small = surgeon.operate(model, random_plan(model, x))
    assert small.aux.in_features < 10
    small.aux = copy.deepcopy(model.aux)
    with pytest.raises(ConvertError, match=r"aux\.weight dim 1 has 10 positions left.*not consistent"):
        surgeon.plan_from_pair(model, small, x)
    assert torch.equal(replayed(surgeon.plan_from_pair(model, small), model)(x), small(x))


def test_identical_models_give_an_empty_plan() -> None:
    model, x = Residual(), image()
    for inputs in (None, x):
        plan = surgeon.plan_from_pair(model, copy.deepcopy(model), inputs)
        assert not plan.cuts and not plan.edits
