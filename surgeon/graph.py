"""The dependency graph: layers, coupled groups, and why they are coupled."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from surgeon.counts import Counted, Counts, Held, Node, counted
from surgeon.drawing import draw, owners, to_dot
from surgeon.errors import NothingPrunable, UnknownLayer
from surgeon.groups import Group, Pieces, Place, first_steps, locate, named, pin, sums
from surgeon.labels.lifetimes import Allocation
from surgeon.labels.ops import Op, needed
from surgeon.labels.remaining import remaining
from surgeon.labels.run import Run
from surgeon.labels.sizes import Constraint, Index, Settlement, settle
from surgeon.labels.space import Reason
from surgeon.labels.units import Block, arrange, incidence, members_of, signatures, solve
from surgeon.modules import first_names, holder, named_parameters, named_tensors, submodules
from surgeon.trace import Attribute, Expression, Width, evaluate
from surgeon.trace.integers import leaves


class DependencyGraph:
    """What is coupled with what in one model, and what may be cut.

    Attributes
    ----------
    layers : networkx.DiGraph with a node per layer that owns parameters and an edge per dependency
    groups : coupled groups, free ones first
    nodes : recorded ops with symbolic shapes
    allocations : memory of the forward pass, with symbolic shapes
    example_inputs : what the model was run on, for latency to be measured with
    shapes : parameter and buffer name -> symbolic shape
    """

    def __init__(self, model: nn.Module, recorded: Run, method: str = "forward", example_inputs: Any = None) -> None:
        flow, constraints = recorded.flow, recorded.constraints
        self.recorded = recorded
        self.model, self.method, self.example_inputs = model, method, example_inputs
        self.solution = solve(flow.space)
        self.counts = Counts(self.solution)
        self.flow = flow
        self.total_ops = recorded.calls
        self.modules = submodules(model)
        self.rescalings = recorded.rescalings
        numbers = [leaf for r in self.rescalings for leaf in leaves(r.width)]
        attributes = {a for c in constraints for a in c.attributes} | {n for n in numbers if isinstance(n, Attribute)}
        self.old = {a: v for a in attributes if (v := _current(self.modules, a)) is not None}
        self.places = [
            locate(name, family, flow, self.solution)
            for name, value in flow.leaves.items()
            for family in (*value.families, *value.fixed)
        ]
        self.shapes = {
            name: self.counts.shape((value.shape, tuple(value.families))) for name, value in flow.leaves.items()
        }
        named = named_tensors(model)
        self.aliases = first_names(named)
        self.parameters = set(named_parameters(model))
        live = needed(flow.ops, flow.outputs)
        self.nodes = [self._lower(op, i in live) for i, op in enumerate(flow.ops)]
        self.allocations = [self._held(allocation) for allocation in flow.lifetimes.allocations]
        self._ids: dict[int, Counted] = {}
        widths = [w for c in constraints for w in c.widths()] + [n for n in numbers if isinstance(n, Width)]
        for width in widths:
            self._ids[id(width)] = counted(self.counts.dim(width.source))
        self.constraints = Index(constraints, self._count_ids)
        self.incidence = self.counts.matrix()
        self.initial = np.asarray(self.incidence.sum(axis=1)).ravel()
        self.groups = self._groups()
        self.costs: dict[str, Any] = {}

    # -- building ------------------------------------------------------------------------------------

    def _lower(self, op: Op, live: bool) -> Node:
        operands = tuple(self.counts.shape(s) for s in op.operands if s is not None)
        results = tuple(self.counts.shape(s) for s in op.results)
        return Node(op.index, op.name, op.module, op.location, operands, results, op.parameters, op.settings, live)

    def _held(self, allocation: Allocation) -> Held:
        end = len(self.flow.ops) if allocation.died is None else allocation.died
        return Held(self.counts.shape(allocation.shape), allocation.itemsize, max(allocation.born, 0), end)

    def _count_ids(self, width: Width) -> list[int]:
        counted = self._ids[id(width)]
        return [counted.count] if counted.rows is None else [counted.count, counted.rows]

    def width(self, counts: np.ndarray) -> Any:
        """Return a function from tracked widths to their values under new counts."""
        return lambda width: self._ids[id(width)].of(counts)

    def number(self, source: Expression, counts: np.ndarray, attributes: Mapping[Attribute, int]) -> int | None:
        """Return a size expression under new counts, with the attributes that change."""
        return evaluate(source, {**self.old, **attributes}, self.width(counts))

    def settle(self, counts: np.ndarray) -> Settlement:
        """Solve for all attributes under new counts."""
        changed = np.flatnonzero(counts != self.initial)
        return settle(self.constraints.touched(changed.tolist()), self.width(counts), self.old)

    def _groups(self) -> list[Group]:
        blocks = arrange(self.solution, self.incidence)
        dead = (first_steps(blocks, self.solution.closure.shape[0]) @ self.solution.closure).tocsr()
        dead.data = np.minimum(dead.data, 1)  # two units of one step may take the same class along
        homes = incidence([place.classes for place in self.places], self.solution.classes)
        lost, where = _rows((dead @ self.incidence.T).tocsr()), _rows((homes @ dead.T).T.tocsr())
        groups = [
            self._group(block, dict(zip(*map(np.ndarray.tolist, widths))), np.sort(at))
            for block, widths, (at, _) in zip(blocks, lost, where)
        ]
        groups = [self._probed(g) if g.pinned is None else g for g in groups if g.members]
        groups += self._pinned_groups(homes)
        order = {place.parameter: i for i, place in reversed(list(enumerate(self.places)))}
        groups.sort(key=lambda g: (g.pinned is not None, min(order[m.parameter] for m in g.members)))
        return named(groups)

    def _group(self, block: Block, widths: dict[int, int], where: np.ndarray) -> Group:
        members = tuple(self.places[i] for i in where)
        return Group("", block.steps, np.concatenate(block.atoms), block.atoms, members, widths, block.reason)

    def _probed(self, group: Group) -> Group:
        """Try a cut of one step and of all but one: sizes that then don't fit pin the group.

        Where the model compares sizes (``if channels == 1``), a few more have to stay.
        """
        if group.size < 2:
            return pin(group, Reason("a single unit: cutting it would leave nothing"))
        touched = self.constraints.touched(group.touched)
        conflict, least = self._conflict(group, touched, 1), 1
        while conflict is None and least < group.size:
            worst = self._conflict(group, touched, group.size - least)
            if worst is None:
                return replace(group, least=least)
            conflict, least = worst if worst.equation or 2 * least >= group.size else None, 2 * least
        assert conflict is not None
        return pin(group, Reason(f"a size can't follow the cut ({conflict})", conflict.at))

    def _conflict(self, group: Group, touched: Sequence[Constraint], steps: int) -> Constraint | None:
        """Return a constraint that a cut of some steps breaks."""
        counts = self.initial.copy()
        for width, lost in group.touched.items():
            counts[width] -= steps * lost
        return next(iter(settle(touched, self.width(counts), self.old).conflicts), None)

    def _pinned_groups(self, homes: sparse.csr_matrix) -> list[Group]:
        pinned = np.flatnonzero(self.solution.pinned >= 0)
        homes = homes.T.tocsr()[pinned]
        inside = np.flatnonzero(np.diff(homes.indptr))
        _, first, alike = np.unique(signatures(homes[inside]), return_index=True, return_inverse=True)
        by_place = members_of(alike)
        groups = []
        for kind in np.argsort(first):
            classes = pinned[inside[by_place[kind]]]
            row = inside[first[kind]]
            members = tuple(self.places[i] for i in np.unique(homes.indices[homes.indptr[row] : homes.indptr[row + 1]]))
            reason = self.solution.reasons[self.solution.pinned[classes[0]]]
            groups.append(Group("", len(classes), classes, (classes,), members, {}, reason))
        return groups

    def without(self, units: Iterable[int]) -> Run:
        """Return the recording of the model that is left when units go, without running it.

        Made before the cut, it becomes a graph after it, ``DependencyGraph(model, recording, ...)``, when the integers
        that modules hold are those of the small model.
        """
        return remaining(self.recorded, ~self.dead_classes(units)[self.solution.class_of])

    # -- asking --------------------------------------------------------------------------------------

    @cached_property
    def layers(self) -> nx.DiGraph:
        """A node per layer that owns parameters and an edge per dependency."""
        return _layer_graph(self)

    def draw(self, path: str | os.PathLike[str] | None = None, *, axes: Any = None) -> Any:
        """Draw the layers with matplotlib, coloured by the group of their outputs; return the axes.

        Parameters
        ----------
        path : where to write a picture, such as "layers.svg"
        axes : matplotlib axes to draw on, in place of new ones

        Raises
        ------
        SurgeonError where matplotlib is missing.

        Examples
        --------
        >>> graph.draw("layers.svg")
        """
        return draw(self.layers, owners(self.layers, self.free), path, axes)

    def to_dot(self) -> str:
        """Return the layers as text for Graphviz, coloured by the group of their outputs.

        Examples
        --------
        >>> Path("layers.dot").write_text(graph.to_dot())  # dot -Tsvg layers.dot -o layers.svg
        """
        return to_dot(self.layers, owners(self.layers, self.free))

    @property
    def free(self) -> list[Group]:
        """Groups that may be cut."""
        return [g for g in self.groups if g.pinned is None]

    def __str__(self) -> str:
        pinned = len(self.groups) - len(self.free)
        units = sum(g.size for g in self.free)
        free = f"{len(self.free)} free groups of {units} units"
        return f"DependencyGraph({len(self.nodes)} ops, {free}, {pinned} pinned groups)"

    __repr__ = __str__

    def dead_classes(self, units: Iterable[int]) -> np.ndarray:
        """Return which classes die with the given units, ``[classes]``."""
        chosen = np.zeros(self.solution.closure.shape[0], np.int32)
        chosen[np.fromiter(units, int)] = 1
        return np.asarray(self.solution.closure.T @ chosen) > 0

    def tensor(self, name: str) -> Tensor:
        """Return a parameter or buffer by name."""
        owner, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(self.modules[owner], leaf)
        return tensor

    def per_unit(self, values: Mapping[str, Tensor | Pieces]) -> dict[str, Tensor]:
        """Sum a quantity given per weight over all weights that a unit takes along.

        Parameters
        ----------
        values : parameter name -> tensor of the parameter's shape, or pieces of it, each with where it is; parameters
            left out count nothing

        Returns
        -------
        group name -> float64 ``[units]``, for every free group
        """
        at, amounts = [np.zeros(0, np.int64)], [np.zeros(0)]
        homes: dict[str, list[Place]] = {}
        for place in self.places:
            homes.setdefault(place.parameter, []).append(place)
        for name, places in homes.items():
            value = values.get(name)
            if value is not None:
                at.extend(place.classes for place in places)
                amounts.extend(sums(places, value))
        total = np.bincount(np.concatenate(at), np.concatenate(amounts), self.solution.classes)
        units = torch.from_numpy(np.asarray(self.solution.closure @ total))
        return {group.name: units[torch.from_numpy(group.units)] for group in self.free}

    def nesting(self) -> tuple[set[str], set[str]]:
        """Return the groups whose units take units of other groups along (rows), and those others (columns)."""
        reach, free = self.solution.closure, self.free
        taken = np.diff(reach.indptr)
        owner = np.full(self.solution.classes, -1)
        wide = []
        for i, group in enumerate(free):
            if (taken[group.units] == 1).all():
                owner[reach.indices[reach.indptr[group.units]]] = i
            else:
                wide.append(i)
        held = {i: set(owner[reach[free[i].units].indices].tolist()) - {-1, i} for i in wide}
        outer = {free[i].name for i, inside in held.items() if inside}
        return outer, {free[k].name for inside in held.values() for k in inside}

    def overlaps(self, groups: Sequence[Group]) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield the pairs of groups that take the same things along, as rows and columns of one table do.

        Each with what one removal step of both has in common on average, in positions of every counted width.
        """
        closure = self.solution.closure
        dead = (incidence([g.units for g in groups], closure.shape[0]) @ closure).tocsr()
        dead.data = np.minimum(dead.data, 1)
        pairs = sparse.triu(dead @ dead.T, k=1).tocoo()
        for a, b in zip(pairs.row.tolist(), pairs.col.tolist()):
            shared = self.incidence @ dead[a].multiply(dead[b]).T.tocsr()
            yield a, b, shared.toarray().ravel() / (groups[a].size * groups[b].size)

    def step_width(self, group: Group) -> int:
        """Return how many positions of the naming layer's output one step takes: what ``round_to`` rounds."""
        at_home = [m for m in group.members if m.layer == group.name.partition("#")[0] and "out" in m.sides]
        place = (at_home or list(group.members))[0]
        dead = self.dead_classes(group.first_step)
        return max(1, int(dead[place.classes].sum()))

    def reductions(self) -> Iterator[tuple[int, str, int, tuple[int, ...], np.ndarray]]:
        """Yield the calls that sum or normalise along dimensions that may shrink: (call, op, tensor, dims, classes).

        Classes have the sizes of the dimensions for their shape.
        """
        for op in self.flow.ops:
            for reduction in op.reductions:
                for family in reduction.shape[1]:
                    sizes = [family.labels.shape[d] for d in family.dims]
                    classes = self.solution.of(family.labels).reshape(sizes)
                    yield op.index, op.name, reduction.position, family.dims, classes

    def layer_names(self) -> list[str]:
        """Return the paths of the layers that own parameters."""
        return [name for name in self.layers]

    def reason(self, group: Group) -> str:
        """Say why a group is pinned, with op and source line."""
        if group.pinned is None:
            return ""
        at = self._at.get(group.pinned.at)
        return group.pinned.text + (f", at {at}" if at is not None and str(at) not in group.pinned.text else "")

    @cached_property
    def _at(self) -> dict[int, Op]:
        """The ops by the number of their call."""
        return {op.index: op for op in reversed(self.flow.ops)}

    def explain(self, layer: str) -> str:
        """Say who is cut together with a layer and why, or why it can't be cut.

        Raises UnknownLayer with the nearest names.
        """
        known = sorted({p.layer for p in self.places} | {p.parameter for p in self.places})
        matched = fnmatch.filter(known, layer) or fnmatch.filter(known, f"{layer}.*")
        if not matched:
            raise UnknownLayer(layer, known)
        lines = []
        for group in self.groups:
            here = [m for m in group.members if m.layer in matched or m.parameter in matched]
            if here:
                lines.extend(self._explain_group(group, here))
        return "\n".join(lines) or f"{layer}: no call of the recorded run used its parameters"

    def _explain_group(self, group: Group, here: Sequence[Place]) -> list[str]:
        what = ", ".join(map(str, here))
        if group.pinned is not None:
            return [f"{what}: {len(group.units)} positions stay: {self.reason(group)}"]
        others = sorted({str(m) for m in group.members} - {str(m) for m in here})
        rows = f", in {len(group.grid)} rows that lose equally many" if len(group.grid) > 1 else ""
        lines = [f"{what}: group {group.name!r}, {group.size} units{rows}"]
        lines += [f"    cut together with {other}" for other in others]
        lines += [f"    tied by {op}" for op in self._ties(group)]
        return lines

    def _ties(self, group: Group) -> list[str]:
        classes = np.zeros(self.solution.classes, bool)
        classes[self.solution.closure[group.units].indices] = True
        at = {e for a, _, e in self.flow.space.equalities if classes[self.solution.class_of[a]].any()}
        at |= {i.at for i in self.flow.space.implications if classes[self.solution.class_of[i.child]].any()}
        return [str(op) for op in self.flow.ops if op.index in at]

    def require_free(self) -> None:
        """Raise NothingPrunable, with the reason for each group, when nothing may be cut."""
        if self.free:
            return
        reasons = [f"  {g.name}: {self.reason(g)}" for g in self.groups]
        detail = "\n".join(reasons) or "  no call of the recorded run used a parameter that can shrink"
        raise NothingPrunable(f"no group of this model may be cut:\n{detail}")


