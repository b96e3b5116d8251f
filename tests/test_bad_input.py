"""What users get wrong is told clearly, and leaves the model as it was."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon import errors
from tests.nets import Perceptron, Residual, image


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).view(-1, 7)


def test_failing_forward_names_the_source_line() -> None:
    with pytest.raises(errors.TraceError, match=r"test_bad_input.py:\d+: return self.layer\(x\).view\(-1, 7\)"):
        surgeon.trace(Broken(), torch.randn(2, 3))


def test_wrong_inputs_are_named_with_their_shapes() -> None:
    with pytest.raises(errors.TraceError, match=r"\(2, 4, 6, 6\)"):
        surgeon.trace(Residual(), torch.randn(2, 4, 6, 6))
    with pytest.raises(errors.TraceError, match="check that model"):
        surgeon.trace(Residual(), {"y": image()})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    model = Residual()
    model.conv1.weight.data[0, 0, 0, 0] = value
    with pytest.raises(errors.ScoreError, match=r"conv1.weight"):
        surgeon.prune(model, image(), ratio=0.5)


def test_nothing_prunable_lists_why() -> None:
    with pytest.raises(errors.NothingPrunable, match="the model's output"):
        surgeon.prune(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), ratio=0.5)
    with pytest.raises(errors.NothingPrunable, match=r"first: kept as asked \(\*\)"):
        surgeon.prune(Perceptron(), torch.randn(2, 6), ratio=0.5, keep="*")


def test_model_without_weights() -> None:
    with pytest.raises(errors.TraceError, match="nothing to cut"):
        surgeon.prune(nn.ReLU(), torch.randn(2, 4), ratio=0.5)


@pytest.mark.parametrize("keep", ["conv3", ["stem", "conv3"], {"out": "conv3"}])
def test_unknown_layer_in_keep_names_the_nearest(keep: Any) -> None:
    with pytest.raises(errors.UnknownLayer, match=r"did you mean 'conv2', 'conv1'|did you mean 'conv1', 'conv2'"):
        surgeon.trace(Residual(), image(), keep=keep)


def test_keep_takes_only_in_and_out() -> None:
    with pytest.raises(errors.SurgeonError, match="'outputs'"):
        surgeon.trace(Residual(), image(), keep={"outputs": "conv1"})


@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"ratio": 1.0},
        {"ratio": -0.1},
        {"ratio": 0.5, "flops": 0.5},
        {"flops": 0},
        {"flops": -1.0},
        {"params": "half"},
        {"flops": True},
        {"flops": float("nan")},
        {"ratio": float("nan")},
        {"ratio": 0.5, "scope": "everywhere"},
        {"ratio": 0.5, "round_to": 0},
        {"ratio": 0.5, "round_to": 2.5},
        {"ratio": 0.5, "floor": 1.5},
        {"ratio": 0.5, "groups": {"conv1": 2}},
    ],
)
def test_budgets_out_of_range(budget: dict[str, Any]) -> None:
    with pytest.raises(errors.BudgetError):
        surgeon.prune(Residual(), image(), **budget)


def test_unknown_layer_in_groups() -> None:
    with pytest.raises(errors.UnknownLayer, match="conv1"):
        surgeon.prune(Residual(), image(), ratio=0.5, groups={"conv9": 0.2})


def test_infeasible_budget_names_what_is_reachable() -> None:
    model = Residual()
    graph = surgeon.trace(model, image())
    with pytest.raises(errors.InfeasibleBudget, match="leave at least") as caught:
        surgeon.plan(graph, surgeon.score(graph), flops=0.001)
    least = float(str(caught.value).partition("leave at least ")[2].partition(";")[0])
    reached = surgeon.plan(graph, surgeon.score(graph), flops=least * 1.0001)
    assert reached.totals["flops"][1] <= least * 1.0001


def test_ratio_that_rounds_to_nothing_is_no_silent_no_op() -> None:
    with pytest.raises(errors.NothingPrunable, match="removes nothing"):
        surgeon.prune(Residual(), image(), ratio=0.01)


def test_unknown_criterion_and_wrong_scores() -> None:
    graph = surgeon.trace(Residual(), image())
    with pytest.raises(errors.ScoreError, match=r"choose one of activation, apoz, .*, wanda"):
        surgeon.score(graph, "magic")
    with pytest.raises(errors.ScoreError, match="units"):
        surgeon.score(graph, lambda graph, group: torch.ones(3))
    with pytest.raises(errors.ScoreError, match="no scores for group"):
        surgeon.plan(graph, {}, ratio=0.5)


def test_plan_for_another_model_names_the_tensor() -> None:
    plan = surgeon.prune(Residual(), image(), ratio=0.5).plan
    for other, name in (
        (Residual(width=10), "stem.weight"),
        (Perceptron(), "stem.weight"),
        (Residual(inner=9), "conv1"),
    ):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(errors.PlanMismatch, match=name):
            surgeon.operate(other, plan, inplace=True)
        assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())


class Uncopyable(Residual):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("no copies of me")


def test_model_that_cannot_be_copied() -> None:
    model = Uncopyable()
    plan = surgeon.prune(Residual(), image(), ratio=0.5).plan
    with pytest.raises(errors.SurgeonError, match="inplace=True"):
        surgeon.operate(model, plan)
    assert surgeon.operate(model, plan, inplace=True) is model


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_wrapped_models_are_unwrapped_or_refused() -> None:
    model = Residual()
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert type(surgeon.prune(wrapped, image(), ratio=0.5).model) is Residual
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(Perceptron())
        with pytest.raises(errors.UnsupportedModel, match="scripted"):
            surgeon.trace(scripted, torch.randn(2, 6))
    with pytest.raises(errors.UnsupportedModel, match="Module"):
        surgeon.trace(lambda x: x, torch.randn(2, 6))  # type: ignore[arg-type]


def test_outputs_that_are_not_finite_prove_nothing() -> None:
    model = Residual()
    with pytest.raises(errors.VerificationError, match="not finite"):
        surgeon.prune(model, image() * float("nan"), ratio=0.5)


@pytest.mark.parametrize("damage", ["weight", "swap", "attribute"])
def test_a_wrong_cut_is_found(damage: str) -> None:
    model = Residual().eval()
    graph = surgeon.trace(model, image())
    plan = surgeon.plan(graph, surgeon.score(graph), ratio=0.5, scope="local")
    small = surgeon.operate(model, plan)
    if damage == "weight":
        small.conv1.weight.data[0] += 0.01
    elif damage == "swap":
        small.conv2.weight.data = small.conv2.weight.data.flip(1)
    else:
        small.bn1.eps = 0.1
    with pytest.raises(errors.VerificationError, match="they part at call"):
        surgeon.verify(model, small, plan, image())
