"""The budget solver against every choice there is."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.errors import InfeasibleBudget
from surgeon.plan.allocate import Budget, Ladder, Overlap
from surgeon.plan.cost import Cost
from surgeon.plan.problem import Problem
from surgeon.plan.solve import Choice, _Rungs, solve


def ladder(name: str, size: int, rungs: Any, loss: Any, touched: Any) -> Ladder:
    return Ladder((name,), size, np.array(rungs), np.array(loss, float), np.array(touched, float), np.zeros((size, 1)))


def polynomial(terms: list[tuple[float, list[int]]], counts: int) -> Cost:
    """Build a cost of products of counts."""
    longest = max(len(factors) for _, factors in terms)
    factors = np.array([[c + 1 for c in factors] + [0] * (longest - len(factors)) for _, factors in terms])
    plain = np.full(counts, -1)
    return Cost(np.array([c for c, _ in terms]), factors, np.arange(counts), plain, np.zeros(len(terms), int))


@st.composite
def problems(draw: Any) -> Problem:
    """Draw a few groups with falling importance, widths that some share, a table, costs of up to three widths each."""
    count = draw(st.integers(2, 4))
    sizes = [draw(st.integers(2, 6)) for _ in range(count)]
    tabled = draw(st.booleans())
    # Count g belongs to group g; one more is the sum of all; with a table, one is rows times columns.
    counts = [*sizes, sum(sizes), *([sizes[0] * sizes[1]] if tabled else [])]
    found = []
    for g, size in enumerate(sizes):
        touched = np.zeros(len(counts))
        touched[g] = touched[count] = 1
        if tabled and g < 2:
            touched[-1] = sizes[1 - g]
        steps = sorted({0, *draw(st.lists(st.integers(1, size - 1), max_size=4))})
        losses = np.cumsum([0.0, *(draw(st.floats(0.01, 3)) for _ in steps[1:])])
        found.append(ladder(f"g{g}", size, steps, losses, touched))
    overlaps = [Overlap(0, 1, np.eye(len(counts))[-1])] if tabled else []
    factors = st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=3)
    budgets = []
    for name in draw(st.sampled_from([["flops"], ["flops", "params"]])):
        terms = draw(st.lists(st.tuples(st.floats(0.5, 4), factors), min_size=1, max_size=5))
        cost = polynomial(terms, len(counts))
        budgets.append(Budget(name, cost, draw(st.floats(0.3, 1.0)) * cost.total(np.array(counts)), "drawn"))
    return Problem(np.array(counts), found, overlaps, budgets)


def best_of_all(problem: Problem) -> float:
    choices = product(*(range(len(l.rungs)) for l in problem.ladders))
    return min((problem.loss(c) for c in choices if problem.keeps(c)), default=np.inf)


@given(problems())
def test_small_problems_are_solved_to_the_optimum(problem: Problem) -> None:
    best = best_of_all(problem)
    if not np.isfinite(best):
        with pytest.raises(InfeasibleBudget):
            solve(problem)
        return
    choice = solve(problem)
    assert problem.keeps(choice.rungs)
    assert choice.loss == pytest.approx(problem.loss(choice.rungs))
    assert choice.loss == pytest.approx(best, rel=1e-6, abs=1e-9)


@given(problems())
def test_the_bound_is_below_every_choice(problem: Problem) -> None:
    best = best_of_all(problem)
    if np.isfinite(best):
        assert solve(problem).bound <= best * (1 + 1e-6) + 1e-9


@given(problems(), st.data())
def test_any_tangent_and_multiplier_give_a_bound(problem: Problem, data: Any) -> None:
    best = best_of_all(problem)
    widths = np.array([data.draw(st.floats(1.0, float(l.size))) for l in problem.ladders])
    tangents = problem.tangents(widths)
    multipliers = np.array([data.draw(st.floats(0, 5)) for _ in tangents])
    assert _Rungs.of(problem.ladders).bound(tangents, multipliers) <= best + 1e-9


@given(problems(), st.floats(1.0, 2.0))
def test_more_budget_never_loses_more(problem: Problem, more: float) -> None:
    if not np.isfinite(best_of_all(problem)):
        return
    wider = replace(problem, budgets=[replace(b, limit=b.limit * more) for b in problem.budgets])
    assert solve(wider).loss <= solve(problem).loss + 1e-6


@given(problems())
def test_tangents_touch_the_cost_and_stay_below_it(problem: Problem) -> None:
    widths = problem.sizes / 2 + 0.5
    for tangent, budget in zip(problem.tangents(widths), problem.budgets):
        assert tangent.value == pytest.approx(budget.cost.total(problem.counts(problem.sizes - widths)))
        for choice in product(*(range(len(l.rungs)) for l in problem.ladders)):
            steps = problem.steps(choice)
            line = tangent.value + tangent.slopes @ (np.log(problem.sizes - steps) - tangent.at)
            assert line <= budget.cost.total(problem.counts(steps)) * (1 + 1e-9) + 1e-9


def chain(layers: int, width: int, seed: int) -> Problem:
    """Return a chain of layers, each multiplied with the next."""
    random = np.random.default_rng(seed)
    counts = np.full(layers, width)
    found = []
    for g in range(layers):
        share = np.sort(random.random(width)) / width * 2
        stays = np.maximum(1 - np.concatenate([[0], np.cumsum(share / share.sum())]), 1e-12)
        found.append(ladder(f"g{g}", width, np.arange(width), -np.log(stays)[:-1], np.eye(layers)[g]))
    cost = polynomial([(float(random.uniform(0.5, 2)), [g, g + 1]) for g in range(layers - 1)], layers)
    return Problem(counts, found, [], [Budget("flops", cost, cost.total(counts), "")])


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.3, 0.1])
def test_chains_come_within_a_fraction_of_a_percent(share: float) -> None:
    problem = chain(20, 64, seed=1)
    whole = problem.budgets[0].limit
    problem = replace(problem, budgets=[replace(problem.budgets[0], limit=share * whole)])
    choice = solve(problem)
    left = problem.budgets[0].cost.total(problem.counts(problem.steps(choice.rungs)))
    assert (share - 0.001) * whole <= left <= share * whole
    assert choice.gap < 0.01


def test_losses_that_are_not_convex_are_no_obstacle() -> None:
    # A jump after the first step, then nothing: half-way choices are never good.
    curve = [0.0, 1.0, 1.0, 1.0, 1.01, 5.0]
    found = [ladder(f"g{g}", 8, range(6), curve, np.eye(3)[g]) for g in range(3)]
    cost = polynomial([(1.0, [0, 1]), (1.0, [1, 2])], 3)
    problem = Problem(np.full(3, 8), found, [], [Budget("flops", cost, 0.55 * 128, "")])
    assert solve(problem).loss == pytest.approx(best_of_all(problem))


def test_choice_prints_on_a_line() -> None:
    assert str(Choice((1, 2), 1.01, 1.0)) == "loss 1.01, at most 1.00% above the least possible"
