"""One line says how an op combines its operands.

    linear   input[... i] weight[o i] bias[o] -> ... o
    conv2d   input[n (g i) *] weight[(g o) i *] bias[(g o)] stride padding dilation groups=g -> n (g o) *

Names come in the order of the op's arguments. Brackets give a tensor's dimensions: a letter is a
dimension of the common index space, ``(g o)`` a dimension made of two, ``...`` any number of broadcast
dimensions, ``*`` any number of dimensions that may not shrink (kernel taps, pixels). ``name=g`` is a size that
must equal letter g. Letters after ``over`` are those along which the op takes a statistic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

Token = tuple[str, ...]  # ("c",) a letter, ("g", "o") a product, ("...",), ("*",)

_ARGUMENT = re.compile(r"(\w+)(?:(\[[^\]]*\])|=(\w+))?")
_TOKEN = re.compile(r"\(([^)]*)\)|(\.\.\.|\*|\w+)")


@dataclass(frozen=True)
class Argument:
    """One argument of an op: a tensor with dimensions, a size, or neither."""

    position: int
    name: str
    dims: tuple[Token, ...] | None = None
    size: str | None = None


@dataclass(frozen=True, eq=False)
class Notation:
    """A parsed line: arguments in call order, the output's dimensions, the letters under a statistic.

    ``parse`` gives the same one for the same line, so they are told apart by identity, which costs nothing.
    """

    line: str
    arguments: tuple[Argument, ...]
    output: tuple[Token, ...]
    over: tuple[str, ...]

    def __str__(self) -> str:
        return self.line


def parse_dims(text: str) -> tuple[Token, ...]:
    """Read ``n (g i) *`` into tokens."""
    return tuple(tuple(group.split()) if group else (name,) for group, name in _TOKEN.findall(text))


@cache
def parse(line: str) -> Notation:
    """Read a line of notation.

    Raises ValueError when the output names a letter that no operand has.
    """
    head, _, tail = line.partition("->")
    output_text, _, over = tail.partition(" over ")
    arguments = tuple(
        Argument(i, name, parse_dims(dims[1:-1]) if dims else None, size or None)
        for i, (name, dims, size) in enumerate(_ARGUMENT.findall(head))
    )
    output = parse_dims(output_text)
    known = {letter for a in arguments for token in a.dims or () for letter in token}
    unknown = {letter for token in (*output, tuple(over.split())) for letter in token} - known - {"...", "*"}
    if (not output and tail.strip()) or unknown:
        raise ValueError(f"malformed notation {line!r}: {sorted(unknown) or 'no output'} not among the operands")
    return Notation(line, arguments, output, tuple(over.split()))
