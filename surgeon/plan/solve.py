"""Find widths under budgets: the least loss that any choice of rungs allows, and a bound on what is possible at all.

Costs are posynomials in the widths that remain: sums of products with positive coefficients. In the logarithms of the
widths they are convex (Boyd et al., 2007, "A tutorial on geometric programming"). Three things follow.

- The relaxation to real widths has one optimum, however the groups are linked. It is found by majorisation: each
  product is at most a mean of powers (arithmetic against geometric mean), so that every round is a problem in one
  multiplier per budget and one width at a time.
- A tangent of a cost never exceeds it, so each one is a linear cut that no good choice of rungs violates. With the
  multipliers it gives a lower bound on the loss of any choice, convex losses or not.
- Rungs that the bound can't exclude go to a small integer program with these cuts (HiGHS, through scipy); a result
  that breaks a budget gives the next cut (outer approximation, Duran and Grossmann, 1986).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.spatial import ConvexHull, QhullError

from surgeon.errors import InfeasibleBudget
from surgeon.plan.allocate import Budget, Ladder, Overlap, counts_after

ROUNDS = 60  # of majorisation
POINTS = 96  # of a loss curve in the relaxation


@dataclass(frozen=True)
class Effort:
    """How far to look for something better than the relaxation gives.

    window  rungs to either side of it in the integer program
    cuts    how often the program is solved again with what it broke
    nodes   of branch and bound, each time
    close   relative gap at which nothing better is looked for
    """

    window: int
    cuts: int
    nodes: int
    close: float


SMALL = 500  # rungs in all, up to which the search goes on to the end
THOROUGH = Effort(window=SMALL, cuts=50, nodes=100_000, close=1e-9)
QUICK = Effort(window=20, cuts=4, nodes=200, close=2e-3)


@dataclass(frozen=True)
class Choice:
    """Rungs, what they lose, and the least that any choice loses."""

    rungs: tuple[int, ...]
    loss: float
    bound: float

    @property
    def gap(self) -> float:
        """How far the loss is above the bound, relative to the bound."""
        return (self.loss - self.bound) / self.bound if self.bound > 0 else 0.0 if self.loss <= 1e-12 else float("inf")

    def __str__(self) -> str:
        return f"loss {self.loss:.6g}, at most {self.gap:.2%} above the least possible"


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


def solve(problem: Problem) -> Choice:
    """Choose rungs that keep every budget and lose as little as possible.

    Raises InfeasibleBudget where even the last rungs break a budget.
    """
    whole = [0] * len(problem.ladders)
    if problem.keeps(whole):
        return Choice(tuple(whole), problem.loss(whole), problem.loss(whole))
    if not problem.keeps([len(l.rungs) - 1 for l in problem.ladders]):
        raise InfeasibleBudget(
            f"no widths keep {' and '.join(map(str, problem.budgets))}; raise the budget, or lower floor or round_to"
        )
    rungs = _Rungs.of(problem.ladders)
    widths = _relaxed(problem)
    tangents = problem.tangents(widths)
    multipliers = _multipliers(lambda m: rungs.excess(tangents, m), len(tangents))
    bound = rungs.bound(tangents, multipliers)
    best = fill(problem, _rounded(problem, widths))
    effort = THOROUGH if len(rungs.loss) <= SMALL else QUICK
    if problem.loss(best) - bound > effort.close * bound:
        best, bound = _improved(problem, rungs, best, tangents, multipliers, bound, effort)
    loss = problem.loss(best)
    return Choice(tuple(best), loss, min(bound, loss))


# -- real widths -------------------------------------------------------------------------------------


def _relaxed(problem: Problem) -> np.ndarray:
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

        at = curves.best(_multipliers(excess, len(tangents)) @ slopes, at, degree)
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
        pick = np.unique(np.searchsorted(x, np.linspace(x[0], x[-1], POINTS)))
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


def _multipliers(excess: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """Return the least multipliers, ``[count]``, that bring every excess to zero, by turns."""
    found = np.zeros(count)
    for _ in range(1 if count == 1 else 6):
        for which in range(count):
            found[which] = _least(lambda value, which=which: excess(_with(found, which, value))[which])  # type: ignore[misc]
    return found


def _with(values: np.ndarray, which: int, value: float) -> np.ndarray:
    changed = values.copy()
    changed[which] = value
    return changed


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


# -- rungs -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Rungs:
    """All rungs of all ladders in one piece: start [ladders]; ladder, log_width, loss [rungs]."""

    start: np.ndarray
    ladder: np.ndarray
    log_width: np.ndarray
    loss: np.ndarray

    @staticmethod
    def of(ladders: Sequence[Ladder]) -> _Rungs:
        lengths = [len(l.rungs) for l in ladders]
        start = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        widths = np.concatenate([l.size - l.rungs for l in ladders]).astype(float)
        ladder = np.repeat(np.arange(len(ladders)), lengths)
        return _Rungs(start, ladder, np.log(widths), np.concatenate([l.loss for l in ladders]))

    def weight(self, tangent: Tangent) -> np.ndarray:
        """Return what each rung adds to a tangent, ``[rungs]``."""
        return np.asarray(tangent.slopes[self.ladder] * (self.log_width - tangent.at[self.ladder]))

    def priced(self, tangents: Sequence[Tangent], multipliers: np.ndarray) -> np.ndarray:
        """Return the loss of each rung and the price of its cost, ``[rungs]``."""
        slopes = np.array([t.slopes for t in tangents])
        offsets = multipliers @ (slopes * np.array([t.at for t in tangents]))
        return np.asarray(self.loss + (multipliers @ slopes)[self.ladder] * self.log_width - offsets[self.ladder])

    def bound(self, tangents: Sequence[Tangent], multipliers: np.ndarray) -> float:
        """Return a lower bound on the loss of every choice that keeps the budgets."""
        over = sum(m * (t.value - t.limit) for t, m in zip(tangents, multipliers))
        return float(np.minimum.reduceat(self.priced(tangents, multipliers), self.start).sum() + over)

    def excess(self, tangents: Sequence[Tangent], multipliers: np.ndarray) -> np.ndarray:
        """Return by how much the cheapest choice under multipliers breaks each budget, to first order."""
        priced = self.priced(tangents, multipliers)
        least = np.minimum.reduceat(priced, self.start)[self.ladder]
        cheapest = np.flatnonzero(priced <= least)
        _, first = np.unique(self.ladder[cheapest], return_index=True)
        log_widths = self.log_width[cheapest[first]]
        return np.array([t.value - t.limit + t.slopes @ (log_widths - t.at) for t in tangents])


def _rounded(problem: Problem, widths: np.ndarray) -> list[int]:
    """Return the rungs next below real widths, or lower until every budget is kept."""
    while True:
        rungs = [
            int(np.searchsorted(l.rungs, l.size - w - 1e-9).clip(max=len(l.rungs) - 1))
            for l, w in zip(problem.ladders, widths)
        ]
        if problem.keeps(rungs):
            return rungs
        widths = widths * 0.995


def fill(problem: Problem, rungs: Sequence[int]) -> list[int]:
    """Give back rungs that fit under the budgets after all, the most important first."""
    chosen, improved = list(rungs), True
    while improved:
        improved = False
        price = [(l.loss[r - 1] - l.loss[r], i) for i, (l, r) in enumerate(zip(problem.ladders, chosen)) if r > 0]
        for _, which in sorted(price):
            chosen[which] -= 1
            fits = problem.keeps(chosen)
            chosen[which] += not fits
            improved |= fits
    return chosen


def _improved(
    problem: Problem,
    rungs: _Rungs,
    best: list[int],
    tangents: Sequence[Tangent],
    multipliers: np.ndarray,
    bound: float,
    effort: Effort,
) -> tuple[list[int], float]:
    """Look for something better among the rungs around the best choice, by an integer program with growing cuts.

    Returns the best choice, and a higher bound where the program left out no rung that could be part of a better one.
    """
    priced = rungs.priced(tangents, multipliers)
    extra = priced - np.minimum.reduceat(priced, rungs.start)[rungs.ladder]
    position = np.arange(len(extra)) - rungs.start[rungs.ladder]
    own = position == np.array(best)[rungs.ladder]
    near = np.abs(position - np.array(best)[rungs.ladder]) <= effort.window
    cuts, at_prices = list(tangents), bound
    for _ in range(effort.cuts):
        # A rung whose price is above the least one by more than the gap can't be part of anything better. The gap is
        # that of the prices: the program's own bound, higher, says nothing of single rungs.
        able = extra <= problem.loss(best) - at_prices
        found, least = _integer(rungs, np.flatnonzero(own | (near & able)), cuts, effort)
        if not (able & ~near).any():
            bound = max(bound, min(least, problem.loss(best)))
        if found is None or problem.loss(found) >= problem.loss(best) - effort.close / 4 * bound:
            break
        mended = fill(problem, found if problem.keeps(found) else _mended(problem, found))
        if problem.loss(mended) < problem.loss(best):
            best = mended
        if problem.keeps(found) or problem.loss(best) - bound <= effort.close * bound:
            break
        cuts += problem.tangents(problem.sizes - problem.steps(found))
    return best, bound


def _mended(problem: Problem, rungs: Sequence[int]) -> list[int]:
    """Go down single rungs, cheapest for what they save, until every budget is kept."""
    chosen = list(rungs)
    while not problem.keeps(chosen):
        tangents = [
            t for t in problem.tangents(problem.sizes - problem.steps(chosen)) if t.value > t.limit * (1 - 1e-12)
        ]
        saved = sum((t.slopes / max(t.value - t.limit, 1e-12 * t.limit) for t in tangents), np.zeros(len(chosen)))
        rates = [
            (l.loss[r + 1] - l.loss[r])
            / max(min(s * np.log((l.size - l.rungs[r]) / (l.size - l.rungs[r + 1])), 1), 1e-12)
            if r + 1 < len(l.rungs)
            else np.inf
            for l, r, s in zip(problem.ladders, chosen, saved)
        ]
        chosen[int(np.argmin(rates))] += 1
    return chosen


def _integer(
    rungs: _Rungs, candidates: np.ndarray, cuts: Sequence[Tangent], effort: Effort
) -> tuple[list[int] | None, float]:
    """Return the choice among candidate rungs that loses least and keeps the cuts, if one was found, and a bound."""
    ladder = rungs.ladder[candidates]
    count = len(candidates)
    once = sparse.csr_matrix((np.ones(count), (ladder, np.arange(count))), shape=(len(rungs.start), count))
    rows = np.array([rungs.weight(cut)[candidates] / cut.limit for cut in cuts])
    room = np.array([(cut.limit - cut.value) / cut.limit for cut in cuts])
    outcome = milp(
        rungs.loss[candidates],
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint(rows, -np.inf, room)],
        # Without its presolve: that takes longer here than it saves, and some versions print when they undo it.
        options={"mip_rel_gap": effort.close / 4, "node_limit": effort.nodes, "presolve": False},
    )
    least = -np.inf if outcome.mip_dual_bound is None else float(outcome.mip_dual_bound)
    if outcome.x is None:
        return None, least
    taken = candidates[outcome.x > 0.5]
    if len(taken) != len(rungs.start):
        return None, least
    return [int(r) for r in taken - rungs.start[rungs.ladder[taken]]], least
