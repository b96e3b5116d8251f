"""Training, one epoch of fine-tuning, and batch-norm statistics taken anew: the same for every method."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 64


def fit(
    model: nn.Module, x: Tensor, y: Tensor, *, epochs: int, rate: float, shift: int = 0, mirror: bool = False
) -> None:
    """Train in place with AdamW under a one-cycle schedule, and leave the model in eval mode.

    Parameters
    ----------
    x, y : images ``[n, c, h, w]`` and labels ``[n]``
    rate : of learning, at its peak
    shift : images move by up to as many pixels
    mirror : half of the images are mirrored
    """
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=draw).split(BATCH):
            images = varied(x[chosen], draw, shift, mirror)
            optimizer.zero_grad()
            F.cross_entropy(model(images), y[chosen]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    model.eval()


def varied(x: Tensor, draw: torch.Generator, shift: int, mirror: bool) -> Tensor:
    """Return images ``[n, c, h, w]``, each moved by up to ``shift`` pixels, and mirrored or not."""
    n, c, h, w = x.shape
    if shift:
        down, right = torch.randint(0, 2 * shift + 1, (2, n, 1), generator=draw)
        rows, columns = (down + torch.arange(h)).view(n, 1, h, 1), (right + torch.arange(w)).view(n, 1, 1, w)
        x = F.pad(x, (shift,) * 4)[torch.arange(n).view(n, 1, 1, 1), torch.arange(c).view(1, c, 1, 1), rows, columns]
    if mirror:
        x = torch.where(torch.rand(n, 1, 1, 1, generator=draw) < 0.5, x.flip(3), x)
    return x


def normed(model: nn.Module) -> bool:
    """Tell whether a model has statistics of batch norms."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


@torch.no_grad()
def reestimated(model: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy whose batch norms hold the plain average of the statistics of batches of ``x``."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    for batch in x.split(BATCH):
        model(batch)
    return model.eval()
