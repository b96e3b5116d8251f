"""Magnitude of the coupled filters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph


def accumulate(graph: DependencyGraph, per_weight: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Sum a quantity over all weights that a unit takes along, float64 ``[units]`` by group name.

    ``per_weight`` maps a parameter to a non-negative tensor of the same shape.
    """
    total = np.zeros(graph.solution.classes)
    values: dict[str, Tensor] = {}
    with torch.no_grad():
        for place in graph.places:
            if place.parameter not in graph.parameters:
                continue
            if place.parameter not in values:
                values = {place.parameter: per_weight(graph.tensor(place.parameter))}
            value = values[place.parameter]
            rest = [d for d in range(value.dim()) if d not in place.dims]
            along = value.sum(dim=rest, dtype=torch.float64) if rest else value.double()
            total += np.bincount(place.classes, along.reshape(-1).cpu().numpy(), graph.solution.classes)
    units = torch.from_numpy(np.asarray(graph.solution.closure @ total))
    return {group.name: units[torch.from_numpy(group.units)] for group in graph.free}


def l1(graph: DependencyGraph) -> dict[str, Tensor]:
    """Sum of absolute weights of all coupled filters (Li et al., 2017, "Pruning Filters for Efficient ConvNets")."""
    return accumulate(graph, torch.abs)


def l2(graph: DependencyGraph) -> dict[str, Tensor]:
    """Euclidean norm of all coupled filters together."""
    return {name: value.sqrt() for name, value in accumulate(graph, torch.square).items()}


def random(graph: DependencyGraph, seed: int = 0) -> dict[str, Tensor]:
    """Uniform random scores: the control that every criterion should beat."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(len(g.units), generator=generator, dtype=torch.float64) for g in graph.free}
