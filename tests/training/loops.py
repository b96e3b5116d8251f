"""What the tests of training frameworks train: a residual network on fixed random images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import surgeon
from surgeon.schedule import Schedule

STEPS = 12


def dataset(count: int = 4 * STEPS) -> TensorDataset:
    """Return images ``[n, 3, 6, 6]`` and labels ``[n]``: enough for one epoch of ``STEPS`` batches of four."""
    draw = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(count, 3, 6, 6, generator=draw), torch.randint(5, (count,), generator=draw))


def schedule() -> Schedule:
    """Return two cuts, after steps 4 and 8."""
    return surgeon.schedule.iterative(flops=0.5, times=2, every=4)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
