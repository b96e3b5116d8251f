"""Integers that remember where they came from.

A forward pass is full of sizes: ``x.view(b, t, self.num_heads, self.head_dim)``. While recording, the
integer attributes of modules and the entries of ``.shape`` are ``Tracked``: ordinary integers that carry
an expression through ``+ - * // %``. After planning, the expressions say which attributes to set.

    heads = Tracked(12, Attribute("attn", "num_heads"))
    (heads * 64).expression     # (attn.num_heads * 64)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}

# What makes a number of an integer that nobody follows any further.
ESCAPES = """
truediv rtruediv pow rpow float divmod rdivmod lshift rlshift rshift rrshift and rand or ror xor rxor invert round
""".split()


class Attribute(NamedTuple):
    """An integer held by a module: ``layer1.0.conv2.groups``, ``norm.normalized_shape[0]``."""

    owner: str
    name: str
    item: int | None = None

    def __str__(self) -> str:
        place = "" if self.item is None else f"[{self.item}]"
        return f"{self.owner + '.' if self.owner else ''}{self.name}{place}"


@dataclass(frozen=True, eq=False)
class Width:
    """The size of a live dimension; what it counts is known to whoever made it."""

    source: Any
    size: int

    def __str__(self) -> str:
        return f"width {self.size}"


@dataclass(frozen=True)
class Arithmetic:
    """``left operator right`` over tracked integers and literals."""

    operator: str
    left: Expression
    right: Expression

    def __str__(self) -> str:
        return f"({self.left} {self.operator} {self.right})"


RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

Expression = int | Attribute | Width | Arithmetic


@dataclass(frozen=True)
class Comparison:
    """Two sizes that the model compared: what follows depends on the outcome, which must stay the same."""

    left: Expression
    relation: str
    right: Expression
    outcome: bool
    source: str


@dataclass
class Ledger:
    """What happened to tracked integers besides being used as sizes."""

    comparisons: list[Comparison] = field(default_factory=list)
    escapes: list[tuple[Expression, int, str]] = field(default_factory=list)
    powers: list[Power] = field(default_factory=list)
    where: Callable[[], str] = lambda: "?"

    def escaped(self) -> list[tuple[Expression, int, str]]:
        """Return the tracked integers that were read as numbers, of which nobody knows what became."""
        return [*self.escapes, *(power.escape for power in self.powers if power.escaped)]


_ledger: ContextVar[Ledger | None] = ContextVar("ledger", default=None)


@contextmanager
def ledger(entries: Ledger) -> Iterator[Ledger]:
    """Collect comparisons and escapes of tracked integers made in the block."""
    token = _ledger.set(entries)
    try:
        yield entries
    finally:
        _ledger.reset(token)


def expression(value: Any) -> Expression:
    """Return where an integer came from; a literal is its own expression."""
    return value.expression if isinstance(value, Tracked) else int(value)


class Tracked(int):
    """An ``int`` with a provenance. Arithmetic keeps it; turning it into a float is reported."""

    expression: Expression

    def __new__(cls, value: int, source: Expression) -> Tracked:
        self = int.__new__(cls, value)
        self.expression = source
        return self

    __hash__ = int.__hash__

    def __neg__(self) -> Tracked:
        return Tracked(-int(self), Arithmetic("-", 0, self.expression))

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)


class Power(float):
    """A number ``c * width ** exponent``: whoever multiplies a tensor by it can be made up for after a cut.

    It is ``used`` once a tensor is multiplied by it, and ``leaked`` when anything else reads it.
    """

    base: Expression
    exponent: float
    escape: tuple[Expression, int, str]
    used: bool
    leaked: bool

    @staticmethod
    def of(value: float, base: Expression, exponent: float, escape: tuple[Expression, int, str]) -> Power:
        """Make a power and enter it in the ledger."""
        power = Power(value)
        power.base, power.exponent, power.escape, power.used, power.leaked = base, exponent, escape, False, False
        entries = _ledger.get()
        if entries is not None:
            entries.powers.append(power)
        return power

    @property
    def escaped(self) -> bool:
        """Nobody knows what became of the number."""
        return self.leaked or not self.used

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float.__pos__(self),)

    def __deepcopy__(self, memo: Any) -> float:
        return float.__pos__(self)


def _power_of(value: Any, whole: Tracked | Power, exponent: float) -> Any:
    """Return ``value``, which is ``whole`` to a power times a constant, with its provenance."""
    entries = _ledger.get()
    if entries is None:
        return value
    if isinstance(whole, Power):
        whole.used = True
        return Power.of(value, whole.base, whole.exponent * exponent, whole.escape)
    return Power.of(value, whole.expression, exponent, (whole.expression, int(whole), entries.where()))


def _constant(value: Any) -> bool:
    return type(value) in (int, float)


def _scaling(kind: type, method: str, exponent: Callable[[Any], float]) -> Callable[..., Any]:
    """Make an operator whose result is a power of the left side where the right side is a plain number."""
    compute = getattr(kind, method)

    def apply(self: Any, other: Any, *modulus: Any) -> Any:
        value = compute(self, other, *modulus)
        if value is NotImplemented and type(other) is float:
            value = getattr(float, method)(float(int(self)), other)
        if value is NotImplemented:
            return value
        if type(value) is float and _constant(other):
            return _power_of(value, self, exponent(other))
        return _leak(self, value, other)

    return apply


def _leak(self: Any, value: Any, *others: Any) -> Any:
    for number in (self, *others):
        if isinstance(number, Power):
            number.leaked = True
        elif isinstance(number, Tracked):
            _escaped(number)
    return value


def _leaking(method: str) -> Callable[..., Any]:
    compute = getattr(float, method)

    def apply(self: Power, *others: Any) -> Any:
        return _leak(self, compute(self, *others), *others)

    return apply


@contextmanager
def tracked_roots() -> Iterator[None]:
    """Let ``math.sqrt`` keep the provenance of what it is given."""
    plain = math.sqrt

    def sqrt(value: Any) -> Any:
        root = plain(int(value) if isinstance(value, Tracked) else value)
        return _power_of(root, value, 0.5) if isinstance(value, (Tracked, Power)) else root

    math.sqrt = sqrt
    try:
        yield
    finally:
        math.sqrt = plain


def _arithmetic(symbol: str, method: str, reflected: bool) -> Callable[[Tracked, Any], Any]:
    compute = getattr(int, method)

    def apply(self: Tracked, other: Any) -> Any:
        value = compute(self, other)
        if type(value) is not int:
            _escaped(self)  # a float takes over: c * 0.5
            return value
        sides = (expression(other), self.expression) if reflected else (self.expression, expression(other))
        return Tracked(value, Arithmetic(symbol, *sides))

    return apply


def _comparison(symbol: str, method: str) -> Callable[[Tracked, Any], Any]:
    compute = getattr(int, method)

    def apply(self: Tracked, other: Any) -> Any:
        outcome, entries = compute(self, other), _ledger.get()
        if entries is not None and isinstance(outcome, bool) and isinstance(other, int):
            comparison = Comparison(self.expression, symbol, expression(other), outcome, entries.where())
            entries.comparisons.append(comparison)
        return outcome

    return apply


def _escaped(value: Tracked) -> None:
    entries = _ledger.get()
    if entries is not None:
        entries.escapes.append((value.expression, int(value), entries.where()))


def _escape(method: str) -> Callable[..., Any]:
    compute = getattr(int, method)

    def apply(self: Tracked, *others: Any) -> Any:
        _escaped(self)
        return compute(self, *others)

    return apply


for _symbol, _name in (("+", "add"), ("-", "sub"), ("*", "mul"), ("//", "floordiv"), ("%", "mod")):
    setattr(Tracked, f"__{_name}__", _arithmetic(_symbol, f"__{_name}__", reflected=False))
    setattr(Tracked, f"__r{_name}__", _arithmetic(_symbol, f"__r{_name}__", reflected=True))
for _symbol, _name in (("==", "eq"), ("!=", "ne"), ("<", "lt"), ("<=", "le"), (">", "gt"), (">=", "ge")):
    setattr(Tracked, f"__{_name}__", _comparison(_symbol, f"__{_name}__"))
for _name in ESCAPES:
    setattr(Tracked, f"__{_name}__", _escape(f"__{_name}__"))
_SCALINGS: dict[str, Callable[[Any], float]] = {
    "truediv": lambda other: 1.0,
    "rtruediv": lambda other: -1.0,
    "pow": float,
}
for _name, _exponent in _SCALINGS.items():
    setattr(Tracked, f"__{_name}__", _scaling(int, f"__{_name}__", _exponent))
    setattr(Power, f"__{_name}__", _scaling(float, f"__{_name}__", _exponent))
for _name in ("mul", "rmul"):
    setattr(Power, f"__{_name}__", _scaling(float, f"__{_name}__", lambda other: 1.0))
for _name in """
add radd sub rsub rpow floordiv rfloordiv mod rmod divmod rdivmod int round trunc float neg abs pos lt le gt ge eq ne
""".split():
    setattr(Power, f"__{_name}__", _leaking(f"__{_name}__"))


def leaves(source: Expression) -> Iterator[Attribute | Width]:
    """Yield the attributes and widths that an expression depends on."""
    if isinstance(source, Arithmetic):
        yield from leaves(source.left)
        yield from leaves(source.right)
    elif not isinstance(source, int):
        yield source


def evaluate(
    source: Expression, attributes: Mapping[Attribute, int], width: Callable[[Width], int | None]
) -> int | None:
    """Compute an expression under new values; None while an attribute is unknown or a division is by zero."""
    if isinstance(source, int):
        return source
    if isinstance(source, Width):
        return width(source)
    if isinstance(source, Attribute):
        return attributes.get(source)
    left, right = (evaluate(side, attributes, width) for side in (source.left, source.right))
    if left is None or right is None or (source.operator in ("//", "%") and right == 0):
        return None
    return OPERATORS[source.operator](left, right)


def solve(
    source: Expression, value: int, attributes: Mapping[Attribute, int], width: Callable[[Width], int | None]
) -> tuple[Attribute, int] | None:
    """Find the one unknown attribute of an expression that should equal ``value``.

    >>> solve(Arithmetic("*", Attribute("attn", "num_heads"), 64), 640, {}, lambda w: w.size)
    (Attribute(owner='attn', name='num_heads', item=None), 10)
    """
    if isinstance(source, Attribute):
        return None if source in attributes else (source, value)
    if not isinstance(source, Arithmetic):
        return None
    left, right = (evaluate(side, attributes, width) for side in (source.left, source.right))
    if left is None and right is not None:
        inverse = _INVERSE_LEFT[source.operator](value, right)
        return None if inverse is None else solve(source.left, inverse, attributes, width)
    if right is None and left is not None:
        inverse = _INVERSE_RIGHT[source.operator](value, left)
        return None if inverse is None else solve(source.right, inverse, attributes, width)
    return None


def _exact(value: int, divisor: int) -> int | None:
    return value // divisor if divisor and value % divisor == 0 else None


# x op known = value, and known op x = value
_INVERSE_LEFT: dict[str, Callable[[int, int], int | None]] = {
    "+": lambda value, known: value - known,
    "-": lambda value, known: value + known,
    "*": _exact,
    "//": lambda value, known: value * known,
    "%": lambda value, known: None,
}
_INVERSE_RIGHT: dict[str, Callable[[int, int], int | None]] = {
    "+": lambda value, known: value - known,
    "-": lambda value, known: known - value,
    "*": _exact,
    "//": lambda value, known: _exact(known, value) or None,  # nothing is divided by zero
    "%": lambda value, known: None,
}
