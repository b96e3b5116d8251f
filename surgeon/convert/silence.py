"""What can't be heard: which removed values no op can pass on to a value that stays, whatever the inputs are.

The model runs once. Beside every tensor goes the set of its positions that depend on the data; all others are
constants of the weights. A removed value that is constant zero, or meets only weights of zero, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from surgeon.aten import is_inplace
from surgeon.dispatch import ASIDES, SIZE_QUERIES, intercept, op_name
from surgeon.errors import ConvertError
from surgeon.graph import DependencyGraph
from surgeon.labels.ops import Op, Shape
from surgeon.labels.rules import elementwise, joining, movement
from surgeon.modules import as_arguments, entering, evaluating, tensors_in, untouched

# Ops that are linear in each of two tensors; their first two arguments.
BILINEAR = frozenset(
    {f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)}
    | {"linear", "matmul", "mm", "bmm", "mv", "mul", "multiply"}
)
# Sums of what lies along dimensions or in windows, with weights that are not negative.
SUMS = frozenset(
    {"sum", "mean"}
    | {f"{kind}_pool{n}d" for kind in ("avg", "adaptive_avg", "max", "adaptive_max") for n in (1, 2, 3)}
    | {f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "bilinear2d", "linear1d")}
)
# Norms: where the weight is among the arguments, and whether it is along dimension 1.
NORMS = {
    "batch_norm": (1, True),
    "instance_norm": (1, True),
    "group_norm": (2, True),
    "layer_norm": (2, False),
    "rms_norm": (2, False),
}

# Positions go elsewhere: of one tensor, and of all.
MOVED = frozenset(movement.RULES) | {"getitem", "select", "narrow", "index_select"}
JOINED = frozenset(joining.RULES)
MET = (frozenset(elementwise.NAMES) | {"to", "type_as"}) - {"bernoulli", "uniform", "normal", "exponential", "data"}
ATTENTION = "scaled_dot_product_attention"


@dataclass(frozen=True, eq=False)
class _Call:
    """A torch-level call, the tensors among its arguments, and what was known of them before it ran.

    free    per tensor, which positions depend on the data
    active  per tensor, which positions do, or are not zero
    """

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: list[Tensor]
    free: list[Tensor]
    active: list[Tensor]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(str(list(t.shape)) for t in self.given)})"

    @property
    def inplace(self) -> bool:
        return is_inplace(self.func) or self.name == "setitem" or getattr(self.func, "__name__", "").startswith("__i")

    def again(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Run the call on other tensors in place of the first ones, without writing to any."""
        func = getattr(torch.Tensor, self.name, self.func) if is_inplace(self.func) else self.func
        table = {id(old): new for old, new in zip(self.given, tensors)}
        return list(tensors_in(func(*_swapped(self.args, table), **_swapped(self.kwargs, table))))

    def product(self, one: Tensor, two: Tensor) -> Tensor:
        """Run an op that is linear in two tensors on others, without its bias."""
        func: Callable[..., Tensor] = torch.mul if self.name in ("mul", "multiply") else self.func
        table: dict[int, Tensor | None] = {id(bias): None for bias in self.given[2:]}
        table |= {id(self.given[0]): one.double(), id(self.given[1]): two.double()}
        return func(*_swapped(self.args, table), **_swapped(self.kwargs, table))


def _swapped(tree: Any, table: Mapping[int, Tensor | None]) -> Any:
    if isinstance(tree, Tensor):
        return table.get(id(tree), tree)
    if isinstance(tree, dict):
        return {k: _swapped(v, table) for k, v in tree.items()}
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
        return type(tree)(_swapped(v, table) for v in tree)
    return tree


# -- what depends on the data ------------------------------------------------------------------------


def spread(call: _Call, results: list[Tensor]) -> list[Tensor]:
    """Return which positions of the results depend on the data; all of them where an op is not known."""
    try:
        found = _spread(call, results)
    except Exception:
        found = None  # the op does not take the type that stands for positions
    if found is None or [f.shape for f in found] != [r.shape for r in results]:
        return [torch.ones(r.shape, dtype=torch.bool, device=r.device) for r in results]
    return found


def _spread(call: _Call, results: list[Tensor]) -> list[Tensor] | None:
    name, free, active = call.name, call.free, call.active
    if name in BILINEAR and len(call.given) >= 2:
        return [(call.product(free[0], active[1]) + call.product(active[0], free[1])) > 0]
    if name in NORMS:
        return [_normed(call, results[0])]
    if name in JOINED:
        return [f > 0 for f in call.again([f.double() for f in free])]
    if name in MOVED and not any(bool(f.any()) for f in free[1:]):
        return [f > 0 for f in call.again([free[0].double()])]
    if name in SUMS and len(call.given) == 1:
        return [f > 0 for f in call.again([free[0].double()])]
    if name == "embedding":
        return [active[0].any(dim=0).expand(results[0].shape)]
    if name == ATTENTION:  # its weights are positive, and depend on anything
        return [active[2].any(dim=-2, keepdim=True).expand(results[0].shape)]
    if name in MET and len(results) == 1:
        found = torch.zeros((), dtype=torch.bool, device=results[0].device)
        for positions in free:
            found = found | positions
        return [found.expand(results[0].shape)]
    return None


def _normed(call: _Call, result: Tensor) -> Tensor:
    """Norms end with a product by their weight; only batch norm in eval mode takes no statistic before."""
    position, along = NORMS[call.name]
    weight = call.args[position] if len(call.args) > position else call.kwargs.get("weight")
    training = call.args[5] if len(call.args) > 5 else call.kwargs.get("training", True)
    still = call.name == "batch_norm" and not training
    base = call.free[0] if still else torch.ones_like(call.free[0])
    if weight is None:
        return base
    nonzero = weight.detach() != 0
    return base & (nonzero.view([-1] + [1] * (result.dim() - 2)) if along else nonzero)


