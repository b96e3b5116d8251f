"""From graph and scores to a plan."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.errors import BudgetError, InfeasibleBudget, NothingPrunable, ScoreError, SurgeonError, UnknownLayer
from surgeon.plan import cost as costs
from surgeon.plan.allocate import (
    Budget,
    Ladder,
    Overlap,
    by_ratio_globally,
    by_ratio_locally,
    parse_amount,
    require_reachable,
    under_budgets,
)
from surgeon.plan.plan import Cut, Edit, GroupCut, LayerCost, Masked, Plan, Scale, Selection
from surgeon.plan.reach import out_of_reach

if TYPE_CHECKING:
    from surgeon.counts import Counted
    from surgeon.graph import DependencyGraph, Group
    from surgeon.labels.sizes import Settlement

Amount = "float | int | str | None"


def plan(
    graph: DependencyGraph,
    scores: Mapping[str, Any],
    *,
    flops: float | int | str | None = None,
    params: float | int | str | None = None,
    ratio: float | None = None,
    scope: str = "global",
    round_to: int = 1,
    floor: float = 0.1,
    groups: Mapping[str, float] | None = None,
    heads: bool | str = False,
) -> Plan:
    """Choose what goes and write it down.

    Parameters
    ----------
    scores : group name -> importance per unit, higher stays
    flops, params : upper bounds on what remains: a share such as 0.5, or an amount such as ``1.2e9`` or ``"1.2G"``;
        one FLOP is one multiply-add
    ratio : share of the units that goes, instead of budgets
    scope : with a ratio, "global" over the model or "local" in every group
    round_to : widths that remain are multiples of this
    floor : smallest share of a group that stays
    groups : layer name or glob -> largest share of its units that may go
    heads : what goes where rows could go as well as columns (heads and their widths, conv groups and their channels):
        False columns, True rows, "both"; a ratio then applies to rows and to columns

    Raises
    ------
    NothingPrunable, BudgetError, InfeasibleBudget, ScoreError, UnknownLayer

    Examples
    --------
    >>> plan(graph, surgeon.score(graph, "l1"), flops=0.5, round_to=8)
    """
    _check(flops, params, ratio, scope, round_to, floor, heads)
    graph.require_free()
    limits = _limits(graph, groups or {})
    settings: dict[str, Any] = {
        "flops": flops,
        "params": params,
        "ratio": ratio,
        "scope": scope,
        "round_to": round_to,
        "floor": floor,
        "groups": dict(groups or {}),
        "heads": heads,
        **({} if graph.method == "forward" else {"method": graph.method}),
    }
    free = _movable(graph, heads)
    ladders, orders = [], []
    for group in free:
        order, loss = _ranked(group, scores)
        orders.append(order)
        ladders.append(_ladder(graph, group, loss, round_to, floor, limits.get(group.name, 1.0)))
    if ratio is not None:
        choose = by_ratio_locally if scope == "local" else by_ratio_globally
        chosen = choose(ladders, [g.size for g in free], ratio)
    else:
        chosen = _under_budgets(graph, free, ladders, orders, _budgets(graph, flops, params))
    removed = [int(ladder.rungs[rung]) for ladder, rung in zip(ladders, chosen)]
    if ratio and not any(removed):
        raise NothingPrunable(
            f"ratio={ratio} removes nothing: floor={floor}, round_to={round_to} and the limits leave all groups as is"
        )
    units = _taken(orders, removed)
    return describe(graph, units, dict(zip((g.name for g in free), removed)), settings)


def _check(flops: Any, params: Any, ratio: Any, scope: str, round_to: int, floor: float, heads: bool | str) -> None:
    if ratio is None and flops is None and params is None:
        raise BudgetError("say how much: flops=0.5, params=0.5 or ratio=0.5")
    if ratio is not None and (flops is not None or params is not None):
        raise BudgetError("give either a ratio or budgets, not both")
    if ratio is not None and not 0 <= ratio < 1:
        raise BudgetError(f"ratio={ratio!r} is the share of units that goes and must be in [0, 1)")
    if scope not in ("global", "local"):
        raise BudgetError(f"scope={scope!r} must be 'global' or 'local'")
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise BudgetError(f"round_to={round_to!r} must be a positive integer")
    if heads not in (True, False, "both"):
        raise BudgetError(f"heads={heads!r} must be True (rows), False (columns) or 'both'")
    if not 0 <= floor <= 1:
        raise BudgetError(f"floor={floor!r} is the smallest share of a group that stays and must be in [0, 1]")


def _limits(graph: DependencyGraph, asked: Mapping[str, float]) -> dict[str, float]:
    """Return the largest share that may go, per group."""
    limits: dict[str, float] = {}
    for pattern, share in asked.items():
        if not 0 <= share <= 1:
            raise BudgetError(f"groups[{pattern!r}]={share!r} is the largest share that may go and must be in [0, 1]")
        hit = [g for g in graph.groups if any(_matches(name, pattern) for name in _producers(g))]
        if not hit:
            raise UnknownLayer(pattern, [g.name for g in graph.groups])
        for group in hit:
            limits[group.name] = min(share, limits.get(group.name, 1.0))
    return limits


def _producers(group: Group) -> set[str]:
    """Return the layers whose outputs a group holds."""
    return {group.name, *(m.layer for m in group.members if "out" in m.sides)}


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern)


def _movable(graph: DependencyGraph, heads: bool | str) -> list[Group]:
    """Return the groups that may be cut: of rows that hold columns, one of the two, unless both are asked for."""
    outer, inner = graph.nesting()
    # Rows of rows would overlap three by three: of those, the outermost and the innermost are cut.
    skipped = outer & inner if heads == "both" else inner if heads else outer
    return [g for g in graph.free if g.name not in skipped]


def _left(
    graph: DependencyGraph, ladders: Sequence[Ladder], orders: Sequence[np.ndarray], chosen: Sequence[int]
) -> np.ndarray:
    """Return the counted widths that really remain when each ladder stands at the chosen rung."""
    alive = ~graph.dead_classes(_taken(orders, [int(l.rungs[rung]) for l, rung in zip(ladders, chosen)]))
    return np.asarray(graph.incidence @ alive.astype(np.int64))


def _taken(orders: Sequence[np.ndarray], removed: Sequence[int]) -> np.ndarray:
    return np.concatenate([order[:steps].ravel() for order, steps in zip(orders, removed)])


def _under_budgets(
    graph: DependencyGraph,
    groups: Sequence[Group],
    ladders: Sequence[Ladder],
    orders: Sequence[np.ndarray],
    budgets: Sequence[Budget],
) -> list[int]:
    """Choose rungs, and hold them against what really goes.

    Ladders know what a step takes alone or beside one other group; where three groups share a table, less goes than
    they say, and the bound is drawn tighter until it is kept.
    """
    overlaps = [Overlap(*both) for both in graph.overlaps(groups)]
    limits = [budget.limit for budget in budgets]
    require_reachable(_left(graph, ladders, orders, [len(ladder.rungs) - 1 for ladder in ladders]), budgets)
    for _ in range(20):
        chosen = under_budgets(graph.initial, ladders, budgets, overlaps)
        counts = _left(graph, ladders, orders, chosen)
        left = [budget.cost.total(counts) for budget in budgets]
        if all(have <= limit for have, limit in zip(left, limits)):
            return chosen
        budgets = [
            replace(budget, limit=budget.limit * min(1.0, limit / have))
            for budget, limit, have in zip(budgets, limits, left)
        ]
    raise InfeasibleBudget(
        f"no widths found that keep {budgets[0].name}={budgets[0].asked}; ask for a little more or less"
    )


def _ranked(group: Group, scores: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return units in the order of removal, ``[steps, units per step]``, and each step's share of the importance."""
    if group.name not in scores:
        raise ScoreError(f"no scores for group {group.name!r}")
    values = np.asarray(scores[group.name], dtype=float)
    if values.shape != (len(group.units),):
        raise ScoreError(f"group {group.name!r} has {len(group.units)} units, but its scores have shape {values.shape}")
    if not np.isfinite(values).all():
        layers = sorted({m.parameter for m in group.members})
        raise ScoreError(
            f"group {group.name!r} has NaN or infinite scores; check the weights of {', '.join(layers[:4])}"
        )
    start, columns, losses = 0, [], np.zeros(group.size)
    for row in group.grid:
        mine = values[start : start + len(row)]
        start += len(row)
        order = np.argsort(mine, kind="stable").reshape(group.size, -1)
        columns.append(row[order])
        losses += mine[order].sum(axis=1)
    total = losses.sum()
    return np.concatenate(columns, axis=1), losses / total if total > 0 else np.full(group.size, 1 / group.size)


