"""An exported program as a list of steps, each with its size constants taken out."""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind

from surgeon.aten import END, is_inplace, schema_name
from surgeon.errors import UnsupportedModel

# Sizes that schemas declare as plain integers.
_SIZES = frozenset({"groups", "group", "num_groups", "normalized_shape"})
_ARITHMETIC = frozenset({operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod})
# Checks of what the program was exported for; they compute nothing.
CHECKS = frozenset(
    {
        "_assert_tensor_metadata",
        "_assert_scalar",
        "_assert_async",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
    }
)
_STATE = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_FRAME = re.compile(r'File "([^"]+)", line (\d+)[^\n]*\n\s*([^\n]*)')
_TORCH = (os.path.dirname(torch.__file__) + os.sep, f"{os.sep}site-packages{os.sep}torch{os.sep}")

Location = tuple[str, int] | tuple[str, int, str]


@dataclass(frozen=True)
class Ref:
    """The result of another step."""

    name: str


@dataclass(frozen=True)
class Slot:
    """A size constant: the program's module holds it, as item ``index`` of the step's attribute."""

    index: int


@dataclass(frozen=True, eq=False)
class Step:
    """One node of the graph: ``%view_2 = aten.view.default(Ref('linear'), [1, Slot(0), Slot(1)])``."""

    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    sizes: tuple[int, ...]
    scope: str
    location: Location
    done: tuple[str, ...] = ()

    @property
    def attribute(self) -> str:
        """The name under which the module of the step holds its sizes."""
        return f"%{self.name}"

    def __str__(self) -> str:
        where = f"{os.path.basename(self.location[0])}:{self.location[1]}"
        return f"%{self.name} = {self.target} in {self.scope or 'the model'} ({where})"


@dataclass(eq=False)
class Listing:
    """What a program does, in order; copies of the program's module share it.

    state      graph input -> name of the parameter, buffer or constant
    inputs     graph inputs that the user gives, with the static shape of each, None where a size is free
    output     the flat outputs
    """

    program: ExportedProgram
    state: dict[str, str]
    inputs: dict[str, tuple[int | None, ...] | None]
    steps: list[Step]
    output: Any
    at: Location = ("?", 0)
    scopes: list[str] = field(default_factory=list)

    def __deepcopy__(self, memo: Any) -> Listing:
        return self


def listing(program: ExportedProgram) -> Listing:
    """Read a program.

    Raises UnsupportedModel where it was exported in training mode, writes into its own state, or holds control flow.
    """
    _check_signature(program)
    specs = program.graph_signature.input_specs
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    state = {n.name: str(s.target) for n, s in zip(placeholders, specs, strict=True) if s.kind in _STATE}
    inputs = {n.name: _static_shape(n) for n in placeholders if n.name not in state}
    nodes = [n for n in program.graph.nodes if n.op in ("call_function", "get_attr")]
    done = _last_uses(nodes)
    steps = [_step(node, done.get(node.name, ()), program) for node in nodes]
    for node in nodes:
        _check_mode(node)
    for node in nodes:
        _check(node, state)
    output = next(n for n in program.graph.nodes if n.op == "output").args[0]
    scopes = sorted({step.scope for step in steps})
    return Listing(program, state, inputs, steps, mapped(output, _as_ref), scopes=scopes)


def mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to the leaves of nested lists, tuples, dicts and slices."""
    if isinstance(tree, slice):
        return slice(*(mapped(part, function) for part in (tree.start, tree.stop, tree.step)))
    if isinstance(tree, Mapping):
        return {key: mapped(value, function) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        items = [mapped(item, function) for item in tree]
        return items if isinstance(tree, list) else tuple(items)
    return function(tree)


def _as_ref(leaf: Any) -> Any:
    return Ref(leaf.name) if isinstance(leaf, fx.Node) else leaf


# -- nodes -------------------------------------------------------------------------------------------


def _step(node: fx.Node, done: tuple[str, ...], program: ExportedProgram) -> Step:
    scope, location = _scope(node), _location(node)
    if node.op == "get_attr":
        held = operator.attrgetter(str(node.target))(program.graph_module)
        return Step(node.name, lambda: held, (), {}, (), scope, location, done)
    sizes: list[int] = []

    def held_size(leaf: Any) -> Any:
        if type(leaf) is not int or leaf == END:
            return _as_ref(leaf)
        sizes.append(leaf)
        return Slot(len(sizes) - 1)

    names = _size_arguments(node.target)

    def taken(key: int | str, value: Any) -> Any:
        return mapped(value, held_size if key in names else _as_ref)

    args = tuple(taken(position, value) for position, value in enumerate(node.args))
    kwargs = {name: taken(name, value) for name, value in {**node.kwargs, **_implicit(node)}.items()}
    return Step(node.name, node.target, args, kwargs, tuple(sizes), scope, location, done)


def _size_arguments(target: Any) -> set[int | str]:
    """Return the arguments that may hold sizes, by position and by name."""
    if target in _ARITHMETIC:
        return {0, 1}
    if not isinstance(target, OpOverload) or schema_name(target) in CHECKS:
        return set()
    found: set[int | str] = set()
    for position, argument in enumerate(target._schema.arguments):
        if argument.name in _SIZES or _symbolic(argument.real_type):
            found |= {position, argument.name}
    return found


def _symbolic(kind: Any) -> bool:
    """Tell whether a schema's type is SymInt, SymInt?, or SymInt[]."""
    while hasattr(kind, "getElementType"):
        kind = kind.getElementType()
    return bool(kind.kind() == "SymIntType")


