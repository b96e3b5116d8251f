"""Find widths under budgets: the least loss that any choice of rungs allows, and a bound on what is possible at all.

Costs are posynomials in the widths that remain: sums of products with positive coefficients. In the logarithms of the
widths they are convex (Boyd et al., 2007, "A tutorial on geometric programming"). Three things follow.

- The relaxation to real widths has one optimum, however the groups are linked.
- A tangent of a cost never exceeds it, so each one is a linear cut that no good choice of rungs violates. With the
  multipliers it gives a lower bound on the loss of any choice, convex losses or not.
- The same bound, rung by rung, says which rungs no better choice can have. Where few are left, all choices among them
  are looked through; elsewhere exchanges between ladders close most of what rounding opens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from surgeon.plan.allocate import Ladder, require_reachable
from surgeon.plan.plan import above
from surgeon.plan.problem import Problem, Tangent
from surgeon.plan.relax import multipliers_for, relaxed

CLOSE = 1e-3  # relative gap at which a long search stops
REACH = 8  # rungs that an exchange moves a ladder
MOVES = 1000  # of single ladders, that exchanges are made of
TRIALS = 300  # exchanges that are tried against the costs themselves
KICKS = 40  # moves that a search starts from again,
ROUNDS = 2  # and how often, as long as it helps
BRANCHES = 3000  # partial choices that are looked at in search of a proof


@dataclass(frozen=True)
class Choice:
    """Rungs, what they lose, and the least that any choice loses."""

    rungs: tuple[int, ...]
    loss: float
    bound: float

    @property
    def gap(self) -> float:
        """How far the loss is above the bound, relative to the bound."""
        return above(self.loss, self.bound)

    def __str__(self) -> str:
        return f"loss {self.loss:.6g}, at most {self.gap:.2%} above the least possible"


def solve(problem: Problem) -> Choice:
    """Choose rungs that keep every budget and lose as little as possible.

    Raises InfeasibleBudget where even the last rungs break a budget.
    """
    whole = [0] * len(problem.ladders)
    if problem.keeps(whole):
        return Choice(tuple(whole), problem.loss(whole), problem.loss(whole))
    require_reachable(problem.counts(problem.steps([len(l.rungs) - 1 for l in problem.ladders])), problem.budgets)
    rungs = _Rungs.of(problem.ladders)
    widths = relaxed(problem)
    tangents = problem.tangents(widths)
    multipliers = multipliers_for(lambda m: rungs.excess(tangents, m), len(tangents))
    bound = rungs.bound(tangents, multipliers)
    starts = (_below(problem, widths), repaired(problem, _nearest(problem, widths)), repaired(problem, whole))
    best = min((_exchanged(problem, fill(problem, start)) for start in starts), key=problem.loss)
    if problem.loss(best) - bound > CLOSE * bound:
        best = _kicked(problem, best)
    best, proved = _searched(problem, best, rungs.extra(tangents, multipliers), bound)
    loss = problem.loss(best)
    return Choice(tuple(best), loss, loss if proved else min(bound, loss))


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

    def priced(self, tangents: Sequence[Tangent], multipliers: np.ndarray) -> np.ndarray:
        """Return the loss of each rung and the price of its cost, ``[rungs]``."""
        slopes = np.array([t.slopes for t in tangents])
        offsets = multipliers @ (slopes * np.array([t.at for t in tangents]))
        return np.asarray(self.loss + (multipliers @ slopes)[self.ladder] * self.log_width - offsets[self.ladder])

    def bound(self, tangents: Sequence[Tangent], multipliers: np.ndarray) -> float:
        """Return a lower bound on the loss of every choice that keeps the budgets."""
        over = sum(m * (t.value - t.limit) for t, m in zip(tangents, multipliers))
        return float(np.minimum.reduceat(self.priced(tangents, multipliers), self.start).sum() + over)

    def extra(self, tangents: Sequence[Tangent], multipliers: np.ndarray) -> list[np.ndarray]:
        """Return by how much each rung of each ladder raises the bound on the choices that have it."""
        priced = self.priced(tangents, multipliers)
        return np.split(priced - np.minimum.reduceat(priced, self.start)[self.ladder], self.start[1:])

    def excess(self, tangents: Sequence[Tangent], multipliers: np.ndarray) -> np.ndarray:
        """Return by how much the cheapest choice under multipliers breaks each budget, to first order."""
        priced = self.priced(tangents, multipliers)
        least = np.minimum.reduceat(priced, self.start)[self.ladder]
        cheapest = np.flatnonzero(priced <= least)
        _, first = np.unique(self.ladder[cheapest], return_index=True)
        log_widths = self.log_width[cheapest[first]]
        return np.array([t.value - t.limit + t.slopes @ (log_widths - t.at) for t in tangents])


def _below(problem: Problem, widths: np.ndarray) -> list[int]:
    """Return the rungs next below real widths, or lower until every budget is kept."""
    while True:
        rungs = [
            int(np.searchsorted(l.rungs, l.size - w - 1e-9).clip(max=len(l.rungs) - 1))
            for l, w in zip(problem.ladders, widths)
        ]
        if problem.keeps(rungs):
            return rungs
        widths = widths * 0.995


def _nearest(problem: Problem, widths: np.ndarray) -> list[int]:
    return [int(np.abs(l.size - l.rungs - w).argmin()) for l, w in zip(problem.ladders, widths)]


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


def _searched(problem: Problem, best: list[int], extra: Sequence[np.ndarray], bound: float) -> tuple[list[int], bool]:
    """Look through the choices that may be better than the best so far; says whether these were all.

    A choice loses at least the bound and what its rungs add to it; so most rungs, and most pairs of rungs, are out.
    """
    last = [len(l.rungs) - 1 for l in problem.ladders]
    # What spreads most comes first: it rules out most.
    order = sorted(range(len(last)), key=lambda i: -float(extra[i].max(initial=0.0)))
    ways = [np.argsort(values, kind="stable") for values in extra]
    stack: list[tuple[int, float, list[int]]] = [(0, bound, last)]
    looked = 0
    while stack and looked < BRANCHES:
        depth, least, chosen = stack.pop()
        looked += 1
        # With the rest at its last rung, what is over a budget now stays over it.
        if least >= problem.loss(best) - 1e-9 or not problem.keeps(chosen):
            continue
        if depth == len(order):
            best = chosen if problem.loss(chosen) < problem.loss(best) else best
            continue
        which, room = order[depth], problem.loss(best) - 1e-9 - least
        for rung in ways[which][: int(np.searchsorted(extra[which][ways[which]], room))][::-1].tolist():
            more = [*chosen[:which], rung, *chosen[which + 1 :]]
            stack.append((depth + 1, least + float(extra[which][rung]), more))
    return best, not stack


def _kicked(problem: Problem, rungs: Sequence[int]) -> list[int]:
    """Force single ladders off their rungs, put the rest right, and keep what loses less, as long as that helps."""
    best = list(rungs)
    for _ in range(ROUNDS):
        before = problem.loss(best)
        # Each kick costs a search that grows with the number of ladders: beyond KICKS of those, fewer are tried.
        tries = KICKS if len(best) <= KICKS else max(10, KICKS**2 // len(best))
        for i, to in list(zip(*_moves(problem, best, KICKS)))[:tries]:
            moved = [*best[:i], int(to), *best[i + 1 :]]
            moved = _exchanged(problem, fill(problem, repaired(problem, moved)))
            best = min(best, moved, key=problem.loss)
        if problem.loss(best) >= before * (1 - CLOSE / 10):
            break
    return best


def _exchanged(problem: Problem, rungs: Sequence[int]) -> list[int]:
    """Move one or two ladders a few rungs, as long as that loses less and keeps the budgets."""
    best = list(rungs)
    while True:
        better = next((move for move in _exchanges(problem, best) if problem.keeps(move)), None)
        if better is None:
            return best
        best = fill(problem, better)


def _exchanges(problem: Problem, rungs: Sequence[int]) -> Iterator[list[int]]:
    """Yield choices near a choice that lose less and, by its tangents, may keep the budgets; the best first."""
    ladder, target = _moves(problem, rungs, MOVES)
    now = problem.steps(rungs)
    gain = np.array([problem.ladders[i].loss[rungs[i]] - problem.ladders[i].loss[t] for i, t in zip(ladder, target)])
    after = np.array([float(problem.ladders[i].rungs[t]) for i, t in zip(ladder, target)])
    width = np.log((problem.sizes[ladder] - after) / (problem.sizes - now)[ladder])
    both = gain[:, None] + gain[None, :]
    able = (both > 1e-9) & (ladder[:, None] < ladder[None, :])
    for tangent in problem.tangents(problem.sizes - now):
        cost = tangent.slopes[ladder] * width
        able &= cost[:, None] + cost[None, :] <= tangent.limit - tangent.value
    pairs = np.argwhere(able)
    for a, b in pairs[np.argsort(-both[able], kind="stable")[:TRIALS]]:
        moved = list(rungs)
        moved[ladder[a]], moved[ladder[b]] = int(target[a]), int(target[b])
        yield moved


def _moves(problem: Problem, rungs: Sequence[int], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the moves of single ladders by a few rungs: which ladder, to which rung."""
    reach = max(1, min(REACH, most // (2 * len(rungs))))
    pairs = [
        (i, to)
        for i, (l, at) in enumerate(zip(problem.ladders, rungs))
        for to in range(max(0, at - reach), min(len(l.rungs), at + reach + 1))
        if to != at
    ]
    found = np.array(pairs, dtype=int).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def repaired(problem: Problem, rungs: Sequence[int], stale: float = 0.01) -> list[int]:
    """Go down rung by rung, cheapest for what it saves, until every budget is kept.

    What a rung saves is looked at again whenever a share of the excess is closed, a hundredth or as asked.
    """
    chosen = list(rungs)
    while not problem.keeps(chosen):
        tangents = problem.tangents(problem.sizes - problem.steps(chosen))
        over = [t for t in tangents if t.value > t.limit * (1 - 1e-12)]
        saved = sum((t.slopes / max(t.value - t.limit, 1e-12 * t.limit) for t in over), np.zeros(len(chosen)))
        steps = [_next(l, r, s) for l, r, s in zip(problem.ladders, chosen, saved)]
        prices = np.array([price for price, _ in steps])
        closed = 0.0
        while closed <= stale and np.isfinite(prices).any():
            which = int(np.argmin(prices))
            closed += steps[which][1]
            chosen[which] += 1
            steps[which] = _next(problem.ladders[which], chosen[which], saved[which])
            prices[which] = steps[which][0]
    return chosen


def _next(ladder: Ladder, rung: int, saved: float) -> tuple[float, float]:
    """Return what the next rung loses for the share of the excess that it closes, and that share.

    ``saved`` is the share per log width.
    """
    if rung + 1 == len(ladder.rungs):
        return math.inf, 0.0
    share = saved * math.log((ladder.size - ladder.rungs[rung]) / (ladder.size - ladder.rungs[rung + 1]))
    return float(ladder.loss[rung + 1] - ladder.loss[rung]) / max(min(share, 1.0), 1e-12), share
