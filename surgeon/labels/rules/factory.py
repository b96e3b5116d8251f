"""Ops that make tensors: a size that follows a width makes a dimension that can shrink with it."""

from __future__ import annotations

from typing import Any

from surgeon.labels.family import Family, fresh_family
from surgeon.labels.flow import Flow, Rule, is_tracked
from surgeon.trace import Call


def filled(first: int) -> Rule:
    """zeros(size), full(size, x), x.new_zeros(size): one value everywhere, so any position may go."""

    def rule(flow: Flow, call: Call) -> None:
        """One value everywhere, or any: a size that follows a width makes a dimension that shrinks with it."""
        sizes: Any = call.args[first:] or (call.kwargs.get("size", ()),)
        sizes = sizes[0] if sizes and isinstance(sizes[0], (tuple, list)) else sizes
        families: list[Family] = []
        for dim, size in enumerate(sizes[: call.result.dim()]):
            if is_tracked(size) and int(size) > 1:
                families.append(fresh_family(flow.space, call.result.dim(), dim, int(size)))
        flow.set(call.result, families)
        for dim, size in enumerate(sizes[: call.result.dim()]):
            flow.size(size, flow.extent(flow.value(call.result), dim), f"size {dim} of {call.name}")
        value = call.argument(first + 1, "fill_value", 0) if call.name.endswith("full") else 0
        if is_tracked(value):
            flow.size(value, int(value), f"read by {call.name}")

    return rule


def alike(flow: Flow, call: Call) -> None:
    """zeros_like(x): shaped as x."""
    flow.set(call.result, list(flow.value(call.args[0]).families))


def constant(flow: Flow, call: Call) -> None:
    """arange, tensor, ...: a position's value depends on its place, so none may go."""
    for tensor in call.tensors:
        flow.solid(tensor, range(tensor.dim()), f"read by {call.name}")
    for result in call.results:
        flow.set(result, [])


RULES: dict[str, Rule] = {
    **{name: filled(0) for name in ("zeros", "ones", "full", "empty", "rand", "randn")},
    **{name: filled(1) for name in ("new_zeros", "new_ones", "new_full", "new_empty")},
    **{f"{name}_like": alike for name in ("zeros", "ones", "full", "empty", "rand", "randn")},
    **{
        name: constant
        for name in ("arange", "linspace", "eye", "tensor", "as_tensor", "meshgrid", "randint", "randperm")
    },
}
