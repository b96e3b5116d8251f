"""Sets of indices as runs, and as text: ``0-3,8,10-15``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from surgeon.errors import PlanMismatch


@dataclass(frozen=True, eq=False)
class Runs:
    """Increasing indices as runs from ``first`` to ``last``, both included: a few numbers however many indices."""

    first: np.ndarray
    last: np.ndarray

    def __len__(self) -> int:
        return int((self.last - self.first + 1).sum())

    def __str__(self) -> str:
        pairs = zip(self.first.tolist(), self.last.tolist())
        return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in pairs)

    def without(self, other: Runs) -> Runs:
        """Return the indices that are not in another set of runs."""
        first, last, others, at = [], [], list(zip(other.first.tolist(), other.last.tolist())), 0
        for start, stop in zip(self.first.tolist(), self.last.tolist()):
            while at < len(others) and others[at][1] < start:
                at += 1
            k = at
            while k < len(others) and others[k][0] <= stop:
                if others[k][0] > start:
                    first.append(start)
                    last.append(others[k][0] - 1)
                start, k = others[k][1] + 1, k + 1
            if start <= stop:
                first.append(start)
                last.append(stop)
        return Runs(np.array(first, np.int64), np.array(last, np.int64))

    def indices(self) -> np.ndarray:
        """Return the indices one by one, int64."""
        if not len(self.first):
            return np.zeros(0, np.int64)
        lengths = self.last - self.first + 1
        before = np.cumsum(lengths) - lengths
        return np.repeat(self.first - before, lengths) + np.arange(lengths.sum())


def runs_of(indices: np.ndarray) -> Runs:
    """Return increasing indices as runs."""
    if not len(indices):
        return Runs(np.zeros(0, np.int64), np.zeros(0, np.int64))
    breaks = np.flatnonzero(np.diff(indices) != 1)
    return Runs(
        indices[np.concatenate([[0], breaks + 1])],
        indices[np.concatenate([breaks, [len(indices) - 1]])],
    )


def parse(text: object, size: int) -> Runs:
    """Read runs; raises PlanMismatch unless they are increasing, not adjacent, and below ``size``.

    >>> str(parse('0-3,8', 10))
    '0-3,8'
    """
    if not isinstance(text, str):
        raise PlanMismatch(f"expected runs such as '0-3,8', got {text!r:.60}")
    first, last, end = [], [], -2
    for piece in text.split(",") if text else []:
        start, stop = _run(piece)
        # Adjacent runs are one run: a set of indices has one spelling.
        if not end + 1 < start <= stop < size:
            raise PlanMismatch(f"run {piece!r:.60} is out of order, adjacent to the one before, or beyond size {size}")
        first.append(start)
        last.append(stop)
        end = stop
    return Runs(np.array(first, np.int64), np.array(last, np.int64))


def _run(piece: str) -> tuple[int, int]:
    first, dash, stop = piece.partition("-")
    for number in (first, stop) if dash else (first,):
        # Leading zeros, signs, spaces and digits of other scripts are other spellings of the same set.
        plain = number.isascii() and number.isdecimal() and len(number) <= 19 and number == str(int(number))
        if not plain:
            raise PlanMismatch(f"expected runs such as '0-3,8', got {piece!r:.60}")
    if dash and int(stop) == int(first):
        raise PlanMismatch(f"run {piece!r:.60} is a single index; write {first!r}")
    return int(first), int(stop or first)


def encode(indices: np.ndarray) -> str:
    """Write sorted indices as runs.

    >>> encode(np.array([0, 1, 2, 3, 8, 10, 11]))
    '0-3,8,10-11'
    """
    return str(runs_of(indices))


def decode(text: str, size: int) -> np.ndarray:
    """Read runs one by one; raises PlanMismatch as ``parse`` does.

    >>> decode('0-3,8', 10)
    array([0, 1, 2, 3, 8])
    """
    return parse(text, size).indices()
