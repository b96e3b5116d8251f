"""The question that the solver answers: which rung of each ladder, so that every budget is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from surgeon.plan.allocate import Budget, Ladder, Overlap, counts_after


@dataclass(frozen=True, eq=False)
class Tangent:
    """A cost near one point: ``value + slopes @ (log widths - at)`` is at most the cost anywhere.

    at, slopes  [ladders]
    """

    value: float
    limit: float
    at: np.ndarray
    slopes: np.ndarray

    def __str__(self) -> str:
        return f"{self.value:.6g} of {self.limit:.6g}"


@dataclass(frozen=True, eq=False)
class Problem:
    """Ladders whose rungs are to be chosen, and the budgets to keep."""

    initial: np.ndarray
    ladders: Sequence[Ladder]
    overlaps: Sequence[Overlap]
    budgets: Sequence[Budget]
    touched: np.ndarray = field(init=False)
    sizes: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        shape = (len(self.ladders), len(self.initial))
        object.__setattr__(self, "touched", np.array([l.touched for l in self.ladders]).reshape(shape))
        object.__setattr__(self, "sizes", np.array([float(l.size) for l in self.ladders]))

    def __str__(self) -> str:
        return f"{len(self.ladders)} ladders under {', '.join(map(str, self.budgets))}"

    def loss(self, rungs: Sequence[int]) -> float:
        return float(sum(l.loss[r] for l, r in zip(self.ladders, rungs)))

    def steps(self, rungs: Sequence[int]) -> np.ndarray:
        return np.array([float(l.rungs[r]) for l, r in zip(self.ladders, rungs)])

    def counts(self, steps: np.ndarray) -> np.ndarray:
        return counts_after(self.initial, self.touched, steps, self.overlaps)

    def keeps(self, rungs: Sequence[int]) -> bool:
        counts = self.counts(self.steps(rungs))
        return all(b.cost.total(counts) <= b.limit for b in self.budgets)

    def tangents(self, widths: np.ndarray) -> list[Tangent]:
        """Return the tangents of all costs at widths ``[ladders]`` in steps, in their logarithms."""
        steps = self.sizes - widths
        counts = self.counts(steps)
        found = []
        for budget in self.budgets:
            for value, gradient in budget.cost.pieces(counts):
                saved = self.touched @ gradient
                for both in self.overlaps:
                    shared = float(both.touched @ gradient)
                    saved[both.rows] -= steps[both.columns] * shared
                    saved[both.columns] -= steps[both.rows] * shared
                found.append(Tangent(value, budget.limit, np.log(widths), widths * np.maximum(saved, 0)))
        return found