def _implicit(node: fx.Node) -> dict[str, float]:
    """Spell out the factor of attention scores, 1 / sqrt(width): it has to stay what it was when the width shrinks."""
    if not isinstance(node.target, OpOverload) or "scaled_dot_product" not in schema_name(node.target):
        return {}
    query = node.args[0]
    width = query.meta["val"].shape[-1] if isinstance(query, fx.Node) and "val" in query.meta else None
    if node.kwargs.get("scale") is not None or not isinstance(width, int):
        return {}
    return {"scale": 1 / math.sqrt(width)}


def _last_uses(nodes: Sequence[fx.Node]) -> dict[str, tuple[str, ...]]:
    """Return which results can be forgotten after each step."""
    order = {node.name: i for i, node in enumerate(nodes)}
    done: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        users = [order.get(user.name, len(nodes)) for user in node.users]
        last = max(users, default=order[node.name])
        if last < len(nodes):
            done[nodes[last].name] = (*done.get(nodes[last].name, ()), node.name)
    return done


def _scope(node: fx.Node) -> str:
    """Return the path of the module that a node came from."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    return re.sub(r"@\d+", "", path.removeprefix("L['self']").removeprefix("."))


def _location(node: fx.Node) -> Location:
    """Return the innermost source line that is not torch's own, as file, line number and text."""
    frames = [(path, int(line), text) for path, line, text in _FRAME.findall(node.meta.get("stack_trace") or "")]
    own = [frame for frame in frames if not any(torch_path in frame[0] for torch_path in _TORCH)]
    return (own or frames)[-1] if frames else ("exported program", 0)


def _static_shape(node: fx.Node) -> tuple[int | None, ...] | None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


# -- what can't be cut -------------------------------------------------------------------------------


def _check_signature(program: ExportedProgram) -> None:
    signature = program.graph_signature
    for given in signature.input_specs:
        if given.kind not in (*_STATE, InputKind.USER_INPUT):
            raise UnsupportedModel(f"the program takes {_named(given)}, which is no tensor; export a model without it")
    for made in signature.output_specs:
        if made.kind is not OutputKind.USER_OUTPUT:
            raise UnsupportedModel(
                f"the program writes into {made.target!r} ({made.kind.name.lower()}); "
                "call model.eval() before exporting, or export a forward that returns its state"
            )


def _named(spec: InputSpec) -> str:
    return f"{spec.target or spec.arg.name!r} ({spec.kind.name.lower()})"


def _check(node: fx.Node, state: Mapping[str, str]) -> None:
    target = node.target
    if isinstance(target, torch._ops.HigherOrderOperator):
        raise UnsupportedModel(
            f"node %{node.name} calls {target}, which holds a program of its own; "
            "export the model without torch.cond, loops, and autocast inside its forward"
        )
    if not isinstance(target, OpOverload):
        return
    for argument, value in _arguments(node, target):
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes and isinstance(value, fx.Node) and value.name in state:
            raise UnsupportedModel(
                f"node %{node.name}, {target}, writes into {state[value.name]!r}; "
                "export a forward that leaves parameters and buffers as they are"
            )


def _check_mode(node: fx.Node) -> None:
    """Refuse dropout and norms in training mode; a norm without running statistics (instance norm) has no other."""
    if not isinstance(node.target, OpOverload):
        return
    given = {argument.name: value for argument, value in _arguments(node, node.target)}
    training = given.get("training", given.get("train")) is True
    if training and not ("batch_norm" in node.target.name() and given.get("running_mean") is None):
        raise UnsupportedModel(
            f"node %{node.name}, {node.target}, runs in training mode; call model.eval() before exporting"
        )


def _arguments(node: fx.Node, target: OpOverload) -> Iterator[tuple[Any, Any]]:
    for position, argument in enumerate(target._schema.arguments):
        yield argument, node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)


__all__ = ["CHECKS", "Listing", "Ref", "Slot", "Step", "is_inplace", "listing", "mapped"]
