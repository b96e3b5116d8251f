"""Values: what surgeon knows about a tensor of the running model.

A value carries **families**. A family holds one label per position of the dimensions it varies along,
and size 1 along all others. A position of the value survives iff its label survives in every family.

    activation [n, c, h, w]          one family  [1, c, 1, 1]
    heads after a view [b, t, h, d]  one family  [1, 1, h, d], whose parent is [1, 1, h, 1]

A dimension along which no family varies is solid. A family that varies along several dimensions has
a parent for each prefix of them: the label of a whole row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from surgeon.labels.space import Space

Dims = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Family:
    """Labels [one size per dimension, 1 where constant] and the families of its rows."""

    labels: Tensor
    parents: tuple[Family, ...] = ()
    dims: Dims = field(init=False)

    def __post_init__(self) -> None:
        # Set here, not computed when asked for: every family is asked, many times.
        object.__setattr__(self, "dims", tuple(i for i, size in enumerate(self.labels.shape) if size > 1))

    @cached_property
    def _placed(self) -> dict[tuple[int, int], Family]:
        return {}

    def along(self, rank: int, dim: int) -> Family:
        """Return the labels of a family over one dimension, put along another one; most families are of this kind.

        Asked twice, it answers with the same family: two places that hold the same family need not be compared.
        """
        if self.dims == (dim,) and self.labels.dim() == rank:
            return self
        placed = self._placed.get((rank, dim))
        if placed is None:
            shape = [1] * rank
            shape[dim] = -1
            placed = self._placed[rank, dim] = Family(self.labels.reshape(shape))
            placed._placed[self.labels.dim(), self.dims[0]] = self
        return placed

    def ancestor(self, dims: Dims) -> Family | None:
        """Return the family itself or the parent that varies along exactly these dimensions."""
        return next((f for f in (self, *self.parents) if f.dims == dims), None)

    def __str__(self) -> str:
        return f"{list(self.labels.shape)}"


@dataclass(eq=False)
class Value:
    """The families of one tensor.

    ``unbound`` are dimensions of a parameter that no call has used yet; ``fixed`` are families that were made solid:
    they say nothing to later calls, but why they stay is asked about. ``maker`` is the op that made the tensor and
    ``upstream`` are the layers that it came through last. ``itemsize`` is the bytes of a parameter's numbers.
    """

    shape: tuple[int, ...]
    families: list[Family] = field(default_factory=list)
    unbound: set[int] = field(default_factory=set)
    leaf: str | None = None
    itemsize: int = 0
    fixed: list[Family] = field(default_factory=list)
    maker: int | None = None
    upstream: frozenset[str] = frozenset()

    def along(self, dim: int) -> list[Family]:
        """Return the families that vary along a dimension."""
        return [f for f in self.families if dim in f.dims]

    @property
    def solid(self) -> bool:
        """Nothing of this value can be cut."""
        return not self.families and not self.unbound

    def __str__(self) -> str:
        return f"{self.leaf or 'value'}{list(self.shape)} families {', '.join(map(str, self.families)) or 'none'}"


def solid_value(shape: Iterable[int]) -> Value:
    """A value that can't be cut along any dimension."""
    return Value(tuple(map(int, shape)))


def fresh_family(space: Space, rank: int, dim: int, size: int) -> Family:
    """New labels along one dimension."""
    return Family(space.fresh(*(size if i == dim else 1 for i in range(rank))))


def bind_leaf(space: Space, value: Value, dims: Iterable[int] | None = None) -> Value:
    """Give fresh labels to the unbound dimensions of a parameter."""
    for dim in sorted(value.unbound if dims is None else value.unbound & set(dims)):
        value.unbound.discard(dim)
        value.families.append(fresh_family(space, len(value.shape), dim, value.shape[dim]))
    return value


# -- structure ---------------------------------------------------------------------------------------


