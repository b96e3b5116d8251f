"""Choose how many units of each group go: by a ratio, or under budgets.

Each group has a ladder of legal removals (floors and multiples already applied) and the importance lost at
each rung. Budgets are met greedily: the next rung is the one that loses least per unit of cost saved, and
savings are recomputed as neighbours shrink.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surgeon.errors import BudgetError, InfeasibleBudget
from surgeon.plan.cost import Cost


@dataclass(frozen=True, eq=False)
class Ladder:
    """Legal removals of one group.

    rungs [n]        numbers of steps removed, increasing, from 0
    loss [n]         normalised importance lost at each rung
    touched [counts] positions lost from every counted width per step
    weight           units per step
    """

    name: str
    rungs: np.ndarray
    loss: np.ndarray
    touched: np.ndarray
    weight: int

    def __str__(self) -> str:
        return f"{self.name}: up to {self.rungs[-1]} steps in {len(self.rungs) - 1} rungs"


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
    """An upper bound on a cost, in the cost's own unit (multiply-adds, parameters)."""

    name: str
    cost: Cost
    limit: float
    asked: str

    def __str__(self) -> str:
        return f"{self.name} <= {self.limit:.6g} (asked: {self.asked})"


def counts_after(
    initial: np.ndarray, ladders: Sequence[Ladder], chosen: Sequence[int], overlaps: Sequence[Overlap] = ()
) -> np.ndarray:
    """Return the counted widths when each ladder stands at the chosen rung."""
    steps = [int(ladder.rungs[rung]) for ladder, rung in zip(ladders, chosen)]
    left = np.asarray(initial - np.array(steps) @ np.array([ladder.touched for ladder in ladders]))
    for both in overlaps:
        left = left + steps[both.rows] * steps[both.columns] * both.touched
    return left


def touched_now(
    ladders: Sequence[Ladder], chosen: Sequence[int], which: int, overlaps: Sequence[Overlap]
) -> np.ndarray:
    """Return what the next step of a ladder takes, ``[counts]``: columns of rows that are gone are gone."""
    touched = ladders[which].touched
    for both in overlaps:
        if which in (both.rows, both.columns):
            other = both.columns if which == both.rows else both.rows
            touched = touched - ladders[other].rungs[chosen[other]] * both.touched
    return touched


def by_ratio_locally(ladders: Sequence[Ladder], sizes: Sequence[int], ratio: float) -> list[int]:
    """Remove the same share of every group: the largest legal removal not above it."""
    return [int(np.searchsorted(l.rungs, ratio * size + 1e-9, side="right") - 1) for l, size in zip(ladders, sizes)]


def by_ratio_globally(ladders: Sequence[Ladder], sizes: Sequence[int], ratio: float) -> list[int]:
    """Remove a share of all units, those that lose least first."""
    target = ratio * sum(l.weight * size for l, size in zip(ladders, sizes))
    chosen = [0] * len(ladders)
    removed = 0.0
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


def under_budgets(
    initial: np.ndarray, ladders: Sequence[Ladder], budgets: Sequence[Budget], overlaps: Sequence[Overlap] = ()
) -> list[int]:
    """Find rungs that keep every budget, losing little importance.

    Raises InfeasibleBudget where nothing more may go. Complexity: some sixty gradients of the cost, then
    single rungs near the bound.
    """
    chosen = [0] * len(ladders)
    counts = initial.copy()
    while over := [b for b in budgets if b.cost.total(counts) > b.limit]:
        gaps = [b.cost.total(counts) - b.limit for b in over]
        whole = [b.cost.total(initial) for b in over]
        touched = np.array([touched_now(ladders, chosen, which, overlaps) for which in range(len(ladders))])
        saving = _savings(counts, touched, over, gaps)
        share = max(0.25, *(0.02 * w / g for w, g in zip(whole, gaps)))
        if not _descend(ladders, chosen, saving, min(share, 1.0)):
            raise InfeasibleBudget("no legal removal saves anything more")
        counts = counts_after(initial, ladders, chosen, overlaps)
    return _fill(initial, ladders, budgets, chosen, overlaps)


def require_reachable(counts: np.ndarray, budgets: Sequence[Budget]) -> None:
    """Raise InfeasibleBudget, with the smallest reachable cost, where the least counts are over a budget."""
    for budget in budgets:
        least = budget.cost.total(counts)
        if least > budget.limit:
            raise InfeasibleBudget(
                f"{budget.name}={budget.asked} asks for at most {budget.limit:.6g}, but floors, multiples and pinned "
                f"groups leave at least {least:.6g}; raise the budget, or lower floor or round_to, or keep fewer layers"
            )


def _savings(counts: np.ndarray, touched: np.ndarray, over: Sequence[Budget], gaps: Sequence[float]) -> np.ndarray:
    """Return the share of the gap that one step of each ladder closes."""
    total = np.zeros(len(touched))
    for budget, gap in zip(over, gaps):
        total += touched @ budget.cost.gradient(counts) / gap
    return total


def _descend(ladders: Sequence[Ladder], chosen: list[int], saving: np.ndarray, share: float) -> bool:
    """Take rungs in order of loss per saving until a share of the gap is closed; at least one."""
    rows: list[tuple[float, int, float]] = []
    for which, ladder in enumerate(ladders):
        rung = chosen[which]
        if saving[which] <= 0 or rung + 1 >= len(ladder.rungs):
            continue
        steps = np.diff(ladder.rungs[rung:])
        price = np.maximum.accumulate(np.diff(ladder.loss[rung:]) / (steps * saving[which]))
        rows += zip(price.tolist(), [which] * len(steps), (steps * saving[which]).tolist())
    rows.sort()
    if rows and rows[0][2] >= 1:  # whatever comes next closes the gap: take what loses least, not what saves most
        closing = {which for _, which, gain in rows if gain >= 1}
        losses = {i: ladders[i].loss[chosen[i] + 1] - ladders[i].loss[chosen[i]] for i in closing}
        chosen[min(losses, key=losses.__getitem__)] += 1
        return True
    closed, taken = 0.0, False
    for _, which, gain in rows:
        if taken and closed + gain > share:
            break
        chosen[which] += 1
        closed += gain
        taken = True
    return taken


def _fill(
    initial: np.ndarray,
    ladders: Sequence[Ladder],
    budgets: Sequence[Budget],
    chosen: list[int],
    overlaps: Sequence[Overlap],
) -> list[int]:
    """Give back rungs that fit under the budgets after all, the most important first."""
    counts = counts_after(initial, ladders, chosen, overlaps)
    improved = True
    while improved:
        improved = False
        price = [(-float(l.loss[r] - l.loss[r - 1]), i) for i, (l, r) in enumerate(zip(ladders, chosen)) if r > 0]
        for _, which in sorted(price):
            rungs, rung = ladders[which].rungs, chosen[which]
            step = touched_now(ladders, chosen, which, overlaps)
            more = counts + int(rungs[rung] - rungs[rung - 1]) * step
            if all(b.cost.total(more) <= b.limit for b in budgets):
                counts, improved = more, True
                chosen[which] -= 1
    return chosen


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
