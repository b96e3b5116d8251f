"""The guard finds the smallest model within the drop, and returns the model that it evaluated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import surgeon
from surgeon import errors
from surgeon.guard import Evaluations, Found, Trial, nested_plans, smallest_within
from surgeon.plan import Plan
from surgeon.verify import count_flops
from tests.nets import Perceptron, Residual, image

X = image()
MODEL = Residual(width=24, inner=48).eval()
GRAPH = surgeon.trace(MODEL, X)
SCORES = surgeon.score(GRAPH)


def make_plans(budgets: Sequence[float], **options: Any) -> list[Plan]:
    plans = surgeon.plan(GRAPH, SCORES, flops=list(budgets), **{"floor": 0, **options})
    assert isinstance(plans, list)
    return plans


PLANS = nested_plans(make_plans)


def share(plan: Plan) -> float:
    return plan.totals["flops"][1] / plan.totals["flops"][0]


def parameters(model: nn.Module) -> float:
    return float(sum(p.numel() for p in model.parameters()))


def flops(model: nn.Module) -> float:
    return count_flops(model, X).total


def closeness(model: nn.Module) -> Callable[[nn.Module], float]:
    with torch.no_grad():
        target = model(X)
    return lambda small: -float((small(X) - target).detach().abs().double().mean())


# -- the search ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0.999, 0.95, 0.72, 0.5, 0.31, 0.1, 0.05, 0.0])
def test_the_smallest_of_all(left: float) -> None:
    whole, calls = flops(MODEL), []

    def evaluate(model: nn.Module) -> float:
        calls.append(flops(model) / whole)
        return calls[-1]

    def search() -> Found:
        return smallest_within(
            PLANS, lambda plan: surgeon.operate(MODEL, plan), base=1.0, evaluate=evaluate, max_drop=1 - left
        )

    within = [share(plan) for _, plan in PLANS if share(plan) >= left]
    if not within:
        with pytest.raises(errors.AccuracyDrop):
            search()
        return
    found = search()
    assert share(found.plan) == min(within)
    assert flops(found.model) == found.plan.totals["flops"][1]
    assert [trial.value for trial in found.evaluations.trials] == calls
    assert len(set(calls)) == len(calls) <= len(PLANS).bit_length()


@given(st.dictionaries(st.integers(0, len(PLANS) - 1), st.floats(-1, 1)), st.floats(0, 1))
def test_any_evaluation(bumps: dict[int, float], max_drop: float) -> None:
    """Whatever the values: what is returned was evaluated, is within, and has the fewest FLOPs of those that are."""
    values = {share(plan): bumps.get(k, share(plan)) for k, (_, plan) in enumerate(PLANS)}
    tried = []

    def evaluate(plan: Plan) -> float:
        tried.append(plan)
        return values[share(plan)]

    try:
        found = smallest_within(PLANS, lambda plan: plan, base=1.0, evaluate=evaluate, max_drop=max_drop)
    except errors.AccuracyDrop as error:
        assert all(1.0 - values[share(plan)] > max_drop for plan in tried)
        assert PLANS[0][1] in tried
        assert len(error.evaluations.trials) == len(tried)  # type: ignore[attr-defined]
        return
    within = [plan for plan in tried if 1.0 - values[share(plan)] <= max_drop + 1e-6]
    assert found.model is found.plan is min(within, key=share)
    assert found.evaluations.chosen is not None
    assert found.evaluations.chosen.flops == share(found.plan)
    assert [trial.value for trial in found.evaluations.trials] == [values[share(plan)] for plan in tried]


def test_values_that_are_not_monotone() -> None:
    """The first cut tried is the only bad one: the search turns away from it, and ends right before it."""
    middle = (len(PLANS) - 1) // 2
    bad = PLANS[middle][1]
    found = smallest_within(
        PLANS, lambda plan: plan, base=1.0, evaluate=lambda plan: 0.0 if plan is bad else 1.0, max_drop=0.1
    )
    assert found.evaluations.trials[0] == Trial(PLANS[middle][0], share(bad), 0.0)
    assert found.plan is PLANS[middle - 1][1]


def test_drop_out_of_reach() -> None:
    tried = []

    def evaluate(plan: Plan) -> float:
        tried.append(plan)
        return 0.5 + share(plan) / 10

    with pytest.raises(errors.AccuracyDrop) as caught:
        smallest_within(PLANS, lambda plan: plan, base=1.0, evaluate=evaluate, max_drop=0.25)
    budget, plan = PLANS[0]
    best = f"the best of {len(tried)} cuts at {0.5 + share(plan) / 10:.6g}"
    for text in ("original is at 1,", best, f"budget {budget:.4g} (", "finetune="):
        assert text in str(caught.value)
    assert tried[-1] is plan
    evaluations = caught.value.evaluations
    assert isinstance(evaluations, Evaluations)
    assert evaluations.chosen is None
    assert len(evaluations.trials) == len(tried)


def test_a_drop_of_just_so_much_is_within() -> None:
    """0.9 - 0.89 is more than 0.01 in floating point, more so in that of accuracies: float32."""
    for base, value in ((0.9, 0.89), (float(torch.tensor(0.7)), float(torch.tensor(0.69)))):
        assert base - value != 0.01
        assert Evaluations(base, 0.01, (Trial(0.5, 0.5, value),)).chosen is not None
        assert Evaluations(base, 0.00999, (Trial(0.5, 0.5, value),)).chosen is None


def test_evaluations_as_a_table() -> None:
    trials = (Trial(0.5, 0.49, 0.8), Trial(0.75, 0.74, 0.92), Trial(0.62, 0.61, 0.9))
    rows = [line for line in str(Evaluations(0.93, 0.05, trials)).splitlines() if line.startswith("│")]
    assert [row.strip("│ ").split("│")[-1].strip() for row in rows] == ["too much", "within", "chosen"]
    assert "61.0%" in rows[2]
    assert "0.03" in rows[2]


# -- the plans -------------------------------------------------------------------------------------------


def test_plans_go_from_mild_to_the_last_that_is_reachable() -> None:
    shares = [share(plan) for _, plan in PLANS]
    assert all(after < before for before, after in pairwise(shares))
    assert all(share(plan) <= budget for budget, plan in PLANS)
    assert PLANS[0][0] > 0.9
    assert PLANS[-1][0] == pytest.approx(least_reachable(floor=0))
    assert all(one.cuts != other.cuts for (_, one), (_, other) in pairwise(PLANS))


def least_reachable(**options: Any) -> float:
    for percent in range(1, 100):
        try:
            surgeon.plan(GRAPH, SCORES, flops=percent / 100, **options)
        except errors.InfeasibleBudget:
            continue
        return percent / 100
    raise AssertionError


def test_each_plan_cuts_what_the_one_before_it_cuts() -> None:
    for (_, mild), (_, hard) in pairwise(PLANS):
        assert mild.cuts.keys() <= hard.cuts.keys()
        for name, cut in mild.cuts.items():
            kept = {selection.dims: set(selection.keep) for selection in hard.cuts[name].selections}
            assert all(kept[selection.dims] <= set(selection.keep) for selection in cut.selections)


def test_a_coarse_search() -> None:
    budgets = [budget for budget, _ in nested_plans(make_plans, 0.25)]
    assert budgets == [0.75, 0.5, 0.25]


def test_of_budgets_with_the_same_cut_the_lowest_counts() -> None:
    found = nested_plans(lambda budgets: make_plans(budgets, floor=0.1, round_to=4))
    assert len(found) < len(PLANS) / 2
    cuts = [plan.cuts for _, plan in found]
    assert all(one != other for one, other in pairwise(cuts))
    assert all(plan.totals["flops"][1] > lower * plan.totals["flops"][0] for (_, plan), (lower, _) in pairwise(found))
    assert all(budget - 0.01 < share(plan) <= budget for budget, plan in found)


def test_plans_are_searched_by_what_they_leave() -> None:
    """A higher budget may come to a smaller model, where plans are made one by one."""
    given_plans = [make_plans([budget])[0] for budget in (0.9, 0.5, 0.7, 0.3)]
    found = nested_plans(lambda budgets: given_plans[: len(budgets)], 0.2)
    assert [plan for _, plan in found] == [given_plans[k] for k in (0, 2, 1, 3)]
    assert [budget for budget, _ in found] == [0.8, 0.4, 0.6, 0.2]


def test_a_chain_that_ends_sooner_than_its_budgets_alone() -> None:
    asked = []

    def make(budgets: Sequence[float]) -> list[Plan]:
        asked.append(list(budgets))
        if len(budgets) > 30:
            raise errors.InfeasibleBudget("not below all of those")
        return make_plans(budgets)

    found = nested_plans(make)
    assert [0.7] in [budgets[-1:] for budgets in asked if len(budgets) == 30]
    assert found[-1][0] == pytest.approx(0.7)


@pytest.mark.parametrize("resolution", [0, 1, -0.1, float("nan")])
def test_resolution_out_of_range(resolution: float) -> None:
    with pytest.raises(errors.BudgetError, match="resolution"):
        nested_plans(make_plans, resolution)


class Recurrent(nn.Module):
    """A recurrent layer, of which fvcore counts nothing, and a sum over its hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0].sum(-1)


