"""Cut until the result is fast enough when measured: measure, rescale the model of latency, solve again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from surgeon.errors import BudgetError, InfeasibleBudget
from surgeon.latency.backends import Runner, prepare
from surgeon.latency.cache import Cache
from surgeon.latency.grid import left
from surgeon.latency.measure import Clock, Measurement, race
from surgeon.latency.model import calibrate, latency_cost
from surgeon.modules import Model, bare, evaluating
from surgeon.operate import operate
from surgeon.plan.cost import Cost
from surgeon.plan.describe import units_of
from surgeon.plan.plan import Plan

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph

# ``solve(cost, seconds)`` returns a plan whose cost is at most so many seconds, or raises InfeasibleBudget.
Solve = Callable[[Cost, float], Plan]

# What is aimed at, so that noise does not break the bound, and what is near enough to stop; shares of what was asked.
_AIM, _NEAR = 0.97, 0.93


@dataclass(frozen=True)
class Round:
    """A plan that was tried: latency as a share of the original's, predicted and measured, and seconds."""

    plan: Plan
    predicted: float
    measured: float
    spread: float
    seconds: tuple[float, float]

    def keeps(self, share: float) -> bool:
        """Whether the whole interval of the measurement is under a bound."""
        return self.measured + self.spread <= share

    def __str__(self) -> str:
        return f"predicted {self.predicted:.3f}, measured {self.measured:.3f} ± {self.spread:.3f}"


@dataclass(frozen=True)
class Timed:
    """A plan whose result is fast enough as measured, and the rounds that led to it."""

    asked: float
    rounds: tuple[Round, ...]
    chosen: int
    backend: str

    @property
    def plan(self) -> Plan:
        return self.rounds[self.chosen].plan

    @property
    def ratio(self) -> float:
        """Measured latency of the result as a share of the original's."""
        return self.rounds[self.chosen].measured

    def __str__(self) -> str:
        table = Table("round", "predicted", "measured", "original", "result", "", title=f"latency <= {self.asked:.3g}")
        for i, each in enumerate(self.rounds):
            mark = "chosen" if i == self.chosen else "over" if each.measured > self.asked else ""
            times = (f"{1e3 * seconds:.3g} ms" for seconds in each.seconds)
            table.add_row(str(i + 1), f"{each.predicted:.3f}", f"{each.measured:.3f} ± {each.spread:.3f}", *times, mark)
        console = Console(width=100)
        with console.capture() as captured:
            console.print(table)
        return captured.get().rstrip()


def within_latency(
    model: Model,
    example_inputs: Any,
    graph: DependencyGraph,
    asked: float | str,
    solve: Solve,
    *,
    backend: str = "eager",
    cache: Cache | str | os.PathLike[str] | None = None,
    round_to: int = 8,
    heads: bool | str = False,
    rounds: int = 4,
    seconds: float = 20.0,
    clock: Clock | None = None,
) -> Timed:
    """Return a plan whose result takes at most the asked share of the original's latency, measured side by side.

    Each round solves for a little less than what was asked, cuts a copy, and measures it in turn with the original; a
    result under the bound is measured twice, and the slower one counts. The cost is then calibrated to all results so
    far, which brings the next one nearer. The slowest result that surely keeps the bound is chosen.

    Parameters
    ----------
    asked : a share of the original's latency such as 0.6, or a text such as "8ms"
    solve : returns a plan for a cost and a bound on it, both in seconds
    round_to, heads : as the plans of ``solve`` have them
    rounds : plans to try; half as many more if none is fast enough by then
    seconds : time after which a measurement makes do with what it has
    backend, cache, clock : see ``latency_cost``

    Raises
    ------
    InfeasibleBudget, with what is reachable, when the smallest legal model is too slow; BudgetError

    Examples
    --------
    >>> timed = within_latency(model, x, graph, 0.6, solve)
    >>> print(timed)
    >>> small = surgeon.operate(model, timed.plan)
    """
    model = bare(model)
    bench = _Bench(model, example_inputs, backend, graph.method, seconds, clock)
    whole = bench.run([]).seconds[0]
    share = share_of(asked, whole)
    cost = latency_cost(
        graph, example_inputs, backend=backend, cache=cache, round_to=round_to, heads=heads, clock=clock
    )
    tried: list[Round] = []
    for each in _rounds(graph, cost, share, whole, solve, bench):
        tried.append(each)
        enough = rounds if any(t.keeps(share) for t in tried) else 1.5 * rounds
        if len(tried) >= enough or (each.keeps(share) and each.measured >= _NEAR * share):
            break
    return Timed(share, tuple(tried), _chosen(tried, share), backend)


