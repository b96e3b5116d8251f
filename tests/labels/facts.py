"""Random facts about labels, told to a ``Space`` and kept in plain Python sets beside it.

``Facts`` is the slow, obvious reading of what ``surgeon.labels.space`` says: equal labels by union-find, deaths by
running the implications until nothing changes, tables by counting.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import hypothesis.strategies as st
import torch
from torch import Tensor

from surgeon.labels.space import Space


@dataclass(eq=False)
class Facts:
    """What was said to a space.

    parent     union-find over labels
    nodes      (children, parent): the children die with the parent, and the parent when all of them are dead
    tables     rows of cells; surviving rows keep equally many
    meetings   (cell, sides): a cell dies only together with one of its sides
    """

    space: Space = field(default_factory=Space)
    parent: dict[int, int] = field(default_factory=dict)
    nodes: list[tuple[set[int], int]] = field(default_factory=list)
    tables: list[list[list[int]]] = field(default_factory=list)
    meetings: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    bound: set[int] = field(default_factory=set)
    pinned: set[int] = field(default_factory=lambda: {0})

    # -- saying --------------------------------------------------------------------------------------

    def unify(self, a: Tensor, b: Tensor) -> None:
        self.space.unify(a, b)
        a, b = torch.broadcast_tensors(a, b)
        for x, y in zip(a.reshape(-1).tolist(), b.reshape(-1).tolist()):
            self.parent[self.find(x)] = self.find(y)

    def split(self, cells: Tensor) -> Tensor:
        rows = self.space.split(cells)
        self.nodes += [(set(row), label) for row, label in zip(cells.tolist(), rows.tolist())]
        self.tables.append(cells.tolist())
        return rows

    def project(self, cells: Tensor, rows: Tensor) -> Tensor:
        """Tie the columns of ``cells [rows, columns]``, whose rows have labels already."""
        columns = self.space.project(cells.T, rows)
        self.nodes += [(set(column), label) for column, label in zip(cells.T.tolist(), columns.tolist())]
        for i, j in product(range(cells.shape[0]), range(cells.shape[1])):
            self.meetings.append((int(cells[i, j]), (int(rows[i]), int(columns[j]))))
        self.bound |= set(cells.reshape(-1).tolist())
        return columns

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        both = self.space.product((a, b))
        a, b = torch.broadcast_tensors(a, b)
        for side in (a, b):
            for label in set(side.reshape(-1).tolist()):
                children = both[side == label].tolist()
                self.nodes.append((set(children), label))
        for cell, x, y in zip(*(t.reshape(-1).tolist() for t in (both, a, b))):
            self.meetings.append((cell, (x, y)))
        self.bound |= set(both.reshape(-1).tolist())
        return both

    def pin(self, labels: Tensor) -> None:
        self.space.pin(labels, "for the test")
        self.pinned |= set(labels.reshape(-1).tolist())

    # -- reading -------------------------------------------------------------------------------------

    def find(self, label: int) -> int:
        while self.parent.get(label, label) != label:
            label = self.parent[label]
        return label

    def roots(self, labels: Iterable[int]) -> set[int]:
        return {self.find(label) for label in labels}

    def closure(self, seed: int) -> frozenset[int]:
        """Return every root that dies with one."""
        dead = {seed}
        while True:
            before = len(dead)
            for children, parent in self.nodes:
                # A label that became one with its own parent says nothing more.
                inner = self.roots(children) - {self.find(parent)}
                if self.find(parent) in dead:
                    dead |= inner
                elif inner and inner <= dead:
                    dead.add(self.find(parent))
            if len(dead) == before:
                return frozenset(dead)

    def legal(self, dead: frozenset[int]) -> bool:
        """Tell whether nothing pinned dies, and no cell without its row or column."""
        if dead & self.roots(self.pinned):
            return False
        return all(self.find(cell) not in dead or self.roots(sides) & dead for cell, sides in self.meetings)

    def units(self) -> set[frozenset[int]]:
        """Return all sets of roots that may die together."""
        seeds = {self.find(label) for label in range(self.space.count)} - self.roots(self.bound)
        return {closure for closure in map(self.closure, seeds) if self.legal(closure)}

    def balanced(self, dead: set[int]) -> bool:
        """Tell whether all surviving rows of every table keep equally many cells."""
        for table in self.tables:
            kept = [sum(self.find(cell) not in dead for cell in row) for row in table]
            if len({n for n in kept if n}) > 1:
                return False
        return True


@st.composite
def facts(draw: Any, meetings: bool = True) -> Facts:
    """Draw a few rows of labels, tables over them in several groupings, and equalities between them."""
    said = Facts()
    pool = [said.space.fresh(draw(st.sampled_from((2, 3, 4, 6, 6, 8, 12)))) for _ in range(draw(st.integers(1, 3)))]
    kinds = ("split", "turned", "unify", "pin", *(("project", "product") if meetings else ()))
    for _ in range(draw(st.integers(0, 4))):
        kind, labels = draw(st.sampled_from(kinds)), draw(st.sampled_from(pool))
        rows = draw(st.sampled_from([d for d in range(1, len(labels) + 1) if len(labels) % d == 0]))
        table = labels.view(rows, -1)
        if kind == "split" and rows > 1:
            pool.append(said.split(table))
        elif kind == "turned" and 1 < rows < len(labels):
            pool.append(said.split(table.T.contiguous()))
        elif kind == "project" and 1 < rows < len(labels):
            pool.append(said.project(table, said.split(table)))
        elif kind == "product":
            pool.append(said.product(labels[:, None], draw(st.sampled_from(pool))[None, :4]).reshape(-1))
        elif kind == "unify":
            other = draw(st.sampled_from([p for p in pool if len(p) == len(labels)]))
            order = draw(st.permutations(range(len(labels)))) if draw(st.booleans()) else list(range(len(labels)))
            said.unify(labels, other[order])
        elif kind == "pin":
            said.pin(labels[: draw(st.integers(0, 1))])
    return said
