"""Which inputs of which layers a unit takes along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from surgeon.calibrate import Layer

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph, Group
    from surgeon.groups import Place


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that loses inputs when a group is cut, and the class of each column of its matrix ``[groups, k]``."""

    layer: Layer
    classes: Tensor

    def lost(self, dead: np.ndarray) -> Tensor:
        """Return which columns of the layer's matrix go with dead classes, bool ``[groups, k]``."""
        return torch.from_numpy(dead)[self.classes]

    def __str__(self) -> str:
        return f"{self.layer.name}, {self.classes.shape[1]} inputs"


def readers(graph: DependencyGraph, group: Group, layers: Sequence[Layer]) -> list[Reader]:
    """Return the layers that lose inputs with a group."""
    homes: dict[str, list[Place]] = {}
    for place in group.members:
        homes.setdefault(place.parameter, []).append(place)
    dead, found = graph.dead_classes(group.units), []
    for layer in layers:
        for place in homes.get(layer.first.weight.leaf, ()):
            classes = _classes(layer, place, graph.tensor(place.parameter).shape)
            reader = Reader(layer, classes[:, 0])
            # Classes of inputs differ within a filter, and filters of one group of a convolution see the same.
            if bool((classes != classes[:, :, :1]).any()) and bool(reader.lost(dead).any()):
                found.append(reader)
    return sorted(found, key=lambda reader: reader.layer.first.at)


def _classes(layer: Layer, place: Place, shape: torch.Size) -> Tensor:
    """Return the class of every position of a layer's matrix, of one filter of each group where all see the same."""
    call = layer.first
    sizes = [size if dim in place.dims else 1 for dim, size in enumerate(shape)]
    full = list(shape)
    filters = 1 if call.spread else 0
    if call.weight.at is None and filters not in place.dims:
        full[filters] = 1 if call.spread else call.groups
    return call.matrix({place.parameter: torch.from_numpy(place.classes).view(sizes).expand(full)})


def columns(graph: DependencyGraph, group: Group, read: Sequence[Reader]) -> list[list[Tensor]]:
    """Return which columns of each layer's matrix each unit takes along: ``[readers][units]`` of flat indices."""
    found: list[list[Tensor]] = [[] for _ in read]
    for unit in group.units:
        dead = graph.dead_classes([unit])
        for mine, reader in zip(found, read):
            mine.append(reader.lost(dead).reshape(-1).nonzero().squeeze(1))
    return found
