"""Which inputs of which layers a unit takes along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from surgeon.calibrate import Contraction

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph, Group


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that loses inputs when a group is cut, and the classes of its inputs ``[groups, i]``."""

    layer: Contraction
    classes: np.ndarray

    def lost(self, dead: np.ndarray) -> Tensor:
        """Return which inputs of the layer's matrix go with dead classes, bool ``[groups, taps * i]``."""
        gone = torch.from_numpy(dead[self.classes])
        taps = int(np.prod(self.layer.kernel)) if self.layer.kernel else 1
        return gone.repeat(1, taps)

    def __str__(self) -> str:
        return f"{self.layer.weight}, {self.classes.shape[1]} inputs"


def readers(graph: DependencyGraph, group: Group, layers: Sequence[Contraction]) -> list[Reader]:
    """Return the layers that lose inputs with a group."""
    by_weight = {layer.weight: layer for layer in layers}
    found = []
    for place in group.members:
        layer = by_weight.get(place.parameter)
        if layer is not None and 1 in place.dims:
            width = graph.tensor(layer.weight).shape[1]
            # Filters of a grouped convolution see the inputs of their own group: those of its first speak for all.
            classes = place.classes.reshape(layer.groups, -1, width)[:, 0]
            found.append(Reader(layer, classes))
    return sorted(found, key=lambda reader: reader.layer.at)


def columns(graph: DependencyGraph, group: Group, read: Sequence[Reader]) -> list[list[Tensor]]:
    """Return which inputs of each layer's matrix each unit takes along: ``[readers][units]`` of flat indices."""
    found: list[list[Tensor]] = [[] for _ in read]
    for unit in group.units:
        dead = graph.dead_classes([unit])
        for mine, reader in zip(found, read):
            mine.append(reader.lost(dead).reshape(-1).nonzero().squeeze(1))
    return found
