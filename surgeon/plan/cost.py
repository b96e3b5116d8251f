"""What a model costs, as a polynomial in its widths.

One FLOP is one multiply-add, and norms, pooling and resampling count as in fvcore. A cost is a sum of
terms ``coefficient * product of widths``; widths come from counts of surviving labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from surgeon.counts import Counted, Node
    from surgeon.graph import DependencyGraph

    Dim = int | Counted
    Formula = Callable[[Node], "list[tuple[float, Sequence[Dim]]]"]


def _conv(node: Node) -> list[tuple[float, Sequence[Dim]]]:
    x, weight = node.operands[:2]
    spatial = len(weight) - 2
    batch = x[: len(x) - 1 - spatial]
    pixels = (x if node.name.startswith("conv_transpose") else node.results[0])[-spatial:]
    return [(1, [*batch, *weight, *pixels])]


def _linear(node: Node) -> list[tuple[float, Sequence[Dim]]]:
    x, weight = node.operands[:2]
    return [(1, [*x, weight[0]])]


def _matmul(node: Node) -> list[tuple[float, Sequence[Dim]]]:
    a, b = node.operands[:2]
    return [(1, [*a, b[-1]] if len(b) > 1 else list(a))]


def _addmm(node: Node) -> list[tuple[float, Sequence[Dim]]]:
    _, a, b = node.operands[:3]
    return [(1, [*a, b[-1]])]


def _einsum(node: Node) -> list[tuple[float, Sequence[Dim]]]:
    """Product of all index sizes, once per contraction; fvcore halves products without a sum."""
    equation = str(node.settings.get("0", "")).replace(" ", "")
    inputs, _, output = equation.partition("->")
    letters: dict[str, Dim] = {}
    for term, shape in zip(inputs.split(","), node.operands):
        named = term.replace("...", "." * (len(shape) - len(term) + 3))
        letters.update({f"{c}{i}" if c == "." else c: dim for i, (c, dim) in enumerate(zip(named, shape))})
    summed = set(inputs) - set(output) - {",", "."}
    return [(1 if summed else 0.5, list(letters.values()))]


def _cell(node: Node) -> list[tuple[float, Sequence[Dim]]]:
    """Two linear layers, of the input and of the state; whole recurrent layers are not counted by fvcore."""
    x, state = node.operands[:2]
    weights = node.operands[3 if node.name == "lstm_cell" else 2 :]
    return [(1, [*x, weights[0][0]]), (1, [*state, weights[1][0]])]


def _batch_norm(node: Node) -> list[tuple[float, Sequence[Dim]]]:
    if node.settings.get("5") is True:  # statistics of its own input, as any other norm
        return _norm(node)
    affine = len(node.operands) == 5
    return [(2 if affine else 1, node.operands[0])]


def _norm(node: Node) -> list[tuple[float, Sequence[Dim]]]:
    return [(5 if len(node.operands) > 1 else 4, node.operands[0])]


def _per_input(scale: float) -> Formula:
    return lambda node: [(scale, node.operands[0])]


def _per_output(scale: float) -> Formula:
    return lambda node: [(scale, node.results[0])]


FORMULAS: dict[str, Formula] = {
    **{f"conv{t}{n}d": _conv for t in ("", "_transpose") for n in (1, 2, 3)},
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "addmm": _addmm,
    "einsum": _einsum,
    **{f"{kind}_cell": _cell for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    "batch_norm": _batch_norm,
    "group_norm": _norm,
    "layer_norm": _norm,
    "instance_norm": _norm,
    "upsample_nearest2d": _per_output(1),
    "upsample_bilinear2d": _per_output(4),
    "adaptive_avg_pool2d": _per_input(1),
    "grid_sampler": _per_output(4),
}


@dataclass(frozen=True, eq=False)
class Cost:
    """A sum of products of widths.

    coefficient [terms]; factors [terms, k] index into the widths, 0 meaning 1; count and rows [widths] index
    into the counts, ``rows`` -1 where the width is a plain count. ``owner`` [terms] says which node a term belongs to.
    """

    coefficient: np.ndarray
    factors: np.ndarray
    count: np.ndarray
    rows: np.ndarray
    owner: np.ndarray

    def __str__(self) -> str:
        return f"Cost({len(self.coefficient)} terms over {len(self.count)} widths)"

    def widths(self, counts: np.ndarray) -> np.ndarray:
        """Return ``[1, widths...]`` under the given counts."""
        total = counts[self.count].astype(float)
        rows = np.where(self.rows < 0, 1, counts[self.rows])
        return np.concatenate([[1.0], total / np.maximum(rows, 1)])

    def terms(self, counts: np.ndarray) -> np.ndarray:
        """Return the value of every term."""
        return np.asarray(self.coefficient * self.widths(counts)[self.factors].prod(axis=1))

    def total(self, counts: np.ndarray) -> float:
        """Return the cost under the given counts."""
        return float(self.terms(counts).sum())

    def gradient(self, counts: np.ndarray) -> np.ndarray:
        """Return the derivative of the cost by each count, ``[counts]``."""
        widths = self.widths(counts)
        values = widths[self.factors]
        by_width = np.zeros(len(widths))
        for k in range(self.factors.shape[1]):
            rest = self.coefficient.copy()
            for other in range(self.factors.shape[1]):
                if other != k:
                    rest *= values[:, other]
            by_width += np.bincount(self.factors[:, k], rest, len(widths))
        rows = np.where(self.rows < 0, 1, np.maximum(counts[self.rows], 1))
        slope = np.bincount(self.count, by_width[1:] / rows, len(counts))
        divided = self.rows >= 0
        return np.asarray(
            slope - np.bincount(self.rows[divided], (by_width[1:] * widths[1:] / rows)[divided], len(counts))
        )

    def pieces(self, counts: np.ndarray) -> list[tuple[float, np.ndarray]]:
        """Return value and gradient of what the cost is the largest of: of itself alone."""
        return [(self.total(counts), self.gradient(counts))]

    @property
    def degree(self) -> int:
        """The most widths that one term multiplies."""
        return int((self.factors > 0).sum(axis=1).max(initial=0))

    def merged(self) -> Cost:
        """Return the same cost with a term per product of widths, whoever owns it."""
        products = np.sort(self.factors, axis=1)
        kinds, which = np.unique(products, axis=0, return_inverse=True)
        coefficient = np.bincount(which.reshape(-1), self.coefficient, len(kinds))
        return Cost(coefficient, kinds, self.count, self.rows, np.zeros(len(kinds), int))


@dataclass(frozen=True, eq=False)
class Peak:
    """The largest sum of terms that are alive at once.

    cost  one term for each piece of memory, in bytes
    born, died [terms]  the first op during which it is alive, and the first one after
    ops   number of ops
    """

    cost: Cost
    born: np.ndarray
    died: np.ndarray
    ops: int

    def __str__(self) -> str:
        return f"Peak({len(self.born)} pieces of memory over {self.ops} ops)"

    def alive(self, counts: np.ndarray) -> np.ndarray:
        """Return the bytes that are alive during each op, ``[ops]``."""
        values = self.cost.terms(counts)
        change = np.bincount(self.born, values, self.ops + 1) - np.bincount(self.died, values, self.ops + 1)
        return np.asarray(np.cumsum(change)[: self.ops])

    def total(self, counts: np.ndarray) -> float:
        """Return the bytes at the peak."""
        return float(self.alive(counts).max(initial=0.0))

    def pieces(self, counts: np.ndarray) -> list[tuple[float, np.ndarray]]:
        """Return value and gradient during the ops that are the peak, or nearly so: each at most the cost."""
        alive = self.alive(counts)
        found = []
        for op in _apart(alive):
            now = (self.born <= op) & (op < self.died)
            then = replace(self.cost, coefficient=np.where(now, self.cost.coefficient, 0.0))
            found.append((float(alive[op]), then.gradient(counts)))
        return found

    @property
    def degree(self) -> int:
        """The most widths that one term multiplies."""
        return self.cost.degree

    def merged(self) -> Peak:
        return self


def _apart(alive: np.ndarray, most: int = 4, near: float = 0.9) -> list[int]:
    """Return some ops with the largest values, no two of the same height."""
    found: list[int] = []
    for op in np.argsort(-alive, kind="stable").tolist():
        if len(found) == most or alive[op] < near * alive.max():
            break
        if all(alive[op] != alive[other] for other in found):
            found.append(op)
    return found


def assemble(terms: Iterable[tuple[int, float, Sequence[Dim]]]) -> Cost:
    """Build a cost from terms ``(owner, coefficient, dimensions)``."""
    index: dict[tuple[int, int], int] = {}
    coefficients, factors, owners = [], [], []
    for owner, coefficient, dims in terms:
        row = []
        for dim in dims:
            if isinstance(dim, int):
                coefficient *= dim
            else:
                key = (dim.count, -1 if dim.rows is None else dim.rows)
                row.append(index.setdefault(key, len(index) + 1))
        coefficients.append(float(coefficient))
        factors.append(row)
        owners.append(owner)
    longest = max(map(len, factors), default=0) or 1
    padded = np.array([row + [0] * (longest - len(row)) for row in factors], dtype=int).reshape(-1, longest)
    keys = np.array(list(index), dtype=int).reshape(-1, 2)
    return Cost(np.array(coefficients), padded, keys[:, 0], keys[:, 1], np.array(owners, dtype=int))


def flops(graph: DependencyGraph) -> Cost:
    """Return the multiply-adds of the recorded forward pass, by node."""
    cost: Cost = once(graph, "flops", _flops)
    return cost


def params(graph: DependencyGraph) -> Cost:
    """Return the number of parameters, by parameter in order of name."""
    cost: Cost = once(graph, "params", _params)
    return cost


def bytes_held(graph: DependencyGraph) -> Cost:
    """Return the bytes of parameters and buffers, by name in order."""
    cost: Cost = once(graph, "bytes", _bytes)
    return cost


def memory(graph: DependencyGraph) -> Peak:
    """Return the most bytes of inputs and activations that are alive at once in the recorded forward pass.

    Without gradients, in eager mode: memory lives from the op that makes it until the last tensor that looks into it is
    let go of. What kernels take for themselves while they run is not known.
    """
    peak: Peak = once(graph, "memory", _memory)
    return peak


def once(graph: DependencyGraph, name: str, build: Callable[[DependencyGraph], Any]) -> Any:
    """Return what depends on nothing but the graph, worked out the first time."""
    if name not in graph.costs:
        graph.costs[name] = build(graph)
    return graph.costs[name]


def _flops(graph: DependencyGraph) -> Cost:
    return assemble(
        (i, coefficient, dims)
        for i, node in enumerate(graph.nodes)
        if node.needed and node.name in FORMULAS
        for coefficient, dims in FORMULAS[node.name](node)
    )


def _params(graph: DependencyGraph) -> Cost:
    return assemble(
        (i, 1, graph.shapes[name]) for i, name in enumerate(sorted(graph.parameters)) if name in graph.shapes
    )


def _bytes(graph: DependencyGraph) -> Cost:
    names = sorted(graph.shapes)
    return assemble((i, graph.flow.leaves[name].itemsize, graph.shapes[name]) for i, name in enumerate(names))


def _memory(graph: DependencyGraph) -> Peak:
    held = graph.allocations
    cost = assemble((i, allocation.itemsize, allocation.shape) for i, allocation in enumerate(held))
    born, died = (np.array([getattr(h, end) for h in held], dtype=int) for end in ("born", "died"))
    return Peak(cost, born, np.maximum(died, born + 1), len(graph.nodes))