def test_models_without_flops() -> None:
    with pytest.raises(errors.NothingPrunable, match="none of the model's operations counts any FLOPs"):
        surgeon.prune(Recurrent(), torch.randn(3, 1, 4), evaluate=lambda small: 1.0, max_drop=0.1)


# -- through prune ---------------------------------------------------------------------------------------


def test_prune_within_a_drop() -> None:
    model = copy.deepcopy(MODEL)
    model.bn1.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate = closeness(copy.deepcopy(model).eval())
    result = surgeon.prune(model, X, evaluate=evaluate, max_drop=0.03)
    evaluations = result.evaluations
    assert evaluations is not None
    assert evaluations.base == 0
    assert evaluations.chosen is not None
    assert evaluations.chosen.value >= -0.03
    assert evaluations.chosen.flops == share(result.plan)
    assert evaluations.chosen.flops == pytest.approx(flops(result.model) / flops(model))
    assert result.plan.settings["flops"] == evaluations.chosen.budget
    assert any(not evaluations.within(trial) for trial in evaluations.trials)
    assert result.proof is not None
    assert result.proof.difference < 1e-9
    assert "chosen" in str(result)
    assert result.model.bn1.training
    assert not result.model.training
    assert evaluate(result.model.eval()) == evaluations.chosen.value
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_options_of_plans_and_keep_hold() -> None:
    result = surgeon.prune(
        MODEL, X, evaluate=parameters, max_drop=1e9, floor=0.5, round_to=2, keep="stem", check=False, resolution=0.1
    )
    assert result.proof is None
    assert result.model.stem.out_channels == 24
    assert result.model.conv1.out_channels in (24, 26)  # half of 48 can stay; a budget is a tenth of the FLOPs
    assert result.evaluations is not None
    assert all(trial.budget * 10 == pytest.approx(round(trial.budget * 10)) for trial in result.evaluations.trials)


