"""From a graph, its scores and a plan to what a report shows of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from surgeon.graph import DependencyGraph
from surgeon.groups import Group, Place
from surgeon.plan import Plan
from surgeon.plan.describe import units_of
from surgeon.report.anatomy import Anatomy, Coupling, Histogram, LayerPart, Member

# Bars of a histogram, at most: they are drawn a few pixels wide.
BINS = 24


def dissect(graph: DependencyGraph, scores: Mapping[str, Any], plan: Plan) -> Anatomy:
    """Return what a graph, its scores and a plan say about each layer and group, as plain data.

    The result holds names and numbers only, so that a report keeps no model alive. It takes about a hundredth of the
    time that ``prune`` does.

    Parameters
    ----------
    graph : the model as it was traced
    scores : group name -> importance per unit; groups without get no histogram
    plan : what goes

    Examples
    --------
    >>> graph = surgeon.trace(model, x)
    >>> scores = surgeon.score(graph, "l1")
    >>> plan = surgeon.plan(graph, scores, flops=0.5)
    >>> report = replace(surgeon.compare(model, surgeon.operate(model, plan), x), anatomy=dissect(graph, scores, plan))
    """
    gone = np.zeros(graph.solution.closure.shape[0], bool)
    gone[units_of(graph, plan)] = True
    removed = {cut.name: cut.removed for cut in plan.groups}
    ties = _ties(graph)
    groups = tuple(
        _coupling(graph, group, removed.get(group.name, 0), gone, ties[i], scores.get(group.name))
        for i, group in enumerate(graph.groups)
    )
    number = {name: i for i, name in enumerate(graph.layers)}
    return Anatomy(
        model=type(graph.model).__name__,
        layers=tuple(_layers(graph, plan)),
        edges=tuple((number[a], number[b]) for a, b in graph.layers.edges),
        groups=groups,
        ops=dict(Counter(op.name for op in graph.flow.ops).most_common()),
    )


def _ties(graph: DependencyGraph) -> list[tuple[str, ...]]:
    """Return the calls that tied the classes of each group together, as ``explain`` tells them."""
    flow, solution = graph.flow, graph.solution
    where: dict[int, list[np.ndarray]] = {}
    for labels, _, at in flow.space.equalities:
        where.setdefault(at, []).append(solution.class_of[labels])
    for implication in flow.space.implications:
        where.setdefault(implication.at, []).append(solution.class_of[implication.child])
    of_class: dict[int, list[int]] = {}
    for i, group in enumerate(graph.groups):
        for found in np.unique(solution.closure[group.units].indices).tolist() if group.pinned is None else ():
            of_class.setdefault(found, []).append(i)
    lines: list[dict[str, None]] = [{} for _ in graph.groups]
    for op in flow.ops:
        touched = np.unique(np.concatenate(where[op.index])).tolist() if op.index in where else ()
        for i in {i for found in touched for i in of_class.get(found, ())}:
            lines[i][str(op)] = None
    return [tuple(found) for found in lines]


def _coupling(
    graph: DependencyGraph, group: Group, removed: int, gone: np.ndarray, ties: tuple[str, ...], scores: Any
) -> Coupling:
    members = tuple(Member(m.parameter, m.dims, _side(m)) for m in group.members)
    if group.pinned is not None:
        count = len(group.units)
        return Coupling(group.name, count, 0, count, 0, 1, members, graph.reason(group))
    goes = gone[group.units]
    return Coupling(
        name=group.name,
        size=group.size,
        removed=removed,
        units=len(group.units),
        gone=int(goes.sum()),
        rows=len(group.grid),
        members=members,
        ties=ties,
        scores=None if scores is None else histogram(np.asarray(scores, float), goes),
    )


def histogram(scores: np.ndarray, goes: np.ndarray) -> Histogram | None:
    """Count scores ``[units]`` of what stays and of what goes; None where a score is not finite."""
    if not len(scores) or scores.shape != goes.shape or not np.isfinite(scores).all():
        return None
    edges = np.histogram_bin_edges(scores, bins=min(BINS, max(1, int(np.ceil(2 * np.sqrt(len(scores)))))))
    stay, go = (np.histogram(scores[which], edges)[0] for which in (~goes, goes))
    cut = None
    if goes.any() and not goes.all() and scores[goes].max() <= scores[~goes].min():
        cut = float((scores[goes].max() + scores[~goes].min()) / 2)
    return Histogram(tuple(edges.tolist()), tuple(stay.tolist()), tuple(go.tolist()), cut)


def _side(place: Place) -> str:
    return "both" if len(place.sides) > 1 else next(iter(place.sides), "")


def _layers(graph: DependencyGraph, plan: Plan) -> list[LayerPart]:
    homes: dict[str, list[tuple[Group, Place]]] = {}
    for group in graph.groups:
        for member in group.members:
            homes.setdefault(member.parameter, []).append((group, member))
    found = []
    for name, layer in graph.layers.nodes(data=True):
        places = sorted((p for parameter in layer["parameters"] for p in homes.get(parameter, ())), key=_outwards)
        groups = tuple(dict.fromkeys(group.name for group, _ in places))
        parameters = tuple(layer["parameters"])
        width = _width(plan, [place for _, place in places])
        found.append(LayerPart(name, layer["op"], layer["source"], parameters, groups, width))
    return found


def _outwards(at: tuple[Group, Place]) -> int:
    """Put what a layer makes first, and what it reads last."""
    place = at[1]
    return 0 if "out" in place.sides else 2 if "in" in place.sides else 1


def _width(plan: Plan, places: Sequence[Place]) -> tuple[int, int] | None:
    """Return how many channels a layer makes, before and after."""
    for place in places:
        if "in" in place.sides and "out" not in place.sides:
            return None
        if len(place.dims) == 1:
            shape = plan.fingerprint[place.parameter]
            cut = plan.cuts.get(place.parameter)
            dim = place.dims[0]
            return shape[dim], (shape if cut is None else cut.new_shape)[dim]
    return None
