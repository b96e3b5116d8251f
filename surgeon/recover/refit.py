"""Give every layer that sees something else than before better weights, from input to output, each checked on data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import nn

from surgeon.calibrate import Contraction, Player, Sums, Tape, aligned, contractions, record
from surgeon.errors import DataError, RecoverError
from surgeon.modules import buffers_kept
from surgeon.plan.plan import Plan
from surgeon.recover.channels import by_channels
from surgeon.recover.gather import Limits, Meant, gather
from surgeon.recover.kept import Kept, kept
from surgeon.recover.match import match
from surgeon.recover.pair import Fault, Pair
from surgeon.recover.problem import Problem, Weights
from surgeon.recover.target import Target, targets
from surgeon.recover.write import affine, offered, place, shift

# What proposes weights for a layer of the small model: target, tape of the small model, and the weights by now; or says
# why there are none.
Proposal = Callable[[Target, Tape, Weights], Weights | str]


@dataclass(frozen=True)
class Refit:
    """What became of one layer.

    before, after   mean squared error against the original on held-out rows, as a share of the original's variance
    rows            positions of a convolution, or tokens, that were fitted
    unknowns        inputs to a filter
    note            how it was done, or why the layer was left as it was
    """

    layer: str
    before: float
    after: float
    rows: int
    unknowns: int
    note: str = ""

    @property
    def taken(self) -> bool:
        return self.after < self.before

    def __str__(self) -> str:
        if self.taken:
            change = f"error {self.before:.2e} -> {self.after:.2e}"
        else:
            change = "left" + (f", error {self.before:.2e}" if self.before == self.before else "")
        return f"{self.layer}: {change} ({self.unknowns} inputs, {self.rows} rows, {self.note})"


def left(name: str, why: str) -> Refit:
    """Return the record of a layer that was left as it was."""
    return Refit(name, float("nan"), float("nan"), 0, 0, why)


def refit(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    batches: Sequence[Any],
    limits: Limits,
    seed: int = 0,
    *,
    proposals: Callable[[Tape, Plan], Proposal] | None = None,
    measured: bool = True,
    track: Callable[[Sequence[Target]], Iterable[Target]] = lambda targets: targets,
) -> list[Refit]:
    """Refit the small model's layers in place and return what became of each.

    Both models move forward in step. When a layer's turn comes, its inputs are those that the small model gives it by
    then, and its target is what the original makes there; where its result goes into a sum, such as that with a
    shortcut, the target is the original's sum less the other operand in the small model. Sums and solutions are
    float64. Under ``torch.distributed`` every process brings batches of its own, and all find the same weights.

    Parameters
    ----------
    batches : inputs as ``example_inputs`` are given
    limits : of the rows of one layer, drawn at random, and its matrix of second moments; where that is too large, a
        convolution is fitted to channels instead of channels at every tap, or only the means are met
    proposals : of the tape of the original and the plan: what to try instead of a fit
    measured : whether the batches are data, whose means proposals may be made to meet
    """
    for new_biases in (True, False):  # some forwards do something else where there is a bias
        with torch.no_grad(), buffers_kept(model), buffers_kept(small), offered(small, new_biases) as new:
            tapes = [(record(model, batch), record(small, batch)) for batch in batches]
            if aligned([tape for pair in tapes for tape in pair]):
                return list(_Run(plan, tapes, new, limits, seed, proposals, measured).run(track))
    raise RecoverError("the small model takes other calls than the original, so layers can't be compared")


class _Run:
    """All turns of one pair of models."""

    def __init__(
        self,
        plan: Plan,
        tapes: Sequence[tuple[Tape, Tape]],
        new: frozenset[str],
        limits: Limits,
        seed: int,
        proposals: Callable[[Tape, Plan], Proposal] | None,
        measured: bool,
    ) -> None:
        self.plan, self.new, self.limits, self.measured = plan, new, limits, measured
        self.whole, self.tape = tapes[0]
        self.draw = torch.Generator().manual_seed(seed)
        self.originals = {call.at: call for call in contractions(self.whole)}
        self.propose = proposals(self.whole, plan) if proposals is not None else None
        self.matches = match(tapes, plan, limits, self.draw) if proposals is None else []
        # What a match left as it was is in these mixtures too.
        self.mixtures = {at: mix for found in self.matches if found.taken for at, mix in found.mixtures.items()}
        self.todo, self.left = targets(self.tape, set(plan.cuts), self.mixtures)
        single = [target.goals[0] for target in self.todo if len(target.goals) == 1]
        large = {goal.call.at for t in self.todo if self._by_channels(t) for goal in t.goals}
        self.pairs = [Pair(Player(whole), Player(small), single, large) for whole, small in tapes]

    def __str__(self) -> str:
        return f"{len(self.todo)} layers, {len(self.pairs)} batches"

    def run(self, track: Callable[[Sequence[Target]], Iterable[Target]]) -> Iterator[Refit]:
        for found in self.matches:
            yield Refit(found.name, found.before, found.after, found.rows, found.width, str(found))
        for target in track(self.todo):
            yield self._turn(target)
            for pair in self.pairs:
                for goal in target.goals:
                    pair.drop(goal)
        yield from (left(name, why) for name, why in self.left)

    def _by_channels(self, target: Target) -> bool:
        """Tell whether channels at every tap are too many, and channels alone are not."""
        groups, _, unknowns = target.layer.first.matrix(self.tape.leaves).shape
        channels = unknowns // prod(target.layer.first.kernel)
        return self.propose is None and not self.limits.fit(groups, unknowns) and self.limits.fit(groups, channels)

    def _turn(self, target: Target) -> Refit:
        name = target.layer.name.removesuffix(".weight")
        original = self.originals.get(target.layer.first.at)
        try:
            if original is None:
                raise Fault("the original computes its weight on the way")
            stay = kept(self.plan, original, self.whole.leaves)
            problem, channels = self._problem(target, Meant(stay, self.mixtures.get(target.layer.first.at)))
        except (Fault, RecoverError) as fault:
            return left(name, str(fault))
        if not bool(torch.isfinite(problem.rows.x).all()):
            raise DataError(f"what {name} is given is not finite on the calibration data; check inputs and weights")
        found = self._found(target, problem, (stay, channels, original))
        before = problem.error(problem.old)
        if found is problem.old:
            found = "nothing that was tried is better on held-out samples"
        after, note = (before, found) if isinstance(found, str) else (problem.error(found), str(found))
        if after < before and isinstance(found, Weights):
            self._write(target, problem, problem.final(found))
        return Refit(name, before, after, problem.fitted, problem.old.weight.shape[2], note)

    def _problem(self, target: Target, meant: Meant) -> tuple[Problem, Sums | None]:
        leaves, layer = self.tape.leaves, target.layer
        weight = layer.first.matrix(leaves)
        bias = weight.new_zeros(weight.shape[:2]) if layer.bias is None else layer.bias.read(leaves)
        old = Weights(weight.double().clone(), bias.double().view(weight.shape[:2]).clone())
        rows, fitted, channels = gather(target, self.pairs, meant, weight.shape[2], self.limits, self.draw)
        if not fitted or fitted == len(rows.t):
            raise Fault("there is one row only, and none to judge a fit")
        factor, offset = (v.to(weight.device) for v in affine(target.norm, leaves, weight.shape[:2].numel()))
        free = bool(place(target, self.tape, self.new))
        return Problem(old, rows, fitted, factor, offset, target.relu, free, weight.dtype), channels

    def _found(self, target: Target, problem: Problem, known: tuple[Kept, Sums | None, Contraction]) -> Weights | str:
        """Return what to give a layer, or why there is nothing."""
        if self.propose is not None:
            return self._proposed(self.propose(target, self.tape, problem.old), problem)
        groups, _, unknowns = problem.old.weight.shape
        if self.limits.fit(groups, unknowns):
            return problem.best()
        over = f"{unknowns} inputs are over the memory cap"
        stay, channels, original = known
        if channels is not None and channels.rows:
            fits = by_channels(problem, stay, channels, original.matrix(self.whole.leaves))
            tried = [replace(fit, note=f"{over}, so it was fitted to channels, {fit}") for fit in fits]
        else:
            tried = [replace(problem.meeting(problem.old), note=f"{over}, so only means are met")]
        return problem.judged(tried)

    def _proposed(self, told: Weights | str, problem: Problem) -> Weights | str:
        """Return what norms tell, or with what data tell of the means."""
        tried = []
        if isinstance(told, Weights):
            tried.append(told if problem.free else replace(told, offset=problem.old.offset))
        if self.measured and problem.free:
            tried.extend(problem.meeting(found) for found in (*tried, problem.old))
        return problem.judged(tried) if tried else told

    def _write(self, target: Target, problem: Problem, found: Weights) -> None:
        target.layer.first.write(found.weight, self.tape.leaves)
        where = place(target, self.tape, self.new)
        if where:
            shift(target, self.tape, where, (found.offset - problem.old.offset).reshape(-1))
        for pair in self.pairs if len(target.goals) == 1 else ():
            pair.again(target.goals[0])
