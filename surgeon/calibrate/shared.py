"""Sums over processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


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
