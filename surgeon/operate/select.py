"""The one primitive of surgery: keep the positions that survive."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from surgeon.errors import PlanMismatch
from surgeon.plan.plan import Cut, Plan, Scale


def shrunk(tensor: Tensor, plan: Plan, name: str) -> Tensor:
    """Return what a plan makes of a tensor: the survivors, times the factors that make up for widths."""
    kept = select(tensor, plan.cuts[name])
    for factor in factors(tensor, plan, name):
        kept *= factor
    return kept


def factors(tensor: Tensor, plan: Plan, name: str) -> list[Tensor]:
    """Return what the survivors of a tensor are multiplied by, each of their shape."""
    return [select(spread(scale, tensor), plan.cuts[name]) for scale in plan.scales if scale.parameter == name]


def select(tensor: Tensor, cut: Cut) -> Tensor:
    """Return the survivors of a tensor, ``[*cut.shape] -> [*cut.new_shape]``, in new memory.

    Where each selection is along one dimension of its own, dimensions are indexed one after the other.
    Otherwise a mask picks single positions; row-major order keeps them where the smaller op expects them.
    """
    if tensor.is_meta:
        return torch.empty(cut.new_shape, dtype=tensor.dtype, device="meta")
    single = all(len(s.dims) == 1 for s in cut.selections)
    if single and len({s.dims for s in cut.selections}) == len(cut.selections):
        kept = tensor.detach()
        for s in cut.selections:
            kept = kept.index_select(s.dims[0], torch.from_numpy(s.keep).to(tensor.device))
    else:
        kept = filled(tensor.detach()[mask(tensor, cut)], cut)
    return kept.contiguous(memory_format=_layout(tensor))


def filled(survivors: Tensor, cut: Cut) -> Tensor:
    """Return single positions in the shape that they should fill."""
    if survivors.numel() != math.prod(cut.new_shape):
        raise PlanMismatch(
            f"the plan keeps {survivors.numel()} positions of {list(cut.shape)} for {list(cut.new_shape)}"
        )
    return survivors.reshape(cut.new_shape)


def spread(scale: Scale, tensor: Tensor) -> Tensor:
    """Return what each position of a tensor is multiplied by, of the tensor's shape without its memory."""
    factors = torch.ones(scale.of, dtype=tensor.dtype, device=tensor.device)
    factors[torch.from_numpy(scale.positions)] = scale.factor
    shape = [-1 if dim == scale.dim else 1 for dim in range(tensor.dim())]
    return factors.view(shape).expand(tensor.shape)


def mask(tensor: Tensor, cut: Cut) -> Tensor:
    """Return which positions survive, bool of the tensor's shape."""
    alive = torch.ones((), dtype=torch.bool, device=tensor.device)
    for keep in flags(cut):
        alive = alive & keep.to(tensor.device)
    return alive.expand(tensor.shape)


def flags(cut: Cut) -> list[Tensor]:
    """Return which positions each selection keeps, bool with size 1 along the other dimensions."""
    found = []
    for s in cut.selections:
        keep = torch.zeros(s.of, dtype=torch.bool)
        keep[torch.from_numpy(s.keep)] = True
        found.append(keep.view([size if d in s.dims else 1 for d, size in enumerate(cut.shape)]))
    return found


def _layout(tensor: Tensor) -> torch.memory_format:
    if tensor.is_contiguous():
        return torch.contiguous_format
    for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.dim() == rank and tensor.is_contiguous(memory_format=layout):
            return layout
    return torch.contiguous_format
