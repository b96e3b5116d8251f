"""Sizes after a cut: find the attributes to set, or the size that can't be right.

Every size argument, comparison and declared width of the recorded run is a ``Constraint`` between two
expressions. Under new widths, unknown attributes are solved for one at a time; what is then unequal is in conflict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from surgeon.trace import Attribute, Expression, Width, evaluate, solve
from surgeon.trace.integers import RELATIONS, leaves

WidthOf = Callable[[Width], "int | None"]


@dataclass(frozen=True, eq=False)
class Constraint:
    """``left`` and ``right`` have to be equal after the cut; ``at`` is the call that says so.

    With another ``relation`` or ``outcome``, the comparison has to come out as it did.
    """

    left: Expression
    right: Expression
    at: int
    what: str
    relation: str = "=="
    outcome: bool = True

    def __str__(self) -> str:
        return f"{self.what}: {'' if self.outcome else 'not '}{self.left} {self.relation} {self.right}"

    @property
    def equation(self) -> bool:
        return (self.relation, self.outcome) in (("==", True), ("!=", False))

    @cached_property
    def attributes(self) -> frozenset[Attribute]:
        return frozenset(
            leaf for side in (self.left, self.right) for leaf in leaves(side) if isinstance(leaf, Attribute)
        )

    def widths(self) -> list[Width]:
        return [leaf for side in (self.left, self.right) for leaf in leaves(side) if isinstance(leaf, Width)]


@dataclass(frozen=True)
class Settlement:
    """New attribute values, and the constraints that no values satisfy."""

    attributes: dict[Attribute, int]
    conflicts: tuple[Constraint, ...]


def settle(constraints: Sequence[Constraint], width: WidthOf, old: Mapping[Attribute, int]) -> Settlement:
    """Solve constraints under new widths.

    Attributes that nothing determines keep their old values; of two that only appear together, in ``channels //
    paths``, one does. Cost: one pass per attribute that is only reachable through another, in practice two passes.
    """
    known: dict[Attribute, int] = {}
    waiting = [c for c in constraints if c.attributes and c.equation]
    while waiting:
        left = [c for c in waiting if not _solve(c, known, width)]
        if len(left) == len(waiting) and not any(_assume(c, known, width, old) for c in left):
            break
        waiting = left
    values = {**{a: old[a] for c in constraints for a in c.attributes if a in old}, **known}
    conflicts = tuple(c for c in constraints if not _holds(c, values, width))
    return Settlement({a: v for a, v in known.items() if old.get(a) != v}, conflicts)


def _solve(constraint: Constraint, known: dict[Attribute, int], width: WidthOf) -> bool:
    """Determine an attribute; True when the constraint has nothing left to say."""
    left, right = evaluate(constraint.left, known, width), evaluate(constraint.right, known, width)
    if left is None and right is not None and isinstance(constraint.left, Attribute):
        known[constraint.left] = right  # most are: an attribute is a width
        return True
    if left is not None and right is not None:
        return True
    unknown, value = (constraint.left, right) if left is None else (constraint.right, left)
    if value is None:
        return False
    found = solve(unknown, value, known, width)
    if found is None:
        return False
    known[found[0]] = found[1]
    return True


def _assume(constraint: Constraint, known: dict[Attribute, int], width: WidthOf, old: Mapping[Attribute, int]) -> bool:
    """Determine one of several unknown attributes, taking the others to keep their values; say whether that helped."""
    unknown = sorted((a for a in constraint.attributes if a not in known and a in old), key=str)
    if len(unknown) < 2 or _holds(constraint, {**known, **{a: old[a] for a in unknown}}, width):
        return False
    for attribute in unknown:
        trial = {**known, **{a: old[a] for a in unknown if a != attribute}}
        if _solve(constraint, trial, width) and _holds(constraint, trial, width):
            known.update(trial)
            return True
    return False


def _holds(constraint: Constraint, values: Mapping[Attribute, int], width: WidthOf) -> bool:
    left, right = evaluate(constraint.left, values, width), evaluate(constraint.right, values, width)
    if left is None or right is None:
        return False
    return RELATIONS[constraint.relation](left, right) is constraint.outcome


class Index:
    """Finds the constraints that a change of some widths can break: those on them, and those sharing attributes."""

    def __init__(self, constraints: Sequence[Constraint], ids: Callable[[Width], Iterable[int]]) -> None:
        self.constraints = list(constraints)
        self.by_width: dict[int, set[int]] = defaultdict(set)
        self.by_attribute: dict[Attribute, set[int]] = defaultdict(set)
        for i, constraint in enumerate(constraints):
            for width in constraint.widths():
                for key in ids(width):
                    self.by_width[key].add(i)
            for attribute in constraint.attributes:
                self.by_attribute[attribute].add(i)

    def touched(self, widths: Iterable[int]) -> list[Constraint]:
        """Return the constraints that a change of these widths reaches."""
        found = {i for key in widths for i in self.by_width.get(key, ())}
        waiting = list(found)
        while waiting:
            for attribute in self.constraints[waiting.pop()].attributes:
                new = self.by_attribute[attribute] - found
                found |= new
                waiting.extend(new)
        return [self.constraints[i] for i in sorted(found)]
