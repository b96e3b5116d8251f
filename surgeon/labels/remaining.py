"""What a recording says of the model that a cut has left: all its facts, without the labels that died.

The model is not run again. Labels keep their order and lose the gaps between them, so that what remains is what a
recording of the small model would have found.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surgeon.errors import SurgeonError
from surgeon.labels.family import Extent, Family, Value, extent
from surgeon.labels.flow import Flow, PerTensor
from surgeon.labels.lifetimes import Allocation
from surgeon.labels.ops import Op, Reduction, Shape
from surgeon.labels.run import Run
from surgeon.labels.scale import Rescaling
from surgeon.labels.sizes import Constraint
from surgeon.labels.space import Implication, Meeting, Reason, Space, Table
from surgeon.trace import Arithmetic, Expression, Width


def remaining(recorded: Run, alive: np.ndarray) -> Run:
    """Return the recording of the small model.

    Parameters
    ----------
    alive : which labels survive, bool ``[labels]``

    Raises
    ------
    SurgeonError where what is left of a tensor is no rectangle.
    """
    left = _Remaining(alive)
    constraints = [left.constraint(constraint) for constraint in recorded.constraints]
    rescalings = [left.rescaling(rescaling, recorded.flow.leaves) for rescaling in recorded.rescalings]
    return Run(left.flow(recorded.flow), constraints, recorded.calls, rescalings)


class _Remaining:
    """Takes dead labels out of things; what was one object before is one object after."""

    def __init__(self, alive: np.ndarray) -> None:
        self.alive, self.number = alive, np.cumsum(alive) - 1
        self.known: dict[int, tuple[Any, Any]] = {}
        self.sets: dict[tuple[int, ...], tuple[tuple[Family, ...], tuple[Family, ...]]] = {}

    def _once(self, old: Any, make: Any) -> Any:
        known = self.known.get(id(old))
        if known is None:
            known = self.known[id(old)] = old, make(old)
        return known[1]

    # -- labels ----------------------------------------------------------------------------------------

    def labels(self, labels: Tensor) -> Tensor:
        """Return what is left of labels: a table where rows keep equally many, else one after the other."""
        left: Tensor = self._once(labels, self._labels)
        return left

    def _labels(self, labels: Tensor) -> Tensor:
        alive = self.alive[labels.numpy()]
        sizes = rectangle(alive)
        return self.picked(labels, alive).reshape(sizes if np.prod(sizes) == alive.sum() else [-1])

    def picked(self, labels: Tensor, alive: np.ndarray) -> Tensor:
        return torch.from_numpy(self.number[labels.numpy()[alive]])

    def counted(self, labels: Tensor) -> int:
        return int(np.count_nonzero(self.alive[labels.numpy()]))

    def flat(self, *aligned: np.ndarray) -> list[np.ndarray]:
        """Return what is left of arrays that say something of the same places: where all of them live."""
        both = np.logical_and.reduce([self.alive[labels] for labels in aligned])
        return [self.number[labels[both]] for labels in aligned]

    def space(self, space: Space) -> Space:
        left = Space()
        left.count = int(np.count_nonzero(self.alive))
        left.equalities = [(*self.flat(a, b), at) for a, b, at in space.equalities if self._any(a)]  # type: ignore[misc]
        left.implications = [self._implication(fact) for fact in space.implications if self._any(fact.child)]
        left.meetings = [self._meeting(meeting) for meeting in space.meetings if self._any(meeting.cell)]
        left.tables = [Table(self._cells(table.cells), table.at) for table in space.tables if self._any(table.cells)]
        left.pins = [self._reasoned(*pin) for pin in space.pins]
        left.bound = [self._reasoned(*bound) for bound in space.bound if self._any(bound[0])]
        return left

    def _any(self, labels: np.ndarray) -> bool:
        return bool(self.alive[labels].any())

    def _implication(self, fact: Implication) -> Implication:
        child, parent = self.flat(fact.child, fact.parent)
        return Implication(child, parent, fact.at)

    def _meeting(self, meeting: Meeting) -> Meeting:
        cell, *parents = self.flat(meeting.cell, *meeting.parents)
        return Meeting(cell, tuple(parents), meeting.at)

    def _cells(self, cells: np.ndarray) -> np.ndarray:
        alive = self.alive[cells]
        sizes = rectangle(alive)
        if np.prod(sizes) != alive.sum():
            raise SurgeonError(f"rows of a table {list(cells.shape)} keep unequally many cells")
        return np.asarray(self.number[cells[alive]].reshape(sizes))

    def _reasoned(self, labels: np.ndarray, reason: Reason) -> tuple[np.ndarray, Reason]:
        return self.flat(labels)[0], reason

    # -- tensors ---------------------------------------------------------------------------------------

    def families(self, families: tuple[Family, ...]) -> tuple[Family, ...]:
        """Return what is left of the families of one tensor, whose positions live where all of them do."""
        key = tuple(map(id, families))
        known = self.sets.get(key)
        if known is None:
            beside = ([f for f in families if {*f.dims} & {*family.dims}] for family in families)
            left = tuple(map(self._family, families, beside))
            known = self.sets[key] = families, left
        return known[1]

    def _family(self, family: Family, beside: list[Family]) -> Family:
        """Return what is left of a family beside those that vary along its dimensions as well."""
        if len(beside) < 2:
            left: Family = self._once(family, lambda f: self._left(f, self.alive[f.labels.numpy()]))
            return left
        alive = np.ones((), bool)
        for other in beside:
            alive = alive & self.alive[other.labels.numpy()]
        return self._left(family, alive)

    def _left(self, family: Family, alive: np.ndarray) -> Family:
        """Return what is left of a family and of its rows where positions of the tensor live."""
        across = tuple(d for d, size in enumerate(family.labels.shape) if alive.shape[d] != size)
        alive = np.asarray(alive.any(across, keepdims=True))
        sizes = rectangle(alive)
        if np.prod(sizes) != alive.sum():
            raise SurgeonError(f"rows of a tensor with labels {list(family.labels.shape)} keep unequally many of them")
        parents = tuple(self._left(parent, alive) for parent in family.parents)
        return Family(self.picked(family.labels, alive).reshape(sizes), parents)

    def shape(self, shape: Shape) -> Shape:
        sizes, families = shape
        return (self._sizes(sizes, families), self.families(families)) if families else shape

    def _sizes(self, sizes: tuple[int, ...], families: tuple[Family, ...]) -> tuple[int, ...]:
        varying = {dim for family in families for dim in family.dims}
        widths = (extent(sizes, families, dim) if dim in varying else size for dim, size in enumerate(sizes))
        return tuple(self.extent(width).size if isinstance(width, Extent) else width for width in widths)

    def extent(self, width: Extent) -> Extent:
        count, rows = self.counted(width.labels), 1 if width.rows is None else self.counted(width.rows)
        outer = None if width.rows is None else self.labels(width.rows)
        return Extent(count // rows, self.labels(width.labels), outer)

    def value(self, value: Value) -> Value:
        sizes, families = self.shape((value.shape, tuple(value.families)))
        fixed = list(self.families(tuple(value.fixed)))
        return replace(value, shape=sizes, families=list(families), unbound=set(value.unbound), fixed=fixed)

    # -- the run ---------------------------------------------------------------------------------------

    def flow(self, flow: Flow) -> Flow:
        left = copy.copy(flow)
        left.space, left.values, left.crossed = self.space(flow.space), PerTensor(), {}
        left.sizes_used, left.sizes_read, left.roots, left.pending, left.current = [], [], [], [], ()
        left.leaves = {name: self.value(value) for name, value in flow.leaves.items()}
        left.ops = [self.op(op) for op in flow.ops]
        left.lifetimes = copy.copy(flow.lifetimes)
        left.lifetimes.allocations = [self.allocation(each) for each in flow.lifetimes.allocations]
        return left

    def op(self, op: Op) -> Op:
        return replace(
            op,
            operands=tuple(None if shape is None else self.shape(shape) for shape in op.operands),
            results=tuple(self.shape(shape) for shape in op.results),
            reductions=[Reduction(each.position, self.shape(each.shape)) for each in op.reductions],
        )

    def allocation(self, allocation: Allocation) -> Allocation:
        return replace(allocation, shape=self.shape(allocation.shape))

    # -- sizes -----------------------------------------------------------------------------------------

    def expression(self, source: Expression) -> Expression:
        if isinstance(source, Width):
            found: Width = self._once(source, self._width)
            return found
        if isinstance(source, Arithmetic):
            return Arithmetic(source.operator, self.expression(source.left), self.expression(source.right))
        return source

    def _width(self, width: Width) -> Width:
        left: Extent = self._once(width.source, self.extent)
        return Width(left, left.size)

    def constraint(self, constraint: Constraint) -> Constraint:
        if not constraint.widths():
            return constraint
        return replace(constraint, left=self.expression(constraint.left), right=self.expression(constraint.right))

    def rescaling(self, rescaling: Rescaling, leaves: Mapping[str, Value]) -> Rescaling:
        places = tuple(
            (name, dim, self._positions(leaves[name], dim, positions)) for name, dim, positions in rescaling.places
        )
        return replace(rescaling, places=places, width=self.expression(rescaling.width))

    def _positions(self, value: Value, dim: int, positions: np.ndarray) -> np.ndarray:
        """Return where positions along a dimension of a parameter are now."""
        stays = np.ones(value.shape[dim], bool)
        for family in value.along(dim):
            alive = self.alive[family.labels.numpy()]
            stays &= alive.any(axis=tuple(d for d in range(alive.ndim) if d != dim))
        return np.asarray((np.cumsum(stays) - 1)[positions[stays[positions]]])


def rectangle(alive: np.ndarray) -> list[int]:
    """Return the sizes of what is left of a table whose rows keep equally many cells."""
    sizes = []
    for dim in reversed(range(alive.ndim)):
        sizes.append(int(alive.sum(dim).max(initial=0)))
        alive = np.asarray(alive.any(dim))
    return sizes[::-1]


__all__ = ["remaining"]
