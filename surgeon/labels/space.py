"""Labels and what is known about them. No op names here.

A label is an integer given to positions of tensors. Label 0 always survives. The space collects
six kinds of facts while a model runs; ``surgeon.labels.units`` solves them afterwards:

    unify(a, b)            a[i] and b[i] are the same label
    split(cells)           rows of a table get parents: a row's cells die with it, and the table is balanced
    project(cells)         columns of a table get parents: a cell lives iff its row and its column live
    balance(cells)         surviving rows of a table keep equally many cells
    pin(labels, reason)    these never die
    bind(labels, reason)   these die only when a parent does
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

ALWAYS = 0


@dataclass(frozen=True)
class Reason:
    """Why labels are pinned: what, and the call that decided it (-1: none)."""

    text: str
    at: int = -1

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, eq=False)
class Implication:
    """``child[i]`` dies when ``parent[i]`` dies; a parent whose every child is dead is dead."""

    child: np.ndarray
    parent: np.ndarray
    at: int


@dataclass(frozen=True, eq=False)
class Meeting:
    """``cell[i]`` lives iff ``parent[i]`` lives for each of ``parents``: what kills it has to kill one of them."""

    cell: np.ndarray
    parents: tuple[np.ndarray, ...]
    at: int


@dataclass(frozen=True, eq=False)
class Table:
    """Every surviving row of ``cells [rows, columns]`` keeps the same number of them."""

    cells: np.ndarray
    at: int


class Space:
    """Collects facts about labels. ``at`` is the index of the call being explained."""

    def __init__(self) -> None:
        self.count = 1
        self.at = -1
        self.equalities: list[tuple[np.ndarray, np.ndarray, int]] = []
        self.implications: list[Implication] = []
        self.tables: list[Table] = []
        self.meetings: list[Meeting] = []
        self.pins: list[tuple[np.ndarray, Reason]] = []
        self.bound: list[tuple[np.ndarray, Reason]] = []

    def __str__(self) -> str:
        return f"Space({self.count} labels, {len(self.equalities)} equalities, {len(self.implications)} implications)"

    def fresh(self, *shape: int) -> Tensor:
        """Make new labels of the given shape."""
        size = prod(shape)
        start, self.count = self.count, self.count + size
        return torch.from_numpy(np.arange(start, start + size).reshape(shape))

    def unify(self, a: Tensor, b: Tensor) -> None:
        """Make two label tensors of broadcastable shapes equal, position by position."""
        if a is b:
            return
        if a.shape != b.shape:
            a, b = torch.broadcast_tensors(a, b)
        elif torch.equal(a, b):
            return
        self.equalities.append((flat(a), flat(b), self.at))

    def split(self, cells: Tensor) -> Tensor:
        """Give parents to the rows of a table ``cells [rows, columns]``; returns ``[rows]``."""
        parents = self._parents(cells)
        self._imply(cells, parents)
        self.balance(cells)
        return parents

    def project(self, cells: Tensor, rows: Tensor | None) -> Tensor:
        """Give parents to the columns of a table, ``cells [columns, rows]``; returns ``[columns]``.

        A cell is now the meeting of its column and its row, if ``rows [columns, rows]`` are given, and no longer dies
        alone.
        """
        parents = self._parents(cells)
        self._imply(cells, parents)
        self.bind(cells, "the same column of every row goes together")
        if rows is not None:
            self._meet(cells, (parents[:, None], rows))
        return parents

    def _parents(self, rows: Tensor) -> Tensor:
        """Make a label per row of a table; rows of the same cells, such as a head in every example, are one."""
        if (np.diff(rows[:, 0].numpy()) > 0).all():  # all different, as most are
            return self.fresh(len(rows))
        _, same = np.unique(rows.numpy(), axis=0, return_inverse=True)
        _, first, order = np.unique(same, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))  # in the order in which they come
        return self.fresh(len(first))[torch.from_numpy(rank[order])]

    def product(self, parts: Sequence[Tensor]) -> Tensor:
        """Make labels that live iff all the given labels live, position by position."""
        wide = torch.broadcast_tensors(*parts)
        both = self.fresh(*wide[0].shape)
        for part in wide:
            self.implications.append(Implication(flat(both), flat(part), self.at))
        self.bind(both, "lives where two dimensions meet")
        self._meet(both, wide)
        return both

    def pin(self, labels: Tensor, reason: str) -> None:
        """These labels never die."""
        self.pins.append((flat(labels), Reason(reason, self.at)))

    def bind(self, labels: Tensor, reason: str) -> None:
        """These labels die only together with a parent."""
        self.bound.append((flat(labels), Reason(reason, self.at)))

    def balance(self, cells: Tensor) -> None:
        """Surviving rows of ``cells [rows, columns]`` keep equally many of them."""
        self.tables.append(Table(flat(cells).reshape(cells.shape), self.at))

    def _meet(self, cells: Tensor, parents: Sequence[Tensor]) -> None:
        wide = tuple(flat(p.expand(cells.shape)) for p in parents)
        self.meetings.append(Meeting(flat(cells), wide, self.at))

    def _imply(self, cells: Tensor, parents: Tensor) -> None:
        parent = np.repeat(flat(parents), cells.shape[1])
        self.implications.append(Implication(flat(cells), parent, self.at))


def flat(labels: Tensor) -> np.ndarray:
    """Return labels as a one-dimensional array."""
    return labels.reshape(-1).numpy()
