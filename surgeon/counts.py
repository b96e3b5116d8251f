"""Symbolic shapes: dimensions that are counts of surviving labels, and ops that carry them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from torch import Tensor

from surgeon.labels.family import Extent, Family, extent
from surgeon.labels.ops import Shape
from surgeon.labels.units import Solution, incidence
from surgeon.trace.recorder import source_line


@dataclass(frozen=True)
class Counted:
    """A dimension that can shrink: ``counts[count]``, divided by ``counts[rows]`` where rows are given."""

    count: int
    rows: int | None
    size: int

    def of(self, counts: np.ndarray) -> int | None:
        """Return the width under new counts; None when rows would be of unequal length."""
        total = int(counts[self.count])
        if self.rows is None:
            return total
        rows = int(counts[self.rows])
        return total // rows if rows and total % rows == 0 else None

    def __str__(self) -> str:
        return str(self.size)


def counted(dim: int | Counted) -> Counted:
    """Return a dimension that is known to be able to shrink."""
    assert isinstance(dim, Counted)
    return dim


class Counts:
    """Register of counted widths: each is a multiset of label classes."""

    def __init__(self, solution: Solution) -> None:
        self.solution = solution
        self.rows: list[np.ndarray] = []
        self._by_content: dict[tuple[int, int], int] = {}
        # Multisets of classes are told apart by length and a 64-bit sum, which needs no sorting.
        self._weights = np.random.default_rng(0).integers(1, 2**62, solution.classes, dtype=np.int64)
        self._by_tensor: dict[int, tuple[int, Tensor]] = {}
        self._by_shape: dict[tuple[Any, ...], tuple[tuple[int | Counted, ...], tuple[Family, ...]]] = {}

    def add(self, labels: Tensor) -> int:
        known = self._by_tensor.get(id(labels))
        if known is not None:
            return known[0]
        classes = self.solution.of(labels)
        number = self._by_content.setdefault((len(classes), int(self._weights[classes].sum())), len(self.rows))
        if number == len(self.rows):
            self.rows.append(classes)
        self._by_tensor[id(labels)] = (number, labels)
        return number

    def dim(self, width: Extent | int) -> int | Counted:
        """Lower a width to a constant or a count."""
        if isinstance(width, int):
            return width
        rows = None if width.rows is None else self.add(width.rows)
        return Counted(self.add(width.labels), rows, width.size)

    def shape(self, shape: Shape) -> tuple[int | Counted, ...]:
        """Lower a shape; the result of one op is the operand of the next, so each is looked at once."""
        sizes, families = shape
        if not families:
            return sizes
        key = (sizes, *map(id, families))
        known = self._by_shape.get(key)
        if known is None:
            known = self._by_shape[key] = (self._lowered(shape), families)
        return known[0]

    def _lowered(self, shape: Shape) -> tuple[int | Counted, ...]:
        sizes, families = shape
        varying = {dim for family in families for dim in family.dims}
        return tuple(
            self.dim(extent(sizes, families, dim)) if dim in varying else size for dim, size in enumerate(sizes)
        )

    def matrix(self) -> sparse.csr_matrix:
        """Return how often each class occurs in each width, ``[widths, classes]``."""
        return incidence(self.rows, self.solution.classes)


@dataclass(frozen=True, eq=False)
class Node:
    """One recorded op with symbolic shapes: the cost model reads these."""

    index: int
    name: str
    module: str
    location: tuple[str, int]
    operands: tuple[tuple[int | Counted, ...], ...]
    results: tuple[tuple[int | Counted, ...], ...]
    parameters: tuple[str, ...]
    settings: Mapping[str, Any]
    needed: bool = True

    @property
    def source(self) -> str:
        return source_line(self.location)

    def __str__(self) -> str:
        return f"{self.name} in {self.module or 'the model'} ({self.source})"


@dataclass(frozen=True, eq=False)
class Held:
    """Memory with a symbolic shape, alive while the ops from ``born`` to before ``died`` run."""

    shape: tuple[int | Counted, ...]
    itemsize: int
    born: int
    died: int

    def __str__(self) -> str:
        return f"{list(map(str, self.shape))} of {self.itemsize} bytes, ops {self.born} to {self.died - 1}"