def compact(labels: Tensor) -> Tensor:
    """Shrink to size 1 every dimension along which the labels are constant."""
    table = labels.numpy()
    if not table.size:  # of nothing, all is constant
        return labels[(slice(1),) * table.ndim]
    corner = table[(0,) * table.ndim]
    for dim in [dim for dim, size in enumerate(table.shape) if size > 1]:
        beside = table[tuple(int(d == dim) for d in range(table.ndim))]
        # Most that vary along a dimension do so from the first position to the next.
        if beside == corner and (table == table.take([0], dim)).all():
            labels = labels.narrow(dim, 0, 1)
            table = labels.numpy()
    return labels


def build(space: Space, labels: Tensor, parents: Iterable[Family] = ()) -> list[Family]:
    """Make a family of moved labels, as ``assembled``, shrunk where they are constant."""
    return assembled(space, compact(labels), parents)


def assembled(space: Space, labels: Tensor, parents: Iterable[Family]) -> list[Family]:
    """Make a family of labels: keep the parents that still say something, add those of new rows."""
    leaf = Family(labels)
    if not leaf.dims:
        space.pin(leaf.labels, "a single position of the dimension is picked out")
        return []
    kept = [p for p in parents if p.dims and p.dims != leaf.dims]
    # Rows that differ where their cells don't (heads repeated for each example) are a family of their own.
    apart = [with_rows(space, p.labels, ()) for p in kept if not set(p.dims) <= set(leaf.dims)]
    kept = [p for p in kept if set(p.dims) <= set(leaf.dims)]
    return [with_rows(space, leaf.labels, kept), *apart]


def with_rows(space: Space, labels: Tensor, parents: Sequence[Family]) -> Family:
    """Complete the chain of row labels of a family over several dimensions, innermost first."""
    leaf = Family(labels, tuple(parents))
    dims = leaf.dims
    prefixes = [dims[:n] for n in range(len(dims) - 1, 0, -1)]
    # A parent along dimensions that are no prefix shows that rows and columns changed places: compaction by
    # rows would no longer agree with the order of the elements, so rows and columns become independent.
    swapped = any(p.dims not in prefixes for p in parents)
    found = list(parents)
    inner = leaf
    for prefix in prefixes:
        row = leaf.ancestor(prefix)
        if row is None:
            table = as_table(inner.labels, prefix)
            column = space.project(table, _rest(leaf, inner, prefix)) if swapped else space.split(table)
            row = Family(column.view([s if i in prefix else 1 for i, s in enumerate(labels.shape)]))
            found.append(row)
        inner = row
    for row in parents:
        if row.dims not in prefixes and len(row.dims) > 1:
            whole = with_rows(space, row.labels, [f for f in found if set(f.dims) < set(row.dims)])
            found += [f for f in whole.parents if all(f.dims != known.dims for known in found)]
    return Family(labels, tuple(found))


def _rest(leaf: Family, cells: Family, dims: Dims) -> Tensor | None:
    """Return the labels of the rows that cross ``dims``, if there are any, arranged as the table of cells is."""
    rest = {d for d in cells.dims if d not in dims}
    crossing = [f for f in leaf.parents if rest <= set(f.dims) < set(cells.dims)]
    if not crossing:
        return None
    row = min(crossing, key=lambda f: len(f.dims))
    return as_table(row.labels.expand(cells.labels.shape), dims)


def as_table(labels: Tensor, dims: Dims) -> Tensor:
    """Arrange labels as ``[positions along dims, all others]``."""
    rest = tuple(i for i in range(labels.dim()) if i not in dims)
    size = 1
    for i in dims:
        size *= labels.size(i)
    return labels.permute(*dims, *rest).reshape(size, -1)


def move(space: Space, value: Value, function: Callable[[Tensor], Tensor]) -> list[Family]:
    """Run a movement on the labels: the same function as on the data."""
    bind_leaf(space, value)
    moved: dict[int, Tensor] = {}

    def run(family: Family) -> Tensor:
        if id(family) not in moved:
            moved[id(family)] = compact(function(family.labels.expand(value.shape)))
        return moved[id(family)]

    families: list[Family] = []
    for family in value.families:
        parents = [Family(run(p)) for p in family.parents]
        families.extend(build(space, run(family), parents))
    return fuse(space, families)


