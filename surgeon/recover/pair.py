"""A batch in both models, moved forward in step, and what a layer is given and should make there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from surgeon.calibrate import Player, Slot
from surgeon.recover.problem import Rows
from surgeon.recover.target import Goal, Target

# What turns results of the original into those of the small model; they may be scaled on the way.
Meaning = Callable[[Tensor, bool], Tensor]


class Fault(Exception):
    """Why a layer can't be compared."""


class Held:
    """Values that are needed later on, taken from a player when a call comes by, each with the tensor's version."""

    def __init__(self, player: Player, needs: Iterable[tuple[int, Slot]]) -> None:
        self.player, self.values = player, dict[tuple[int, Slot], tuple[Tensor, int]]()
        self.needs: dict[int, set[Slot]] = {}
        for at, slot in needs:
            self.needs.setdefault(at, set()).add(slot)

    def __str__(self) -> str:
        return f"{len(self.values)} values at call {self.player.at}"

    def advance(self, stop: int, last: int) -> None:
        """Move the player up to a call and take along what is needed at calls up to the last."""
        for at in sorted(at for at in self.needs if self.player.at <= at <= last):
            self.player.advance(at)
            for slot in self.needs[at]:
                value = self.player.value(slot)
                self.values[at, slot] = value, value._version
        self.player.advance(stop)

    def get(self, at: int, slot: Slot) -> Tensor:
        """Return what was taken.

        Raises Fault if it has been written over since.
        """
        value, version = self.values[at, slot]
        if value._version != version:
            raise Fault("its input, or what is added to its result, is overwritten before the two meet")
        return value

    def drop(self, at: int, slot: Slot) -> None:
        """Let go of a value, and don't take it when it comes by."""
        self.values.pop((at, slot), None)
        self.needs.get(at, set()).discard(slot)


class Pair:
    """A batch in the original and in the small model; of the original, inputs of ``large`` calls are held too."""

    def __init__(self, whole: Player, small: Player, goals: Sequence[Goal], large: Collection[int] = ()) -> None:
        self.large = large
        self.whole = Held(whole, [(g.call.at, g.call.x) for g in goals if g.call.at in large])
        self.small = Held(small, [need for goal in goals for need in _needs(goal)])

    def __str__(self) -> str:
        return f"original: {self.whole}, small: {self.small}"

    def at(self, target: Target, meant: Meaning) -> Iterator[tuple[Goal, Pair]]:
        """Yield each goal of a target, and a pair that has got to where it can be compared.

        Of several calls of one layer, later ones are given what earlier ones should make.
        """
        if len(target.goals) == 1:
            self._advance(target.goals[0])
            yield target.goals[0], self
            return
        for model in (self.whole, self.small):
            model.advance(target.at, target.at)
        ahead = Pair(self.whole.player.fork(), self.small.player.fork(), target.goals, self.large)
        for goal in target.goals:
            ahead._advance(goal)
            yield goal, ahead
            ahead._correct(goal, meant)
            ahead.drop(goal)

    def _advance(self, goal: Goal) -> None:
        self.small.advance(goal.until, goal.until)
        self.whole.advance(goal.until + 1, goal.until)

    def _correct(self, goal: Goal, meant: Meaning) -> None:
        """Put what a call should make in the place of what it makes."""
        (slot,) = self.small.player.tape.steps[goal.until].outputs
        made = self.whole.player.value(slot).movedim(goal.call.channel, -1)
        self.small.player.advance(goal.until + 1)
        wanted = meant(made.flatten(0, -2), goal.until == goal.call.at).to(made)
        there = torch.empty_like(self.small.player.values[slot])  # in the same layout, for views that come
        self.small.player.values[slot] = there
        there.movedim(goal.call.channel, -1).copy_(wanted.unflatten(0, made.shape[:-1]))

    def shape(self, goal: Goal) -> torch.Size:
        """Return the shape of what the small model gives to a layer."""
        return self.small.player.tape.shapes[goal.call.x]

    def rows(self, goal: Goal, at: Tensor, meant: Meaning) -> Rows:
        """Return what a layer is given at some positions, what should come out, and what else goes into it.

        ``meant`` turns results of the original into those of the small model.
        """
        call, x = goal.call, self.small.get(goal.call.at, goal.call.x)
        at = at.to(x.device)
        made = call.outputs(self.whole.player.value(self.whole.player.tape.steps[goal.until].outputs[0]), at)
        t = meant(made.to(torch.promote_types(made.dtype, torch.float32)), goal.until == call.at)
        rest = torch.zeros_like(t)
        for other in goal.others:
            rest = rest + call.outputs(self.small.get(*other), at)
        return Rows(call.rows(x, at), t, rest)

    def pixels(self, goal: Goal) -> tuple[Tensor, Tensor]:
        """Return what a large layer is given in the original and in the small model, ``[n, i, *spatial]``."""
        at = goal.call.at, goal.call.x
        return self.whole.get(*at), self.small.get(*at)

    def again(self, goal: Goal) -> None:
        """Make a layer's result anew, up to where it was compared."""
        player = self.small.player
        steps, alive = player.tape.steps, set(player.values)
        player.values.update({slot: self.small.values[at, slot][0] for at, slot in _needs(goal)})
        with torch.no_grad():
            for at in (*goal.call.weight.through, *goal.path):
                player.run(steps[at])
        for slot in set(player.values) - alive - set(steps[goal.until].inputs):
            del player.values[slot]

    def drop(self, goal: Goal) -> None:
        """Let go of what was held for a goal."""
        for need in _needs(goal):
            self.small.drop(*need)
            self.whole.drop(*need)


def _needs(goal: Goal) -> list[tuple[int, Slot]]:
    return [(goal.call.at, goal.call.x), *goal.others]
