"""Magnitude of the coupled filters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph


class _Lazy(Mapping[str, Tensor]):
    """Parameters seen through a function, computed when asked for and overwritten when the next one is."""

    def __init__(self, graph: DependencyGraph, function: Callable[..., Tensor]) -> None:
        self.graph, self.function = graph, function
        self.scratch: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.graph.parameters:
            raise KeyError(name)
        tensor = self.graph.tensor(name).detach()
        kind, size = (tensor.dtype, tensor.device), tensor.numel()
        if kind not in self.scratch or self.scratch[kind].numel() < size:
            # New memory costs more than the arithmetic: parameters take turns in the largest piece so far.
            self.scratch[kind] = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
        return self.function(tensor, out=self.scratch[kind][:size].view(tensor.shape))

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