def fuse(space: Space, families: Sequence[Family]) -> list[Family]:
    """Join families that vary along the same dimensions into one that lives iff all of them live."""
    by_dims: dict[Dims, list[Family]] = {}
    for family in families:
        same = by_dims.setdefault(family.dims, [])
        if not any(torch.equal(family.labels, other.labels) for other in same):
            same.append(family)
    return [same[0] if len(same) == 1 else _joined(space, same) for same in by_dims.values()]


def _joined(space: Space, families: Sequence[Family]) -> Family:
    rows: dict[Dims, list[Family]] = {}
    for row in (row for family in families for row in family.parents):
        rows.setdefault(row.dims, []).append(row)
    # Where the families have rows of their own, a row of both lives iff some cell of both does: it gets a new label.
    shared = [same[0] for same in rows.values() if all(torch.equal(same[0].labels, row.labels) for row in same)]
    return with_rows(space, space.product([f.labels for f in families]), shared)


# -- projection --------------------------------------------------------------------------------------


def project(space: Space, family: Family, keep: Iterable[int]) -> Family | None:
    """Return what a family says about some of its dimensions alone; None if it doesn't vary along them.

    Rows have parents already. Columns get theirs now, which ties the same column of every row.
    """
    dims = tuple(d for d in family.dims if d in set(keep))
    if not dims:
        return None
    found = family.ancestor(dims)
    if found is not None:
        return found
    base = min((f for f in (family, *family.parents) if set(dims) <= set(f.dims)), key=lambda f: len(f.dims))
    labels = space.project(as_table(base.labels, dims), _rest(base, base, dims))
    return with_rows(space, labels.view([s if i in dims else 1 for i, s in enumerate(base.labels.shape)]), ())


def prefix(family: Family, dim: int) -> Family:
    """Return the smallest row of a family that varies along a dimension: its dimensions up to that one."""
    dims = family.dims[: family.dims.index(dim) + 1]
    return family.ancestor(dims) or family


def make_solid(space: Space, value: Value, dim: int, reason: str) -> None:
    """A dimension may not shrink: rows may still go as a whole, single positions along it may not."""
    bind_leaf(space, value, [dim])
    left = fix_all(space, value.families, dim, reason)
    if value.leaf is not None:
        value.fixed += [f for f in value.families if all(f is not kept for kept in left)]
    value.families = left


def fix_all(space: Space, families: Sequence[Family], dim: int, reason: str) -> list[Family]:
    """Make families solid along a dimension; returns those that still say something."""
    left = (fix(space, f, dim, reason) if dim in f.dims else f for f in families)
    return [f for f in left if f is not None]


def fix(space: Space, family: Family, dim: int, reason: str) -> Family | None:
    """Make a family solid along one of its dimensions; returns what is left of it: its rows, or nothing."""
    cells = prefix(family, dim)
    rows = family.ancestor(cells.dims[:-1]) if len(cells.dims) > 1 else None
    if rows is None:
        space.pin(cells.labels, reason)
    else:
        space.unify(cells.labels, rows.labels)
    return rows if dim == family.dims[-1] else family


def pin_value(space: Space, value: Value, reason: str) -> None:
    """Nothing of this value may be cut."""
    bind_leaf(space, value)
    for family in value.families:
        for part in (family, *family.parents):
            space.pin(part.labels, reason)


# -- widths ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Extent:
    """The size of a dimension: surviving ``labels``, divided by surviving ``rows`` where each row has that many."""

    size: int
    labels: Tensor
    rows: Tensor | None = None

    def __str__(self) -> str:
        return str(self.size)


def extent(shape: Sequence[int], families: Sequence[Family], dim: int) -> Extent | int:
    """Return how large a dimension is, as a count of labels where it can shrink."""
    along = [f for f in families if dim in f.dims]
    if not along:
        return int(shape[dim])
    family = min(along, key=lambda f: len(f.dims))
    inner = prefix(family, dim)
    rows = inner.dims[:-1]
    outer = family.ancestor(rows) if rows else None
    return Extent(int(shape[dim]), inner.labels, None if outer is None else outer.labels)
