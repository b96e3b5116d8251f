"""Schedules are pure functions of the step that only ever ask for less."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon import schedule
from surgeon.errors import BudgetError
from surgeon.schedule import Schedule

SHARES = st.floats(1e-6, 1.0)
STEPS, EVERY, START = st.integers(1, 500), st.integers(1, 600), st.integers(0, 50)


@st.composite
def schedules(draw: Any) -> Schedule:
    name = draw(st.sampled_from(["flops", "params", "memory", "ratio"]))
    share = draw(SHARES)
    budget = {name: min(share, 0.999) if name == "ratio" else share}
    kind = draw(st.sampled_from(["one_shot", "iterative", "gradual", "exponential", "custom"]))
    steps, every, start = draw(STEPS), draw(EVERY), draw(START)
    if kind == "one_shot":
        return schedule.one_shot(at=start + 1, **budget)
    if kind == "iterative":
        return schedule.iterative(times=draw(st.integers(1, 12)), every=every, start=start, **budget)
    if kind == "gradual":
        initial = draw(st.floats(0, 0.99))
        return schedule.gradual(steps=steps, every=every, start=start, initial=initial, **budget)
    if kind == "exponential":
        return schedule.exponential(steps=steps, every=every, start=start, **budget)
    ((name, share),) = budget.items()
    function = (lambda p: {name: share * p}) if name == "ratio" else (lambda p: {name: max(share, 1 - p)})
    return schedule.custom(function, steps=steps, every=every, start=start)


def grows(name: str, before: float, after: float) -> bool:
    return after < before if name == "ratio" else after > before


@given(schedules())
def test_budgets_only_ever_fall_and_end_at_the_target(plan: Schedule) -> None:
    asked = [plan.at(step) for step in range(plan.end + 3)]
    for before, after in pairwise(asked):
        assert before.keys() == after.keys()
        assert not any(grows(name, before[name], after[name]) for name in before)
    for name, value in asked[0].items():
        assert 0 <= value <= 1
        assert asked[plan.end][name] == asked[-1][name]
    if plan.kind != "custom":
        assert asked[-1] == {target.name: target.asked for target in plan.targets}


@given(schedules())
def test_cuts_are_where_the_arithmetic_says(plan: Schedule) -> None:
    cuts = [step for step in range(plan.end + 50) if plan.due(step)]
    assert cuts == list(plan.cuts) and cuts[-1] == plan.end and cuts[0] >= 1
    for step in range(0, plan.end + 3):
        assert plan.next(step) == next((cut for cut in cuts if cut >= step), None)
    regular = [cut for cut in cuts if cut not in (plan.end, max(plan.start, 1))]
    assert all((cut - plan.start) % plan.every == 0 for cut in regular)


@given(schedules())
def test_state_round_trip(plan: Schedule) -> None:
    state = json.loads(json.dumps(plan.state_dict()))
    assert state == plan.state_dict()
    if plan.kind == "custom":
        with pytest.raises(BudgetError, match="make it again"):
            schedule.from_state(state)
        return
    again = schedule.from_state(state)
    assert again == plan and str(again) == str(plan)
    assert all(again.at(step) == plan.at(step) for step in range(0, plan.end + 2, 7))


def test_gradual_is_the_published_cubic() -> None:
    plan = schedule.gradual(flops=0.4, steps=1000, every=100, start=50)
    for step in range(50, 1051, 50):
        sparsity = 0.6 + (0 - 0.6) * (1 - (step - 50) / (10 * 100)) ** 3
        assert plan.at(step)["flops"] == pytest.approx(1 - sparsity, abs=1e-12)
    begun = schedule.gradual(flops=0.4, steps=1000, every=100, initial=0.5)
    assert begun.cuts[0] == 1 and begun.at(0)["flops"] == pytest.approx(1 - 0.3)
    assert begun.at(500)["flops"] == pytest.approx(1 - (0.6 + (0.3 - 0.6) * 0.5**3))


def test_amounts_become_shares_of_the_model() -> None:
    plan = schedule.exponential(params="1.2M", flops=2e8, steps=200, every=100)
    whole = {"params": 4.8e6, "flops": 8e8}
    assert plan.at(100, whole) == {"params": 0.5, "flops": 0.5}
    assert plan.at(200, whole) == {"params": 0.25, "flops": 0.25}
    assert plan.at(200, {"params": 1e3, "flops": 1e3}) == {"params": 1.0, "flops": 1.0}
    with pytest.raises(BudgetError, match="share only of something"):
        plan.at(200)


def test_printed_on_a_line() -> None:
    assert str(schedule.one_shot(flops=0.5, at=100)) == "one_shot to flops=0.5 at step 100"
    assert str(schedule.iterative(flops=0.4, params="1M", times=3, every=50)) == (
        "iterative to flops=0.4, params='1M' in 3 cuts, steps 50 to 150"
    )


@pytest.mark.parametrize(
    "make, why",
    [
        (lambda: schedule.one_shot(), "say how much"),
        (lambda: schedule.one_shot(flops=0.5, ratio=0.5), "either a ratio or budgets"),
        (lambda: schedule.one_shot(latency=0.5), "no budget of a schedule"),
        (lambda: schedule.one_shot(flops=0), "must be positive"),
        (lambda: schedule.one_shot(flops="half"), "not a number"),
        (lambda: schedule.one_shot(ratio=1.0), r"in \[0, 1\)"),
        (lambda: schedule.one_shot(flops=float("nan")), "flops"),
        (lambda: schedule.one_shot(flops=float("inf")), "finite"),
        (lambda: schedule.one_shot(flops=0.5, at=0), "at least 1"),
        (lambda: schedule.gradual(flops=0.5, steps=0, every=1), "steps=0"),
        (lambda: schedule.gradual(flops=0.5, steps=10, every=True), "every=True"),
        (lambda: schedule.gradual(flops=0.5, steps=10, every=5, initial=1.0), "initial"),
        (lambda: schedule.iterative(flops=0.5, times=2.0, every=5), "times=2.0"),
        (lambda: schedule.custom(0.5, steps=10, every=5), "no function"),
        (lambda: schedule.custom(lambda p: 0.5, steps=10, every=5), "not budgets"),
        (lambda: schedule.custom(lambda p: {"flops": 0.5 + p / 4}, steps=10, every=5), "does not grow again"),
        (lambda: schedule.custom(lambda p: {"ratio": 0.5 - p / 4}, steps=10, every=5), "does not grow again"),
        (
            lambda: schedule.custom(lambda p: {"flops" if p < 1 else "params": 0.5}, steps=10, every=5),
            "other budgets",
        ),
    ],
)
def test_misuse_is_told(make: Any, why: str) -> None:
    with pytest.raises(BudgetError, match=why):
        make()
