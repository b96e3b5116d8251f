"""Solve the facts: which labels are one, what dies together, and which sets of deaths leave rectangles.

``solve`` finds the classes of equal labels and, for each class that may die, its **closure**: everything that
dies with it. Classes with the same closure are one **unit**. ``arrange`` then sorts units into **bundles**: sets
of equal size, one per removal step, such that every surviving row of every table keeps equally many cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from surgeon.labels.space import ALWAYS, Reason, Space, Table, flat


@dataclass(frozen=True, eq=False)
class Solution:
    """Classes of labels and the units that can be cut.

    class_of [labels]      class of every label
    closure [units, classes]  1 where a class dies with a unit
    pinned [classes]       index into ``reasons`` or -1
    """

    class_of: np.ndarray
    closure: sparse.csr_matrix
    pinned: np.ndarray
    reasons: tuple[Reason, ...]
    tables: tuple[Table, ...]

    @property
    def classes(self) -> int:
        return int(self.closure.shape[1])

    def of(self, labels: Tensor) -> np.ndarray:
        """Return the classes of labels, flattened; the same array when asked for the same labels again."""
        known = self._known.get(id(labels))
        if known is None:
            known = self._known[id(labels)] = labels, self.class_of[flat(labels)]
        return known[1]

    @cached_property
    def _known(self) -> dict[int, tuple[Tensor, np.ndarray]]:
        return {}

    def __str__(self) -> str:
        return f"Solution({self.classes} classes, {self.closure.shape[0]} units, {len(self.tables)} tables)"


def solve(space: Space) -> Solution:
    """Find classes, pins and units; linear in the number of facts."""
    class_of, count = _components(space)
    pinned, reasons = _pins(space, class_of, count)
    bound = np.zeros(count, bool)
    for labels, _ in space.bound:
        bound[class_of[labels]] = True
    closure, unit_of = _closures(space, class_of, np.flatnonzero((pinned < 0) & ~bound), count)
    # A unit that takes a pinned class with it can't be cut: the pin spreads to the classes that the unit stands for.
    why = np.maximum.reduceat(pinned[closure.indices], closure.indptr[:-1]) if closure.nnz else np.zeros(0, int)
    for unit, at in _unexplained(space, class_of, closure).items():
        if why[unit] < 0:
            reasons.append(Reason("single positions of a table would go without their row or column", at))
            why[unit] = len(reasons) - 1
    heads = np.flatnonzero(unit_of >= 0)
    pinned[heads] = why[unit_of[heads]]
    free = np.flatnonzero(why < 0)
    reached = np.zeros(count, bool)
    reached[closure[free].indices] = True
    for labels, reason in space.bound:
        stuck = class_of[labels]
        stuck = stuck[(pinned[stuck] < 0) & ~reached[stuck]]
        if len(stuck):
            reasons.append(reason)
            pinned[stuck] = len(reasons) - 1
    return Solution(class_of, closure[free], pinned, tuple(reasons), tuple(space.tables))


def _components(space: Space) -> tuple[np.ndarray, int]:
    size = space.count
    if not space.equalities:
        return np.arange(size), size
    a = np.concatenate([pair[0] for pair in space.equalities])
    b = np.concatenate([pair[1] for pair in space.equalities])
    graph = sparse.coo_matrix((np.ones(len(a), bool), (a, b)), shape=(size, size))
    count, class_of = connected_components(graph, directed=False)
    return class_of.astype(np.int64), int(count)


def _pins(space: Space, class_of: np.ndarray, count: int) -> tuple[np.ndarray, list[Reason]]:
    reasons = [Reason("joined with positions that stay")]
    pinned = np.full(count, -1)
    pinned[class_of[ALWAYS]] = 0
    for labels, reason in space.pins:
        classes = class_of[labels]
        new = classes[pinned[classes] < 0]
        if len(new):
            pinned[new] = len(reasons)
            reasons.append(reason)
    return pinned, reasons


def _closures(space: Space, class_of: np.ndarray, free: np.ndarray, count: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return ``[units, classes]``, everything that dies with each free class, and the unit of each class or -1.

    Classes that take the same along are one unit.
    """
    child, parent, node = _edges(space, class_of)
    tied = np.zeros(count, bool)
    tied[child] = tied[parent] = True
    involved, alone, seeds = np.flatnonzero(tied), free[~tied[free]], free[tied[free]]
    single = sparse.csr_matrix(
        (np.ones(len(alone), np.int32), (np.arange(len(alone)), alone)), shape=(len(alone), count)
    )
    unit_of = np.full(count, -1)
    unit_of[alone] = np.arange(len(alone))
    if not len(seeds):
        return single, unit_of
    m, s = len(involved), len(seeds)
    local = np.full(count, -1)
    local[involved] = np.arange(m)
    child, parent = local[child], local[parent]
    down = _binary(parent, child, (m, m))
    nodes = int(node.max()) + 1
    cells = _binary(node, child, (nodes, m))
    needed = np.asarray(cells.sum(axis=1)).ravel()
    up = _binary(node, parent, (nodes, m))
    reach = _binary(np.arange(s), local[seeds], (s, m))
    while True:
        before = reach.nnz
        reach = _sign(reach + reach @ down)
        dead = (reach @ cells.T).tocsr()
        dead.data = (dead.data == needed[dead.indices]).astype(np.int32)
        dead.eliminate_zeros()
        reach = _sign(reach + dead @ up)
        if reach.nnz == before:
            break
    first, same = _alike(signatures(reach))
    unit_of[seeds] = len(alone) + same
    reach = reach[first].tocoo()
    joint = sparse.csr_matrix((reach.data, (reach.row, involved[reach.col])), shape=(len(first), count))
    return sparse.vstack([single, joint]).tocsr(), unit_of


