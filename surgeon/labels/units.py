"""Solve the facts: which labels are one, what dies together, and which sets of deaths leave rectangles.

``solve`` finds the classes of equal labels and, for each class that may die, its **closure**: everything that
dies with it. Classes with the same closure are one **unit**. ``arrange`` then sorts units into **bundles**: sets
of equal size, one per removal step, such that every surviving row of every table keeps equally many cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from surgeon.labels.space import ALWAYS, Reason, Space, Table


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

    def __str__(self) -> str:
        return f"Solution({self.classes} classes, {self.closure.shape[0]} units, {len(self.tables)} tables)"


def solve(space: Space) -> Solution:
    """Find classes, pins and units; linear in the number of facts."""
    class_of, count = _components(space)
    pinned, reasons = _pins(space, class_of, count)
    bound = np.zeros(count, bool)
    for labels, _ in space.bound:
        bound[class_of[labels]] = True
    closure, heads = _closures(space, class_of, np.flatnonzero((pinned < 0) & ~bound), count)
    # A unit that takes a pinned class with it can't be cut: the pin spreads to the classes that the unit stands for.
    blocked_rows = np.flatnonzero(closure @ (pinned >= 0).astype(np.int32))
    known = pinned.copy()
    for row in blocked_rows:
        members = closure.indices[closure.indptr[row] : closure.indptr[row + 1]]
        pinned[heads[row]] = known[members].max()
    for unit, at in _unexplained(space, class_of, closure).items():
        if pinned[heads[unit]].max() < 0:
            reasons.append(Reason("single positions of a table would go without their row or column", at))
            pinned[heads[unit]] = len(reasons) - 1
            blocked_rows = np.append(blocked_rows, unit)
    free = np.setdiff1d(np.arange(closure.shape[0]), blocked_rows)
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


def _closures(
    space: Space, class_of: np.ndarray, free: np.ndarray, count: int
) -> tuple[sparse.csr_matrix, list[np.ndarray]]:
    """Return ``[units, classes]``, everything that dies with each free class, and the free classes of each unit.

    Classes that take the same along are one unit.
    """
    child, parent, node = _edges(space, class_of)
    involved = np.unique(np.concatenate([child, parent]))
    alone = np.setdiff1d(free, involved, assume_unique=True)
    single = sparse.csr_matrix(
        (np.ones(len(alone), np.int32), (np.arange(len(alone)), alone)), shape=(len(alone), count)
    )
    seeds = np.intersect1d(free, involved, assume_unique=True)
    if not len(seeds):
        return single, list(alone[:, None])
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
    _, first, unit_of = np.unique(signatures(reach), return_index=True, return_inverse=True)
    heads = np.split(seeds[np.argsort(unit_of, kind="stable")], np.cumsum(np.bincount(unit_of))[:-1])
    reach = reach[first].tocoo()
    joint = sparse.csr_matrix((reach.data, (reach.row, involved[reach.col])), shape=(len(first), count))
    return sparse.vstack([single, joint]).tocsr(), [*alone[:, None], *heads]


def _unexplained(space: Space, class_of: np.ndarray, closure: sparse.csr_matrix) -> dict[int, int]:
    """Return the units that kill a meeting of a row and a column but neither of the two, and the call that says so."""
    found: dict[int, int] = {}
    columns = closure.tocsc()
    for meeting in space.meetings:
        dead = columns[:, class_of[meeting.cell]]
        parents = sum(columns[:, class_of[labels]] for labels in meeting.parents)
        parents.data = np.minimum(parents.data, 1)
        alone = (dead - dead.multiply(parents)).tocsr()
        alone.eliminate_zeros()
        found.update((int(row), meeting.at) for row in np.flatnonzero(np.diff(alone.indptr)))
    return found


def _edges(space: Space, class_of: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return child and parent classes of all implications, and the and-node of each: one per implication and parent."""
    edges = []
    for i, implication in enumerate(space.implications):
        pairs = np.stack([class_of[implication.child], class_of[implication.parent]])
        pairs = np.unique(pairs[:, pairs[0] != pairs[1]], axis=1)
        edges.append(np.vstack([pairs, np.full((1, pairs.shape[1]), i)]))
    if not edges:
        return (np.zeros(0, np.int64),) * 3
    child, parent, record = np.concatenate(edges, axis=1)
    _, node = np.unique(record * (space.count + 1) + parent, return_inverse=True)
    return child, parent, node