def test_a_budget_alone_evaluates_nothing() -> None:
    result = surgeon.prune(MODEL, X, flops=0.5)
    assert result.evaluations is None


def test_fine_tuning_between() -> None:
    """Each cut is tuned once, from the original's weights, before it is evaluated; the tuned model is returned."""
    tuned: list[nn.Module] = []
    model = Perceptron()
    x = torch.randn(4, 6)

    def finetune(small: nn.Module) -> None:
        assert all(other is not small for other in tuned)
        assert small.training
        small.eval()
        tuned.append(small)
        kept = {tuple(row.tolist()) for row in model.first.weight}
        assert {tuple(row.tolist()) for row in small.first.weight} <= kept
        with torch.no_grad():
            small.last.bias.fill_(7.0)

    def evaluate(small: nn.Module) -> float:
        assert not small.training
        return 1.0 if bool((small.last.bias == 7).all()) else 1.5 if small.first.out_features == 10 else 0.0

    result = surgeon.prune(model, x, evaluate=evaluate, max_drop=0.5, finetune=finetune)
    assert any(result.model is small for small in tuned)
    assert result.model.first.out_features == 1
    assert result.model.training
    assert bool((result.model.last.bias == 7).all())
    assert not bool((model.last.bias == 7).any())
    assert result.proof is not None  # of the cut: the tuned model computes something else
    assert result.evaluations is not None
    assert len(result.evaluations.trials) == len(tuned)
    with pytest.raises(errors.AccuracyDrop, match=r"original is at 1\.5"):
        surgeon.prune(model, x, evaluate=evaluate, max_drop=0.5)


