"""One layer's regression: rows, what they should give, and the weights that come closest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

import torch
from torch import Tensor

from surgeon.calibrate import Moments, Sums

# Shares of the mean variance of a layer's inputs that are tried as penalty; the held-out rows choose. With the last,
# weights stay as they are and only the means are met.
RIDGES = (1e-9, 1e-4, 1e-3, 1e-2, 1e-1, 0.5, inf)
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


@dataclass(frozen=True, eq=False)
class Weights:
    """weight ``[g, o / g, k]`` and offset ``[g, o / g]``, float64; how they were found."""

    weight: Tensor
    offset: Tensor
    ridge: float = 0.0
    rounds: int = 0

    def __str__(self) -> str:
        if self.ridge == inf:
            return "means only"
        return f"ridge {self.ridge:.0e}" + (f", {self.rounds} rounds" if self.rounds else "")


@dataclass(frozen=True, eq=False)
class Problem:
    """Find w and b so that ``factor * (x w' + b) + offset + rest`` is close to t, or its ReLU to that of t.

    fit, held   rows that are fitted, and rows that judge the fit
    factor, offset   ``[o]``, of the batch norm behind the layer
    """

    old: Weights
    fit: Rows
    held: Rows
    factor: Tensor
    offset: Tensor
    relu: bool
    free: bool = True

    def __str__(self) -> str:
        return f"{self.fit} for {len(self.factor)} outputs"

    def result(self, rows: Rows, found: Weights) -> Tensor:
        """Return what a layer with these weights leads to, ``[rows, o]``."""
        made = rows.x @ found.weight.mT.to(rows.x) + found.offset.unsqueeze(1).to(rows.x)
        return _ungrouped(made) * self.factor.to(made) + self.offset.to(made) + rows.rest

    def error(self, found: Weights) -> float:
        """Return the mean squared error on held-out rows, as a share of the variance of what should come out."""
        made, wanted = self.result(self.held, found), self.held.t
        if self.relu:
            made, wanted = made.relu(), wanted.relu()
        spread = (wanted - wanted.mean(0)).double().square().mean()
        return float((made - wanted).double().square().mean() / spread.clamp(min=1e-300))

    def means_only(self) -> Weights:
        """Return the old weights with an offset that meets the means, where there is a place for one."""
        if not self.free:
            return self.old
        sums = Sums(full=False)
        sums.add(self.fit.x, self._wanted(self.fit, self.fit.t))
        return self._fitted(sums.moments(), inf) or self.old

    def best(self) -> Weights:
        """Return what does best on the held-out rows, fitted on the others."""
        moments = self._sums.moments()
        found = [self._fitted(moments, ridge) for ridge in RIDGES[: None if self.free else -1]]
        tried = [weights for weights in found if weights is not None]
        best = min([self.old, *tried], key=self.error)
        if not self.relu or best is self.old or best.ridge == inf:
            return best
        rounds = [best]
        for _ in range(ROUNDS):
            closer = self._closer(self.fit, moments, rounds[-1])
            if closer is None:
                break
            rounds.append(closer)
        return min(rounds, key=self.error)

    def final(self, best: Weights) -> Weights:
        """Return the same fit on all rows."""
        fit, held = self.fit, self.held
        every = Rows(torch.cat([fit.x, held.x], 1), torch.cat([fit.t, held.t]), torch.cat([fit.rest, held.rest]))
        sums = self._sums.copy()
        sums.add(held.x, self._wanted(held, held.t))
        moments = sums.moments()
        found = self._fitted(moments, best.ridge)
        for _ in range(best.rounds):
            found = found and (self._closer(every, moments, found) or found)
        return found or best

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


def _ungrouped(made: Tensor) -> Tensor:
    return made.transpose(0, 1).reshape(made.shape[1], -1)
