"""Weights of a convolution from channels alone, where second moments of channels at every tap are too large."""

from __future__ import annotations

import torch
from torch import Tensor

from surgeon.calibrate import Sums
from surgeon.recover.kept import Kept
from surgeon.recover.problem import Problem, Weights, ridges


def by_channels(problem: Problem, stay: Kept, channels: Sums, original: Tensor) -> list[Weights]:
    """Express the original's channels by those of the small model, ``x = B x' + c``, and put that into every tap.

    Parameters
    ----------
    channels : channels of the small model and the original at single positions
    original : matrix of the original's layer, ``[groups, o / groups, taps * i]``
    """
    moments = channels.moments()
    selection = _selection(stay, moments.t.shape[1]).to(moments.x.device)
    taps = original.shape[2] // selection.shape[1]
    weight = stay.rows(original.double()).unflatten(2, (taps, -1))  # [g, o, taps, i]
    found = []
    for ridge in ridges(problem.rows.x)[:-1]:
        by = moments.fit(selection, ridge)
        if by is None:
            continue
        new = torch.einsum("gotc,gcs->gots", weight, by)
        shift = torch.einsum("gotc,gc->go", weight, moments.offset(by)) if problem.free else 0.0
        found.append(Weights(new.flatten(2), problem.old.offset + shift, ridge))
    return found


def _selection(stay: Kept, width: int) -> Tensor:
    """Return the matrix that takes channels out of those of the original, ``[groups, i, i that stay]``."""
    alive = stay.inputs[stay.groups].unflatten(1, (-1, width))[:, 0]
    eye = torch.eye(width, dtype=torch.float64)
    return torch.stack([eye[:, mine] for mine in alive])
