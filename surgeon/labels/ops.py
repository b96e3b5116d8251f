"""Recorded ops as later stages see them: shapes and labels, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from surgeon.labels.family import Extent, Family
from surgeon.trace import Expression
from surgeon.trace.recorder import source_line

Shape = tuple[tuple[int, ...], tuple[Family, ...]]


@dataclass(frozen=True, eq=False)
class SizeUse:
    """A size argument and the width that it has to equal after the cut."""

    expression: Expression
    extent: Extent | int
    at: int
    what: str

    def __str__(self) -> str:
        return f"{self.what}: {self.expression} = {self.extent}"


@dataclass(frozen=True, eq=False)
class Reduction:
    """An op sums or normalises a tensor along dimensions that may shrink: cut positions have to be left out."""

    position: int
    shape: Shape


@dataclass(frozen=True, eq=False)
class Root:
    """An op multiplies one of its tensors by a power of a width: attention by ``d ** -0.5``.

    ``at`` counts ops, ``call`` calls; ``maker`` is the op that made the tensor, ``position`` its place among the op's.
    """

    at: int
    call: int
    position: int
    query: Shape
    maker: int | None
    width: Expression
    value: int
    power: float
    reason: str

    def __str__(self) -> str:
        return f"{self.reason}: ({self.width}) ** {self.power}"


@dataclass(eq=False)
class Op:
    """One call as the later stages see it: shapes and labels, no tensors."""

    index: int
    name: str
    module: str
    location: tuple[str, int]
    operands: tuple[Shape | None, ...]
    results: tuple[Shape, ...]
    inputs: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    reductions: list[Reduction] = field(default_factory=list)
    makers: tuple[int | None, ...] = ()
    inplace: bool = False

    @property
    def feeds(self) -> tuple[int, ...]:
        """The ops that made the operands."""
        return tuple(sorted({maker for maker in self.makers if maker is not None}))

    @property
    def source(self) -> str:
        return source_line(self.location)

    def __str__(self) -> str:
        return f"{self.name} in {self.module or 'the model'} ({self.source})"


def needed(ops: Sequence[Op], outputs: set[int]) -> set[int]:
    """Return the ops that the outputs depend on; writing in place counts as an output."""
    found = outputs | {i for i, op in enumerate(ops) if op.inplace}
    waiting = list(found)
    while waiting:
        new = set(ops[waiting.pop()].feeds) - found
        found |= new
        waiting.extend(new)
    return found