# -- what hears what is to go ------------------------------------------------------------------------


@dataclass(eq=False)
class Listener:
    """Interceptor that finds what can be heard of the classes that are to go.

    dead     [classes] what is to go
    heard    [classes] what a value that stays depends on, or may
    reasons  class -> op that hears it
    """

    graph: DependencyGraph
    dead: np.ndarray
    heard: np.ndarray = field(init=False)
    reasons: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.heard = np.zeros_like(self.dead)
        self.ops = {op.index: op for op in self.graph.flow.ops}
        self.count = 0
        self.free = WeakIdKeyDictionary()  # tensor -> positions that depend on the data, bool of its shape

    def __str__(self) -> str:
        return f"{int(self.heard.sum())} of {int(self.dead.sum())} removed classes can be heard"

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = op_name(func)
        if name in SIZE_QUERIES or name in ASIDES:
            return func(*args, **kwargs)
        op, self.count = self.ops.get(self.count), self.count + 1
        given = list(tensors_in([args, kwargs]))
        free = [self._depends(t) for t in given]
        active = [(t.detach() != 0) | f for t, f in zip(given, free)]
        call = _Call(name, func, args, kwargs, given, free, active)
        if op is not None and op.name == name:
            self._listen(op, call)
        result = func(*args, **kwargs)
        results = given[:1] if name == "setitem" else list(tensors_in(result))
        if results and (op is None or op.name != name):
            raise ConvertError(
                f"the forward pass took another path than the recorded one: call {self.count - 1} is {name}, not "
                f"{op.name if op is not None else 'one of them'}; make it do the same each time it runs in eval mode"
            )
        if call.inplace:
            self._rewritten(results)
        if any(bool(f.any()) for f in free):
            self.free.update(zip(results, spread(call, results)))
        return result

    def _depends(self, tensor: Tensor) -> Tensor:
        found = self.free.get(tensor)
        if found is None or found.shape != tensor.shape:
            return torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
        return found

    def _rewritten(self, results: Sequence[Tensor]) -> None:
        """Views of memory that was written to may now depend on anything."""
        written = {t.untyped_storage().data_ptr() for t in results if t.layout is torch.strided}
        for tensor in list(self.free.keys()):
            if tensor.layout is torch.strided and tensor.untyped_storage().data_ptr() in written:
                self.free[tensor] = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)

    def _listen(self, op: Op, call: _Call) -> None:
        """Note the classes that a value that stays takes something from."""
        gone = [self._lost(shape, t.shape).to(t.device) for shape, t in zip(op.operands, call.given)]
        silent = [g & a for g, a in zip(gone, call.active)]
        if call.name in BILINEAR and len(gone) >= 2:
            if call.name not in ("mul", "multiply"):
                self._trace_back(op, call, silent)
            return
        for summed in op.reductions:
            if summed.position >= len(gone):
                continue
            heard = gone[summed.position]
            if call.name == "sum":
                heard = silent[summed.position]
            elif call.name == ATTENTION and summed.position < 2:
                heard = heard & _met(silent)
            self._hear(op, summed.shape, heard)

    def _trace_back(self, op: Op, call: _Call, silent: list[Tensor]) -> None:
        """Follow what arrives where values stay back to the positions that it comes from, on either side."""
        stays = ~self._lost(op.results[0], op.results[0][0]).to(silent[0].device)
        for side in (0, 1):
            if not bool(silent[side].any()):
                continue
            with torch.enable_grad():
                source = silent[side].double().requires_grad_(True)
                pair = (source, call.active[1]) if side == 0 else (call.active[0], source)
                arrives = call.product(*pair)
                (back,) = torch.autograd.grad(arrives, source, ((arrives.detach() > 0) & stays).double())
            self._hear(op, op.operands[side], (back > 0) & silent[side])

    def _hear(self, op: Op, shape: Shape | None, at: Tensor) -> None:
        if shape is None or not bool(at.any()):
            return
        for family in shape[1]:
            labels = family.labels.expand(at.shape)[at.cpu()]
            classes = np.unique(self.graph.solution.class_of[labels.numpy()])
            classes = classes[self.dead[classes]]
            self.heard[classes] = True
            self.reasons.update({int(c): str(op) for c in classes if int(c) not in self.reasons})

    def _lost(self, shape: Shape | None, size: Sequence[int]) -> Tensor:
        """Return which positions are to go, bool of the given size."""
        found = torch.zeros([1] * len(size), dtype=torch.bool)
        for family in shape[1] if shape is not None else ():
            found = found | torch.from_numpy(self.dead[self.graph.solution.class_of[family.labels.numpy()]])
        return found.expand(tuple(size))


def _met(silent: list[Tensor]) -> Tensor:
    """Return, of queries and keys ``[..., t, d]``, the columns that are not zero on either side ``[..., 1, d]``."""
    queries, keys = (positions.any(dim=-2, keepdim=True) for positions in silent[:2])
    if queries.shape != keys.shape:  # several heads of queries to one of keys
        return torch.ones((), dtype=torch.bool, device=queries.device)
    return queries & keys


def listened(graph: DependencyGraph, model: nn.Module, example_inputs: Any, dead: np.ndarray) -> Listener:
    """Run a model and return what can be heard of the classes that are to go."""
    listener = Listener(graph, dead)
    args, kwargs = as_arguments(example_inputs)
    for tensor in tensors_in([args, kwargs]):
        listener.free[tensor] = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
    with torch.no_grad(), untouched(model), evaluating(model), entering(graph.method, model), intercept(listener):
        model(*args, **kwargs)
    return listener
