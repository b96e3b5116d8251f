"""Refit every layer that sees something else than before, from input to output, by ridge regression."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.calibrate import Player, Tape, aligned, drawn, record
from surgeon.errors import DataError, RecoverError
from surgeon.plan.plan import Plan
from surgeon.recover.problem import Problem, Rows, Weights
from surgeon.recover.target import Target, affine, kept_outputs, targets
from surgeon.recover.write import can_shift, set_weight, shift

# One sample in so many judges the fit of the others.
HELD_OUT = 4


@dataclass(frozen=True)
class Refit:
    """What became of one layer.

    before, after   mean squared error against the original on held-out rows, as a share of the original's variance
    rows            positions of a convolution, or tokens, that were fitted
    unknowns        inputs to a filter
    note            how it was fitted, or why it was left as it was
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
        change = f"error {self.before:.2e} -> {self.after:.2e}" if self.taken else f"left, error {self.before:.2e}"
        return f"{self.layer}: {change} ({self.unknowns} inputs, {self.rows} rows, {self.note})"


@dataclass(eq=False)
class _Pair:
    """A batch in both models.

    ``kept`` holds what the small model gave to layers whose turn comes further on, with the tensor's version.
    """

    whole: Player
    small: Player
    kept: dict[int, tuple[Tensor, int]] = field(default_factory=dict)


def refit(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    batches: Sequence[Any],
    *,
    rows: int = 65536,
    memory: float = 2**28,
    seed: int = 0,
    track: Callable[[Sequence[Target]], Iterable[Target]] = lambda targets: targets,
) -> list[Refit]:
    """Refit the small model's layers in place and return what became of each.

    Both models move forward in step. When a layer's turn comes, its inputs are those that the small model gives it by
    then, and its target is what the original makes there; where its result goes into a sum, such as that with a
    shortcut, the target is the original's sum less the other operand in the small model. Sums and solutions are
    float64.

    Parameters
    ----------
    batches : inputs as ``example_inputs`` are given
    rows : most rows of a layer that are used, drawn at random
    memory : bytes that the rows of one layer may take, and its matrix of second moments; above it, only the means
        are met
    """
    with torch.no_grad():
        return _refit(model, small, plan, batches, rows, memory, seed, track)


def _refit(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    batches: Sequence[Any],
    rows: int,
    memory: float,
    seed: int,
    track: Callable[[Sequence[Target]], Iterable[Target]],
) -> list[Refit]:
    tapes = [(record(model, batch), record(small, batch)) for batch in batches]
    if not aligned([tape for pair in tapes for tape in pair]):
        raise RecoverError("the small model takes other calls than the original, so layers can't be compared")
    pairs = [_Pair(Player(whole), Player(cut)) for whole, cut in tapes]
    todo = list(targets(tapes[0][1], set(plan.cuts)))
    calls = sorted(target.layer.at for target in todo)
    draw = torch.Generator().manual_seed(seed)
    found = []
    for target in track(todo):
        for pair in pairs:
            _advance(pair, target, calls)
        found.append(_Turn(target, pairs, small, kept_outputs(plan, target.layer.weight)).run(rows, memory, draw))
    return found


def _advance(pair: _Pair, target: Target, calls: Sequence[int]) -> None:
    """Move to where a layer can be compared, keeping what layers on the way are given."""
    pair.whole.advance(target.until + 1)
    for at in calls:
        if pair.small.at <= at <= target.until:
            pair.small.advance(at)
            x = pair.small.value(pair.small.tape.steps[at].argument(0, "input"))
            pair.kept[at] = (x, x._version)
    pair.small.advance(target.until)


