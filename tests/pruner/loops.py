"""A small network that trains on random data, and loops around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from tests.nets import Residual


def batches(count: int, seed: int = 0, classes: int = 5) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of images ``[8, 3, 6, 6]`` and labels."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(8, 3, 6, 6, generator=generator), torch.randint(0, classes, (8,), generator=generator)


def sample() -> Tensor:
    """Return one image, the same each time, without drawing random numbers."""
    return torch.linspace(-1, 1, 108).sin().view(1, 3, 6, 6)


def network(seed: int = 0, **sizes: int) -> Residual:
    torch.manual_seed(seed)
    return Residual(**sizes)


def train(
    model: nn.Module,
    optimizer: Any,
    count: int,
    after: Callable[[int], Any] = lambda step: None,
    seed: int = 0,
) -> None:
    """Train; ``after`` runs between ``optimizer.step()`` and ``optimizer.zero_grad()``."""
    for step, (x, y) in enumerate(batches(count, seed), 1):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        after(step)
        optimizer.zero_grad()


def pruner(model: nn.Module, schedule: Any, optimizer: Any, **options: Any) -> surgeon.Pruner:
    return surgeon.Pruner(model, sample(), schedule, optimizer=optimizer, **options)
