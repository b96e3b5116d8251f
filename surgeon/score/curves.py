"""What the model loses as a group shrinks, measured after the layers that read it are refitted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from surgeon.calibrate import Layer, Moments, Player, Step, Tape, calibration, input_moments, layers, record
from surgeon.modules import entering
from surgeon.plan.ladders import ranked
from surgeon.progress import tracked
from surgeon.score.moments import RIDGE
from surgeon.score.readers import Reader, readers

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph

# Shares of a group at which its curve is measured; between them it is interpolated.
SHARES = (0.06, 0.12, 0.25, 0.37, 0.5, 0.62, 0.75, 0.87)


def divergence(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return how far outputs are from those of the original: one number over all of them.

    Rows of logits ``[n, classes]`` count their Kullback-Leibler divergence, other floats their squared error as a
    share of the variance.
    """
    total = 0.0
    for ours, theirs in zip(found, wanted):
        if not theirs.is_floating_point():
            continue
        ours, theirs = ours.double(), theirs.double()
        if theirs.dim() == 2 and theirs.shape[1] > 1:
            a, b = theirs.log_softmax(1), ours.log_softmax(1)
            total += float((a.exp() * (a - b)).sum(1).mean())
        else:
            total += float((ours - theirs).square().mean() / theirs.var(correction=0).clamp(min=1e-300))
    return total


def curves(
    graph: DependencyGraph,
    scores: Mapping[str, Tensor],
    data: Iterable[Any],
    *,
    loss: Callable[[Sequence[Tensor], Sequence[Tensor]], float] = divergence,
    shares: Sequence[float] = SHARES,
    samples: int = 512,
    judged: int = 256,
    memory: float = 2**30,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Measure each group's loss curve: cut alone, by its scores, with the layers that read it refitted.

    Parameters
    ----------
    scores : group name -> importance per unit
    data : calibration batches, without labels
    loss : of outputs and the original's outputs, both lists of tensors
    shares : of the group, where the curve is measured; it is interpolated in between
    samples, judged : samples whose second moments make the refits, and samples that the loss is measured on

    Returns
    -------
    group name -> (removed steps ``[k]``, loss ``[k]``), increasing from 0

    Examples
    --------
    >>> losses = curves(graph, scores, batches)
    >>> plan = surgeon.plan(graph, scores, losses=losses, flops=0.5)
    """
    with torch.no_grad(), entering(graph.method, graph.model):
        tapes = [record(graph.model, given) for given in calibration(data, samples)]
    known, found = input_moments(tapes, memory=memory), layers(tapes[0])
    few = tapes[: max(1, -(-len(tapes) * judged // samples))]
    wanted = [Player(tape).finish() for tape in few]
    base = [Player(tape) for tape in few]
    work = [(readers(graph, group, found), group) for group in graph.free]
    work = [(read, group) for read, group in work if read]
    measured = {}
    for read, group in tracked(sorted(work, key=lambda item: _start(item[0])), "measuring loss curves"):
        for player in base:
            player.advance(_start(read))
        order, _ = ranked(group, scores)
        steps = sorted({min(group.size - 1, max(1, round(share * group.size))) for share in shares})
        losses = []
        for step in steps:
            dead = graph.dead_classes(order[:step].ravel())
            trial = [_refitted(tapes[0], r, known[r.layer.name], dead) for r in read]
            made = [Trial(player, trial).finish() for player in base]
            losses.append(float(np.mean([loss(m, w) for m, w in zip(made, wanted)])))
        measured[group.name] = _filled(np.array([0, *steps]), np.array([0.0, *losses]))
    return measured


def _start(read: Sequence[Reader]) -> int:
    """Return the first call that sees another weight."""
    return min(at for reader in read for call in reader.layer.calls for at in (call.at, *call.weight.through))


@dataclass(frozen=True, eq=False)
class Change:
    """Another weight for a layer, ``[groups, o / groups, k]``, and an offset to its results ``[o]``."""

    layer: Layer
    weight: Tensor
    offset: Tensor

    def __str__(self) -> str:
        return f"another weight for {self.layer.name}"


class Trial(Player):
    """A player that goes on from another with other weights and added offsets."""

    def __init__(self, base: Player, changes: Sequence[Change]) -> None:
        twin = base.fork()
        super().__init__(base.tape, twin.values, base.at)
        self.offsets = {call.at: (call, change.offset) for change in changes for call in change.layer.calls}
        leaves = dict(base.leaves)
        for change in changes:
            leaves[change.layer.first.weight.leaf] = change.layer.first.tensor(change.weight, leaves)
        self.leaves = leaves

    def run(self, step: Step) -> None:
        super().run(step)
        if self.at in self.offsets:
            call, offset = self.offsets[self.at]
            made = self.values[call.y]
            dims = [1] * made.dim()
            dims[call.channel] = -1
            self.values[call.y] = made + offset.to(made).view(dims)


def _refitted(tape: Tape, reader: Reader, moments: Moments, dead: np.ndarray) -> Change:
    """Return weight and offset of a layer after a refit to the inputs that stay, its lost inputs at zero."""
    weight, lost = reader.layer.first.matrix(tape.leaves).double().cpu(), reader.lost(dead)
    new = torch.where(lost.unsqueeze(1), 0.0, weight)
    for g in range(len(weight)) if moments.xx.dim() == 3 else ():
        stays, goes = (~lost[g]).nonzero().squeeze(1), lost[g].nonzero().squeeze(1)
        if not len(stays) or not len(goes):
            continue
        xx = moments.xx[g].cpu()
        system = xx[stays][:, stays] + RIDGE * xx.diagonal().mean().clamp(min=1e-300) * torch.eye(len(stays)).to(xx)
        new[g][:, stays] += torch.linalg.solve(system, xx[stays][:, goes] @ weight[g][:, goes].mT).mT
    return Change(reader.layer, new, ((weight - new) @ moments.x.cpu().unsqueeze(2)).reshape(-1))


def _filled(steps: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Interpolate the logarithm of a curve made monotone: losses span decades, and most of that near zero."""
    losses = np.maximum.accumulate(losses)
    every = np.arange(steps[-1] + 1)
    tiny = max(1e-9, 1e-3 * float(losses[losses > 0].min(initial=np.inf))) if losses.any() else 1e-9
    logs = np.interp(every, steps, np.log(np.maximum(losses, tiny)))
    return every, np.where(every == 0, 0.0, np.exp(logs))