def _ladder(
    graph: DependencyGraph, group: Group, share: np.ndarray, round_to: int, floor: float, limit: float
) -> Ladder:
    """List the legal removals of a group and what each loses.

    The loss is ``-log(share of importance that stays)``, once for every layer that the group runs through: a layer
    that loses half of its filters, and then half of the rest, loses the same twice, so no layer is bled dry, and a
    residual stream weighs as much as all the layers that read it. Its steps are LAMP scores (Lee et al., 2021, eq. 3).
    """
    size = group.size
    multiple = round_to // gcd(round_to, graph.step_width(group)) if round_to > 1 else 1
    most = min(size - max(group.least, ceil(floor * size - 1e-9)), int(limit * size + 1e-9))
    left = np.arange(size - most, size + 1)[::-1]
    left = left[(left % multiple == 0) | (left == size)]
    rungs = size - left
    layers = len({m.parameter for m in group.members if len(graph.shapes[m.parameter]) > 1})
    stays = np.maximum(1 - np.concatenate([[0.0], np.cumsum(share)]), 1e-12)
    total = -max(layers, 1) * np.log(stays)
    touched = np.zeros(len(graph.initial))
    touched[list(group.touched)] = list(group.touched.values())
    return Ladder(group.name, rungs, total[rungs], touched, len(group.units) // size)


def _budgets(graph: DependencyGraph, flops: Any, params: Any) -> list[Budget]:
    budgets = []
    for name, asked, build in (("flops", flops, costs.flops), ("params", params, costs.params)):
        if asked is not None:
            cost = build(graph)
            budgets.append(Budget(name, cost, parse_amount(name, asked, cost.total(graph.initial)), str(asked)))
    return budgets


# -- writing it down ---------------------------------------------------------------------------------


def describe(
    graph: DependencyGraph, units: Sequence[int] | np.ndarray, removed: Mapping[str, int], settings: Mapping[str, Any]
) -> Plan:
    """Write down what happens when the given units go.

    Raises SurgeonError when some size can't follow, which a graph's groups exclude one by one.
    """
    alive = ~graph.dead_classes(units)
    counts = np.asarray(graph.incidence @ alive.astype(np.int64))
    settlement = graph.settle(counts)
    if settlement.conflicts:
        raise SurgeonError(f"sizes contradict each other after the cut: {settlement.conflicts[0]}")
    edits = tuple(
        Edit(a.owner, a.name, a.item, graph.old[a], new)
        for a, new in sorted(settlement.attributes.items(), key=lambda item: str(item[0]))
    )
    return Plan(
        cuts=_cuts(graph, alive, counts),
        fingerprint={name: tuple(map(_size, shape)) for name, shape in graph.shapes.items()},
        edits=edits,
        groups=tuple(
            GroupCut(g.name, g.size, removed.get(g.name, 0), tuple(sorted({m.layer for m in g.members})))
            for g in graph.free
        ),
        pins={g.name: graph.reason(g) for g in graph.groups if g.pinned is not None},
        cost=_layer_costs(graph, counts),
        totals={
            name: (cost.total(graph.initial), cost.total(counts))
            for name, cost in (("flops", costs.flops(graph)), ("params", costs.params(graph)))
        },
        settings=dict(settings),
        masked=_masked(graph, alive),
        scales=_scales(graph, counts, settlement),
        out_of_reach=out_of_reach(graph),
    )


def _size(dim: int | Counted) -> int:
    return dim if isinstance(dim, int) else dim.size


def _cuts(graph: DependencyGraph, alive: np.ndarray, counts: np.ndarray) -> dict[str, Cut]:
    selections: dict[str, list[Selection]] = {}
    for place in graph.places:
        keep = alive[place.classes]
        if not keep.all():
            kept = Selection(place.dims, len(keep), np.flatnonzero(keep))
            selections.setdefault(place.parameter, []).append(kept)
    cuts = {}
    for name, chosen in selections.items():
        shape = graph.shapes[name]
        new = tuple(dim if isinstance(dim, int) else dim.of(counts) for dim in shape)
        if any(n is None or n < 1 for n in new):
            raise SurgeonError(f"{name}: the cut would not leave a rectangle of {[_size(d) for d in shape]}")
        cuts[name] = Cut(tuple(map(_size, shape)), new, tuple(chosen))  # type: ignore[arg-type]
    return cuts


def _layer_costs(graph: DependencyGraph, counts: np.ndarray) -> dict[str, LayerCost]:
    names = sorted(graph.parameters)
    layers: dict[str, list[float]] = {}
    for cost, owner, at in (
        (costs.flops(graph), lambda i: graph.nodes[i].module, 0),
        (costs.params(graph), lambda i: names[i].rpartition(".")[0], 2),
    ):
        for k, which in enumerate((graph.initial, counts)):
            for i, value in zip(cost.owner, cost.terms(which)):
                layers.setdefault(owner(i), [0.0] * 4)[at + k] += float(value)
    return {name: LayerCost((a, b), (c, d)) for name, (a, b, c, d) in layers.items()}


def _scales(graph: DependencyGraph, counts: np.ndarray, settlement: Settlement) -> tuple[Scale, ...]:
    found = []
    for rescaling in graph.rescalings:
        old = graph.number(rescaling.width, graph.initial, {})
        new = graph.number(rescaling.width, counts, settlement.attributes)
        if not old or not new:
            raise SurgeonError(f"{rescaling}: the width is {old} before and {new} after the cut")
        for name, dim, positions in rescaling.places if new != old else ():
            factor = (new / old) ** rescaling.power
            found.append(Scale(name, dim, _size(graph.shapes[name][dim]), positions, factor))
    return tuple(found)


def _masked(graph: DependencyGraph, alive: np.ndarray) -> tuple[Masked, ...]:
    found = []
    for call, op, position, dims, classes in graph.reductions():
        keep = alive[classes]
        if not keep.all():
            found.append(Masked(call, op, position, Selection(dims, len(keep), np.flatnonzero(keep))))
    return tuple(found)
