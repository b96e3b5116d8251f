"""Sums over processes, and progress."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from rich.progress import track
from torch import Tensor

Item = TypeVar("Item")


def gathered(sums: Sequence[Tensor]) -> list[Tensor]:
    """Return sums over all processes, where ``torch.distributed`` is at work."""
    if not together():
        return list(sums)
    totals = [value.clone(memory_format=torch.contiguous_format) for value in sums]
    for total in totals:
        dist.all_reduce(total)
    return totals


def together() -> bool:
    """Tell whether ``torch.distributed`` is at work."""
    return dist.is_available() and dist.is_initialized()


def shown(items: Iterable[Item], what: str) -> Iterator[Item]:
    """Yield items, with a progress bar on a terminal."""
    yield from track(items, what, transient=True, disable=not sys.stderr.isatty())