@dataclass(eq=False)
class _Turn:
    """One layer's turn."""

    target: Target
    pairs: Sequence[_Pair]
    small: nn.Module
    keep: Tensor | None

    def __post_init__(self) -> None:
        self.layer = self.target.layer
        self.tape: Tape = self.pairs[0].small.tape
        self.weight = self.tape.leaves[self.layer.weight]
        self.unknowns = self.weight[0].numel()
        self.norm = None if self.target.norm is None else self.tape.steps[self.target.norm]

    def run(self, rows: int, memory: float, draw: torch.Generator) -> Refit:
        inputs = [pair.kept.pop(self.layer.at) for pair in self.pairs]
        name, left = self.layer.weight.rpartition(".")[0], float("nan")
        if any(x._version != version for x, version in inputs):
            return Refit(name, left, left, 0, self.unknowns, "its input is overwritten before its result is used")
        if any(map(self._broadcasts, self.pairs)):
            return Refit(name, left, left, 0, self.unknowns, "its result is broadcast in a sum")
        problem = self._problem([x for x, _ in inputs], min(rows, int(memory / (4 * self.unknowns))), draw)
        if problem.fit.x.shape[1] == 0 or problem.held.x.shape[1] == 0:
            raise DataError("compensation needs two samples or more: some are held out to judge the fit")
        if not bool(torch.isfinite(problem.fit.x).all() and torch.isfinite(problem.held.x).all()):
            raise DataError(f"what {name} is given is not finite on the calibration data; check inputs and weights")
        small = self.unknowns**2 * 8 * self.layer.groups <= memory
        best = problem.best() if small else problem.means_only()
        before, after = problem.error(problem.old), problem.error(best)
        if after < before:
            self._write(problem, problem.final(best) if small else best)
            for pair, (x, _) in zip(self.pairs, inputs):
                self._again(pair, x)
        note = str(best) if small else f"{self.unknowns} inputs are over the memory cap, so only means are met"
        return Refit(name, before, after, problem.fit.x.shape[1], self.unknowns, note)

    def _problem(self, inputs: Sequence[Tensor], rows: int, draw: torch.Generator) -> Problem:
        layer, total = self.layer, sum(self.layer.positions(x) for x in inputs)
        parts: tuple[list[Rows], list[Rows]] = ([], [])
        seen = 0
        for pair, x in zip(self.pairs, inputs):
            many = layer.positions(x)
            at = drawn(many, -(-many * rows // total), draw).to(x.device)
            held = (layer.samples(x, at) + seen) % HELD_OUT == HELD_OUT - 1
            seen += x.shape[0]
            for part, chosen in zip(parts, (at[~held], at[held])):
                part.append(self._rows(pair, x, chosen))
        fit, judge = (_joined(part) for part in parts)
        factor, offset = (v.to(fit.x.device) for v in affine(self.norm, self.tape.leaves, self.weight.shape[0]))
        bias = self.tape.leaves[layer.bias] if layer.bias else self.weight.new_zeros(self.weight.shape[0])
        old = Weights(layer.matrix(self.weight).detach().double(), bias.detach().double().view(layer.groups, -1))
        free = can_shift(self.small, self.layer, self.norm)
        return Problem(old, fit, judge, factor, offset, self.target.relu, free)

    def _rows(self, pair: _Pair, x: Tensor, at: Tensor) -> Rows:
        layer, until = self.layer, self.tape.steps[self.target.until]
        wanted = layer.outputs(pair.whole.value(until.outputs[0]), at)
        wanted = wanted if self.keep is None else wanted[:, self.keep.to(wanted.device)]
        rest = torch.zeros_like(wanted)
        for other in self.target.others:
            rest = rest + layer.outputs(pair.small.value(other), at)
        return Rows(layer.rows(x, at), wanted, rest)

    def _broadcasts(self, pair: _Pair) -> bool:
        """Tell whether the sum is of tensors of several shapes."""
        if not self.target.others:
            return False
        own = self.tape.steps[self.target.path[-1]].outputs[0]
        shapes = {pair.small.value(slot).shape for slot in (own, *self.target.others)}
        return len(shapes) > 1

    def _write(self, problem: Problem, found: Weights) -> None:
        tapes = [pair.small.tape for pair in self.pairs]
        set_weight(self.layer, found.weight, tapes[0])
        if problem.free:
            shift(self.small, self.layer, self.norm, (found.offset - problem.old.offset).reshape(-1), tapes)

    def _again(self, pair: _Pair, x: Tensor) -> None:
        """Make the layer's result anew, up to where it was compared."""
        player, steps = pair.small, pair.small.tape.steps
        alive = self.layer.x in player.values
        player.values[self.layer.x] = x
        with torch.no_grad():
            for at in self.target.path:
                player.run(steps[at])
        if not alive and self.target.path:
            del player.values[self.layer.x]
        compared = steps[self.target.until].inputs
        for slot in {slot for at in self.target.path for slot in steps[at].outputs} - set(compared):
            player.values.pop(slot, None)


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(torch.cat([p.x for p in parts], 1), torch.cat([p.t for p in parts]), torch.cat([p.rest for p in parts]))
