"""What a plan makes of a tensor, a piece at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from surgeon.operate.select import flags
from surgeon.plan.plan import Plan, Scale

# Indexing moves values and never looks at them; integers of the same size have kernels for it everywhere.
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Sieve:
    """Picks what stays of the pieces of one tensor, and multiplies it by the plan's factors.

    Survivors of consecutive pieces, one after the other, are those of the whole tensor.
    """

    def __init__(self, plan: Plan, name: str) -> None:
        self.cut = plan.cuts[name]
        self.scales = [scale for scale in plan.scales if scale.parameter == name]
        dims = [s.dims for s in self.cut.selections]
        self.apart = len(set(dims)) == len(dims) and all(len(d) == 1 for d in dims)
        self.flags = [] if self.apart else flags(self.cut)

    def __call__(self, where: tuple[slice, ...], values: Tensor) -> Tensor:
        """Return the survivors of a piece, contiguous, and maybe in the memory of ``values``."""
        kept = values if self.scales else values.view(_SAME_SIZE[values.element_size()])
        picked = self._indexed(where, kept) if self.apart else kept[self._alive(where, kept)]
        for scale in self.scales:
            factors = _factors(scale, where, values)
            picked *= self._indexed(where, factors) if self.apart else factors[self._alive(where, values)]
        return picked.contiguous()

    def _indexed(self, where: tuple[slice, ...], values: Tensor) -> Tensor:
        for s in self.cut.selections:
            start, stop, _ = where[s.dims[0]].indices(self.cut.shape[s.dims[0]])
            first, last = np.searchsorted(s.keep, [start, stop])
            index = s.keep[first:last] - start
            if values.shape[s.dims[0]] == stop - start > len(index):
                values = _taken(values, s.dims[0], index)
        return values

    def _alive(self, where: tuple[slice, ...], values: Tensor) -> Tensor:
        alive = torch.ones((), dtype=torch.bool)
        for keep in self.flags:
            here = tuple(s if n > 1 else slice(None) for s, n in zip(where, keep.shape))
            alive = alive & keep[here]
        return alive.expand(values.shape)


def _taken(values: Tensor, dim: int, index: np.ndarray) -> Tensor:
    if values.dtype not in _SAME_SIZE.values():
        return values.index_select(dim, torch.from_numpy(index))
    picked = values.new_empty([len(index) if d == dim else size for d, size in enumerate(values.shape)])
    # Along the last dimension several times as fast as torch's. No index is beyond the end; "clip" needs no copy.
    np.take(values.numpy(), index, dim, picked.numpy(), mode="clip")
    return picked


def _factors(scale: Scale, where: tuple[slice, ...], values: Tensor) -> Tensor:
    """Return what each position of a piece is multiplied by."""
    factors = torch.ones(scale.of, dtype=values.dtype)
    factors[torch.from_numpy(scale.positions)] = scale.factor
    shape = [-1 if dim == scale.dim else 1 for dim in range(values.dim())]
    return factors[where[scale.dim]].view(shape).expand(values.shape)
