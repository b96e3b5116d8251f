"""Which filters of which layers make the queries and keys of attention."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgeon.calibrate import MOVES, Contraction, Slot, Step, Tape, replaced


@dataclass(frozen=True, eq=False)
class Heads:
    """A product of queries and keys: per head, the filters that make its columns.

    at       the call of the product
    softmax  whether nothing but a softmax sees the product, so that what all keys of a query share does not matter
    q, k     the layers
    rows     filters of q and k per head, ``[heads, width]`` each; several heads may have one row of k
    """

    at: int
    softmax: bool
    q: Contraction
    k: Contraction
    rows: tuple[Tensor, Tensor]

    def __str__(self) -> str:
        return f"{len(self.rows[0])} heads of {self.q.weight} and {self.k.weight}"


@dataclass(frozen=True, eq=False)
class Origin:
    """The filter of a layer that makes each element of a value, integers of its shape."""

    layer: Contraction
    filters: Tensor

    def __str__(self) -> str:
        return f"filters of {self.layer}"


# Calls that repeat values, and those that only change their type.
REPEATS = MOVES | {"expand", "expand_as", "repeat", "repeat_interleave"}
CASTS = frozenset({"to", "type_as", "float", "half", "bfloat16", "double", "contiguous", "clone", "dropout"})
PRODUCTS = {"matmul": 0, "bmm": 0, "baddbmm": 1}
ATTENTION = "scaled_dot_product_attention"


def heads(tape: Tape, calls: Collection[Contraction]) -> list[Heads]:
    """Return the products of queries and keys whose columns come from layers through nothing but movements.

    Only those of the given calls, and only where nothing else reads these columns.
    """
    if not any(step.name == ATTENTION or step.name in PRODUCTS for step in tape.steps):
        return []
    search = _Search(tape, {call.at: call for call in calls})
    for at, step in enumerate(tape.steps):
        search.see(at, step)
    for slot in tape.output:
        search.spend(slot)
    return [found for found in search.found if search.unspent(found)]


class _Search:
    """Runs the movements of a pass on the numbers of filters."""

    def __init__(self, tape: Tape, calls: Mapping[int, Contraction]) -> None:
        self.tape, self.calls = tape, calls
        self.origins: dict[Slot, Origin] = {}
        self.spent: dict[int, set[int]] = {at: set() for at in calls}
        self.found: list[Heads] = []

    def __str__(self) -> str:
        return f"{len(self.found)} products of heads"

    def see(self, at: int, step: Step) -> None:
        """Follow one call."""
        known = [slot for slot in dict.fromkeys(step.inputs) if slot in self.origins]
        if at in self.calls:
            for slot in known:
                self.spend(slot)
            self.origins[step.outputs[0]] = _numbered(self.calls[at], self.tape.shapes[step.outputs[0]])
        elif known and not self._product(at, step) and not self._moved(step, known[0]):
            for slot in known:
                self.spend(slot)

    def spend(self, slot: Any) -> None:
        """Note that something else reads a value."""
        if isinstance(slot, Slot) and slot in self.origins:
            origin = self.origins[slot]
            self.spent[origin.layer.at].update(_distinct(origin.filters))

    def unspent(self, heads: Heads) -> bool:
        """Tell whether a product alone reads its columns."""
        others = [(h.q.at, h.rows[0]) for h in self.found if h is not heads]
        others += [(h.k.at, h.rows[1]) for h in self.found if h is not heads]
        for call, rows in ((heads.q.at, heads.rows[0]), (heads.k.at, heads.rows[1])):
            mine = set(rows.flatten().tolist())
            if mine & self.spent[call] or any(at == call and mine & set(r.flatten().tolist()) for at, r in others):
                return False
        return heads.q.at != heads.k.at or not bool(torch.isin(*(r.reshape(-1) for r in heads.rows)).any())

    def _moved(self, step: Step, slot: Slot) -> bool:
        """Pass filters on through a movement, or a product with a number."""
        origin = self.origins[slot]
        if len((*step.inputs, *step.leaves)) != 1 or not step.outputs:
            return False
        if step.name in CASTS or (step.name in ("mul", "div", "truediv") and step.outputs):
            shapes = {self.tape.shapes[s] for s in step.outputs}
            if shapes == {origin.filters.shape}:
                self.origins.update((s, origin) for s in step.outputs)
                return True
            return False
        if step.name not in REPEATS:
            return False
        put = replaced((step.args, step.kwargs), lambda v: origin.filters if v == slot else v)
        # Numbers of filters lie in memory as they like, so what is a view of the value need not be one of them.
        move = torch.Tensor.reshape if step.name == "view" else step.func
        made = move(*put[0], **put[1])
        made = [made] if isinstance(made, Tensor) else list(made)
        self.origins.update((s, Origin(origin.layer, part)) for s, part in zip(step.outputs, made, strict=True))
        return True

    def _product(self, at: int, step: Step) -> bool:
        """Note a product of queries and keys."""
        if step.name == ATTENTION:
            q, k = step.argument(0, "query"), step.argument(1, "key")
            a, b = self.origins.get(q), self.origins.get(k)
            grouped = bool(step.kwargs.get("enable_gqa"))
        elif step.name in PRODUCTS:
            first = PRODUCTS[step.name]
            q, k = step.argument(first, ""), step.argument(first + 1, "other")
            a, b = self.origins.get(q), self.origins.get(k)
            b = b and Origin(b.layer, b.filters.mT)
            grouped = False
        else:
            return False
        rows = _rows(a, b, grouped) if a is not None and b is not None else None
        for slot in step.inputs:
            if rows is None or slot not in (q, k):
                self.spend(slot)
        if rows is not None and a is not None and b is not None:
            self.found.append(Heads(at, step.name == ATTENTION, a.layer, b.layer, rows))
        return True


def _numbered(call: Contraction, shape: torch.Size) -> Origin:
    width = shape[call.channel]
    sizes = [1] * len(shape)
    sizes[call.channel] = width
    return Origin(call, torch.arange(width, dtype=torch.int32).view(sizes).expand(shape))


def _distinct(filters: Tensor) -> list[int]:
    narrow = filters[tuple(slice(1) if stride == 0 else slice(None) for stride in filters.stride())]
    found: list[int] = narrow.unique().tolist()
    return found


def _rows(a: Origin, b: Origin, grouped: bool) -> tuple[Tensor, Tensor] | None:
    """Return the filters of each head's columns, of values ``[..., tokens, width]``; None for other forms."""
    q, k = a.filters, b.filters
    if q.dim() < 2 or k.dim() < 2 or q.shape[-1] != k.shape[-1]:
        return None
    if bool((q != q[..., :1, :]).any()) or bool((k != k[..., :1, :]).any()):
        return None
    q, k = q[..., 0, :], k[..., 0, :]
    if grouped and q.dim() > 1 and q.shape[-2] != k.shape[-2]:
        k = k.repeat_interleave(q.shape[-2] // k.shape[-2], -2)
    q, k = (rows.reshape(-1, rows.shape[-1]) for rows in torch.broadcast_tensors(q, k))
    both = torch.cat([q, k], 1).long().unique(dim=0)
    return both[:, : q.shape[1]], both[:, q.shape[1] :]
