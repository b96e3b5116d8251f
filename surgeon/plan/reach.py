"""How much of a model's cost no cut can touch, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from surgeon.plan import cost as costs

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph


def out_of_reach(graph: DependencyGraph) -> dict[str, float]:
    """Return the share of the multiply-adds in calls that no free group makes cheaper, by reason, largest first."""
    cost = costs.flops(graph)
    values = cost.terms(graph.initial)
    free = np.zeros(len(graph.initial), bool)
    for group in graph.free:
        free[list(group.touched)] = True
    shrinks = np.concatenate([[False], free[cost.count]])[cost.factors].any(axis=1)
    total, why = values.sum() or 1.0, _reasons(graph)
    parts: dict[str, float] = {}
    for value, owner in zip(values[~shrinks], cost.owner[~shrinks]):
        node = graph.nodes[int(owner)]
        reason = next((why[name] for name in node.parameters if name in why), f"{node.name} between layers that stay")
        parts[reason] = parts.get(reason, 0.0) + float(value) / total
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


def _reasons(graph: DependencyGraph) -> dict[str, str]:
    """Map parameters to the reason why their outputs, or else their inputs, stay."""
    found: dict[str, str] = {}
    for side in ("out", "in"):
        for group in (g for g in graph.groups if g.pinned is not None):
            reason = graph.reason(group)
            for place in group.members:
                if side in place.sides:
                    found.setdefault(place.parameter, reason)
    return found
