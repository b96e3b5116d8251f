"""Differentiable sums over everything that a unit takes along."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from surgeon.plan.describe import units_of
from surgeon.plan.ladders import movable
from surgeon.plan.plan import Plan

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph
    from surgeon.groups import Place


class UnitSums:
    """Sums of a function of the weights over each unit, as ``graph.per_unit`` takes them, but differentiable.

    A unit's weights are those at all of its places: filters, the channels of whatever reads them, biases, norms. Each
    place is summed over its other dimensions, and one ``index_add`` sends all of these sums to their units.

    Parameters
    ----------
    heads : of heads and their columns, which are the same weights: False the columns, True the heads, "both" both
    only : names of the parameters that count; all if not given

    Attributes
    ----------
    groups : group name -> where its units are among all, in the group's order
    """

    def __init__(
        self, graph: DependencyGraph, *, heads: bool | str = False, only: Collection[str] | None = None
    ) -> None:
        self.graph = graph
        chosen = movable(graph, heads)
        self.chosen = chosen
        ends = np.cumsum([0, *(len(group.units) for group in chosen)])
        self.groups = {group.name: slice(int(a), int(b)) for group, a, b in zip(chosen, ends, ends[1:])}
        self.count = int(ends[-1])
        units = np.concatenate([np.zeros(0, np.int64), *(group.units for group in chosen)]).astype(np.int64)
        self.places: dict[str, list[Place]] = {}
        reach = graph.solution.closure[units].tocsc()
        sources, targets, seen = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
        for place in graph.places:
            if place.parameter not in graph.parameters or (only is not None and place.parameter not in only):
                continue
            taken = reach[:, place.classes].tocoo()
            if taken.nnz:
                self.places.setdefault(place.parameter, []).append(place)
        for place in self._flat():
            taken = reach[:, place.classes].tocoo()
            sources.append(taken.col.astype(np.int64) + seen)
            targets.append(taken.row.astype(np.int64))
            seen += len(place.classes)
        self.index = torch.from_numpy(np.stack([np.concatenate(sources), np.concatenate(targets)]))
        self.sizes = self(torch.ones_like).detach() if self.places else torch.zeros(self.count)

    def __str__(self) -> str:
        return f"UnitSums({self.count} units of {len(self.groups)} groups in {len(self.places)} parameters)"

    def _flat(self) -> Iterator[Place]:
        for places in self.places.values():
            yield from places

    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters that are summed, as the model has them now."""
        return {name: self.graph.tensor(name) for name in self.places}

    def removed(self, plan: Plan) -> Tensor:
        """Return which units a plan for the graph's model takes, bool ``[units]``."""
        units = np.concatenate([np.zeros(0, np.int64), *(group.units for group in self.chosen)])
        return torch.from_numpy(np.isin(units, units_of(self.graph, plan)))

    def __call__(self, function: Callable[[Tensor], Tensor] = torch.square) -> Tensor:
        """Return the sum of a function of each weight over every unit, ``[units]``, in float32 at least."""
        parts: list[Tensor] = []
        for name, places in self.places.items():
            parts.extend(_summed(function(self.graph.tensor(name)), places))
        flat = torch.cat([part.to(parts[0].device) for part in parts])
        if self.index.device != flat.device:
            self.index = self.index.to(flat.device)
        source, target = self.index
        return flat.new_zeros(self.count).index_add(0, target, flat[source])


def _summed(value: Tensor, places: list[Place]) -> Iterator[Tensor]:
    """Yield the sums over everything but the dimensions of each place, flattened."""
    wide = torch.promote_types(value.dtype, torch.float32)
    used = {d for place in places for d in place.dims}
    taps = [d for d in range(value.dim()) if d not in used]
    if len(places) > 1 and taps and value.numel() > max(1, prod(value.shape[d] for d in used)):
        value = value.sum(dim=taps, keepdim=True, dtype=wide)
    for place in places:
        rest = [d for d in range(value.dim()) if d not in place.dims]
        yield (value.sum(dim=rest, dtype=wide) if rest else value.to(wide)).reshape(-1)
