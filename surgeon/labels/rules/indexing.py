"""Slices and indices. A slice bound has to equal the number of survivors before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from surgeon.labels.family import Value, extent, move, project, solid_value
from surgeon.labels.flow import Flow, Rule, is_tracked
from surgeon.labels.meet import Frame, meet
from surgeon.labels.rules.movement import rerun
from surgeon.modules import tensors_in
from surgeon.trace import Call


def getitem(flow: Flow, call: Call) -> None:
    """x[index]: slices move positions, and their bounds follow the cut; a dimension that is indexed stays."""
    tensor, index = call.args
    flow.set(call.result, _picked(flow, tensor, index).families)


def setitem(flow: Flow, call: Call) -> None:
    """x[index] = y: the region that is written meets y."""
    tensor, index, given = call.args
    region = _picked(flow, tensor, index)
    if is_tracked(given):
        flow.size(given, int(given), "read by setitem")
    source = flow.value(given) if isinstance(given, Tensor) else solid_value(())
    if any(len(family.dims) > 1 for family in (*flow.value(tensor).families, *source.families)):
        return flow.unknown(call, "writes into rows that hold different columns")
    if len(source.shape) > len(region.shape):  # leading dimensions of size 1
        inner = source.shape[len(source.shape) - len(region.shape) :]
        source = Value(inner, move(flow.space, source, lambda labels: labels.reshape(inner)))
    if not source.shape:
        return
    lead = len(region.shape) - len(source.shape)
    shape = (1,) * lead + source.shape
    families = [flow.widen(f, len(shape)) for f in source.families]
    because = "written into a tensor that can't shrink there"
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
            if isinstance(entry, Tensor):
                flow.solid(entry, range(entry.dim()), "a table of indices")
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
    size = value.shape[dim]
    strided = entry.step is not None and int(entry.step) != 1
    if strided:
        flow.solid(tensor, [dim], "picked with a stride")
    for bound, what in ((entry.start, "start"), (entry.stop, "stop"), (entry.step, "step")):
        if bound is None:
            continue
        if strided or what == "step" or not value.along(dim) or int(bound) == 0:
            _kept(flow, bound, what)
        elif what == "stop" and int(bound) >= size:
            _up_to_the_end(flow, value, dim, bound)
        elif -size < int(bound) < size:
            bound_at(flow, value, dim, bound, what)
        else:
            flow.solid(tensor, [dim], "a slice that reaches beyond the dimension")
            _kept(flow, bound, what)


def _kept(flow: Flow, bound: Any, what: str) -> None:
    """A bound in a dimension that stays has to stay as well."""
    flow.size(bound, int(bound), f"slice {what}")


def _up_to_the_end(flow: Flow, value: Value, dim: int, stop: Any) -> None:
    """A number at or beyond the end is so after the cut too; a size may shrink by more than the dimension does."""
    if is_tracked(stop) and int(stop) == value.shape[dim]:
        flow.size(stop, flow.extent(value, dim), "slice stop")
    else:
        _kept(flow, stop, "stop")


def bound_at(flow: Flow, value: Value, dim: int, bound: Any, what: str) -> None:
    """A bound has to equal the survivors before it (or after it, when counted from the end)."""
    size, at = value.shape[dim], int(bound)
    first, length = (0, at) if at > 0 else (max(size + at, 0), min(-at, size))
    part = move(flow.space, value, lambda labels: labels.narrow(dim, first, length))
    shape = (*value.shape[:dim], length, *value.shape[dim + 1 :])
    flow.size(bound if at > 0 else -bound, extent(shape, part, dim), f"slice {what}")


def narrow(flow: Flow, call: Call) -> None:
    """A slice: its start and its length follow the cut."""
    tensor, dim, start, length = (call.argument(i, n) for i, n in enumerate(("input", "dim", "start", "length")))
    dim = int(dim) % tensor.dim()
    value = flow.value(tensor)
    if value.along(dim) and int(start):
        bound_at(flow, value, dim, start, "start")
    flow.set(call.result, move(flow.space, value, rerun(call)))
    flow.size(length, flow.extent(flow.value(call.result), dim), "length of narrow")


def select(flow: Flow, call: Call) -> None:
    """A single position is picked: its dimension stays."""
    tensor = call.args[0]
    flow.solid(tensor, [int(call.argument(1, "dim"))], "picked by a constant index")
    flow.set(call.result, move(flow.space, flow.value(tensor), rerun(call)))


def gather(flow: Flow, call: Call) -> None:
    """Positions are looked up along one dimension; along the others, the index table stands for the data."""
    tensor, dim, index = (call.argument(i, n) for i, n in enumerate(("input", "dim", "index")))
    look_up(flow, call, tensor, int(dim) % tensor.dim(), index)


def take_along(flow: Flow, call: Call) -> None:
    """gather with a table of indices that broadcasts."""
    tensor, index, dim = (call.argument(i, n) for i, n in enumerate(("input", "indices", "dim")))
    if dim is None:
        return flow.unknown(call, "looking up in a flattened tensor")
    look_up(flow, call, tensor, int(dim) % tensor.dim(), index)


def look_up(flow: Flow, call: Call, tensor: Tensor, dim: int, index: Tensor) -> None:
    flow.align(tensor, [dim])
    shorter = [d for d in range(tensor.dim()) if d != dim and index.shape[d] not in (1, tensor.shape[d])]
    shorter += [d for d in range(tensor.dim()) if d != dim and index.shape[d] == 1 and call.name == "gather"]
    flow.solid(tensor, [dim, *shorter], f"{call.name} looks up by index")
    flow.solid(index, [dim], "a table of indices")
    sizes = tuple(1 if i == dim else s for i, s in enumerate(index.shape))
    others = [d for d in range(tensor.dim()) if d != dim]
    frames = []
    for each in (tensor, index):
        families = (project(flow.space, f, others) for f in flow.value(each).families)
        frames.append(Frame(sizes, [f for f in families if f is not None]))
    flow.set(call.result, meet(flow.space, frames))


def index_add(flow: Flow, call: Call) -> None:
    """index_add(input, dim, index, source): rows of the source are written to places along a dimension."""
    tensor, source = call.args[0], call.argument(3, "source", call.kwargs.get("tensor"))
    flow.solid(call.argument(2, "index"), [0], "a table of indices")
    scattered(flow, call, tensor, int(call.argument(1, "dim")) % tensor.dim(), [source])


def scatter(flow: Flow, call: Call) -> None:
    """scatter(input, dim, index, src): the index table stands for the data along all other dimensions."""
    tensor, index = call.args[0], call.argument(2, "index")
    source = call.argument(3, "src", call.kwargs.get("value"))
    written = [index, source] if isinstance(source, Tensor) and source.dim() else [index]
    scattered(flow, call, tensor, int(call.argument(1, "dim")) % tensor.dim(), written)


def scattered(flow: Flow, call: Call, tensor: Tensor, dim: int, written: Sequence[Tensor]) -> None:
    """Write tensors to places along one dimension, which stays; along the others, all meet position by position."""
    others = [d for d in range(tensor.dim()) if d != dim]
    shorter = [d for d in others if any(other.shape[d] != tensor.shape[d] for other in written)]
    frames = []
    for each in (tensor, *written):
        flow.solid(each, [dim, *shorter], f"{call.name} writes by index")
        families = (project(flow.space, f, others) for f in flow.value(each).families)
        sizes = tuple(1 if d == dim or d in shorter else s for d, s in enumerate(each.shape))
        frames.append(Frame(sizes, [f for f in families if f is not None], solid_because=flow.origin(each)))
    flow.set(call.result, meet(flow.space, frames))


def embedding_bag(flow: Flow, call: Call) -> None:
    """embedding_bag(weight [e, c], ...) -> [bags, c]: rows are looked up and added."""
    weight = call.args[0]
    flow.solid(weight, [0], "rows of the table are looked up by index")
    for tensor in tensors_in([call.args[1:], call.kwargs]):
        flow.solid(tensor, range(tensor.dim()), "a table of indices")
    for result in call.result[1:]:
        flow.set(result, [])
    columns = (project(flow.space, family, [1]) for family in flow.value(weight).families)
    flow.set(call.result[0], [family for family in columns if family is not None])


def binned(flow: Flow, call: Call) -> None:
    """bucketize(input, boundaries) and searchsorted(boundaries, input): position by position, in one row of bins."""
    first, second = call.args[:2]
    given, bins = (first, second) if call.name == "bucketize" else (second, first)
    if not isinstance(given, Tensor) or bins.dim() != 1:
        return flow.unknown(call, "a row of bins for each row of numbers")
    flow.solid(bins, [0], f"{call.name} searches it as a whole")
    flow.set(call.result, list(flow.value(given).families))


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
    **{name: index_add for name in ("index_add", "index_copy", "index_reduce")},
    **{name: scatter for name in ("scatter", "scatter_add", "scatter_reduce")},
    "embedding_bag": embedding_bag,
    "bucketize": binned,
    "searchsorted": binned,
}
