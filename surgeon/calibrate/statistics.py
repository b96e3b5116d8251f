"""Second moments of what layers are given, over calibration data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from surgeon.calibrate.layers import layers
from surgeon.calibrate.ridge import Moments, Sums
from surgeon.calibrate.tape import Player, Tape, aligned
from surgeon.errors import DataError
from surgeon.progress import tracked


def drawn(many: int, count: int, draw: torch.Generator) -> Tensor:
    """Return ``count`` of ``many`` positions in increasing order."""
    return torch.arange(many) if count >= many else torch.randperm(many, generator=draw)[:count].sort().values


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
    if not aligned(tapes):
        raise DataError("batches take different paths through the model, so what layers are given can't be summed up")
    wanted = layers(tapes[0])
    calls = sorted(((call, layer.name) for layer in wanted for call in layer.calls), key=lambda item: item[0].at)
    forms = {layer.name: layer.first.matrix(tapes[0].leaves).shape for layer in wanted}
    cost = {name: 8 * groups * unknowns**2 for name, (groups, _, unknowns) in forms.items()}
    whole: set[str] = set()
    for name in sorted(cost, key=cost.__getitem__):
        memory -= cost[name]
        if memory >= 0:
            whole.add(name)
    draw = torch.Generator().manual_seed(seed)
    sums = {name: Sums(name in whole) for name in cost}
    for tape in tracked(tapes, "looking at activations"):
        player = Player(tape)
        for call, name in calls:
            player.advance(call.at)
            x = player.value(call.x)
            at = drawn(call.positions(x.shape), -(-rows // len(tapes)), draw).to(x.device)
            given = of(call.rows(x, at))
            sums[name].add(given, given[:, :, :0])
    return {name: total.moments() for name, total in sums.items()}
