"""Magnitude of the coupled filters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph


class _Lazy(Mapping[str, Tensor]):
    """Parameters seen through a function, computed when asked for and forgotten when the next one is."""

    def __init__(self, graph: DependencyGraph, function: Callable[[Tensor], Tensor]) -> None:
        self.graph, self.function = graph, function
        self.last: tuple[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.graph.parameters:
            raise KeyError(name)
        if self.last is None or self.last[0] != name:
            self.last = name, self.function(self.graph.tensor(name).detach())
        return self.last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.graph.parameters)

    def __len__(self) -> int:
        return len(self.graph.parameters)


def l1(graph: DependencyGraph) -> dict[str, Tensor]:
    """Sum of absolute weights of all coupled filters (Li et al., 2017, "Pruning Filters for Efficient ConvNets")."""
    return graph.per_unit(_Lazy(graph, torch.abs))


def l2(graph: DependencyGraph) -> dict[str, Tensor]:
    """Euclidean norm of all coupled filters together."""
    return {name: value.sqrt() for name, value in graph.per_unit(_Lazy(graph, torch.square)).items()}


def random(graph: DependencyGraph, seed: int = 0) -> dict[str, Tensor]:
    """Uniform random scores: the control that every criterion should beat."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(len(g.units), generator=generator, dtype=torch.float64) for g in graph.free}
