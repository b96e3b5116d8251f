"""What may go from each group, what that loses, and what may remain; and the choice of a plain ratio.

Each group has a ladder of legal removals (floors and multiples already applied) and the importance lost at
each rung.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surgeon.errors import BudgetError, InfeasibleBudget
from surgeon.plan.cost import Cost, Peak


@dataclass(frozen=True, eq=False)
class Ladder:
    """Legal removals of one group, or of several that keep one width.

    groups                        names
    size                          steps there are
    rungs [n]                     numbers of steps removed, increasing
    loss [n]                      normalised importance lost at each rung
    touched [counts]              positions lost from every counted width per step
    order [steps, units per step] the units that each step takes
    """

    groups: tuple[str, ...]
    size: int
    rungs: np.ndarray
    loss: np.ndarray
    touched: np.ndarray
    order: np.ndarray

    @property
    def name(self) -> str:
        return self.groups[0]

    @property
    def weight(self) -> int:
        """Units per step."""
        return int(self.order.shape[1])

    def __str__(self) -> str:
        others = f" and {len(self.groups) - 1} others" if len(self.groups) > 1 else ""
        return f"{self.name}{others}: {self.rungs[0]} to {self.rungs[-1]} of {self.size} steps, {len(self.rungs)} rungs"


@dataclass(frozen=True, eq=False)
class Overlap:
    """Rows and columns of one table: what a step of both has in common goes only once.

    ``rows`` and ``columns`` are places in the list of ladders; ``touched [counts]`` is what one step of each shares.
    """

    rows: int
    columns: int
    touched: np.ndarray

    def __str__(self) -> str:
        return f"ladder {self.rows} over ladder {self.columns}"


@dataclass(frozen=True, eq=False)
class Budget:
    """An upper bound on a cost, in the cost's own unit (multiply-adds, parameters, bytes)."""

    name: str
    cost: Cost | Peak
    limit: float
    asked: str

    def __str__(self) -> str:
        return f"{self.name} <= {self.limit:.6g} (asked: {self.asked})"


def counts_after(
    initial: np.ndarray, touched: np.ndarray, steps: np.ndarray, overlaps: Sequence[Overlap] = ()
) -> np.ndarray:
    """Return the counted widths when so many steps of each ladder go.

    Parameters
    ----------
    touched : positions lost from every counted width per step, ``[ladders, counts]``
    steps : removed steps ``[ladders]``, which need not be whole
    """
    left = np.asarray(initial - steps @ touched)
    for both in overlaps:
        left = left + steps[both.rows] * steps[both.columns] * both.touched
    return left


def by_ratio_locally(ladders: Sequence[Ladder], ratio: float) -> list[int]:
    """Remove the same share of every group: the largest legal removal not above it."""
    return [max(0, int(np.searchsorted(l.rungs, ratio * l.size + 1e-9, side="right")) - 1) for l in ladders]


def by_ratio_globally(ladders: Sequence[Ladder], ratio: float) -> list[int]:
    """Remove a share of all units, those that lose least first."""
    target = ratio * sum(l.weight * l.size for l in ladders)
    chosen = [0] * len(ladders)
    removed = float(sum(l.weight * l.rungs[0] for l in ladders))
    for _, which in _marginal(ladders):
        ladder, rung = ladders[which], chosen[which]
        more = float(ladder.rungs[rung + 1] - ladder.rungs[rung]) * ladder.weight
        if removed + more > target + 1e-9:
            continue
        chosen[which] += 1
        removed += more
    return chosen


def _marginal(ladders: Sequence[Ladder]) -> list[tuple[float, int]]:
    """Return all rungs as (loss per step, ladder), least first; rungs of a ladder stay in order."""
    rows = []
    for which, ladder in enumerate(ladders):
        per_step = np.diff(ladder.loss) / np.maximum(np.diff(ladder.rungs), 1) / ladder.weight
        rows += [(float(v), which) for v in np.maximum.accumulate(per_step)]
    return sorted(rows)


def require_reachable(counts: np.ndarray, budgets: Sequence[Budget]) -> None:
    """Raise InfeasibleBudget, with the smallest reachable cost, where the least counts are over a budget."""
    for budget in budgets:
        least = budget.cost.total(counts)
        if least > budget.limit:
            raise InfeasibleBudget(
                f"{budget.name}={budget.asked} asks for at most {budget.limit:.6g}, but floors, multiples and pinned "
                f"groups leave at least {least:.6g}; raise the budget, or lower floor or round_to, or keep fewer layers"
            )


def parse_amount(name: str, asked: float | int | str, whole: float) -> float:
    """Read a budget: a share in (0, 1], a number, or a text such as ``"1.2G"``.

    >>> parse_amount("flops", "1.2G", 4e9)
    1200000000.0
    """
    if isinstance(asked, str):
        scale = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(asked.strip()[-1:].upper(), 1.0)
        digits = asked.strip().rstrip("KMGTkmgt")
        try:
            value = float(digits) * scale
        except ValueError:
            raise BudgetError(f"{name}={asked!r} is not a number; write 0.5, 1.2e9 or '1.2G'") from None
        if not value > 0:
            raise BudgetError(f"{name}={asked!r} must be positive")
        return value
    if isinstance(asked, bool) or not isinstance(asked, (int, float)) or not asked > 0:
        raise BudgetError(
            f"{name}={asked!r} must be positive: a share such as 0.5, or an amount such as 1.2e9 or '1.2G'"
        )
    if asked <= 1:
        return float(asked) * whole
    return float(asked)
