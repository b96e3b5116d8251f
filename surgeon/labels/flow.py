"""Push labels through the running model: the listener that turns calls into facts about labels."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeGuard

from torch import Tensor

from surgeon.errors import SurgeonError
from surgeon.labels.contract import Operand
from surgeon.labels.family import (
    Extent,
    Family,
    Value,
    bind_leaf,
    extent,
    make_solid,
    pin_value,
    prefix,
    project,
    solid_value,
)
from surgeon.labels.lifetimes import Lifetimes
from surgeon.labels.notation import Notation, Token
from surgeon.labels.ops import Op, Reduction, Root, Shape, SizeUse
from surgeon.labels.space import Space
from surgeon.modules import tensors_in
from surgeon.trace import Call, Expression, Power, Tracked, Width
from surgeon.trace.integers import expression, leaves

Rule = Callable[["Flow", Call], None]

# Ops that multiply their first tensor by a number, or divide it.
_FACTORS = {"mul": 1, "multiply": 1, "div": -1, "divide": -1, "true_divide": -1, "truediv": -1}


class PerTensor:
    """What is known of each live tensor, found by identity; it keeps no tensor alive."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Value]] = {}

    def get(self, tensor: Tensor) -> Value | None:
        known = self._known.get(id(tensor))
        # Another tensor may by now live at the same address.
        return known[1] if known is not None and known[0]() is tensor else None

    def __setitem__(self, tensor: Tensor, value: Value) -> None:
        self._known[id(tensor)] = weakref.ref(tensor), value

    def __contains__(self, tensor: Tensor) -> bool:
        return self.get(tensor) is not None

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the tensors that are still alive."""
        return (tensor for ref, _ in self._known.values() if (tensor := ref()) is not None)


class Flow:
    """Values of live tensors, and what the calls say about them.

    Parameters
    ----------
    rules : op name -> rule
    leaves : parameter or buffer name -> tensor
    """

    def __init__(self, rules: Mapping[str, Rule], tensors: Mapping[str, Tensor]) -> None:
        self.space = Space()
        self.rules = rules
        self.values = PerTensor()
        self.outputs: set[int] = set()
        self.leaves: dict[str, Value] = {}
        self.ops: list[Op] = []
        self.sizes_used: list[SizeUse] = []
        self.sizes_read: list[SizeUse] = []
        self.roots: list[Root] = []
        self.role: dict[tuple[str, int], set[str]] = {}
        self.unknown_ops: dict[int, str] = {}
        self.pending: list[Reduction] = []
        self.current: tuple[Any, ...] = ()
        self.crossed: dict[tuple[bytes, ...], Tensor] = {}
        self.lifetimes = Lifetimes(tensors.values())
        for name, tensor in tensors.items():
            if tensor not in self.values:
                self.values[tensor] = self.leaves[name] = _leaf(name, tensor)

    # -- listening -----------------------------------------------------------------------------------

    def sizes(self, tensor: Tensor) -> Sequence[int]:
        """Return the shape with a tracked integer for every dimension that can shrink."""
        value = self.values.get(tensor)
        if value is None or value.solid:
            return tuple(tensor.shape)
        bind_leaf(self.space, value)
        widths = (self.extent(value, dim) for dim in range(len(value.shape)))
        return tuple(w if isinstance(w, int) else Tracked(w.size, Width(w, w.size)) for w in widths)

    def call(self, call: Call) -> None:
        """Apply the rule of a call."""
        results = call.results
        given = call.tensors
        if not results and call.name != "setitem" and "::" not in call.name:
            return  # a question about a tensor; an op of a library may write to one
        if call.name == "setitem":
            results = [call.args[0]]
        values = [self.look(tensor) for tensor in given]
        self.space.at, self.current, self.pending = call.index, tuple(given), []
        self._powers(call)
        rule = self.rules.get(call.name)
        shapes = [(v.shape, tuple(v.families)) for v in values]
        if rule is None and all(v.solid for v in values):
            self.literal(call)
        elif rule is None:
            self.unknown(call)
        else:
            self._apply(rule, call)
        self._log(call, given, values, shapes, results)
        self.current = ()

    def knows(self, name: str) -> bool:
        """Tell whether an op has a rule."""
        return name in self.rules

    def leave(self, call: Call) -> None:
        """A custom autograd function without a rule: what no call of its body wrote comes from a kernel of its own."""
        results = call.results
        made = [self.look(tensor).maker for tensor in results]
        if all(at is not None and "empty" not in self.ops[at].name for at in made):
            return
        given = call.tensors
        values = [self.look(tensor) for tensor in given]
        shapes = [(v.shape, tuple(v.families)) for v in values]
        self.space.at, self.current, self.pending = call.index, tuple(given), []
        self.unknown(call)
        self._log(call, given, values, shapes, results)

    def _apply(self, rule: Rule, call: Call) -> None:
        """Run a rule; one that can't make sense of its call leaves what it has said so far, and pins the rest."""
        said = len(self.sizes_used)
        try:
            rule(self, call)
        except SurgeonError:
            raise
        except Exception as error:
            self.unknown(call, f"the rule does not cover this case ({type(error).__name__}: {error})")
        self.literal(call, said)

    def _log(
        self, call: Call, given: list[Tensor], values: list[Value], before: list[Shape], results: list[Tensor]
    ) -> None:
        parameters = tuple(v.leaf for v in values if v.leaf is not None)
        upstream = frozenset().union(*(v.upstream for v in values))
        origin = frozenset({call.module}) if parameters else upstream
        makers = tuple(v.maker for v in values)
        inplace = any(t is r for t in given for r in results)
        made = [self.look(tensor) for tensor in results]
        shapes = tuple((v.shape, tuple(v.families)) for v in made)
        for value, tensor, shape in zip(made, results, shapes):
            value.maker, value.upstream = len(self.ops), origin
            self.lifetimes.made(tensor, shape)
        self.ops.append(
            Op(
                call.index,
                call.name,
                call.module,
                call.location,
                # A parameter's families are known only now; an activation may just have been written in place.
                tuple((v.shape, tuple(v.families)) if v.leaf else shape for v, shape in zip(values, before)),
                shapes,
                tuple(sorted(upstream)),
                parameters,
                _settings(call),
                self.pending,
                makers,
                inplace,
            )
        )
        self.lifetimes.now = len(self.ops)

    # -- for rules -----------------------------------------------------------------------------------

    def value(self, tensor: Tensor) -> Value:
        """Return the value of a tensor, with labels along every dimension of a parameter."""
        return bind_leaf(self.space, self.look(tensor))

    def look(self, tensor: Tensor) -> Value:
        """Return the value of a tensor as it stands: an unused parameter may yet take the labels that it meets.

        A tensor that no call made is solid.
        """
        value = self.values.get(tensor)
        if value is None:
            value = self.values[tensor] = solid_value(tensor.shape)
        return value

    def set(self, tensor: Tensor, families: list[Family]) -> None:
        """Store the families of a result."""
        known = self.values.get(tensor)
        if known is not None and known.leaf is not None:
            return
        self.values[tensor] = Value(tuple(tensor.shape), families)

    def extent(self, value: Value, dim: int) -> Extent | int:
        """Return the width of a dimension; where several families run along it alone, a position lives with all."""
        families = value.along(dim % len(value.shape)) if value.families else []
        if len(families) > 1:
            single = [p.labels for f in families if len((p := prefix(f, dim % len(value.shape))).dims) == 1]
            rows = list({row.numpy().tobytes(): row for row in single}.values())
            if len(rows) > 1:
                return Extent(int(value.shape[dim]), self._crossed(rows))
        return extent(value.shape, value.families, dim)

    def _crossed(self, rows: list[Tensor]) -> Tensor:
        key = tuple(row.numpy().tobytes() for row in rows)
        if key not in self.crossed:
            self.crossed[key] = self.space.product(rows)
        return self.crossed[key]

    def size(self, given: Any, width: Extent | int, what: str) -> None:
        """Note that a size argument has to equal a width."""
        source = expression(given)
        if isinstance(width, int) and isinstance(source, int):
            return
        self.sizes_used.append(SizeUse(source, width, self.space.at, what))

    def reduced(self, tensor: Tensor, dims: Sequence[int]) -> None:
        """Note that the current call takes a sum or statistic over dimensions of one of its tensors."""
        value = self.look(tensor)
        families = tuple(f for f in value.families if set(f.dims) & set(dims))
        if families:
            position = next(i for i, t in enumerate(self.current) if t is tensor)
            self.pending.append(Reduction(position, (value.shape, families)))

    def rooted(self, tensor: Tensor, width: Expression, size: int, power: float, reason: str) -> None:
        """Note that the current call multiplies one of its tensors by a power of a width, which is ``size`` now."""
        value = self.value(tensor)
        position = next(i for i, t in enumerate(self.current) if t is tensor)
        shape = (value.shape, tuple(value.families))
        self.roots.append(Root(len(self.ops), self.space.at, position, shape, value.maker, width, size, power, reason))

    def _powers(self, call: Call) -> None:
        """Note what becomes of numbers that were computed from a width."""
        powers = [number for number in call.numbers if isinstance(number, Power)]
        for power in powers:
            sign = _FACTORS.get(call.name, 0)
            first = call.args[0] if call.args else None
            plain = len(powers) == 1 and not call.func.__name__.startswith("__r")
            if sign and plain and isinstance(first, Tensor):
                power.used = True
                why = f"multiplied by a power of a width at {power.escape[2]}"
                self.rooted(first, power.base, power.escape[1], sign * power.exponent, why)
            elif call.name != "scaled_dot_product_attention":
                power.leaked = True

    def roles(self, notation: Notation, operands: Sequence[Operand], rank: int) -> None:
        """Remember which dimensions of parameters face outwards and which face inwards."""
        for operand in operands:
            if operand.value.leaf is not None:
                for dim, side in enumerate(_sides(notation, operand.tokens)):
                    self.role.setdefault((operand.value.leaf, dim), set()).add(side)

    def origin(self, tensor: Tensor) -> str:
        """Say why a tensor without families is solid."""
        return "" if self.look(tensor).families else "meets a tensor that can't shrink there"

    def widen(self, family: Family, rank: int) -> Family:
        """Put dimensions of size 1 in front of a family, up to a rank."""
        lead = rank - family.labels.dim()
        if not lead:
            return family
        if len(family.dims) == 1:
            return family.along(rank, lead + family.dims[0])

        def run(labels: Tensor) -> Tensor:
            return labels.view((1,) * lead + tuple(labels.shape))

        return Family(run(family.labels), tuple(Family(run(p.labels)) for p in family.parents))

    def unknown(self, call: Call, why: str = "") -> None:
        """An op without a rule: nothing that reaches it may be cut."""
        reason = f"{why or 'no rule'} for {call}"
        for tensor in call.tensors:
            pin_value(self.space, self.look(tensor), reason)
        self.literal(call)
        self.unknown_ops[call.index] = reason
        for tensor in call.results:
            self.set(tensor, [])

    def literal(self, call: Call, said: int | None = None) -> None:
        """What is made of the integers of a call does not follow them: they keep their values.

        Parameters
        ----------
        said : sizes from this one on were noted by the call's rule, which knows what becomes of their integers
        """
        read = [given for given in call.numbers if is_tracked(given)]
        if not read:
            return
        noted = [use.expression for use in self.sizes_used[said:]] if said is not None else []
        known = {leaf for source in noted for leaf in leaves(source)}
        for given in read:
            if not known.issuperset(leaves(given.expression)):
                self.sizes_read.append(SizeUse(given.expression, int(given), call.index, f"read by {call.name}"))

    def align(self, tensor: Tensor, dims: Sequence[int]) -> None:
        """An op mixes positions along dimensions: what they hold along the others has to be the same everywhere."""
        value = self.value(tensor)
        for dim in dims:
            for family in value.along(dim % len(value.shape)):
                project(self.space, family, set(family.dims) - {dim % len(value.shape)})

    def solid(self, tensor: Tensor, dims: Sequence[int], reason: str) -> None:
        """Dimensions of a tensor that may not shrink."""
        value = self.look(tensor)
        for dim in dims:
            make_solid(self.space, value, dim % len(value.shape), reason)

    # -- ends ----------------------------------------------------------------------------------------

    def give(self, tree: Any) -> None:
        """Register the model's inputs: solid."""
        for tensor in tensors_in(tree):
            self.values[tensor] = solid_value(tensor.shape)
            self.lifetimes.give(tensor)

    def take(self, tree: Any) -> None:
        """Register the model's outputs: solid."""
        self.space.at = -1
        for tensor in tensors_in(tree):
            value = self.look(tensor)
            self.outputs |= {value.maker} if value.maker is not None else set()
            pin_value(self.space, value, "the model's output")


@lru_cache(maxsize=4096)
def _sides(notation: Notation, tokens: tuple[Token, ...]) -> tuple[str, ...]:
    outward = {letter for token in notation.output for letter in token}
    # Inputs of a transposed convolution, (g i), share groups with its filters and are none of them.
    return tuple("out" if token and outward.issuperset(token) else "in" for token in tokens)


def _leaf(name: str, tensor: Tensor) -> Value:
    shape = tuple(tensor.shape)
    cuttable = tensor.is_floating_point() or tensor.is_complex()
    return Value(
        shape, unbound={i for i, s in enumerate(shape) if s > 1 and cuttable}, leaf=name, itemsize=tensor.element_size()
    )


def _settings(call: Call) -> dict[str, Any]:
    """Keep the plain arguments of a call: numbers, strings, flags."""
    plain = (bool, int, float, str)
    settings: dict[str, Any] = {str(i): a for i, a in enumerate(call.args) if isinstance(a, plain)}
    settings.update((k, v) for k, v in call.kwargs.items() if isinstance(v, plain))
    return settings


def is_tracked(value: Any) -> TypeGuard[Tracked]:
    """Tell whether an integer carries a provenance that can change."""
    return isinstance(value, Tracked) and not isinstance(value.expression, int)
