"""From positions that are to go to a plan that removes exactly them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from surgeon.errors import ConvertError
from surgeon.graph import DependencyGraph
from surgeon.groups import Group
from surgeon.plan.describe import describe
from surgeon.plan.plan import Plan
from surgeon.plan.runs import encode


def visible(graph: DependencyGraph) -> np.ndarray:
    """Return which classes sit in some parameter or buffer, ``[classes]``."""
    found = np.zeros(graph.solution.classes, bool)
    for place in graph.places:
        found[place.classes] = True
    return found


def units_within(graph: DependencyGraph, dead: np.ndarray) -> np.ndarray:
    """Return the units that take nothing along, of what can be seen in parameters, but what is to go."""
    closure, seen = graph.solution.closure, visible(graph)
    stays = closure @ (seen & ~dead).astype(np.int32)
    shows = closure @ seen.astype(np.int32)
    return np.flatnonzero((stays == 0) & (shows > 0))


def removal(graph: DependencyGraph, dead: np.ndarray, settings: Mapping[str, Any]) -> Plan:
    """Return the plan that removes the given classes ``[classes]``.

    Raises
    ------
    ConvertError for positions that can't go, or not without others, or that would leave uneven rows.
    """
    units = units_within(graph, dead)
    gone = graph.dead_classes(units)
    left = dead & visible(graph) & ~gone
    if left.any():
        raise ConvertError(_stuck(graph, left))
    removed = {}
    for group in graph.free:
        steps = steps_taken(graph, group, units, gone)
        if steps is None:
            raise ConvertError(
                f"group {group.name!r} would keep {rows_left(graph, group, gone)} of each row ({group.members[0]} and "
                "others), and has to keep equally many"
            )
        removed[group.name] = steps
    return describe(graph, units, removed, settings)


def _stuck(graph: DependencyGraph, left: np.ndarray) -> str:
    for group in graph.groups:
        for place in group.members:
            here = np.flatnonzero(left[place.classes])
            if len(here):
                reason = graph.reason(group) or "they only go together with positions that stay"
                return f"{place}: positions {encode(here)} were removed, which surgeon takes to stay: {reason}"
    return "positions were removed that surgeon takes to stay"


def alive_in_rows(graph: DependencyGraph, group: Group, gone: np.ndarray) -> list[np.ndarray]:
    """Return the units of each row of a group of which something stays."""
    closure = graph.solution.closure
    stays = np.asarray((closure @ (~gone).astype(np.int32)) > 0)
    return [row[stays[row]] for row in group.grid]


def rows_left(graph: DependencyGraph, group: Group, gone: np.ndarray) -> list[int]:
    return [len(row) for row in alive_in_rows(graph, group, gone)]


def steps_taken(graph: DependencyGraph, group: Group, units: np.ndarray, gone: np.ndarray) -> int | None:
    """Return how many steps of a group go; None where rows lose unequally.

    Rows that go as a whole, with units of another group, count for that group.
    """
    taken = np.isin(group.units, units)
    if not taken.any():
        return 0
    left = alive_in_rows(graph, group, gone)
    by_others = graph.dead_classes([u for u in units if u not in set(group.units.tolist())])
    swallowed = np.asarray((graph.solution.closure @ (~by_others).astype(np.int32)) == 0)
    shares = {len(row) * group.size / len(whole) for row, whole in zip(left, group.grid) if not swallowed[whole].all()}
    if not shares:
        return 0
    if len(shares) > 1 or not min(shares).is_integer():
        return None
    return group.size - int(min(shares))
