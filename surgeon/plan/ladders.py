"""The legal removals of every group: in which order units go, where one may stop, and what each rung loses."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import groupby
from math import ceil, gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.errors import BudgetError, ScoreError, UnknownLayer
from surgeon.plan.allocate import Ladder, Overlap

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph, Group

# Least and largest share that may go.
Limit = tuple[float, float]


def ladders(
    graph: DependencyGraph,
    scores: Mapping[str, Any],
    *,
    round_to: int,
    floor: float,
    groups: Mapping[str, Any],
    heads: bool | str,
    uniform: bool,
    losses: Mapping[str, Any],
) -> tuple[list[Ladder], list[Overlap]]:
    """Return a ladder for every group that may be cut, or for all groups of a kind, and what pairs of them share."""
    shares = limits(graph, groups)
    chosen = movable(graph, heads)
    for name in losses:
        if name not in {g.name for g in graph.free}:
            raise UnknownLayer(name, [g.name for g in graph.free])
    found = []
    for group in chosen:
        order, share = ranked(group, scores)
        curve = _log_share(graph, group, share) if group.name not in losses else _measured(group, losses[group.name])
        found.append(_ladder(graph, group, order, curve, round_to, floor, shares.get(group.name, (0.0, 1.0))))
    overlaps = [Overlap(*both) for both in graph.overlaps(chosen)]
    return _tied(found, overlaps) if uniform else (found, overlaps)


# -- which groups, and how far -----------------------------------------------------------------------


def limits(graph: DependencyGraph, asked: Mapping[str, Any]) -> dict[str, Limit]:
    """Return the least and the largest share that may go from the groups that names and globs ask about."""
    found: dict[str, Limit] = {}
    for pattern, share in asked.items():
        low, high = _interval(pattern, share)
        hit = [g for g in graph.groups if any(fnmatch.fnmatchcase(name, pattern) for name in _producers(g))]
        if not hit:
            raise UnknownLayer(pattern, [g.name for g in graph.groups])
        for group in hit:
            known = found.get(group.name, (0.0, 1.0))
            found[group.name] = max(low, known[0]), min(high, known[1])
    return found


def _interval(pattern: str, share: Any) -> Limit:
    pair = share if isinstance(share, (tuple, list)) else (0.0, share)
    numbers = len(pair) == 2 and all(isinstance(s, (int, float)) and not isinstance(s, bool) for s in pair)
    if not numbers or not 0 <= pair[0] <= pair[1] <= 1:
        raise BudgetError(
            f"groups[{pattern!r}]={share!r} is the largest share that may go, in [0, 1], or the least and the largest"
        )
    return float(pair[0]), float(pair[1])


def _producers(group: Group) -> set[str]:
    """Return the layers whose outputs a group holds."""
    return {group.name, *(m.layer for m in group.members if "out" in m.sides)}


def movable(graph: DependencyGraph, heads: bool | str) -> list[Group]:
    """Return the groups that may be cut: of rows that hold columns, one of the two, unless both are asked for."""
    outer, inner = graph.nesting()
    # Rows of rows would overlap three by three: of those, the outermost and the innermost are cut.
    skipped = outer & inner if heads == "both" else inner if heads else outer
    return [g for g in graph.free if g.name not in skipped]


# -- order and loss ----------------------------------------------------------------------------------


def ranked(group: Group, scores: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
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
    for _, same in groupby(group.grid, len):
        rows = np.stack(list(same))
        mine = values[start : start + rows.size].reshape(rows.shape)
        start += rows.size
        order = np.argsort(mine, axis=1, kind="stable") + np.arange(len(rows))[:, None] * rows.shape[1]
        units, lost = (table.ravel()[order].reshape(len(rows), group.size, -1) for table in (rows, mine))
        columns.append(units.transpose(1, 0, 2).reshape(group.size, -1))
        losses += lost.sum(axis=(0, 2))
    # A negative score says that the model is better off without the unit: it goes first, and nothing is lost with it.
    losses = np.maximum(losses, 0.0)
    total = losses.sum()
    return np.concatenate(columns, axis=1), losses / total if total > 0 else np.full(group.size, 1 / group.size)


def _log_share(graph: DependencyGraph, group: Group, share: np.ndarray) -> np.ndarray:
    """Return ``-log(share of importance that stays)`` once for every layer that a group runs through, ``[steps + 1]``.

    A layer that loses half of its filters, and then half of the rest, loses the same twice, so no layer is bled dry,
    and a residual stream weighs as much as all the layers that read it. Its steps are LAMP scores (Lee et al., 2021,
    eq. 3).
    """
    layers = len({m.parameter for m in group.members if len(graph.shapes[m.parameter]) > 1})
    stays = np.maximum(1 - np.concatenate([[0.0], np.cumsum(share)]), 1e-12)
    return np.asarray(-max(layers, 1) * np.log(stays))


def _measured(group: Group, curve: Any) -> np.ndarray:
    """Return a loss curve given as removed steps and losses, ``[steps + 1]``, between its points a straight line."""
    removed, loss = (np.asarray(part, dtype=float) for part in curve)
    if removed.shape != loss.shape or not len(removed) or not np.isfinite(loss).all() or (np.diff(removed) <= 0).any():
        raise ScoreError(
            f"the losses of group {group.name!r} must be two lists of one length, removed steps, increasing, and losses"
        )
    if removed[0] > 0:
        removed, loss = np.concatenate([[0.0], removed]), np.concatenate([[min(0.0, loss[0])], loss])
    # Beyond the last point the curve goes on as steeply as it came.
    slope = (loss[-1] - loss[-2]) / (removed[-1] - removed[-2]) if len(loss) > 1 else 0.0
    steps = np.arange(group.size + 1)
    beyond = np.maximum(steps - removed[-1], 0) * max(slope, 0.0)
    return np.asarray(np.maximum.accumulate(np.interp(steps, removed, loss) + beyond))


def _ladder(
    graph: DependencyGraph, group: Group, order: np.ndarray, loss: np.ndarray, round_to: int, floor: float, limit: Limit
) -> Ladder:
    size = group.size
    multiple = round_to // gcd(round_to, graph.step_width(group)) if round_to > 1 else 1
    most = min(size - max(group.least, ceil(floor * size - 1e-9)), int(limit[1] * size + 1e-9))
    least = ceil(limit[0] * size - 1e-9)
    left = np.arange(size - most, size - least + 1)[::-1]
    left = left[(left % multiple == 0) | (left == size)]
    if not len(left):
        raise BudgetError(
            f"group {group.name!r} of {size} has to lose {least} to {most} and keep a multiple of {multiple}: "
            "no width does; widen the limits in groups=, or lower floor or round_to"
        )
    touched = np.zeros(len(graph.initial))
    touched[list(group.touched)] = list(group.touched.values())
    return Ladder((group.name,), size, size - left, loss[size - left], touched, order)


# -- one width for all layers of a kind --------------------------------------------------------------


def _tied(found: Sequence[Ladder], overlaps: Sequence[Overlap]) -> tuple[list[Ladder], list[Overlap]]:
    """Make one ladder of all that go by one name but for their numbers, and are of one size."""
    kinds: dict[tuple[str, int], list[int]] = {}
    for i, ladder in enumerate(found):
        kinds.setdefault((kind(ladder.name), ladder.size), []).append(i)
    tied = [_joined([found[i] for i in same]) for same in kinds.values()]
    home = {i: k for k, same in enumerate(kinds.values()) for i in same}
    shared: dict[tuple[int, int], np.ndarray] = {}
    for both in overlaps:
        pair = home[both.rows], home[both.columns]
        shared[pair] = shared.get(pair, 0) + both.touched
    return tied, [Overlap(rows, columns, touched) for (rows, columns), touched in shared.items()]


def kind(name: str) -> str:
    """Return a group's name without the numbers of its layers: ``blocks.3.mlp.fc1`` is a ``blocks.*.mlp.fc1``."""
    return re.sub(r"(?<![^.])\d+(?![^.#])", "*", name)


def _joined(same: Sequence[Ladder]) -> Ladder:
    if len(same) == 1:
        return same[0]
    rungs = reduce(np.intersect1d, [ladder.rungs for ladder in same])
    if not len(rungs):
        raise BudgetError(
            f"{', '.join(l.name for l in same)} are to keep one width, but no width is legal for all of them; "
            "give them the same limits in groups="
        )
    loss = sum(ladder.loss[np.searchsorted(ladder.rungs, rungs)] for ladder in same)
    return Ladder(
        tuple(name for ladder in same for name in ladder.groups),
        same[0].size,
        rungs,
        np.asarray(loss),
        np.sum([ladder.touched for ladder in same], axis=0),
        np.concatenate([ladder.order for ladder in same], axis=1),
    )
