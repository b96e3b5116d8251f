"""Contractions as matrix products: the inputs of a convolution as rows, its weight as a matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.calibrate.tape import Leaf, Slot, Step, Tape


@dataclass(frozen=True)
class Contraction:
    """A linear or convolutional call with a weight that a model owns.

    at          which call
    weight      name of the weight ``[o, i, *kernel]``
    bias        name of the bias ``[o]``, if there is one
    x, y        what it is given and what it makes
    kernel      taps along each spatial dimension; empty for linear calls
    """

    at: int
    weight: str
    bias: str | None
    x: Slot
    y: Slot
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @property
    def channel(self) -> int:
        """The dimension of results that holds the filters."""
        return 1 if self.kernel else -1

    def __str__(self) -> str:
        return f"call {self.at} with {self.weight}"

    def positions(self, x: Tensor) -> int:
        """Return how many rows an input has."""
        if not self.kernel:
            return x.numel() // x.shape[-1]
        return x.shape[0] * prod(self._sizes(x))

    def samples(self, x: Tensor, at: Tensor) -> Tensor:
        """Return which sample of the batch each row belongs to, ``[rows]``."""
        return at // max(1, self.positions(x) // x.shape[0])

    def rows(self, x: Tensor, at: Tensor) -> Tensor:
        """Return what the filters see at some positions, ``[groups, rows, taps * i]``."""
        if not self.kernel:
            flat = x.reshape(-1, x.shape[-1])
            return (flat if len(at) == len(flat) else flat[at]).unsqueeze(0)
        last = x.movedim(1, -1)
        padded = F.pad(last, [0, 0, *(side for sides in reversed(self.padding) for side in sides)])
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

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight as ``[groups, o / groups, taps * i]``."""
        taps_first = weight.movedim(1, -1)
        return taps_first.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def tensor(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Return a matrix as a weight of the given shape and type."""
        shape = (like.shape[0], *like.shape[2:], like.shape[1])
        return matrix.reshape(shape).movedim(-1, 1).to(like)

    def _sizes(self, x: Tensor) -> list[int]:
        return [
            (size + sum(pad) - d * (k - 1) - 1) // s + 1
            for size, pad, d, k, s in zip(x.shape[2:], self.padding, self.dilation, self.kernel, self.stride)
        ]

    def _corner(self, x: Tensor, padded: torch.Size, at: Tensor) -> Tensor:
        """Return the first pixel under the kernel, as a flat index, for flat positions of the result."""
        sizes = self._sizes(x)
        start, rest = torch.zeros_like(at), at
        for size, stride, step in reversed(list(zip(sizes, self.stride, _strides(padded[1:-1])))):
            start = start + rest % size * stride * step
            rest = rest // size
        return start + rest * prod(padded[1:-1])


def _strides(sizes: torch.Size) -> list[int]:
    return [prod(sizes[d + 1 :]) for d in range(len(sizes))]


def contractions(tape: Tape) -> Iterator[Contraction]:
    """Yield the calls whose weights can be refitted: linear and convolutional, with weights of their own."""
    for at, step in enumerate(tape.steps):
        read = _linear if step.name == "linear" else _conv if step.name in _SPATIAL else None
        weight = step.argument(1, "weight")
        if read is None or not isinstance(weight, Leaf) or not isinstance(step.argument(0, "input"), Slot):
            continue
        yield read(at, step, tape)


_SPATIAL = {"conv1d": 1, "conv2d": 2, "conv3d": 3}


def _linear(at: int, step: Step, tape: Tape) -> Contraction:
    return Contraction(at, *_operands(step), 1, (), (), (), ())


def _conv(at: int, step: Step, tape: Tape) -> Contraction:
    spatial = _SPATIAL[step.name]
    weight, bias, x, y = _operands(step)
    kernel = tuple(tape.leaves[weight].shape[2:])
    stride, dilation = (_each(step.argument(p, n, 1), spatial) for p, n in ((3, "stride"), (5, "dilation")))
    padding = _padding(step.argument(4, "padding", 0), kernel, dilation)
    return Contraction(at, weight, bias, x, y, int(step.argument(6, "groups", 1)), kernel, stride, padding, dilation)


def _operands(step: Step) -> tuple[str, str | None, Slot, Slot]:
    bias = step.argument(2, "bias")
    name = bias.name if isinstance(bias, Leaf) else None
    return step.argument(1, "weight").name, name, step.argument(0, "input"), step.outputs[0]


def _each(given: Any, spatial: int) -> tuple[int, ...]:
    sizes = tuple(map(int, given)) if isinstance(given, (tuple, list)) else (int(given),)
    return sizes * spatial if len(sizes) == 1 else sizes


def _padding(given: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if given == "valid":
        return tuple((0, 0) for _ in kernel)
    if given == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel)]
        return tuple((t // 2, t - t // 2) for t in total)
    return tuple((p, p) for p in _each(given, len(kernel)))