def _rows(matrix: sparse.csr_matrix) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return columns and values of each row."""
    ends = matrix.indptr.tolist()
    return [(matrix.indices[a:b], matrix.data[a:b]) for a, b in pairwise(ends)]


def _current(modules: Mapping[str, nn.Module], attribute: Attribute) -> int | None:
    try:
        held, name = holder(modules[attribute.owner], attribute.name)
        value = held[name]
        return int(value if attribute.item is None else value[attribute.item])
    except (AttributeError, KeyError, TypeError, IndexError, ValueError):
        return None


def _layer_graph(graph: DependencyGraph) -> nx.DiGraph:
    layers = nx.DiGraph()
    groups: dict[str, list[str]] = {}
    for group in graph.groups:
        for parameter in {m.parameter for m in group.members}:
            groups.setdefault(parameter, []).append(group.name)
    for node, op in zip(graph.nodes, graph.flow.ops):
        if not op.parameters:
            continue
        if op.module not in layers:
            names = sorted({name for parameter in op.parameters for name in groups.get(parameter, ())})
            layers.add_node(op.module, op=op.name, source=node.source, parameters=op.parameters, groups=names)
        for upstream in op.inputs:
            if upstream != op.module and upstream in layers:
                shared = sorted(set(layers.nodes[upstream]["groups"]) & set(layers.nodes[op.module]["groups"]))
                layers.add_edge(upstream, op.module, op=op.name, groups=shared)
    return layers
