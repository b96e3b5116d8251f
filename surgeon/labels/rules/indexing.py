"""Slices and indices. A slice bound has to equal the number of survivors before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from surgeon.labels.family import Value, extent, move
from surgeon.labels.flow import Flow, Rule, is_tracked
from surgeon.labels.meet import Frame, meet
from surgeon.labels.rules.movement import rerun
from surgeon.trace import Call


def getitem(flow: Flow, call: Call) -> None:
    tensor, index = call.args
    flow.set(call.result, _picked(flow, tensor, index).families)


def setitem(flow: Flow, call: Call) -> None:
    """x[index] = y: the region that is written meets y."""
    tensor, index, given = call.args
    region = _picked(flow, tensor, index)
    if is_tracked(given):
        flow.size(given, int(given), "read by setitem")
    if not isinstance(given, Tensor) or not given.dim():
        return
    source = flow.value(given)
    lead = len(region.shape) - len(source.shape)
    shape = (1,) * lead + source.shape if lead >= 0 else source.shape[-lead:]
    families = [flow.widen(f, len(shape)) for f in source.families] if lead >= 0 else source.families
    because = "written into a tensor that can't shrink there"
    if lead < 0:
        return flow.solid(given, range(given.dim()), because)
    meet(flow.space, [Frame(region.shape, list(region.families), solid_because=because), Frame(shape, families)])


def _picked(flow: Flow, tensor: Tensor, index: Any) -> Value:
    """Return the value of ``tensor[index]``."""
    entries = list(index) if isinstance(index, tuple) else [index]
    consumed = sum(_consumes(entry) for entry in entries)
    dim = 0
    for entry in entries:
        if entry is Ellipsis:
            dim += tensor.dim() - consumed
        elif isinstance(entry, slice):
            _slice(flow, tensor, dim, entry)
            dim += 1
        elif entry is not None and not isinstance(entry, bool):
            width = _consumes(entry)
            flow.solid(tensor, range(dim, dim + width), "picked by a constant index")
            dim += width
    value = flow.value(tensor)
    plain = tuple(torch.as_tensor(e) if isinstance(e, list) else e for e in entries)
    families = move(flow.space, value, lambda labels: labels[plain])
    return Value(tuple(torch.empty(1).expand(value.shape)[plain].shape), families)


def _consumes(entry: Any) -> int:
    if entry is None or entry is Ellipsis or isinstance(entry, bool):
        return 0
    return entry.dim() if isinstance(entry, Tensor) and entry.dtype == torch.bool else 1


def _slice(flow: Flow, tensor: Tensor, dim: int, entry: slice) -> None:
    value = flow.value(tensor)
    if not value.along(dim) and dim not in value.unbound:
        return
    if entry.step is not None and int(entry.step) != 1:
        return flow.solid(tensor, [dim], "picked with a stride")
    size = value.shape[dim]
    for bound, what in ((entry.start, "start"), (entry.stop, "stop")):
        if bound is None or int(bound) == 0 or (what == "stop" and int(bound) >= size):
            continue
        if not -size < int(bound) < size:
            return flow.solid(tensor, [dim], "a slice that reaches beyond the dimension")
        bound_at(flow, value, dim, bound, what)


def bound_at(flow: Flow, value: Value, dim: int, bound: Any, what: str) -> None:
    """A bound has to equal the survivors before it (or after it, when counted from the end)."""
    size, at = value.shape[dim], int(bound)
    first, length = (0, at) if at > 0 else (max(size + at, 0), min(-at, size))
    part = move(flow.space, value, lambda labels: labels.narrow(dim, first, length))
    shape = (*value.shape[:dim], length, *value.shape[dim + 1 :])
    flow.size(bound if at > 0 else -bound, extent(shape, part, dim), f"slice {what}")


def narrow(flow: Flow, call: Call) -> None:
    tensor, dim, start, length = (call.argument(i, n) for i, n in enumerate(("input", "dim", "start", "length")))
    dim = int(dim) % tensor.dim()
    value = flow.value(tensor)
    if value.along(dim) and int(start):
        bound_at(flow, value, dim, start, "start")
    flow.set(call.result, move(flow.space, value, rerun(call)))
    flow.size(length, flow.extent(flow.value(call.result), dim), "length of narrow")


def select(flow: Flow, call: Call) -> None:
    tensor = call.args[0]
    flow.solid(tensor, [int(call.argument(1, "dim"))], "picked by a constant index")
    flow.set(call.result, move(flow.space, flow.value(tensor), rerun(call)))


def gather(flow: Flow, call: Call) -> None:
    """Positions are looked up along one dimension; along the others, the index table stands for the data."""
    tensor, dim, index = (call.argument(i, n) for i, n in enumerate(("input", "dim", "index")))
    look_up(flow, call, tensor, int(dim) % tensor.dim(), index)


def take_along(flow: Flow, call: Call) -> None:
    tensor, index, dim = (call.argument(i, n) for i, n in enumerate(("input", "indices", "dim")))
    if dim is None:
        return flow.unknown(call, "looking up in a flattened tensor")
    look_up(flow, call, tensor, int(dim) % tensor.dim(), index)


def look_up(flow: Flow, call: Call, tensor: Tensor, dim: int, index: Tensor) -> None:
    flow.align(tensor, [dim])
    shorter = [d for d in range(tensor.dim()) if d != dim and index.shape[d] not in (1, tensor.shape[d])]
    shorter += [d for d in range(tensor.dim()) if d != dim and index.shape[d] == 1 and call.name == "gather"]
    flow.solid(tensor, [dim, *shorter], f"{call.name} looks up by index")
    value, table = flow.value(tensor), flow.value(index)
    sizes = tuple(1 if i == dim else s for i, s in enumerate(table.shape))
    others = [f for f in value.families if dim not in f.dims]
    indexed = [f for f in table.families if dim not in f.dims]
    flow.solid(index, [dim], "a table of indices")
    flow.set(call.result, meet(flow.space, [Frame(sizes, others), Frame(sizes, indexed)]))


def solid_everywhere(flow: Flow, tensors: Sequence[Tensor], reason: str) -> None:
    for tensor in tensors:
        flow.solid(tensor, range(tensor.dim()), reason)


RULES: dict[str, Rule] = {
    "getitem": getitem,
    "setitem": setitem,
    "narrow": narrow,
    "select": select,
    "gather": gather,
    "take_along_dim": take_along,
}