def test_fine_tuning_that_fails() -> None:
    def broken(small: nn.Module) -> None:
        raise RuntimeError("no data")

    with pytest.raises(errors.EvaluationError, match=r"finetune failed on Plan\(.*RuntimeError: no data") as caught:
        surgeon.prune(MODEL, X, evaluate=parameters, max_drop=1.0, finetune=broken)
    assert type(caught.value.__cause__) is RuntimeError
    with pytest.raises(errors.EvaluationError, match="another model"):
        surgeon.prune(MODEL, X, evaluate=parameters, max_drop=1.0, finetune=lambda small: Residual())


def test_evaluations_that_fail() -> None:
    def crash(small: Residual) -> float:
        return 1 / (small is None)

    with pytest.raises(errors.EvaluationError, match="on the original: ZeroDivisionError"):
        surgeon.prune(MODEL, X, evaluate=crash, max_drop=0.1)
    whole = parameters(MODEL)
    for value, reason in ((float("nan"), "nan"), (torch.ones(2), r"a Tensor of shape \[2\]")):
        with pytest.raises(errors.EvaluationError, match=f"returned {reason} for the model cut to .*% of the FLOPs"):
            surgeon.prune(
                MODEL, X, evaluate=lambda small, v=value: 1.0 if parameters(small) == whole else v, max_drop=0.1
            )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"evaluate": parameters}, "max_drop=None"),
        ({"evaluate": parameters, "max_drop": -0.1}, "max_drop=-0.1"),
        ({"evaluate": parameters, "max_drop": float("nan")}, "max_drop=nan"),
        ({"evaluate": parameters, "max_drop": float("inf")}, "max_drop=inf"),
        ({"evaluate": parameters, "max_drop": True}, "max_drop=True"),
        ({"evaluate": parameters, "max_drop": "1%"}, "max_drop='1%'"),
        ({"max_drop": 0.1, "flops": 0.5}, "max_drop needs evaluate="),
        ({"finetune": print, "flops": 0.5}, "finetune needs evaluate="),
        ({"evaluate": parameters, "max_drop": 0.1, "flops": 0.5}, "either flops=0.5 or evaluate="),
        ({"evaluate": parameters, "max_drop": 0.1, "params": 0.5}, "either params=0.5 or evaluate="),
        ({"evaluate": parameters, "max_drop": 0.1, "ratio": 0.5}, "either ratio=0.5 or evaluate="),
        ({"evaluate": parameters, "max_drop": 0.1, "rato": 0.5}, "did you mean 'ratio'"),
        ({"evaluate": parameters, "max_drop": 0.1, "resolution": 2}, "resolution=2"),
        ({"flops": [0.8, 0.5]}, "several models, and prune makes one"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(errors.BudgetError, match=reason):
        surgeon.prune(MODEL, X, **options)


def test_not_a_function() -> None:
    with pytest.raises(errors.EvaluationError, match="evaluate must be a function of the model, not float"):
        surgeon.prune(MODEL, X, evaluate=0.9, max_drop=0.1)  # type: ignore[arg-type]
    with pytest.raises(errors.EvaluationError, match="finetune must be a function"):
        surgeon.prune(MODEL, X, evaluate=parameters, max_drop=0.1, finetune=3)  # type: ignore[arg-type]


def test_floors_that_leave_nothing_to_search() -> None:
    with pytest.raises(errors.InfeasibleBudget, match="leave at least"):
        surgeon.prune(MODEL, X, evaluate=parameters, max_drop=0.1, floor=1.0)


def test_exported_programs() -> None:
    class Wide(Perceptron):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model, x = Wide().eval(), torch.randn(4, 6)
    program = torch.export.export(model, (x,))
    target = model(x).detach()

    def evaluate(small: Any) -> float:
        return -float((small.module()(x) - target).detach().abs().mean())

    result = surgeon.prune(program, x, evaluate=evaluate, max_drop=0.2, resolution=0.1)
    assert isinstance(result.model, torch.export.ExportedProgram)
    assert result.evaluations is not None
    assert result.evaluations.chosen is not None
    assert evaluate(result.model) == result.evaluations.chosen.value
