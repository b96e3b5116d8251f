"""Contractions as matrix products: the inputs of a convolution as rows, its weight as a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.calibrate.operand import Operand
from surgeon.calibrate.tape import Slot


@dataclass(frozen=True, eq=False)
class Contraction:
    """A linear or convolutional call with a weight that a model owns.

    A transposed convolution is an ordinary one, of stride one, whose inputs lie ``spread`` apart with zeros in between.

    at          which call
    weight      its weight ``[o, i, *kernel]``, or ``[i, o, *kernel]`` of a transposed convolution
    bias        its bias ``[o]``, if it has one
    x, y        what it is given and what it makes
    kernel      taps along each spatial dimension; empty for linear calls
    padding     before and after each spatial dimension
    spread      how far apart inputs of a transposed convolution lie; empty for others
    """

    at: int
    weight: Operand
    bias: Operand | None
    x: Slot
    y: Slot
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    spread: tuple[int, ...] = ()

    @property
    def channel(self) -> int:
        """The dimension of results that holds the filters."""
        return 1 if self.kernel else -1

    def __str__(self) -> str:
        return f"call {self.at} with {self.weight}"

    def positions(self, shape: torch.Size) -> int:
        """Return how many rows an input of a shape has."""
        return prod(shape[:-1]) if not self.kernel else shape[0] * prod(self._sizes(shape[2:]))

    def samples(self, shape: torch.Size, at: Tensor) -> Tensor:
        """Return which sample of a batch each row belongs to, ``[rows]``."""
        return at // max(1, self.positions(shape) // shape[0])

    def rows(self, x: Tensor, at: Tensor) -> Tensor:
        """Return what the filters see at some positions, ``[groups, rows, taps * i]``."""
        if not self.kernel:
            flat = x.reshape(-1, x.shape[-1])
            return (flat if len(at) == len(flat) else flat[at]).unsqueeze(0)
        padded = self._padded(x)
        pixels = padded.reshape(-1, padded.shape[-1])
        start = self._corner(x, padded.shape, at)
        strides = _strides(padded.shape[1:-1])
        taps = [
            pixels[start + sum(t * d * s for t, d, s in zip(tap, self.dilation, strides))]
            for tap in product(*map(range, self.kernel))
        ]
        channels = padded.shape[-1] // self.groups
        stacked = torch.stack(taps, dim=1).view(len(at), len(taps), self.groups, channels)
        return stacked.permute(2, 0, 1, 3).reshape(self.groups, len(at), len(taps) * channels)

    def outputs(self, y: Tensor, at: Tensor) -> Tensor:
        """Return results at some positions, ``[rows, o]``."""
        flat = y.movedim(self.channel, -1).reshape(-1, y.shape[self.channel])
        return flat if len(at) == len(flat) else flat[at]

    def matrix(self, leaves: Mapping[str, Tensor]) -> Tensor:
        """Return the weight as ``[groups, o / groups, taps * i]``."""
        weight = self.weight.read(leaves)
        if not self.spread:
            return weight.movedim(1, -1).reshape(self.groups, len(weight) // self.groups, -1)
        split = weight.flip(tuple(range(2, weight.dim()))).unflatten(0, (self.groups, -1))  # [g, i, o, *kernel]
        return split.transpose(1, 2).movedim(2, -1).flatten(2)

    def tensor(self, matrix: Tensor, leaves: Mapping[str, Tensor]) -> Tensor:
        """Return the parameter with a matrix ``[groups, o / groups, taps * i]`` in the place of its weight."""
        leaf = leaves[self.weight.leaf]
        return self.weight.within(leaf, self._weight(matrix, self.weight.read(leaves).shape))

    def write(self, matrix: Tensor, leaves: Mapping[str, Tensor]) -> None:
        """Set the weight to a matrix, in place."""
        self.weight.write(leaves, self._weight(matrix, self.weight.read(leaves).shape))

    def _weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        if not self.spread:
            return matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
        taps_last = matrix.unflatten(2, (*shape[2:], -1)).movedim(-1, 2)  # [g, o, i, *kernel]
        return taps_last.transpose(1, 2).flatten(0, 1).flip(tuple(range(2, len(shape))))

    def _sizes(self, given: torch.Size) -> list[int]:
        """Return the spatial sizes of the result."""
        if self.spread:
            given = torch.Size((size - 1) * s + 1 for size, s in zip(given, self.spread))
        return [
            (size + sum(pad) - d * (k - 1) - 1) // s + 1
            for size, pad, d, k, s in zip(given, self.padding, self.dilation, self.kernel, self.stride)
        ]

    def _padded(self, x: Tensor) -> Tensor:
        """Return inputs with what the kernel sees around and between them, ``[n, *spatial, i]``."""
        last = x.movedim(1, -1)
        if self.spread:
            apart = [(size - 1) * s + 1 for size, s in zip(x.shape[2:], self.spread)]
            spread = last.new_zeros(len(last), *apart, last.shape[-1])
            places = (slice(None), *(slice(None, None, s) for s in self.spread))
            spread[places] = last
            last = spread
        return F.pad(last, [0, 0, *(side for sides in reversed(self.padding) for side in sides)])

    def _corner(self, x: Tensor, padded: torch.Size, at: Tensor) -> Tensor:
        """Return the first pixel under the kernel, as a flat index, for flat positions of the result."""
        sizes = self._sizes(x.shape[2:])
        start, rest = torch.zeros_like(at), at
        for size, stride, step in reversed(list(zip(sizes, self.stride, _strides(padded[1:-1])))):
            start = start + rest % size * stride * step
            rest = rest // size
        return start + rest * prod(padded[1:-1])


def _strides(sizes: torch.Size) -> list[int]:
    return [prod(sizes[d + 1 :]) for d in range(len(sizes))]