def _unexplained(space: Space, class_of: np.ndarray, closure: sparse.csr_matrix) -> dict[int, int]:
    """Return the units that kill a meeting of a row and a column but neither of the two, and the call that says so."""
    if not space.meetings:
        return {}
    columns = closure.tocsc()
    cells = np.concatenate([meeting.cell for meeting in space.meetings])
    parents = sparse.csc_matrix((closure.shape[0], len(cells)), dtype=np.int32)
    for k in range(max(len(meeting.parents) for meeting in space.meetings)):
        # Where a meeting has fewer parents, a label that nothing kills stands for the missing one.
        labels = [m.parents[k] if k < len(m.parents) else np.full(len(m.cell), ALWAYS) for m in space.meetings]
        parents = parents + columns[:, class_of[np.concatenate(labels)]]
    parents.data = np.minimum(parents.data, 1)
    dead = columns[:, class_of[cells]]
    alone = (dead - dead.multiply(parents)).tocoo()
    unit, cell = alone.row[alone.data > 0], alone.col[alone.data > 0]
    at = np.repeat([meeting.at for meeting in space.meetings], [len(meeting.cell) for meeting in space.meetings])
    return dict(zip(unit.tolist(), at[cell].tolist(), strict=True))


def _edges(space: Space, class_of: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return child and parent classes of all implications, and the and-node of each: one per implication and parent."""
    if not space.implications:
        return (np.zeros(0, np.int64),) * 3
    child = class_of[np.concatenate([implication.child for implication in space.implications])]
    parent = class_of[np.concatenate([implication.parent for implication in space.implications])]
    record = np.repeat(np.arange(len(space.implications)), [len(i.child) for i in space.implications])
    _, node = np.unique(record * (space.count + 1) + parent, return_inverse=True)
    _, first = np.unique(node * (space.count + 1) + child, return_index=True)
    first = first[child[first] != parent[first]]
    return child[first], parent[first], node[first]


def _binary(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    return _sign(sparse.csr_matrix((np.ones(len(rows), np.int32), (rows, columns)), shape=shape))


def _sign(matrix: sparse.spmatrix) -> sparse.csr_matrix:
    matrix = matrix.tocsr()
    matrix.sum_duplicates()
    matrix.data = np.minimum(matrix.data, 1).astype(np.int32)
    return matrix


def signatures(matrix: sparse.csr_matrix) -> np.ndarray:
    """Hash every row of a sparse matrix of counts into 64 bits: equal rows, equal hashes."""
    return np.asarray(matrix @ _weights(matrix.shape[1]))


def _weights(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 2**62, size, dtype=np.int64)


def _alike(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each kind of key comes first, and the kind of each key; kinds are counted as they come.

    Keys are hashes: sorted by them, what is alike in two layers would come in another order in each.
    """
    _, first, kind = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[kind]


def members_of(label: np.ndarray) -> list[np.ndarray]:
    """Return the places of each label, in the order of the labels, which are 0, 1, ..."""
    order = np.argsort(label, kind="stable")
    ends = np.cumsum(np.bincount(label)).tolist()
    return [order[start:end] for start, end in zip([0, *ends], ends)]


# -- bundles -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Block:
    """Units that may be cut in equal steps.

    ``atoms`` are sets of interchangeable units; one step takes ``len(atom) / steps`` units of every atom.
    """

    atoms: tuple[np.ndarray, ...]
    steps: int
    reason: Reason | None = None

    def __str__(self) -> str:
        return f"{self.steps} steps over {len(self.atoms)} atoms" + (f", pinned: {self.reason}" if self.reason else "")


def arrange(solution: Solution, widths: sparse.csr_matrix) -> list[Block]:
    """Sort units into blocks.

    Parameters
    ----------
    widths : counts ``[widths, classes]``; units that touch the same widths equally are interchangeable.
    """
    closure = solution.closure
    rows, bounds = _table_rows(solution)
    partial, full = _losses(closure, rows)
    by_width, by_row, by_table = np.split(
        _weights(widths.shape[0] + rows.shape[0] + len(bounds)), [widths.shape[0], widths.shape[0] + rows.shape[0]]
    )
    # Which rows go whole tells units apart only by how many: heads are alike though each takes a row of its own.
    table_of = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    mark = closure @ (widths.T @ by_width) + partial @ by_row + full @ by_table[table_of]
    _, atom_of = _alike(mark)
    atoms = members_of(atom_of)
    first = np.array([atom[0] for atom in atoms], dtype=int)
    partial, full = partial[first], full[first]
    components = _linked(partial, full, bounds)
    parts = [[atoms[a] for a in component] for component in components]
    steps = [gcd(*map(len, part)) for part in parts]
    uneven = _imbalance(components, parts, steps, partial, full, bounds)
    why = {i: Reason("rows of a split can't all lose equally many positions", solution.tables[t].at) for i, t in uneven}
    return [Block(tuple(part), step, why.get(i)) for i, (part, step) in enumerate(zip(parts, steps))]


def incidence(rows: Sequence[np.ndarray], columns: int) -> sparse.csr_matrix:
    """Return how often each number occurs in each row, ``[rows, columns]``; a number may have several entries."""
    ends = np.cumsum([0, *map(len, rows)])
    numbers = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    return sparse.csr_matrix((np.ones(len(numbers), np.int32), numbers, ends), shape=(len(rows), columns))


def _table_rows(solution: Solution) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return the rows of all tables as counts ``[rows, classes]`` and where each table's rows start."""
    rows = [row for table in solution.tables for row in solution.class_of[table.cells]]
    bounds = np.cumsum([0, *(len(table.cells) for table in solution.tables)])
    return incidence(rows, solution.classes), bounds


def _losses(closure: sparse.csr_matrix, rows: sparse.csr_matrix) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Return how many cells each unit takes from rows that survive it, and which rows it takes whole."""
    lost = (closure @ rows.T).tocsr()
    size = np.asarray(rows.sum(axis=1)).ravel()
    whole = lost.data == size[lost.indices]
    partial, full = lost.copy(), lost.copy()
    partial.data = np.where(whole, 0, lost.data)
    full.data = whole.astype(np.int32)
    partial.eliminate_zeros()
    full.eliminate_zeros()
    return partial, full


def _uneven(lost: sparse.csr_matrix, gone: sparse.csr_matrix, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the cuts that don't take equally many cells from every surviving row of a table.

    Parameters
    ----------
    lost : cells that each cut takes from each row of all tables, ``[cuts, rows]``
    gone : rows that each cut takes whole
    bounds : where each table's rows start

    Returns
    -------
    cut and table of each, in order of the cuts
    """
    lost.sort_indices()
    tables, height = len(bounds) - 1, np.diff(bounds)
    table_of = np.repeat(np.arange(tables), height)
    key = np.repeat(np.arange(lost.shape[0]), np.diff(lost.indptr)) * tables + table_of[lost.indices]
    gone_key = np.repeat(np.arange(gone.shape[0]), np.diff(gone.indptr)) * tables + table_of[gone.indices]
    pair, start, touched = np.unique(key, return_index=True, return_counts=True)
    if not len(pair):
        return pair, pair
    gone_key.sort()
    whole = np.searchsorted(gone_key, pair, "right") - np.searchsorted(gone_key, pair, "left")
    low, high = np.minimum.reduceat(lost.data, start), np.maximum.reduceat(lost.data, start)
    bad = (touched != height[pair % tables] - whole) | (low != high)
    return pair[bad] // tables, pair[bad] % tables


def _linked(partial: sparse.csr_matrix, full: sparse.csr_matrix, bounds: np.ndarray) -> list[np.ndarray]:
    """Link atoms that take unevenly from the rows of one table, for they have to go together; returns who is linked.

    Columns make up for columns, and units that take whole rows elsewhere for units of their kind.
    """
    count = partial.shape[0]
    if not count:
        return []
    atom, table = _uneven(partial, full, bounds)
    kind = table * 2 + (np.diff(full.indptr)[atom] > 0)
    order = np.argsort(kind, kind="stable")
    atom, kind = atom[order], kind[order]
    same = kind[1:] == kind[:-1]
    a, b = atom[:-1][same], atom[1:][same]
    graph = sparse.coo_matrix((np.ones(len(a), bool), (a, b)), shape=(count, count))
    return members_of(connected_components(graph, directed=False)[1])


def _imbalance(
    components: Sequence[np.ndarray],
    parts: Sequence[Sequence[np.ndarray]],
    steps: Sequence[int],
    partial: sparse.csr_matrix,
    full: sparse.csr_matrix,
    bounds: np.ndarray,
) -> list[tuple[int, int]]:
    """Return the components whose one step takes unequally from the rows of a table, with the first such table."""
    if not components:
        return []
    take = [len(atom) // step for part, step in zip(parts, steps) for atom in part]
    at = np.repeat(np.arange(len(components)), [len(component) for component in components])
    one_step = sparse.csr_matrix((take, (at, np.concatenate(components))), shape=(len(components), partial.shape[0]))
    gone = _sign(one_step @ full)
    lost = (one_step @ partial).tocsr()
    lost = (lost - lost.multiply(gone)).tocsr()
    lost.eliminate_zeros()
    component, table = _uneven(lost, gone, bounds)
    return list(zip(component[::-1].tolist(), table[::-1].tolist()))
