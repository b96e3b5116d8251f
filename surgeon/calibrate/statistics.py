"""Second moments of what layers are given, over calibration data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from surgeon.calibrate.contraction import Contraction, contractions
from surgeon.calibrate.ridge import Moments, Sums
from surgeon.calibrate.shared import gathered, together
from surgeon.calibrate.tape import Player, Tape


def drawn(many: int, count: int, draw: torch.Generator) -> Tensor:
    """Return ``count`` of ``many`` positions in increasing order."""
    return torch.arange(many) if count >= many else torch.randperm(many, generator=draw)[:count].sort().values


def layers(tape: Tape) -> list[Contraction]:
    """Return the contractions whose weights one call alone uses."""
    uses = Counter(leaf.name for step in tape.steps for leaf in step.leaves)
    return [layer for layer in contractions(tape) if uses[layer.weight] == 1]


def input_moments(
    tapes: Sequence[Tape],
    *,
    rows: int = 32768,
    memory: float = 2**30,
    seed: int = 0,
    of: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict[str, Moments]:
    """Return mean and covariance of the inputs of every layer, by the name of its weight.

    Parameters
    ----------
    rows : most positions of a layer that are used, drawn at random
    of : what of the inputs, such as their size
    memory : bytes that all covariances may take; layers over it, the largest first, get variances only
    """
    wanted = layers(tapes[0])
    cost = {c.weight: 8 * c.groups * tapes[0].leaves[c.weight][0].numel() ** 2 for c in wanted}
    whole: set[str] = set()
    for name in sorted(cost, key=cost.__getitem__):
        memory -= cost[name]
        if memory >= 0:
            whole.add(name)
    draw = torch.Generator().manual_seed(seed)
    sums = {c.weight: Sums(c.weight in whole) for c in wanted}
    for tape in tapes:
        player = Player(tape)
        for layer in wanted:
            player.advance(layer.at)
            x = player.value(layer.x)
            at = drawn(layer.positions(x), -(-rows // len(tapes)), draw).to(x.device)
            given = of(layer.rows(x, at))
            sums[layer.weight].add(given, given[:, :, :0])
    return {name: _everywhere(total.moments()) for name, total in sums.items()}


def _everywhere(moments: Moments) -> Moments:
    """Return the moments of the rows of all processes."""
    if not together():
        return moments
    full = moments.xx.dim() == 3
    square = moments.x.unsqueeze(2) * moments.x.unsqueeze(1) if full else moments.x.square()
    many = torch.tensor(float(moments.rows), dtype=torch.float64, device=moments.x.device)
    many, x, xx = gathered([many, moments.x * many, (moments.xx + square) * many])
    x, xx = x / many, xx / many
    return replace(moments, rows=int(many), x=x, xx=xx - (x.unsqueeze(2) * x.unsqueeze(1) if full else x.square()))
