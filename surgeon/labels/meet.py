"""Meeting: operands that share a dimension share its labels.

All operands are put into one index space first (a ``Frame`` each: same rank, size 1 or absent where an
operand lacks a dimension). Along each common dimension, labels become equal; where one operand is solid, the
others become solid; a parameter that no call has used yet simply takes the labels that it meets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from surgeon.labels.family import Family, fix_all, project
from surgeon.labels.space import Space

# Why labels stay, where nothing better is known.
SOLID = "meets a dimension that can't shrink"


@dataclass(eq=False)
class Frame:
    """One operand in the common index space."""

    sizes: tuple[int, ...]
    families: list[Family]
    unbound: set[int] = field(default_factory=set)
    solid_because: str = ""

    @property
    def present(self) -> frozenset[int]:
        return _present(self.sizes)

    def along(self, dim: int) -> list[Family]:
        return [f for f in self.families if dim in f.dims]


@lru_cache(maxsize=4096)
def _present(sizes: tuple[int, ...]) -> frozenset[int]:
    return frozenset(i for i, size in enumerate(sizes) if size > 1)


def meet(space: Space, frames: Sequence[Frame]) -> list[Family]:
    """Let operands meet; returns the families of their common value."""
    result = frames[0]
    for frame in frames[1:]:
        adopt(space, result, frame)
        result = _meet(space, result, frame)
    return result.families


def adopt(space: Space, known: Frame, leaf: Frame) -> None:
    """Give the unbound dimensions of an unused parameter the labels that it meets there."""
    new = leaf.unbound & known.present
    met = [f for f in known.families if set(f.dims) & new]
    taken = [f for family in met if (f := project(space, family, leaf.present)) is not None]
    own = {f.dims for f in leaf.families}
    leaf.families.extend(f for f in distinct(taken) if f.dims not in own)
    leaf.unbound -= new


def _meet(space: Space, a: Frame, b: Frame) -> Frame:
    shared = a.present & b.present
    ours, theirs = ([f for f in side.families if not shared.isdisjoint(f.dims)] for side in (a, b))
    if {id(f) for f in ours} != {id(f) for f in theirs}:
        a, b = _settled(space, a, b, shared)
    elif b.present <= a.present and len(theirs) == len(b.families):
        return a  # a parameter that has just adopted its labels says nothing of its own
    sizes = tuple(map(max, a.sizes, b.sizes))
    return Frame(sizes, _strongest(a.families, b.families), solid_because=a.solid_because or b.solid_because)


def _settled(space: Space, a: Frame, b: Frame, shared: frozenset[int]) -> tuple[Frame, Frame]:
    """Make the labels of two operands equal, and solid where one of them is, along the dimensions that they share."""
    pairs = [(f, g) for f in a.families for g in b.families if f.dims == g.dims]
    for f, g in pairs:
        _unify(space, f, g)
    matched = {id(f) for pair in pairs for f in pair}
    for dim in sorted(shared):
        if not a.along(dim) or any(id(f) not in matched for f in (*a.along(dim), *b.along(dim))):
            a, b = _meet_along(space, a, b, dim)
    return a, b


def _meet_along(space: Space, a: Frame, b: Frame, dim: int) -> tuple[Frame, Frame]:
    ours, theirs = a.along(dim), b.along(dim)
    if not ours or not theirs:
        return _stiffened(space, a, b, dim), _stiffened(space, b, a, dim)
    anchor, *others = (project(space, family, [dim]) for family in (*ours, *theirs))
    for other in others:
        if anchor is not None and other is not None:
            _unify(space, anchor, other)
    return a, b


def _stiffened(space: Space, frame: Frame, solid: Frame, dim: int) -> Frame:
    """Return a frame made solid along a dimension where it meets a solid one."""
    because = solid.solid_because or SOLID
    families = fix_all(space, frame.families, dim, because)
    return Frame(frame.sizes, families, frame.unbound, frame.solid_because)


def _unify(space: Space, a: Family, b: Family) -> None:
    if a is b:
        return
    space.unify(a.labels, b.labels)
    for row in a.parents:
        twin = b.ancestor(row.dims)
        if twin is not None:
            space.unify(row.labels, twin.labels)


def _strongest(ours: list[Family], theirs: list[Family]) -> list[Family]:
    """Drop what the other side implies: after meeting, a family along a subset of another's dimensions."""

    added = [f for f in theirs if all(f.dims != o.dims and not set(f.dims) <= set(o.dims) for o in ours)]
    return [f for f in ours if not any(set(f.dims) < set(o.dims) for o in added)] + added


def distinct(families: Sequence[Family]) -> list[Family]:
    """Drop what others imply: after a meeting, a family along a subset of another's dimensions."""
    if len(families) < 2:
        return list(families)
    kept: list[Family] = []
    for family in sorted(families, key=lambda f: -len(f.dims)):
        if not any(set(family.dims) <= set(other.dims) for other in kept):
            kept.append(family)
    return kept
