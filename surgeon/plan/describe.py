"""Write down what happens when units go: cuts, edits, factors, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.errors import SurgeonError
from surgeon.plan import cost as costs
from surgeon.plan.plan import Cut, Edit, GroupCut, LayerCost, Masked, Plan, Scale, Selection
from surgeon.plan.reach import out_of_reach

if TYPE_CHECKING:
    from surgeon.counts import Counted
    from surgeon.graph import DependencyGraph
    from surgeon.labels.sizes import Settlement


def describe(
    graph: DependencyGraph,
    units: Sequence[int] | np.ndarray,
    removed: Mapping[str, int],
    settings: Mapping[str, Any],
    loss: float | None = None,
    bound: float | None = None,
) -> Plan:
    """Write down what happens when the given units go, and what that loses where it is known.

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
            for name, cost in (
                ("flops", costs.flops(graph)),
                ("params", costs.params(graph)),
                ("bytes", costs.bytes_held(graph)),
                ("memory", costs.memory(graph)),
            )
        },
        settings=dict(settings),
        masked=_masked(graph, alive),
        scales=_scales(graph, counts, settlement),
        out_of_reach=costs.once(graph, "out of reach", out_of_reach),
        loss=loss,
        bound=bound,
        tied={alias: name for alias, name in graph.aliases.items() if alias != name and name in graph.shapes},
        transient=_transient(graph),
    )


def _transient(graph: DependencyGraph) -> tuple[str, ...]:
    """Return the buffers that a state dict of the model does not hold."""
    names = (
        f"{path}.{name}" if path else name
        for path, module in graph.modules.items()
        for name in module._non_persistent_buffers_set
    )
    return tuple(sorted(set(names) & set(graph.shapes)))


def _size(dim: int | Counted) -> int:
    return dim if isinstance(dim, int) else dim.size


def _cuts(graph: DependencyGraph, alive: np.ndarray, counts: np.ndarray) -> dict[str, Cut]:
    # A layer and the norms behind it hold one array of classes.
    kept = {id(at): np.flatnonzero(alive[at]) for at in {id(p.classes): p.classes for p in graph.places}.values()}
    selections: dict[str, list[Selection]] = {}
    for place in graph.places:
        stays, of = kept[id(place.classes)], len(place.classes)
        if len(stays) < of:
            selections.setdefault(place.parameter, []).append(Selection(place.dims, of, stays))
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
            selection = Selection(dims, keep.size, np.flatnonzero(keep))
            found.append(Masked(call, op, position, selection, keep.shape))
    return tuple(found)


# -- and back ----------------------------------------------------------------------------------------


def units_of(graph: DependencyGraph, plan: Plan) -> np.ndarray:
    """Return the units that a plan for the graph's model removes: those of which it leaves nothing in any tensor.

    What is in no parameter, such as the rows of some tables, goes where all goes that it takes along.
    """
    stays, seen = (np.zeros(graph.solution.classes, bool) for _ in range(2))
    for place in graph.places:
        seen[place.classes] = True
        cut = plan.cuts.get(place.parameter)
        here = place.classes if cut is None else place.classes[_kept(place.dims, cut.shape, cut.selections)]
        stays[here] = True  # where a row goes, its cells go too, but what they stand for may stay in other rows
    closure = graph.solution.closure
    left, shown = closure @ (seen & stays).astype(np.int64), closure @ seen.astype(np.int64)
    return np.flatnonzero((left == 0) & (shown > 0))


def _kept(dims: tuple[int, ...], shape: tuple[int, ...], selections: Any) -> np.ndarray:
    """Return which positions along some dimensions stay, bool, flattened; selections may be of more dimensions."""
    here = [s for s in selections if {*s.dims} & {*dims}]
    wide = sorted({*dims}.union(*(s.dims for s in here)))
    alive = np.ones([shape[d] for d in wide], bool)
    for s in here:
        flags = np.zeros(s.of, bool)
        flags[s.keep] = True
        alive &= flags.reshape([shape[d] if d in s.dims else 1 for d in wide])
    return np.asarray(alive.any(axis=tuple(i for i, d in enumerate(wide) if d not in dims)).ravel())
