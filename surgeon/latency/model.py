"""What a model's latency is, as a polynomial in its widths.

Each op costs a constant, so much per element that it reads and writes, and so much per multiply-add, all in seconds
and none negative: a posynomial, which is convex in the logarithms of widths. Real latency is a staircase (kernels work
in tiles), and a whole model is not the sum of its ops. So coefficients are fitted to measurements on the legal grid
alone, the whole is scaled to measurements of whole models, and a plan is believed only when its result has been
measured (``within_latency``).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import nnls

from surgeon.counts import Counted, Node
from surgeon.errors import SurgeonError
from surgeon.latency.cache import Cache, default_path, environment
from surgeon.latency.grid import Point, at, cut, grid, signature, time_nodes
from surgeon.latency.measure import Clock, clock_for, measure
from surgeon.plan.cost import FORMULAS, Cost, assemble

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph

Terms = list[tuple[float, Sequence[int | Counted]]]

# How strongly the factors of a calibration are held together: noise would otherwise play one kind of op off against
# the other, as both shrink together.
_RIDGE = 0.1


def _attention(node: Node) -> Terms:
    """Queries by keys, and weights by values."""
    query, key, value = node.operands[:3]
    return [(1, [*query, key[-2]]), (1, [*query[:-1], *value[-2:]])]


# Multiply-adds; fvcore does not count those of fused attention.
_ARITHMETIC: dict[str, Callable[[Node], Terms]] = {"scaled_dot_product_attention": _attention, **FORMULAS}


def features(node: Node) -> list[Terms]:
    """Return what an op's time may be proportional to, each as terms (coefficient, dimensions).

    A constant, the elements of the first operand, of the others (weights), of the results, and the multiply-adds.
    """
    arithmetic = _ARITHMETIC.get(node.name)
    return [
        [(1, ())],
        [(1, shape) for shape in node.operands[:1]],
        [(1, shape) for shape in node.operands[1:]],
        [(1, shape) for shape in node.results],
        arithmetic(node) if arithmetic is not None else [],
    ]


def amount(terms: Terms) -> float:
    """Return the sum of terms at the sizes that they were recorded with."""
    return sum(c * prod(dim if isinstance(dim, int) else dim.size for dim in dims) for c, dims in terms)


def latency_cost(
    graph: DependencyGraph,
    example_inputs: Any,
    *,
    backend: str = "eager",
    cache: Cache | str | os.PathLike[str] | None = None,
    round_to: int = 8,
    heads: bool | str = False,
    runs: int = 4,
    clock: Clock | None = None,
) -> Cost:
    """Return the latency of the forward pass in seconds, by node, as a posynomial in the widths.

    Every op is timed inside of eager forward passes of models cut to a coarse grid of legal widths; ops of the same
    name, settings and shapes share what was measured. Models that shrink evenly are then measured whole on the back
    end, and the ops' costs are scaled to that, arithmetic apart from the rest: compilers fuse what surrounds a
    convolution, but still run the convolution.

    Parameters
    ----------
    backend : "eager", "compile" or "onnxruntime"
    cache : file of measurements, by default in the user's cache folder; ``Cache(None)`` keeps them in memory.
        What is in there is not measured again.
    round_to : widths that remain are multiples of this; a plan with other multiples is predicted less well
    heads : what varies in tables of rows and columns, as in ``plan``
    runs : timed forward passes per model of the grid
    clock : seconds since some moment, after waiting for the device; for tests

    Raises
    ------
    SurgeonError, UnsupportedModel from the back end

    Examples
    --------
    >>> cost = latency_cost(graph, x, backend="onnxruntime")
    >>> cost.total(graph.initial)
    """
    store = cache if isinstance(cache, Cache) else Cache(default_path() if cache is None else cache)
    clock = clock or clock_for(example_inputs)
    points = grid(graph, round_to, heads)
    times = _times(graph, example_inputs, points, store, runs, clock)
    cost = fit(graph, points, times)
    even = [point for point in points if point.even]
    whole = _whole(graph, example_inputs, even, store, backend, clock)
    known = [point for point in even if point in whole]
    arithmetic = np.array([node.name in _ARITHMETIC for node in graph.nodes])[cost.owner]
    return calibrate(cost, [p.counts for p in known], [whole[p] for p in known], arithmetic.astype(int))


def _times(
    graph: DependencyGraph, example_inputs: Any, points: Sequence[Point], store: Cache, runs: int, clock: Clock
) -> dict[str, float]:
    """Return signature -> seconds at all points where the model runs, and measure what is not known yet."""
    where = environment(graph.model, example_inputs, "eager")
    times: dict[str, float] = {}
    for point in points:
        keys = {signature(at(node, point.counts)) for node in graph.nodes}
        missing = [key for key in keys if store.get(where, key) is None]
        if missing:
            measured = time_nodes(graph, point, example_inputs, clock, runs)
            store.put(where, {key: measured[key] for key in missing if key in measured})
        times.update({key: seconds for key in keys if (seconds := store.get(where, key)) is not None})
    if not all(signature(at(node, graph.initial)) in times for node in graph.nodes):
        raise SurgeonError("the forward pass takes another path each time, so that its ops can't be timed one by one")
    return times


def _whole(
    graph: DependencyGraph, example_inputs: Any, points: Sequence[Point], store: Cache, backend: str, clock: Clock
) -> dict[Point, float]:
    """Return seconds of whole models, measured in turn, as multiples of the original's."""
    where = environment(graph.model, example_inputs, backend)
    keys = {point: _fingerprint(graph, point) for point in points}
    if any(store.get(where, key) is None for key in keys.values()):
        models = {point: model for point in points if (model := cut(graph, point)) is not None}
        found = measure(
            *models.values(),
            example_inputs=example_inputs,
            backend=backend,
            method=graph.method,
            runs=7,
            precision=0.03,
            clock=clock,
        )
        seconds = {keys[point]: ratio * found.seconds[0] for point, ratio in zip(models, found.ratios)}
        store.put(where, {key: seconds.get(key, 0.0) for key in keys.values()})
    return {point: value for point, key in keys.items() if (value := store.get(where, key))}


