"""Magnitude of the coupled filters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surgeon.score.stream import Stream

if TYPE_CHECKING:
    from surgeon.files.checkpoint import Source
    from surgeon.graph import DependencyGraph, Group


SMALL = 1 << 14  # numbers for which new memory is cheap


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
        if size < SMALL:
            return self.function(tensor)
        if kind not in self.scratch or self.scratch[kind].numel() < size:
            # New memory costs more than the arithmetic: parameters take turns in the largest piece so far.
            self.scratch[kind] = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
        return self.function(tensor, out=self.scratch[kind][:size].view(tensor.shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self.graph.parameters)

    def __len__(self) -> int:
        return len(self.graph.parameters)


def l1(graph: DependencyGraph, weights: Source | None = None) -> dict[str, Tensor]:
    """Sum of absolute weights of all coupled filters (Li et al., 2017, "Pruning Filters for Efficient ConvNets").

    Of a checkpoint where one is given: see ``surgeon.files.checkpoint``.
    """
    return graph.per_unit(_seen(graph, torch.abs, weights))


def l2(graph: DependencyGraph, weights: Source | None = None) -> dict[str, Tensor]:
    """Euclidean norm of all coupled filters together, of a checkpoint where one is given."""
    return {name: value.sqrt() for name, value in graph.per_unit(_seen(graph, torch.square, weights)).items()}


def _seen(graph: DependencyGraph, function: Callable[..., Tensor], weights: Source | None) -> Mapping[str, Any]:
    return _Lazy(graph, function) if weights is None else Stream(graph, function, weights)


def linf(graph: DependencyGraph) -> dict[str, Tensor]:
    """Largest absolute weight of all coupled filters."""
    found = {name: torch.zeros(len(at), dtype=torch.float64) for name, at in _units(graph).items()}
    for group, filters in rows_of(graph):
        found[group] = torch.maximum(found[group], filters.abs().amax(1))
    return found


def lamp(graph: DependencyGraph) -> dict[str, Tensor]:
    """Squared norm as a share of what is at least as large in the group (Lee et al., 2021, "Layer-Adaptive Sparsity").

    ``score(u) = |w_u|^2 / sum of |w_v|^2 over v with |w_v| >= |w_u|`` (equation 3), which ranks units across groups.
    """
    found = {}
    for name, norms in graph.per_unit(_Lazy(graph, torch.square)).items():
        order = norms.argsort(descending=True, stable=True)
        ahead = norms[order].cumsum(0)
        found[name] = torch.empty_like(norms).scatter_(0, order, norms[order] / ahead.clamp(min=1e-300))
    return found


def fpgm(graph: DependencyGraph) -> dict[str, Tensor]:
    """Sum of distances to the other filters: what is near the geometric median is replaceable.

    He et al., 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
    equation 6. Distances in several weights of one group are added up.
    """
    found = {name: torch.zeros(len(at), dtype=torch.float64) for name, at in _units(graph).items()}
    for group, filters in rows_of(graph):
        found[group] += torch.cdist(filters, filters).sum(1)
    return found


def bn_scale(graph: DependencyGraph) -> dict[str, Tensor]:
    """Absolute weight of the norms that a unit runs through (Liu et al., 2017, "Network Slimming").

    Groups without a norm get their L1 norm instead, scaled to a mean of one as all others are.
    """
    scales = graph.per_unit({n: graph.tensor(n).detach().abs() for n in norm_weights(graph)})
    plain = l1(graph)
    chosen = {name: value if bool(value.any()) else plain[name] for name, value in scales.items()}
    return {name: value / value.mean().clamp(min=1e-300) for name, value in chosen.items()}


def norm_weights(graph: DependencyGraph) -> set[str]:
    """Return the names of the parameters that norms scale channels by."""
    norms = {
        f"{name}.weight"
        for name, module in graph.modules.items()
        if hasattr(module, "weight") and type(module).__name__.lower().endswith(("norm", "norm1d", "norm2d", "norm3d"))
    }
    return norms & graph.parameters


def _units(graph: DependencyGraph) -> dict[str, Any]:
    return {group.name: group.units for group in graph.free}


def rows_of(graph: DependencyGraph) -> Iterator[tuple[str, Tensor]]:
    """Yield, for every free group and weight that holds its filters as rows, the filters ``[units, weights]``.

    Only weights count in which every unit has equally many rows.
    """
    for group in graph.free:
        for place in group.members:
            if place.dims == (0,) and "out" in place.sides and place.parameter in graph.parameters:
                weight = graph.tensor(place.parameter).detach()
                filters = _of_units(graph, group, place.classes, weight) if weight.dim() > 1 else None
                if filters is not None:
                    yield group.name, filters


def _of_units(graph: DependencyGraph, group: Group, classes: Any, weight: Tensor) -> Tensor | None:
    flat = weight.double().reshape(len(weight), -1).cpu()
    rows = [flat[torch.from_numpy(graph.dead_classes([unit])[classes])].reshape(-1) for unit in group.units]
    return torch.stack(rows) if len({len(row) for row in rows}) == 1 and len(rows[0]) else None


def random(graph: DependencyGraph, seed: int = 0) -> dict[str, Tensor]:
    """Uniform random scores: the control that every criterion should beat."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(len(g.units), generator=generator, dtype=torch.float64) for g in graph.free}
