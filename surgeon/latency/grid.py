"""Models of the same architecture on a coarse grid of legal widths, and the time that each of their calls takes.

Ops are timed inside of a real forward pass, not alone. A cut model hands every op real arguments of legal shapes: group
counts, view sizes and normalised shapes are right, whatever the op, because the surgery has set them. Built alone, an
op would need all that from a table, and would find its input in the cache and its weights still there from the last
repetition, which is what makes sums of separately measured layers too small.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from surgeon.counts import Counted, Node
from surgeon.dispatch import ASIDES, SIZE_QUERIES, intercept, op_name
from surgeon.errors import SurgeonError
from surgeon.latency.measure import Clock, steady
from surgeon.modules import as_arguments, bare, entering, evaluating
from surgeon.operate import operate
from surgeon.plan.describe import describe

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph, Group

# Shares of every group that stay. The first models shrink evenly; in the others each group takes the shares in an
# order of its own, so that inputs and outputs of an op vary apart.
SHARES = (1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True, eq=False)
class Point:
    """A choice of widths: units that go ``[units]``, what is then left of each counted width ``[counts]``, and
    whether all groups shrink by the same share."""

    units: np.ndarray
    counts: np.ndarray
    even: bool

    def __str__(self) -> str:
        return f"{len(self.units)} units go"


def grid(graph: DependencyGraph, round_to: int = 8, heads: bool | str = False, mixed: int = 4) -> list[Point]:
    """Return widths to measure at, the original first.

    Parameters
    ----------
    round_to : widths that remain are multiples of this, as in the plan to come
    heads : whether rows (heads) or columns of tables vary, as in the plan to come
    mixed : how many points at which groups shrink unevenly, at most four for distinct ones
    """
    outer, inner = graph.nesting()
    skipped = outer & inner if heads == "both" else inner if heads else outer
    groups = [g for g in graph.free if g.name not in skipped]
    draw = np.random.default_rng(0)
    orders = np.array([draw.permutation(len(SHARES)) for _ in groups]).reshape(-1, len(SHARES))
    choices = [np.full(len(groups), k) for k in range(len(SHARES))]
    choices += [orders[:, k % len(SHARES)] for k in range(mixed)]
    found: dict[bytes, Point] = {}
    for i, choice in enumerate(choices):
        units = [_first(graph, g, SHARES[k], round_to) for g, k in zip(groups, choice)]
        point = _point(graph, units, even=i < len(SHARES))
        found.setdefault(point.counts.tobytes(), point)
    return list(found.values())


def _point(graph: DependencyGraph, units: Sequence[np.ndarray], even: bool) -> Point:
    gone = np.concatenate([np.zeros(0, np.int64), *units])
    return Point(gone, left(graph, gone), even)


def left(graph: DependencyGraph, units: np.ndarray) -> np.ndarray:
    """Return what is left of each counted width when units go, ``[counts]``."""
    return np.asarray(graph.incidence @ (~graph.dead_classes(units)).astype(np.int64))


def _first(graph: DependencyGraph, group: Group, share: float, round_to: int) -> np.ndarray:
    """Return the first units of every row of a group, as many as leave a legal width near a share of it."""
    if share == 1:
        return np.zeros(0, np.int64)
    multiple = round_to // gcd(round_to, graph.step_width(group))
    left = max(round(share * group.size / multiple), 1) * multiple
    steps = group.size - max(min(left, group.size), group.least)
    return np.concatenate([row[: len(row) // group.size * steps] for row in group.grid])


def at(node: Node, counts: np.ndarray) -> Node:
    """Return an op with the sizes that it has under the given counts."""

    def sizes(shapes: Sequence[Sequence[int | Counted]]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(d if isinstance(d, int) else d.of(counts) or 0 for d in shape) for shape in shapes)

    return replace(node, operands=sizes(node.operands), results=sizes(node.results))


def signature(node: Node) -> str:
    """Return what ops that take equally long have in common: name, sizes and settings."""
    return json.dumps([node.name, node.operands, node.results, dict(node.settings)], sort_keys=True)


def cut(graph: DependencyGraph, point: Point) -> nn.Module | None:
    """Return the model with the widths of a point; None where these don't fit together."""
    if not len(point.units):
        return graph.model
    try:
        return bare(operate(graph.model, describe(graph, point.units, {}, {"method": graph.method})))
    except SurgeonError:
        return None


def time_calls(
    model: nn.Module, example_inputs: Any, clock: Clock, runs: int, method: str = "forward"
) -> list[tuple[str, float]]:
    """Return name and seconds of every torch call of a forward pass, in order, the least of several runs.

    What else happens on a machine only ever adds to the time of a call, so the least is nearest to the call alone.
    Small models run more often than asked, for up to a second.
    """
    passes: list[list[tuple[str, float]]] = []
    args, kwargs = as_arguments(example_inputs)

    def call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = op_name(func)
        if name in SIZE_QUERIES or name in ASIDES:
            return func(*args, **kwargs)
        place = len(passes[-1])
        passes[-1].append((name, 0.0))
        begin = clock()
        result = func(*args, **kwargs)
        passes[-1][place] = (name, clock() - begin)
        return result

    with steady(), evaluating(model), entering(method, model):
        begin = clock()
        while len(passes) < runs + 1 or (len(passes) < 10 * runs and clock() - begin < 1):  # the first one warms up
            passes.append([])
            with intercept(call):
                model(*args, **kwargs)
    return [(each[0][0], min(seconds for _, seconds in each)) for each in zip(*passes[1:])]


def time_nodes(graph: DependencyGraph, point: Point, example_inputs: Any, clock: Clock, runs: int) -> dict[str, float]:
    """Return signature -> seconds for the recorded ops at the widths of a point; those alike are averaged.

    Nothing is returned where these widths don't fit together, or lead the forward pass along another path.
    """
    model = cut(graph, point)
    calls = [] if model is None else time_calls(model, example_inputs, clock, runs, graph.method)
    times: dict[str, list[float]] = {}
    for node in graph.nodes:
        name, seconds = calls[node.index] if node.index < len(calls) else ("", 0.0)
        if name != node.name:
            return {}
        times.setdefault(signature(at(node, point.counts)), []).append(seconds)
    return {key: sum(values) / len(values) for key, values in times.items()}