def _fingerprint(graph: DependencyGraph, point: Point) -> str:
    ops = "\n".join(signature(at(node, point.counts)) for node in graph.nodes)
    return f"model of {len(graph.nodes)} ops {hashlib.sha256(ops.encode()).hexdigest()}"


def fit(graph: DependencyGraph, points: Sequence[Point], times: dict[str, float]) -> Cost:
    """Fit every kind of op to what was measured of it: relative errors, least squares, no negative coefficients.

    Ops that are alike in the original share one fit, with all widths that any of them had.
    """
    alike: dict[str, list[int]] = {}
    for i, node in enumerate(graph.nodes):
        alike.setdefault(signature(at(node, graph.initial)), []).append(i)
    terms = []
    for members in alike.values():
        samples = {}
        for node in (at(graph.nodes[i], point.counts) for i in members for point in points):
            key = signature(node)
            if key in times:
                samples[key] = [amount(part) for part in features(node)], times[key]
        coefficients = _nonnegative([row for row, _ in samples.values()], [t for _, t in samples.values()])
        for i in members:
            for coefficient, part in zip(coefficients, features(graph.nodes[i])):
                terms += [(i, coefficient * c, dims) for c, dims in part if coefficient > 0]
    return assemble(terms)


def _nonnegative(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> np.ndarray:
    """Solve ``rows @ x = seconds`` for x >= 0, with least absolute relative errors: a time may be far too long.

    Reweighted least squares; errors below 2% are as good as none.
    """
    matrix, target = np.array(rows, float), np.maximum(np.array(seconds, float), 1e-9)
    matrix = matrix / target[:, None]
    scale = np.maximum(matrix.max(axis=0), 1e-30)
    weight = np.ones(len(target))
    for _ in range(8):
        solution, _ = nnls(matrix / scale * weight[:, None], weight)
        weight = np.maximum(np.abs(matrix / scale @ solution - 1), 0.02) ** -0.5
    return np.asarray(solution / scale)


def calibrate(
    cost: Cost,
    counts: Sequence[np.ndarray],
    measured: Sequence[float],
    kinds: np.ndarray | None = None,
    weights: Sequence[float] | None = None,
) -> Cost:
    """Return a cost whose totals at the given counts are near what was measured of whole models.

    Terms are multiplied by a factor for each kind, and an overhead per node is added, neither negative.

    Parameters
    ----------
    counts : counted widths of each model, ``[models][counts]``
    measured : seconds of each model
    kinds : which factor a term takes, ``[terms]``; one for all by default
    weights : how much each model counts
    """
    seconds = np.array(measured, float)
    kinds = np.zeros(len(cost.coefficient), int) if kinds is None else kinds
    totals = np.array([np.bincount(kinds, cost.terms(c), kinds.max(initial=0) + 1) for c in counts])
    common = float(np.median(seconds / totals.sum(axis=1)))
    used = totals.sum(axis=0) > 0
    weight = np.ones(len(seconds)) if weights is None else np.array(weights, float)
    rows = np.column_stack([totals[:, used] * common, np.full(len(seconds), seconds[0])]) / seconds[:, None]
    ridge = _RIDGE * np.eye(used.sum(), used.sum() + 1)
    matrix = np.concatenate([rows * weight[:, None], ridge])
    factors, _ = nnls(matrix, np.concatenate([weight, np.full(used.sum(), _RIDGE)]))
    by_kind = np.ones(len(used))
    by_kind[used] = factors[:-1]
    return _with_overhead(
        replace(cost, coefficient=cost.coefficient * common * by_kind[kinds]), factors[-1] * seconds[0]
    )


def _with_overhead(cost: Cost, seconds: float) -> Cost:
    """Add a constant, as much to each node."""
    nodes = np.unique(cost.owner)
    return replace(
        cost,
        coefficient=np.concatenate([cost.coefficient, np.full(len(nodes), seconds / max(len(nodes), 1))]),
        factors=np.concatenate([cost.factors, np.zeros((len(nodes), cost.factors.shape[1]), int)]),
        owner=np.concatenate([cost.owner, nodes]),
    )