class _Bench:
    """Measures models in turn with the original, which is prepared once."""

    def __init__(
        self, model: nn.Module, example_inputs: Any, backend: str, method: str, seconds: float, clock: Clock | None
    ) -> None:
        self.model, self.seconds, self.clock = model, seconds, clock
        self.given = (example_inputs, backend, method)
        self.original = self.ready(model)

    def ready(self, model: nn.Module) -> Runner:
        with torch.no_grad(), evaluating(model):
            return prepare(model, *self.given)

    def run(self, runners: Sequence[Runner]) -> Measurement:
        with evaluating(self.model):
            return race([self.original, *runners], *self.given[:2], seconds=self.seconds, clock=self.clock)

    def against(self, small: nn.Module, share: float) -> Measurement:
        """Measure a model; one that is fast enough twice, as it may have been lucky, and the slower time counts."""
        runner = self.ready(small)
        with evaluating(small):
            found = self.run([runner])
            if found.ratios[1] > share:
                return found
            return max(found, self.run([runner]), key=lambda each: each.ratios[1])


def _rounds(
    graph: DependencyGraph, cost: Cost, share: float, whole: float, solve: Solve, bench: _Bench
) -> Iterator[Round]:
    """Solve, cut, measure and calibrate, again and again.

    Raises InfeasibleBudget when the smallest legal model is too slow.
    """
    aim, seen = _AIM, [_Seen(graph.initial, whole, 5.0)]
    while True:
        fitted = _through(cost, seen)
        plan, smallest = _solved(solve, fitted, aim * share * whole, graph.initial)
        counts = counts_under(graph, plan)
        found = bench.against(bare(operate(bench.model, plan)), share)
        ratio, spread = found.ratios[1], found.spread[1]
        if smallest and ratio > share:
            raise InfeasibleBudget(
                f"latency at most {share:.3g} of the original's asks for {1e3 * share * whole:.3g} ms, but the "
                f"smallest model that floors, multiples and pins allow takes {1e3 * ratio * whole:.3g} ms, "
                f"{ratio:.3f} of it; raise the budget, lower floor, or keep fewer layers"
            )
        yield Round(plan, fitted.total(counts) / whole, ratio, spread, (found.seconds[0], found.seconds[1]))
        if any(np.array_equal(counts, model.counts) for model in seen):
            aim *= _AIM if ratio > share else 1 / _AIM
        seen.append(_Seen(counts, ratio * whole, 1 / (0.02 + spread / ratio)))


def _chosen(tried: Sequence[Round], share: float) -> int:
    """Return the slowest round that surely keeps a bound, or else the fastest that keeps it as measured."""
    sure = [i for i, each in enumerate(tried) if each.keeps(share)]
    if sure:
        return max(sure, key=lambda i: tried[i].measured)
    fastest = min(range(len(tried)), key=lambda i: tried[i].measured)
    if tried[fastest].measured > share:
        raise InfeasibleBudget(
            f"none of {len(tried)} plans was fast enough, the fastest took {tried[fastest].measured:.3f} of the "
            f"original's latency and not {share:.3g}; ask for less, or measure on a machine with less else to do"
        )
    return fastest


def _solved(solve: Solve, cost: Cost, limit: float, initial: np.ndarray) -> tuple[Plan, bool]:
    """Return a plan for a limit, or one for nearly the least limit that has one, and whether it is that."""
    try:
        return solve(cost, limit), False
    except InfeasibleBudget:
        high = max(1.001 * cost.total(initial), limit)
        found, low = solve(cost, high), limit  # raises where it is another budget that is out of reach
    for _ in range(6):
        middle = (low * high) ** 0.5
        try:
            found, high = solve(cost, middle), middle
        except InfeasibleBudget:
            low = middle
    return found, True


def counts_under(graph: DependencyGraph, plan: Plan) -> np.ndarray:
    """Return what a plan leaves of each counted width, ``[counts]``."""
    units = np.concatenate([np.zeros(0, np.int64), *(group.units for group in graph.free)])
    return left(graph, np.intersect1d(units, units_of(graph, plan)))


def share_of(asked: float | str, whole: float) -> float:
    """Read a bound on latency as a share of the original's: a share, or a text with a unit.

    >>> share_of("6ms", 0.01)
    0.6
    """
    scale = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
    try:
        if isinstance(asked, str):
            unit = next(unit for unit in scale if asked.strip().endswith(unit))
            value = float(asked.strip().removesuffix(unit)) * scale[unit] / whole
        else:
            value = float("nan") if isinstance(asked, bool) else float(asked)
    except (StopIteration, TypeError, ValueError):
        value = float("nan")
    if not 0 < value <= 1:
        raise BudgetError(
            f"latency={asked!r} must be a share of the original's latency in (0, 1], or a time below it "
            f"({1e3 * whole:.3g} ms) with a unit, such as '8ms'"
        )
    return value


@dataclass(frozen=True, eq=False)
class _Seen:
    """A model that was measured: counted widths, seconds, and how far that can be trusted."""

    counts: np.ndarray
    seconds: float
    trust: float


def _through(cost: Cost, seen: Sequence[_Seen]) -> Cost:
    """Calibrate a cost to what was measured so far, the later the more, as later plans are nearer to what was asked."""
    weights = [model.trust * 1.5**k for k, model in enumerate(seen)]
    return calibrate(cost, [model.counts for model in seen], [model.seconds for model in seen], weights=weights)
