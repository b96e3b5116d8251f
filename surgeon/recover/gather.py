"""Rows of one layer from all batches: what it is given, and what it should make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.calibrate import Sums, Tape, drawn
from surgeon.recover.kept import Kept
from surgeon.recover.pair import Pair
from surgeon.recover.problem import Rows
from surgeon.recover.target import Goal, Target
from surgeon.recover.write import affine

# One sample in so many judges the fit of the others.
HELD_OUT = 4


@dataclass(frozen=True)
class Limits:
    """How many rows of a layer are used, and how many bytes they, or their second moments, may take."""

    rows: int
    memory: float

    def __str__(self) -> str:
        return f"{self.rows} rows, {self.memory:.0f} bytes"

    def fit(self, groups: int, unknowns: int) -> bool:
        """Tell whether second moments are small enough."""
        return 8 * groups * unknowns**2 <= self.memory

    def many(self, unknowns: int) -> int:
        """Return how many rows may be held."""
        return max(HELD_OUT, min(self.rows, int(self.memory / (4 * unknowns))))


@dataclass(frozen=True, eq=False)
class Meant:
    """How results of the original turn into those of the small layer: filters that stay times factors, or a mixture.

    mixture  ``[o of the original, o of the small layer]``, float64
    """

    stay: Kept
    mixture: Tensor | None = None

    def __str__(self) -> str:
        return f"{self.stay}" if self.mixture is None else f"{self.mixture.shape[1]} mixtures of filters"

    def __call__(self, made: Tensor, scaled: bool) -> Tensor:
        """Return what should come out for what the original makes, ``[rows, o]``; factors count where it is scaled."""
        if self.mixture is not None:
            return made @ self.mixture.to(made)
        chosen = made[:, self.stay.filters.to(made.device)]
        return chosen * self.stay.factor.to(made) if scaled else chosen


@dataclass(frozen=True, eq=False)
class Draw:
    """Positions of one call in one batch: those to be fitted, those that judge, and which samples judge."""

    fit: Tensor
    held: Tensor
    judges: Tensor

    def __str__(self) -> str:
        return f"{len(self.fit)} and {len(self.held)} positions"


def gather(
    target: Target, pairs: Sequence[Pair], meant: Meant, unknowns: int, limits: Limits, draw: torch.Generator
) -> tuple[Rows, int, Sums | None]:
    """Return the rows of a layer, those to be fitted first, and how many these are.

    Where a layer's second moments are over the limit, channels of the small model against those of the original come
    along, ``[groups, pixels, i]`` each, as sums.

    Raises Fault where layers can't be compared.
    """
    draws = _drawn(target, pairs, limits.many(unknowns), draw)
    fitted, held = (sum(len(part) for part in parts) for parts in zip(*((d.fit, d.held) for d in draws)))
    channels = Sums() if target.layer.first.at in pairs[0].large else None
    order, rows, places = iter(draws), None, [0, fitted]
    for pair in pairs:
        for goal, there in pair.at(target, meant):
            mine = next(order)
            for part, at in enumerate((mine.fit, mine.held)):
                found = there.rows(goal, at, meant).plus(own_bias(target, goal, there.small.player.tape))
                rows = rows or found.room(fitted + held)
                places[part] += rows.put(places[part], found)
            if channels is not None:
                _add_pixels(channels, there, goal, mine, meant.stay, limits, draw)
    assert rows is not None
    return rows, fitted, channels


def own_bias(target: Target, goal: Goal, tape: Tape) -> Tensor | float:
    """Return what a call's own bias adds where it is not the layer's: calls of one weight may have several."""
    bias, leaves = goal.call.bias, tape.leaves
    if bias is None or target.layer.bias is not None:
        return 0.0
    own = bias.read(leaves).double()
    return own * affine(target.norm, leaves, len(own))[0].to(own)


def _drawn(target: Target, pairs: Sequence[Pair], many: int, draw: torch.Generator) -> list[Draw]:
    """Return positions for each batch and call, drawn evenly from all there are."""
    calls = [(pair.shape(goal), goal.call) for pair in pairs for goal in target.goals]
    total = sum(call.positions(shape) for shape, call in calls)
    # What is the same for all samples, such as a table of positions, is split by rows.
    by_rows = sum(shape[0] for shape, _ in calls) < HELD_OUT * len(target.goals)
    seen = dict.fromkeys((call.at for _, call in calls), 0)
    draws = []
    for shape, call in calls:
        count = call.positions(shape)
        at = drawn(count, -(-count * many // total), draw)
        judges = (torch.arange(shape[0]) + seen[call.at]) % HELD_OUT == HELD_OUT - 1
        held = at % HELD_OUT == HELD_OUT - 1 if by_rows else judges[call.samples(shape, at)]
        seen[call.at] += shape[0]
        draws.append(Draw(at[~held], at[held], judges))
    return draws


def _add_pixels(
    sums: Sums, pair: Pair, goal: Goal, mine: Draw, stay: Kept, limits: Limits, draw: torch.Generator
) -> None:
    """Add channels at single positions; of samples that judge nothing is taken."""
    whole, small = (value.movedim(goal.call.channel, -1) for value in pair.pixels(goal))
    whole, small = (value[~mine.judges.to(value.device)].flatten(0, -2) for value in (whole, small))
    at = drawn(len(small), max(1, len(mine.fit)), draw).to(small.device)
    x = small[at].unflatten(1, (len(stay.groups), -1)).transpose(0, 1)
    t = whole[at].unflatten(1, (len(stay.inputs), -1)).transpose(0, 1)[stay.groups.to(whole.device)]
    sums.add(x, t)
