"""Movement: ops that put positions elsewhere. The same function, with the same arguments, runs on the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from surgeon.aten import is_inplace
from surgeon.labels.family import Value, fresh_family, make_solid, move, project
from surgeon.labels.flow import Flow, Rule, is_tracked
from surgeon.modules import tensors_in
from surgeon.trace import Call

PLAIN = """
T mT H mH adjoint t transpose swapaxes swapdims permute movedim moveaxis unsqueeze squeeze flatten ravel
flip fliplr flipud repeat_interleave tile
""".split()

# ops whose result depends on the place of a position along some dimension: that dimension may not shrink
PLACED: dict[str, Callable[[Call, Tensor], Sequence[int]]] = {
    "roll": lambda call, x: _dims(call.argument(2, "dims"), x),
    "rot90": lambda call, x: _dims(call.argument(2, "dims", (0, 1)), x),
    "unfold": lambda call, x: _dims(call.argument(1, "dimension"), x),
    "index_select": lambda call, x: _dims(call.argument(1, "dim"), x),
    "diagonal": lambda call, x: (call.argument(2, "dim1", 0), call.argument(3, "dim2", 1)),
    "tril": lambda call, x: (x.dim() - 2, x.dim() - 1),
    "triu": lambda call, x: (x.dim() - 2, x.dim() - 1),
}


def _dims(given: Any, tensor: Tensor) -> Sequence[int]:
    if given is None or (isinstance(given, (tuple, list)) and not given):
        return range(tensor.dim())
    return [int(d) for d in (given if isinstance(given, (tuple, list)) else (given,))]


def rerun(call: Call) -> Callable[[Tensor], Any]:
    """Return the call as a function of its first tensor alone; an in-place call becomes its plain form."""
    plain = getattr(torch.Tensor, call.name, None)
    function = plain if is_inplace(call.func) and plain is not None else call.func
    if call.name == "view":  # labels need not lie in memory as the data does
        function = torch.Tensor.reshape
    return lambda labels: function(labels, *call.args[1:], **call.kwargs)


def plain(flow: Flow, call: Call) -> None:
    """Positions go elsewhere: the same function runs on the labels."""
    flow.set(call.result, move(flow.space, flow.value(call.args[0]), rerun(call)))


def placed(flow: Flow, call: Call) -> None:
    """Positions go elsewhere, and what results depends on their place: the dimensions that are moved along stay."""
    tensor = call.args[0]
    flow.solid(tensor, PLACED[call.name](call, tensor), f"{call.name} depends on the place along the dimension")
    for index in tensors_in([call.args[1:], call.kwargs]):
        flow.solid(index, range(index.dim()), "a table of indices")
    plain(flow, call)


def given_sizes(call: Call) -> Sequence[Any]:
    """Return the sizes given to ``view(2, 3)`` or ``view((2, 3))``."""
    sizes = call.args[1:] or tuple(call.kwargs.values())
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes


def reshape(flow: Flow, call: Call) -> None:
    """view and reshape: every size that is given has to equal the width that it becomes."""
    sizes = given_sizes(call)
    if any(isinstance(size, torch.dtype) for size in sizes):
        return flow.unknown(call, "reinterpreting bits")
    plain(flow, call)
    _check_sizes(flow, call, sizes, 0)


def unflatten(flow: Flow, call: Call) -> None:
    """One dimension becomes several: every size that is given has to equal the width that it becomes."""
    plain(flow, call)
    sizes = call.argument(2, "sizes")
    _check_sizes(flow, call, sizes, int(call.argument(1, "dim")) % call.args[0].dim())


def _check_sizes(flow: Flow, call: Call, sizes: Sequence[Any], start: int) -> None:
    result = flow.value(call.result)
    for dim, size in enumerate(sizes, start):
        if int(size) != -1:
            flow.size(size, flow.extent(result, dim), f"size {dim} of {call.name}")


def reshape_like(flow: Flow, call: Call) -> None:
    """view_as and reshape_as: the sizes are those of another tensor, whatever they become."""
    plain(flow, call)
    _check_sizes(flow, call, flow.sizes(call.argument(1, "other")), 0)


def expand(flow: Flow, call: Call) -> None:
    """A dimension spread from size 1 is free until something meets it, if its size can be set."""
    other = call.argument(1, "other")
    sizes = list(flow.sizes(other) if isinstance(other, Tensor) else given_sizes(call))
    value = flow.value(call.args[0])
    lead = len(sizes) - len(value.shape)
    plain(flow, call)
    result = flow.value(call.result)
    for dim, size in enumerate(sizes):
        if int(size) == -1 or int(size) == 1:
            continue
        spread = dim < lead or value.shape[dim - lead] == 1
        if spread and is_tracked(size):
            result.families.append(fresh_family(flow.space, len(sizes), dim, int(size)))
        flow.size(size, flow.extent(result, dim), f"size {dim} of {call.name}")


def repeat(flow: Flow, call: Call) -> None:
    """Repeating a dimension of size 1 spreads it; repeating others copies their labels."""
    times = list(given_sizes(call))
    value = flow.value(call.args[0])
    lead = len(times) - len(value.shape)
    plain(flow, call)
    result = flow.value(call.result)
    for dim, count in enumerate(times):
        spread = dim < lead or value.shape[dim - lead] == 1
        if not is_tracked(count):
            continue
        if spread and int(count) > 1:
            result.families.append(fresh_family(flow.space, len(times), dim, int(count)))
        flow.size(count, flow.extent(result, dim) if spread else int(count), f"repeat of dimension {dim}")


def shuffle_pixels(flow: Flow, call: Call) -> None:
    """pixel_shuffle: each channel's r x r sub-pixels go together, and become pixels."""
    tensor, r = call.args[0], int(call.argument(1, "upscale_factor"))
    dim = tensor.dim() - 3
    value = flow.value(tensor)
    flow.solid(tensor, [-1, -2], f"{call.name} reads pixels as a whole")
    left = [f for family in value.families if (f := project(flow.space, family, range(dim + 1))) is not None]
    apart = stacked(flow, Value(value.shape, left), dim, value.shape[dim] // r**2)
    make_solid(flow.space, apart, dim + 1, f"{call.name} needs all {r}x{r} sub-pixels of a channel")
    moved = move(flow.space, apart, lambda labels: labels.select(dim + 1, 0))
    flow.set(call.result, moved)


def unshuffle_pixels(flow: Flow, call: Call) -> None:
    """pixel_unshuffle: each channel becomes r x r channels that live with it."""
    flow.solid(call.args[0], [-1, -2], f"{call.name} reads pixels as a whole")
    plain(flow, call)


def shuffle_channels(flow: Flow, call: Call) -> None:
    """channel_shuffle: a view as (groups, rest), transposed; every group keeps equally many."""
    tensor, groups = call.args[0], call.argument(1, "groups")
    value = flow.value(tensor)
    apart = stacked(flow, value, 1, int(groups))
    flow.size(groups, flow.extent(apart, 1), f"groups of {call.name}")
    swapped = Value(
        (apart.shape[0], apart.shape[2], apart.shape[1], *apart.shape[3:]),
        move(flow.space, apart, lambda labels: labels.transpose(1, 2)),
    )
    flow.set(call.result, move(flow.space, swapped, lambda labels: labels.flatten(1, 2)))


def paired(flow: Flow, call: Call) -> None:
    """view_as_complex reads the last dimension as (real, imaginary); view_as_real writes one."""
    if call.name == "view_as_real":
        return flow.set(call.result, move(flow.space, flow.value(call.args[0]), lambda labels: labels.unsqueeze(-1)))
    flow.solid(call.args[0], [-1], f"{call.name} takes pairs of numbers")
    flow.set(call.result, move(flow.space, flow.value(call.args[0]), lambda labels: labels.select(-1, 0)))


def unbind(flow: Flow, call: Call) -> None:
    """Taking a dimension apart makes it solid: each position becomes a tensor of its own."""
    tensor = call.args[0]
    dim = int(call.argument(1, "dim", 0)) % tensor.dim()
    flow.solid(tensor, [dim], "taken apart position by position")
    pick(flow, call.result, flow.value(tensor), lambda labels, i: labels.select(dim, i))


def pick(flow: Flow, results: Sequence[Tensor], value: Value, function: Callable[[Tensor, int], Tensor]) -> None:
    """Set several results, each a movement of one value."""
    for i, result in enumerate(results):
        flow.set(result, move(flow.space, value, lambda labels, i=i: function(labels, i)))  # type: ignore[misc]


def chunk(flow: Flow, call: Call) -> None:
    """Equal pieces are a view and an unbind: every piece keeps equally many positions."""
    tensor = call.args[0]
    dim = int(call.argument(2, "dim", 0)) % tensor.dim()
    pieces(flow, call, tensor, dim, len(call.result))


def pieces(flow: Flow, call: Call, tensor: Tensor, dim: int, count: int) -> Value | None:
    """Take a dimension apart into equal pieces; None where they can't be equal."""
    value = flow.value(tensor)
    if not value.along(dim):
        pick(flow, call.result, value, lambda labels, i: labels.narrow(dim, 0, call.result[i].shape[dim]))
        return None
    if count == 1:
        flow.set(call.result[0], list(value.families))
        return None
    if len({result.shape[dim] for result in call.result}) > 1:
        flow.solid(tensor, [dim], f"{count} unequal pieces")
        starts = [sum(r.shape[dim] for r in call.result[:i]) for i in range(count)]
        pick(flow, call.result, value, lambda labels, i: labels.narrow(dim, starts[i], call.result[i].shape[dim]))
        return None
    apart = stacked(flow, value, dim, count)
    make_solid(flow.space, apart, dim, "taken apart into equal pieces")
    pick(flow, call.result, apart, lambda labels, i: labels.select(dim, i))
    return apart


def stacked(flow: Flow, value: Value, dim: int, count: int) -> Value:
    """View a dimension as ``[count, rest]``."""
    families = move(flow.space, value, lambda labels: labels.unflatten(dim, (count, -1)))
    shape = (*value.shape[:dim], count, value.shape[dim] // count, *value.shape[dim + 1 :])
    return Value(shape, families)


def halves(flow: Flow, tensor: Tensor, dim: int) -> tuple[Value, Value]:
    """Return the two halves of a dimension as values."""
    dim %= tensor.dim()
    apart = stacked(flow, flow.value(tensor), dim, 2)
    make_solid(flow.space, apart, dim, "taken apart into halves")
    shape = (*apart.shape[:dim], *apart.shape[dim + 1 :])
    first, second = (Value(shape, move(flow.space, apart, lambda x, i=i: x.select(dim, i))) for i in (0, 1))  # type: ignore[misc]
    return first, second


def split(flow: Flow, call: Call) -> None:
    """split(8) makes equal pieces of a given size; split([8, 16]) pieces with a size each."""
    tensor = call.args[0]
    sizes = call.argument(1, "split_size", call.kwargs.get("split_size_or_sections", call.kwargs.get("split_sizes")))
    dim = int(call.argument(2, "dim", 0)) % tensor.dim()
    if isinstance(sizes, int):
        apart = pieces(flow, call, tensor, dim, len(call.result))
        if apart is not None:
            flow.size(sizes, flow.extent(apart, dim + 1), "size of the pieces")
        return
    unequal(flow, call, tensor, dim, sizes)


def unequal(flow: Flow, call: Call, tensor: Tensor, dim: int, sizes: Sequence[Any]) -> None:
    """Pieces one after the other; those with a size given follow the cut if the size does."""
    lengths = [result.shape[dim] for result in call.result]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    value = flow.value(tensor)
    pick(flow, call.result, value, lambda labels, i: labels.narrow(dim, starts[i], lengths[i]))
    for i, (size, result) in enumerate(zip(sizes, call.result)):
        flow.size(size, flow.extent(flow.value(result), dim), f"size of piece {i}")


def split_at(flow: Flow, call: Call) -> None:
    """tensor_split(3) makes pieces as equal as they can be; tensor_split([8, 16]) pieces that end at these places."""
    tensor = call.args[0]
    ends = call.argument(1, "indices", call.kwargs.get("sections", call.kwargs.get("tensor_indices_or_sections")))
    dim = int(call.argument(2, "dim", 0)) % tensor.dim()
    if isinstance(ends, int):
        return chunk(flow, call)
    if isinstance(ends, Tensor) or any(int(a) > int(b) for a, b in pairwise([0, *ends, tensor.shape[dim]])):
        return flow.unknown(call, "places that are computed, or not in order")
    unequal(flow, call, tensor, dim, [b - a for a, b in pairwise([0, *ends])])


def identity(flow: Flow, call: Call) -> None:
    for result in call.results:
        flow.set(result, list(flow.value(call.args[0]).families))


RULES: dict[str, Rule] = {
    **{name: plain for name in PLAIN},
    **{name: placed for name in PLACED},
    "view": reshape,
    "reshape": reshape,
    "unflatten": unflatten,
    "expand": expand,
    "broadcast_to": expand,
    "expand_as": expand,
    "view_as": reshape_like,
    "reshape_as": reshape_like,
    "pixel_shuffle": shuffle_pixels,
    "pixel_unshuffle": unshuffle_pixels,
    "channel_shuffle": shuffle_channels,
    "repeat": repeat,
    "view_as_complex": paired,
    "view_as_real": paired,
    "unbind": unbind,
    "chunk": chunk,
    "unsafe_chunk": chunk,
    "split": split,
    "unsafe_split": split,
    "split_with_sizes": split,
    "tensor_split": split_at,
}