def _binary(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    return _sign(sparse.csr_matrix((np.ones(len(rows), np.int32), (rows, columns)), shape=shape))


def _sign(matrix: sparse.spmatrix) -> sparse.csr_matrix:
    matrix = matrix.tocsr()
    matrix.sum_duplicates()
    matrix.data = np.minimum(matrix.data, 1).astype(np.int32)
    return matrix


def signatures(matrix: sparse.csr_matrix) -> np.ndarray:
    """Hash every row of a sparse matrix of counts into 64 bits: equal rows, equal hashes."""
    weights = np.random.default_rng(0).integers(1, 2**62, matrix.shape[1], dtype=np.int64)
    return np.asarray(matrix.astype(np.int64) @ weights)


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


def arrange(solution: Solution, incidence: sparse.csr_matrix) -> list[Block]:
    """Sort units into blocks.

    Parameters
    ----------
    incidence : counts ``[widths, classes]``; units that touch the same widths equally are interchangeable.
    """
    closure = solution.closure
    touched = (closure @ incidence.T).tocsr()
    rows, bounds = _table_rows(solution)
    partial, full = _losses(closure, rows)
    mark = signatures(sparse.hstack([touched, partial]).tocsr())
    _, atom_of = np.unique(mark, return_inverse=True)
    order = np.argsort(atom_of, kind="stable")
    atoms = np.split(order, np.flatnonzero(np.diff(atom_of[order])) + 1) if len(order) else []
    links, uneven = _links(atoms, partial, full, bounds)
    blocks = []
    for component in _connected(len(atoms), links):
        parts = tuple(atoms[a] for a in component)
        steps = gcd(*(len(part) for part in parts))
        reason = None
        if any(a in uneven for a in component):
            reason = _imbalance(solution, parts, steps, partial, full, bounds)
        blocks.append(Block(parts, steps, reason))
    return blocks


def _table_rows(solution: Solution) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return the rows of all tables as counts ``[rows, classes]`` and where each table's rows start."""
    row_ids, columns, bounds = [], [], [0]
    for table in solution.tables:
        cells = solution.class_of[table.cells]
        row_ids.append(np.repeat(np.arange(len(cells)) + bounds[-1], cells.shape[1]))
        columns.append(cells.ravel())
        bounds.append(bounds[-1] + len(cells))
    shape = (bounds[-1], solution.classes)
    if not row_ids:
        return sparse.csr_matrix(shape, dtype=np.int32), np.array(bounds)
    r, c = np.concatenate(row_ids), np.concatenate(columns)
    return sparse.csr_matrix((np.ones(len(r), np.int32), (r, c)), shape=shape), np.array(bounds)


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


def _links(
    atoms: Sequence[np.ndarray], partial: sparse.csr_matrix, full: sparse.csr_matrix, bounds: np.ndarray
) -> tuple[list[tuple[int, int]], set[int]]:
    """Link atoms that take unevenly from the rows of one table: they have to go together."""
    links: list[tuple[int, int]] = []
    uneven: set[int] = set()
    last: dict[tuple[int, bool], int] = {}
    for a, atom in enumerate(atoms):
        unit = atom[0]
        touched = partial.indices[partial.indptr[unit] : partial.indptr[unit + 1]]
        counts = partial.data[partial.indptr[unit] : partial.indptr[unit + 1]]
        gone = full.indices[full.indptr[unit] : full.indptr[unit + 1]]
        for table in np.unique(np.searchsorted(bounds, touched, side="right") - 1):
            start, stop = bounds[table], bounds[table + 1]
            inside = (touched >= start) & (touched < stop)
            left = stop - start - int(((gone >= start) & (gone < stop)).sum())
            if inside.sum() == left and len(np.unique(counts[inside])) == 1:
                continue
            uneven.add(a)
            # Columns make up for columns, and units that take whole rows elsewhere for units of their kind.
            key = (int(table), len(gone) > 0)
            if key in last:
                links.append((last[key], a))
            last[key] = a
    return links, uneven


def _connected(count: int, links: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    if not count:
        return []
    a, b = (np.array([link[side] for link in links], dtype=int) for side in (0, 1))
    graph = sparse.coo_matrix((np.ones(len(a), bool), (a, b)), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    order = np.argsort(label, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(label[order])) + 1)


def _imbalance(
    solution: Solution,
    atoms: Sequence[np.ndarray],
    steps: int,
    partial: sparse.csr_matrix,
    full: sparse.csr_matrix,
    bounds: np.ndarray,
) -> Reason | None:
    """Check that one step takes equally many cells from every row of every table; else say which op is in the way."""
    first = [atom[0] for atom in atoms]
    lost = np.array([len(atom) // steps for atom in atoms]) @ partial[first]
    whole = np.ones(len(atoms)) @ full[first] > 0
    for i, table in enumerate(solution.tables):
        rows = slice(bounds[i], bounds[i + 1])
        left = lost[rows][~whole[rows]]
        if len(left) and left.max() > 0 and left.min() != left.max():
            return Reason("rows of a split can't all lose equally many positions", table.at)
    return None
