"""Scores from what layers are given: statistics after the activation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surgeon.calibrate import Moments, calibration, input_moments, layers, record
from surgeon.modules import entering
from surgeon.score.magnitude import l1
from surgeon.score.readers import columns, readers

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph

    Scores = dict[str, Tensor]


def variance(graph: DependencyGraph, data: Iterable[Any], samples: int = 512) -> dict[str, Tensor]:
    """Variance that a unit brings to the layers that read it, ``Var(x_j) |W_:,j|^2``.

    What does not vary can be folded into an offset; see "bias" in ``recover``.
    """
    return _scored(graph, data, samples, lambda m, w: _spread(m) * w.square().sum(1))


def wanda(graph: DependencyGraph, data: Iterable[Any], samples: int = 512) -> dict[str, Tensor]:
    """Weight times activation, ``sum of |W_ij| |x_j|_2`` (Sun et al., 2024, "A Simple and Effective Pruning Approach").

    Norms are root mean squares over the data.
    """
    return _scored(graph, data, samples, lambda m, w: (_spread(m) + m.x.square()).sqrt() * w.abs().sum(1))


def activation(graph: DependencyGraph, data: Iterable[Any], samples: int = 512) -> dict[str, Tensor]:
    """Mean size of what a unit gives to the layers that read it, ``E |x_j|``."""
    return _scored(graph, data, samples, lambda m, w: m.x, torch.abs, torch.mean)


def apoz(graph: DependencyGraph, data: Iterable[Any], samples: int = 512) -> dict[str, Tensor]:
    """Share of positions at which a unit is not zero (Hu et al., 2016, "Network Trimming": average share of zeros)."""
    return _scored(graph, data, samples, lambda m, w: m.x, lambda x: (x != 0).to(x.dtype), torch.mean)


def _spread(moments: Moments) -> Tensor:
    return moments.xx if moments.xx.dim() == 2 else moments.xx.diagonal(dim1=1, dim2=2)


def _scored(
    graph: DependencyGraph,
    data: Iterable[Any],
    samples: int,
    each: Callable[[Moments, Tensor], Tensor],
    of: Callable[[Tensor], Tensor] = lambda x: x,
    together: Callable[[Tensor], Tensor] = torch.sum,
) -> dict[str, Tensor]:
    """Gather a function of moments ``[g, k]`` and weight ``[g, o, k]`` over the inputs that each unit takes along."""
    with torch.no_grad(), entering(graph.method, graph.model):
        tapes = [record(graph.model, given) for given in calibration(data, samples)]
        known, found = input_moments(tapes, memory=0, of=of), layers(tapes[0])
    values = {
        layer.name: each(known[layer.name], layer.first.matrix(tapes[0].leaves).double()).reshape(-1) for layer in found
    }
    scores = l1(graph)  # for groups that no layer reads whose inputs are known
    for group in graph.free:
        read = readers(graph, group, found)
        if not read:
            continue
        scores[group.name] = torch.zeros(len(group.units), dtype=torch.float64)
        for reader, taken in zip(read, columns(graph, group, read)):
            mine = values[reader.layer.name].cpu()
            scores[group.name] += torch.stack([together(mine[at]) if len(at) else mine.new_zeros(()) for at in taken])
    return scores
