"""Widths as real numbers: the one optimum of the relaxation, by majorisation.

Each product of widths is at most a mean of their powers (arithmetic against geometric mean), with equality where the
round begins. In place of the costs, these means make every round a problem in one multiplier per budget and one width
at a time, and its result keeps the budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from surgeon.plan.allocate import Ladder
from surgeon.plan.problem import Problem

ROUNDS = 60
POINTS = 96  # of a loss curve


def relaxed(problem: Problem) -> np.ndarray:
    """Return the best real widths, ``[ladders]``, for the convex hulls of the losses."""
    curves = _Curves.of(problem.ladders)
    widths = _shrunk(problem, curves)
    degree = max(2.0, *(float(b.cost.degree) for b in problem.budgets)) + bool(problem.overlaps)
    before = np.inf
    for _ in range(ROUNDS):
        tangents = problem.tangents(widths)
        slopes = np.array([t.slopes for t in tangents])
        room = np.array([t.limit - t.value for t in tangents])
        at = np.log(widths)

        def excess(multipliers: np.ndarray) -> np.ndarray:
            moved = curves.best(multipliers @ slopes, at, degree)  # noqa: B023 - called in this round
            return slopes @ np.expm1(degree * (moved - at)) / degree - room  # noqa: B023

        at = curves.best(multipliers_for(excess, len(tangents)) @ slopes, at, degree)
        widths = np.exp(at)
        loss = curves.loss(at)
        if before - loss <= 1e-5 * abs(loss):
            break
        before = loss
    return widths


def _shrunk(problem: Problem, curves: _Curves) -> np.ndarray:
    """Return widths that keep the budgets, all groups shrunk by the same share of what they may."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        counts = problem.counts(problem.sizes - np.exp(curves.between(middle)))
        kept = all(b.cost.total(counts) <= b.limit for b in problem.budgets)
        low, high = (middle, high) if kept else (low, middle)
    return np.asarray(np.exp(curves.between(low)))


@dataclass(frozen=True, eq=False)
class _Curves:
    """Losses over log widths as lower convex hulls, all ladders in one piece.

    start [ladders]   where each ladder's segments begin
    low, high [segments], log_slope [segments]: ends, and the logarithm of the loss per log width
    values [segments] loss at ``high``; slope [segments]
    """

    start: np.ndarray
    low: np.ndarray
    high: np.ndarray
    slope: np.ndarray
    values: np.ndarray

    @staticmethod
    def of(ladders: Sequence[Ladder]) -> _Curves:
        lows, highs, slopes, values, lengths = [], [], [], [], []
        for ladder in ladders:
            x, y = _hull(np.log(ladder.size - ladder.rungs[::-1].astype(float)), ladder.loss[::-1])
            if len(x) == 1:
                x, y = np.repeat(x, 2), np.repeat(y, 2)
            lows.append(x[:-1])
            highs.append(x[1:])
            slopes.append(np.maximum(-np.diff(y) / np.maximum(np.diff(x), 1e-300), 0.0))
            values.append(y[1:])
            lengths.append(len(x) - 1)
        start = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        return _Curves(start, *map(np.concatenate, (lows, highs, slopes, values)))

    @property
    def group(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.start)), np.diff([*self.start, len(self.low)]))

    def between(self, share: float) -> np.ndarray:
        """Return log widths between the smallest, at 0, and the largest, at 1."""
        low, high = self.low[self.start], np.maximum.reduceat(self.high, self.start)
        return np.asarray(low + share * (high - low))

    def best(self, price: np.ndarray, at: np.ndarray, degree: float) -> np.ndarray:
        """Return the log widths that minimise ``loss + price / degree * exp(degree * (x - at))``, ladder by ladder.

        On one segment, loss and price balance at a point that moves left from segment to segment; the optimum is
        where it meets the segments' ends.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            balanced = np.log(self.slope) - np.log(price)[self.group]
        balanced = np.where(price[self.group] > 0, balanced / degree + at[self.group], np.inf)
        best = np.maximum.reduceat(np.minimum(balanced, self.high), self.start)
        return np.asarray(np.maximum(best, self.low[self.start]))

    def loss(self, at: np.ndarray) -> float:
        """Return the summed loss at log widths ``[ladders]``."""
        inside = np.clip(at[self.group], self.low, self.high)
        ends = np.append(self.start[1:], len(self.low)) - 1
        return float(self.values[ends].sum() + (self.slope * (self.high - inside)).sum())


def _hull(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower convex hull of a falling curve, thinned to some points."""
    if len(x) > POINTS:
        # Evenly in the logarithm, and more and more closely towards the full width, where losses begin.
        evenly = np.searchsorted(x, np.linspace(x[0], x[-1], POINTS // 2))
        closely = len(x) - np.geomspace(1, len(x), POINTS // 2).astype(int)
        pick = np.union1d(evenly, closely)
        x, y = x[pick], y[pick]
    if len(x) < 3:
        return x, y
    try:
        corners = ConvexHull(np.column_stack([x, y])).vertices
    except QhullError:  # all points on a line
        return x[[0, -1]], y[[0, -1]]
    # Counter-clockwise from the left end to the right one is the lower side.
    first = int(np.flatnonzero(corners == 0)[0]) if 0 in corners else int(np.argmin(x[corners]))
    corners = np.roll(corners, -first)
    corners = corners[: int(np.argmax(x[corners])) + 1]
    return x[corners], y[corners]


def multipliers_for(excess: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """Return the least multipliers, ``[count]``, that bring every excess to zero, by turns."""
    found = np.zeros(count)

    def along(which: int) -> Callable[[float], float]:
        return lambda value: float(excess(np.where(np.arange(count) == which, value, found))[which])

    for _ in range(1 if count == 1 else 6):
        for which in range(count):
            found[which] = _least(along(which))
    return found


def _least(excess: Callable[[float], float]) -> float:
    """Return the least multiplier at which a falling excess is no longer positive."""
    if excess(0.0) <= 0:
        return 0.0
    low, high = 1e-30, 1.0
    while excess(high) > 0 and high < 1e30:
        low, high = high, high * 1e3
    while high / low > 1 + 1e-9:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high
