"""From graph and scores to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from surgeon.errors import BudgetError, InfeasibleBudget, NothingPrunable
from surgeon.plan import cost as costs
from surgeon.plan.allocate import (
    Budget,
    Ladder,
    Overlap,
    by_ratio_globally,
    by_ratio_locally,
    parse_amount,
    require_reachable,
)
from surgeon.plan.describe import describe
from surgeon.plan.ladders import ladders
from surgeon.plan.plan import Plan
from surgeon.plan.problem import Problem
from surgeon.plan.solve import Choice, solve
from surgeon.progress import working

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph

    Amount = float | int | str | None

# Multiples that kernels like: tensor cores take eighths of half-precision lines, vector units eight or sixteen floats.
MULTIPLES = {"cuda": 8, "cpu": 8}

COSTS: dict[str, Callable[[DependencyGraph], costs.Cost | costs.Peak]] = {
    "flops": costs.flops,
    "params": costs.params,
    "memory": costs.memory,
}


@working("choosing what goes")
def plan(
    graph: DependencyGraph,
    scores: Mapping[str, Any],
    *,
    flops: Amount | Sequence[float | int | str] = None,
    params: Amount | Sequence[float | int | str] = None,
    memory: Amount | Sequence[float | int | str] = None,
    ratio: float | None = None,
    scope: str = "global",
    round_to: int | str = 1,
    floor: float = 0.1,
    groups: Mapping[str, Any] | None = None,
    heads: bool | str = False,
    uniform: bool = False,
    losses: Any = None,
    bounds: Sequence[Budget] = (),
) -> Plan | list[Plan]:
    """Choose what goes and write it down: see ``surgeon.plan``, which takes bounds on latency as well.

    Parameters
    ----------
    bounds : further budgets, on costs of one's own
    """
    targets = _targets({"flops": flops, "params": params, "memory": memory})
    check(targets[0], ratio, scope, round_to, floor, heads, bool(bounds))
    graph.require_free()
    grid = multiple(graph, round_to)
    curves = losses.losses() if hasattr(losses, "losses") else losses or {}
    found, overlaps = ladders(
        graph,
        scores,
        round_to=grid,
        floor=floor,
        groups=groups or {},
        heads=heads,
        uniform=uniform,
        losses=curves,
    )
    settings: dict[str, Any] = {
        "criterion": getattr(scores, "criterion", "given"),
        "ratio": ratio,
        "scope": scope,
        "round_to": grid,
        "floor": floor,
        "groups": dict(groups or {}),
        "heads": heads,
        "uniform": uniform,
        "losses": "importance" if losses is None else "given",
        **({} if graph.method == "forward" else {"method": graph.method}),
    }
    if ratio is not None:
        return _by_ratio(graph, found, ratio, {**settings, **targets[0]})
    task = _Task(graph, found, overlaps)
    asked = [_budgets(graph, target) for target in targets]
    _check_order(asked)
    plans = []
    for target, budgets in zip(targets, asked):
        choice = task.under([*budgets, *bounds])
        plans.append(task.write(choice, {**settings, **target}))
        task = task.beyond(choice)
    listed = any(isinstance(amount, (list, tuple)) for amount in (flops, params, memory))
    return plans if listed else plans[0]


# -- what is asked for -------------------------------------------------------------------------------


def _targets(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one set of budgets per plan; single amounts hold for all of them."""
    lists = {name: list(value) for name, value in asked.items() if isinstance(value, (list, tuple))}
    if not lists:
        return [dict(asked)]
    lengths = {len(values) for values in lists.values()}
    if len(lengths) != 1 or not lengths - {0}:
        raise BudgetError(f"lists of budgets have to be of one length, not {sorted(map(len, lists.values()))}")
    return [{**asked, **{name: values[i] for name, values in lists.items()}} for i in range(lengths.pop())]


def check(
    target: Mapping[str, Any],
    ratio: Any,
    scope: str,
    round_to: int | str,
    floor: float,
    heads: bool | str,
    bounded: bool,
) -> None:
    budgets = bounded or any(asked is not None for asked in target.values())
    if ratio is None and not budgets:
        raise BudgetError("say how much: flops=0.5, params=0.5 or ratio=0.5")
    if ratio is not None and budgets:
        raise BudgetError("give either a ratio or budgets, not both")
    if ratio is not None and not 0 <= ratio < 1:
        raise BudgetError(f"ratio={ratio!r} is the share of units that goes and must be in [0, 1)")
    if scope not in ("global", "local"):
        raise BudgetError(f"scope={scope!r} must be 'global' or 'local'")
    if round_to != "auto" and (isinstance(round_to, (bool, str)) or not isinstance(round_to, int) or round_to < 1):
        raise BudgetError(f"round_to={round_to!r} must be a positive integer or 'auto'")
    if heads not in (True, False, "both"):
        raise BudgetError(f"heads={heads!r} must be True (rows), False (columns) or 'both'")
    if not 0 <= floor <= 1:
        raise BudgetError(f"floor={floor!r} is the smallest share of a group that stays and must be in [0, 1]")


