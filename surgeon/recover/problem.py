"""One layer's regression: rows, what they should give, and the weights that come closest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

import torch
from torch import Tensor

from surgeon.calibrate import Moments, Sums, gathered

# Shares of the mean variance of a layer's inputs that are tried as penalty, beside one that rounding calls for; the
# held-out rows choose. With the last, weights stay as they are and only the means are met.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 0.5, inf)
# How often targets that a ReLU cuts off are drawn to where the layer is by then.
ROUNDS = 3


@dataclass(frozen=True, eq=False)
class Rows:
    """x ``[g, rows, k]`` is given; t ``[rows, o]`` should come out, after ``rest`` ``[rows, o]`` has been added."""

    x: Tensor
    t: Tensor
    rest: Tensor

    def __str__(self) -> str:
        return f"{self.x.shape[1]} rows of {self.x.shape[2]}"

    def plus(self, more: Tensor | float) -> Rows:
        """Return rows to whose results something else is added too, ``[o]``."""
        return self if isinstance(more, float) else replace(self, rest=self.rest + more.to(self.rest))

    def room(self, many: int) -> Rows:
        """Return memory for so many rows."""
        x, t = self.x, self.t
        return Rows(x.new_empty(len(x), many, x.shape[2]), t.new_empty(many, t.shape[1]), t.new_empty(many, t.shape[1]))

    def put(self, at: int, rows: Rows) -> int:
        """Write rows from a place on, and return how many."""
        there = self.part(slice(at, at + rows.x.shape[1]))
        for mine, theirs in ((there.x, rows.x), (there.t, rows.t), (there.rest, rows.rest)):
            mine.copy_(theirs)
        return rows.x.shape[1]

    def part(self, which: slice) -> Rows:
        """Return some of the rows."""
        return Rows(self.x[:, which], self.t[which], self.rest[which])


@dataclass(frozen=True, eq=False)
class Weights:
    """weight ``[g, o / g, k]`` and offset ``[g, o / g]``, float64; how they were found."""

    weight: Tensor
    offset: Tensor
    ridge: float = 0.0
    rounds: int = 0
    note: str = ""

    def __str__(self) -> str:
        if self.note or self.ridge == inf:
            return self.note or "means only"
        return f"ridge {self.ridge:.0e}" + (f", {self.rounds} rounds" if self.rounds else "")


@dataclass(frozen=True, eq=False)
class Problem:
    """Find w and b so that ``factor * (x w' + b) + offset + rest`` is close to t, or its ReLU to that of t.

    rows        the first ``fitted`` are fitted, and the others judge the fit
    factor, offset   ``[o]``, of the batch norm behind the layer
    free        whether there is a place for an offset
    dtype       of the weights as they will be written
    """

    old: Weights
    rows: Rows
    fitted: int
    factor: Tensor
    offset: Tensor
    relu: bool
    free: bool = True
    dtype: torch.dtype = torch.float64

    def __str__(self) -> str:
        return f"{self.fit} for {len(self.factor)} outputs"

    @cached_property
    def fit(self) -> Rows:
        """The rows that are fitted."""
        return self.rows.part(slice(self.fitted))

    @cached_property
    def held(self) -> Rows:
        """The rows that judge."""
        return self.rows.part(slice(self.fitted, None))

    def result(self, rows: Rows, found: Weights) -> Tensor:
        """Return what a layer with these weights leads to, ``[rows, o]``."""
        x = rows.x.to(torch.promote_types(rows.x.dtype, torch.float32))
        weight, offset = found.weight.to(self.dtype), found.offset.to(self.dtype)
        made = x @ weight.mT.to(x) + offset.unsqueeze(1).to(x)
        return _ungrouped(made) * self.factor.to(made) + self.offset.to(made) + rows.rest

    def error(self, found: Weights) -> float:
        """Return the mean squared error on held-out rows, as a share of the variance of what should come out."""
        made, wanted = self.result(self.held, found), self.held.t
        if self.relu:
            made, wanted = made.relu(), wanted.relu()
        off, wanted = (made - wanted).double(), wanted.double()
        sums = [off.square().sum(), torch.tensor(float(len(off))).to(off), wanted.sum(0), wanted.square().sum(0)]
        error, rows, first, second = gathered(sums)
        return float(error / (second - first.square() / rows).sum().clamp(min=1e-300))

    def judged(self, found: Sequence[Weights]) -> Weights:
        """Return what is best on held-out rows; the old weights unless something is better."""
        best, least = self.old, self.error(self.old)
        for weights in found:
            error = self.error(weights)
            if error < least:
                best, least = weights, error
        return best

    def meeting(self, found: Weights) -> Weights:
        """Return weights with an offset that meets the means of the rows that are fitted, where there is a place."""
        if not self.free:
            return found
        sums = Sums(full=False)
        sums.add(self.fit.x, self._wanted(self.fit, self.fit.t))
        live = self._live().view(found.offset.shape)
        offset = torch.where(live, sums.moments().offset(found.weight), found.offset)
        return replace(found, offset=offset, note=f"{found.note}, means met" if found.note else "means met")

    def best(self) -> Weights:
        """Return what does best on the held-out rows, fitted on the others."""
        moments = self._sums.moments()
        found = [self._fitted(moments, ridge) for ridge in ridges(self.rows.x)[: None if self.free else -1]]
        best = self.judged([weights for weights in found if weights is not None])
        if not self.relu or best is self.old or best.ridge == inf:
            return best
        rounds = [best]
        for _ in range(ROUNDS):
            closer = self._closer(self.fit, moments, rounds[-1])
            if closer is None:
                break
            rounds.append(closer)
        return self.judged(rounds)

    def final(self, best: Weights) -> Weights:
        """Return the same fit on all rows, if it is as good."""
        if best.note:
            return best
        sums = self._sums.copy()
        sums.add(self.held.x, self._wanted(self.held, self.held.t))
        moments = sums.moments()
        found = self._fitted(moments, best.ridge)
        for _ in range(best.rounds):
            found = found and (self._closer(self.rows, moments, found) or found)
        return found if found is not None and self.error(found) <= self.error(best) else best

    def _closer(self, rows: Rows, moments: Moments, found: Weights) -> Weights | None:
        """Fit again; below zero, where the ReLU cuts off, whatever is below zero is as good as the target.

        Each round minimises a bound on the error behind the ReLU that is tight at the weights found so far.
        """
        made = self.result(rows, found)
        wanted = torch.where(rows.t > 0, rows.t, made.clamp(max=0))
        new = self._fitted(moments.towards(rows.x, self._wanted(rows, wanted)), found.ridge)
        return new and replace(new, rounds=found.rounds + 1)

    def _fitted(self, moments: Moments, ridge: float) -> Weights | None:
        if not self.free:
            moments = moments.uncentred()
        weight = self.old.weight if ridge == inf else moments.fit(self.old.weight, ridge)
        if weight is None:
            return None
        offset = moments.offset(weight) if self.free else self.old.offset
        live = self._live().view(offset.shape)
        weight = torch.where(live.unsqueeze(2), weight, self.old.weight)
        return Weights(weight, torch.where(live, offset, self.old.offset), ridge)

    def _live(self) -> Tensor:
        """Tell which outputs matter: a batch norm may have switched some off."""
        size = self.factor.abs()
        return size > 1e-6 * size.max()

    def _wanted(self, rows: Rows, t: Tensor) -> Tensor:
        """Return what the layer itself should make, ``[g, rows, o / g]``."""
        factor = torch.where(self._live(), self.factor, torch.ones_like(self.factor))
        own = (t - rows.rest - self.offset.to(t)) / factor.to(t)
        return own.view(len(own), rows.x.shape[0], -1).transpose(0, 1)

    @cached_property
    def _sums(self) -> Sums:
        sums = Sums()
        sums.add(self.fit.x, self._wanted(self.fit, self.fit.t))
        return sums


def ridges(x: Tensor) -> tuple[float, ...]:
    """Return the penalties to try for rows of a type."""
    return max(1e-13, 1e-2 * torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps), *RIDGES


def _ungrouped(made: Tensor) -> Tensor:
    return made.transpose(0, 1).reshape(made.shape[1], -1)
