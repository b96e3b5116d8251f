"""Statistics of batch norms, estimated anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surgeon.calibrate import fitting
from surgeon.modules import as_arguments, evaluating, tensors_in


@dataclass(frozen=True)
class Renormed:
    """What became of all batch norms: error of the outputs on held-out batches, as a share of their variance."""

    layer: str
    before: float
    after: float

    @property
    def taken(self) -> bool:
        return self.after < self.before

    def __str__(self) -> str:
        return f"{self.layer}: {'error' if self.taken else 'left, error'} {self.before:.2e} -> {self.after:.2e}"


def renorm(model: nn.Module, small: nn.Module, batches: Sequence[Any]) -> list[Renormed]:
    """Estimate the statistics of the small model's batch norms on data, and keep them if outputs come closer.

    Statistics are averages over all batches but the last, which judges; with one batch, it does both.
    """
    norms = [m for m in small.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return []
    old = [({name: value.clone() for name, value in norm.named_buffers()}, norm.momentum) for norm in norms]
    before, after = _error(model, small, batches[-1]), float("nan")
    try:
        estimate(small, norms, batches[:-1] or batches)
        after = _error(model, small, batches[-1])
    finally:
        for norm, (buffers, momentum) in zip(norms, old):
            norm.momentum = momentum
            for name, value in buffers.items():
                if not after < before or name == "num_batches_tracked":
                    norm.get_buffer(name).copy_(value)
    return [Renormed(f"{len(norms)} batch norms", before, after)]


def estimate(small: nn.Module, norms: Sequence[_BatchNorm], batches: Iterable[Any]) -> None:
    """Set the statistics of batch norms to the plain average over batches; momenta are None afterwards."""
    with evaluating(small):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True
        for given in batches:
            args, kwargs = as_arguments(given)
            with fitting(given):
                small(*args, **kwargs)


def _error(model: nn.Module, small: nn.Module, given: Any) -> float:
    args, kwargs = as_arguments(given)
    with fitting(given), evaluating(model, small):
        pairs = zip(tensors_in(model(*args, **kwargs)), tensors_in(small(*args, **kwargs)))
        return sum(_relative(a.double(), b.double()) for a, b in pairs if a.is_floating_point())


def _relative(wanted: Tensor, found: Tensor) -> float:
    return float((wanted - found).square().mean() / wanted.var(correction=0).clamp(min=torch.finfo(wanted.dtype).tiny))