def multiple(graph: DependencyGraph, round_to: int | str) -> int:
    """Return what widths are multiples of, as asked or as the model's device likes it."""
    if round_to != "auto":
        return cast(int, round_to)
    devices = {parameter.device.type for parameter in graph.model.parameters()}
    return max(MULTIPLES.get(device, 1) for device in devices)


def _budgets(graph: DependencyGraph, target: Mapping[str, Any]) -> list[Budget]:
    budgets = []
    for name, asked in target.items():
        if asked is None:
            continue
        cost = COSTS[name](graph)
        whole = cost.total(graph.initial)
        if not whole:
            raise NothingPrunable(f"{name}={asked!r}: none of the model's operations counts any FLOPs; use params=")
        budgets.append(Budget(name, cost.merged(), parse_amount(name, asked, whole), str(asked)))
    return budgets


def _check_order(asked: Sequence[Sequence[Budget]]) -> None:
    for before, after in pairwise(asked):
        for larger, smaller in zip(before, after):
            if smaller.limit > larger.limit:
                raise BudgetError(
                    f"{larger.name}: {smaller.asked} is more than {larger.asked} before it; write the largest first, "
                    "as each plan goes on where the one before stopped"
                )


# -- ratio -------------------------------------------------------------------------------------------


def _by_ratio(graph: DependencyGraph, found: Sequence[Ladder], ratio: float, settings: Mapping[str, Any]) -> Plan:
    choose = by_ratio_locally if settings["scope"] == "local" else by_ratio_globally
    chosen = choose(found, ratio)
    removed = [int(ladder.rungs[rung]) for ladder, rung in zip(found, chosen)]
    if ratio and not any(removed):
        raise NothingPrunable(
            f"ratio={ratio} removes nothing: floor={settings['floor']}, round_to={settings['round_to']} and the limits "
            "leave all groups as is"
        )
    loss = float(sum(ladder.loss[rung] for ladder, rung in zip(found, chosen)))
    return describe(graph, _taken(found, removed), _by_group(found, removed), settings, loss)


def _taken(found: Sequence[Ladder], removed: Sequence[int]) -> np.ndarray:
    return np.concatenate([ladder.order[:steps].ravel() for ladder, steps in zip(found, removed)])


def _by_group(found: Sequence[Ladder], removed: Sequence[int]) -> dict[str, int]:
    return {name: steps for ladder, steps in zip(found, removed) for name in ladder.groups}


# -- budgets -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Task:
    """Ladders of a graph, to be chosen from under one set of budgets after another."""

    graph: DependencyGraph
    ladders: Sequence[Ladder]
    overlaps: Sequence[Overlap]

    def under(self, budgets: Sequence[Budget]) -> Choice:
        """Choose rungs, and hold them against what really goes.

        Ladders know what a step takes alone or beside one other group; where three groups share a table, less goes
        than they say, and the bound is drawn tighter until it is kept.
        """
        limits, bound = [budget.limit for budget in budgets], None
        require_reachable(self._left([len(ladder.rungs) - 1 for ladder in self.ladders]), budgets)
        for _ in range(20):
            choice = solve(Problem(self.graph.initial, self.ladders, self.overlaps, budgets))
            bound = choice.bound if bound is None else bound  # not that of a tighter limit
            counts = self._left(choice.rungs)
            left = [budget.cost.total(counts) for budget in budgets]
            if all(have <= limit for have, limit in zip(left, limits)):
                return replace(choice, bound=min(bound, choice.loss))
            budgets = [
                replace(budget, limit=budget.limit * min(1.0, limit / have))
                for budget, limit, have in zip(budgets, limits, left)
            ]
        raise InfeasibleBudget(
            f"no widths found that keep {budgets[0].name}={budgets[0].asked}; ask for a little more or less"
        )

    def _left(self, rungs: Sequence[int]) -> np.ndarray:
        """Return the counted widths that really remain."""
        alive = ~self.graph.dead_classes(_taken(self.ladders, self._removed(rungs)))
        return np.asarray(self.graph.incidence @ alive.astype(np.int64))

    def _removed(self, rungs: Sequence[int]) -> list[int]:
        return [int(ladder.rungs[rung]) for ladder, rung in zip(self.ladders, rungs)]

    def write(self, choice: Choice, settings: Mapping[str, Any]) -> Plan:
        removed = self._removed(choice.rungs)
        units, by_group = _taken(self.ladders, removed), _by_group(self.ladders, removed)
        return describe(self.graph, units, by_group, settings, choice.loss, choice.bound)

    def beyond(self, choice: Choice) -> _Task:
        """Return the same task where nothing that a choice removes can stay."""
        left = [
            replace(ladder, rungs=ladder.rungs[rung:], loss=ladder.loss[rung:])
            for ladder, rung in zip(self.ladders, choice.rungs)
        ]
        return replace(self, ladders=left)
