"""Ops that put tensors side by side: cat, stack, pad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from surgeon.labels.family import Extent, Family, Value, bind_leaf, build, compact, move, project
from surgeon.labels.flow import Flow, Rule
from surgeon.labels.meet import Frame, meet
from surgeon.trace import Call


def cat(flow: Flow, call: Call) -> None:
    """Tensors keep their own positions along one dimension, and meet along all others."""
    tensors = call.argument(0, "tensors")
    tensors = [t for t in tensors if t.shape != (0,)]
    dim = int(call.argument(1, "dim", call.kwargs.get("axis", 0))) % call.result.dim()
    flow.set(call.result, side_by_side(flow, [flow.value(t) for t in tensors], dim))


def stacked_along(dim: int) -> Rule:
    """hstack and vstack: cat along a dimension, for tensors that have it."""

    def rule(flow: Flow, call: Call) -> None:
        """cat along a dimension, for tensors that have it."""
        tensors = call.argument(0, "tensors")
        if any(tensor.dim() < 2 for tensor in tensors):
            return flow.unknown(call, "vectors become matrices")
        flow.set(call.result, side_by_side(flow, [flow.value(t) for t in tensors], dim))

    return rule


def stack(flow: Flow, call: Call) -> None:
    """Stacking makes a new dimension of constant size."""
    tensors = list(call.argument(0, "tensors"))
    dim = int(call.argument(1, "dim", 0)) % call.result.dim()
    values = []
    for tensor in tensors:
        value = flow.value(tensor)
        shape = (*value.shape[:dim], 1, *value.shape[dim:])
        values.append(Value(shape, move(flow.space, value, lambda labels: labels.unsqueeze(dim))))
    flow.set(call.result, side_by_side(flow, values, dim))


def side_by_side(flow: Flow, values: Sequence[Value], dim: int) -> list[Family]:
    """Join values along a dimension; along all others they meet."""
    space = flow.space
    rank = len(values[0].shape)
    others = [d for d in range(rank) if d != dim]
    frames = []
    for value in values:
        bind_leaf(space, value)
        sizes = tuple(1 if d == dim else s for d, s in enumerate(value.shape))
        rest = [left for f in value.families if (left := project(space, f, others)) is not None]
        frames.append(Frame(sizes, rest, solid_because="" if rest else "joined with a tensor that can't shrink there"))
    common = meet(space, frames)
    along = [value.along(dim) for value in values]
    if not any(along):
        return common
    dims = {d for families in along for f in families for d in f.dims} | {dim}
    rows = _rows(space, common, dims - {dim})
    parts = [_part(space, value, families, rows, dim, dims) for value, families in zip(values, along)]
    shapes = [max(p.shape[d] for p in parts) for d in range(rank)]
    wide = [p.expand([p.shape[d] if d == dim else shapes[d] for d in range(rank)]) for p in parts]
    labels = compact(torch.cat(wide, dim))
    inside = [f for f in common if set(f.dims) <= dims]
    return build(space, labels, inside) + [f for f in common if not set(f.dims) <= dims]


def _rows(space: Any, common: Sequence[Family], dims: set[int]) -> Tensor | None:
    """Return the labels of whole rows, where the joined dimension is part of a joint family."""
    found = [f for f in common if set(f.dims) == dims]
    return found[0].labels if found else None


def _part(space: Any, value: Value, families: list[Family], rows: Tensor | None, dim: int, dims: set[int]) -> Tensor:
    """Return one operand's labels over the joint dimensions; a solid operand lives with its rows."""
    size = value.shape[dim]
    if not families:
        labels = torch.zeros((1,) * len(value.shape), dtype=torch.int64) if rows is None else rows
        return labels.expand([size if d == dim else labels.shape[d] for d in range(labels.dim())])
    parts = [family.labels for family in families]
    if rows is not None and set(families[0].dims) != dims:
        parts.append(rows)
    return parts[0] if len(parts) == 1 else space.product(parts)


def pad(flow: Flow, call: Call) -> None:
    """Padding positions get fresh labels; how many there are has to be settable, or they stay."""
    tensor, amounts = call.argument(0, "input"), list(call.argument(1, "pad"))
    mode = call.argument(2, "mode", "constant")
    value = flow.value(tensor)
    rank = len(value.shape)
    padded = {rank - 1 - i: tuple(amounts[2 * i : 2 * i + 2]) for i in range(len(amounts) // 2)}
    padded = {dim: pair for dim, pair in padded.items() if any(int(a) for a in pair)}
    cut = {dim for dim in padded if value.along(dim)}
    if cut and (mode not in (None, "constant") or any(int(a) < 0 for d in cut for a in padded[d])):
        flow.align(tensor, sorted(cut))
        flow.solid(tensor, sorted(cut), f"padded ({mode}) along the dimension")
        keep = [d for d in range(rank) if d not in cut]
        left = [f for family in value.families if (f := project(flow.space, family, keep)) is not None]
        return flow.set(call.result, left)
    families = []
    for family in value.families:
        families.extend(_padded(flow, family, {d: padded[d] for d in family.dims if d in padded}))
    flow.set(call.result, families)


def _padded(flow: Flow, family: Family, amounts: dict[int, tuple[Any, Any]]) -> list[Family]:
    if not amounts:
        return [family]
    if len(family.dims) > 1:
        for part in (family, *family.parents):
            flow.space.pin(part.labels, "padded along the inner dimension of a split")
        return []
    (dim, (before, after)) = next(iter(amounts.items()))
    shape = list(family.labels.shape)
    parts = []
    for amount in (before, after):
        new = flow.space.fresh(*(int(amount) if d == dim else 1 for d in range(len(shape))))
        parts.append(new)
        if int(amount):
            flow.size(amount, Extent(int(amount), new), "amount of padding")
    return [Family(torch.cat([parts[0], family.labels, parts[1]], dim))]


RULES: dict[str, Rule] = {
    "cat": cat,
    "concat": cat,
    "concatenate": cat,
    "stack": stack,
    "hstack": stacked_along(1),
    "vstack": stacked_along(0),
    "pad": pad,
    "constant_pad_nd": pad,
}
