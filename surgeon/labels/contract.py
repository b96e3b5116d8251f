"""Run a line of notation on values: put operands in one index space, let them meet, keep the output's letters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from torch import Tensor

from surgeon.labels.family import (
    Extent,
    Family,
    Value,
    assembled,
    bind_leaf,
    build,
    extent,
    fresh_family,
    fuse,
    make_solid,
    project,
)
from surgeon.labels.meet import SOLID, Frame, distinct, meet
from surgeon.labels.notation import Notation, Token
from surgeon.labels.space import Space


@dataclass(eq=False)
class Operand:
    """A value and the letters of each of its dimensions; ``*`` dimensions have none."""

    value: Value
    tokens: tuple[Token, ...]
    because: str = ""

    def letters(self) -> list[str]:
        return [letter for token in self.tokens for letter in token]


@dataclass(frozen=True, eq=False)
class Side:
    """How the dimensions of one operand, or of the output, lie in the common index space.

    tokens   letters of each dimension
    wide     letters that are more than one position long, of each dimension
    place    where the wide letter is in the common space, for dimensions that have no other; else None
    present  letters along which the tensor is no broadcast
    sizes    its shape in the common space: 1 where it is not present
    named    dimensions with letters
    order    places of the letters, dimension by dimension
    rest     places of all other letters
    single   dimensions of more than one position that are one letter, each with its place
    plain    no dimension is made of several wide letters
    """

    tokens: tuple[Token, ...]
    wide: tuple[Token, ...]
    place: tuple[int | None, ...]
    present: frozenset[str]
    sizes: tuple[int, ...]
    named: tuple[int, ...]
    order: tuple[int, ...]
    rest: tuple[int, ...]
    single: tuple[tuple[int, int], ...]
    plain: bool


@dataclass(frozen=True, eq=False)
class Layout:
    """The common index space of an op: its letters, their sizes, and how each side lies in it.

    kept   places of the output's letters
    home   the output's dimension that a letter is in
    plain  all sides are
    """

    letters: tuple[str, ...]
    sizes: Mapping[str, int]
    sides: tuple[Side, ...]
    output: Side
    kept: tuple[int, ...]
    home: Mapping[str, int]
    plain: bool


@dataclass(eq=False)
class Contraction:
    """What the operands have in common after they met: families, and those of a letter of its own by its place."""

    layout: Layout
    families: list[Family] = field(default_factory=list)
    single: Mapping[int, Family | None] = field(default_factory=dict)

    def extent(self, letter: str) -> Extent | int:
        """Return the width of a letter."""
        letters = self.layout.letters
        alone = self.single.get(letters.index(letter))
        if alone is not None:
            return Extent(self.layout.sizes[letter], alone.labels)
        return extent([self.layout.sizes[t] for t in letters], self.families, letters.index(letter))


@lru_cache(maxsize=4096)
def spell(tokens: tuple[Token, ...], rank: int) -> tuple[Token, ...]:
    """Name each of ``rank`` dimensions: ``...`` becomes letters counted from the right, ``*`` no letter.

    >>> spell((("...",), ("i",)), 3)
    (('...1',), ('...0',), ('i',))
    """
    wild = rank - sum(token not in (("...",), ("*",)) for token in tokens)
    named: list[Token] = []
    for token in tokens:
        if token == ("...",):
            named.extend((f"...{i}",) for i in reversed(range(wild)))
        elif token == ("*",):
            named.extend([()] * wild)
        else:
            named.append(token)
    return tuple(named)


def measure(sides: Sequence[tuple[tuple[Token, ...], tuple[int, ...]]], known: Mapping[str, int]) -> dict[str, int]:
    """Return the size of every letter, given those inside products that can't be read off a shape."""
    sizes = dict(known)
    pairs = [pair for tokens, shape in sides for pair in zip(tokens, shape)]
    for token, size in pairs:
        if len(token) == 1:
            sizes[token[0]] = max(size, sizes.get(token[0], 1))
    for token, size in pairs:
        missing = [letter for letter in token if letter not in sizes]
        if len(missing) == 1:
            sizes[missing[0]] = size // math.prod(sizes[letter] for letter in token if letter in sizes)
    return sizes


@lru_cache(maxsize=4096)
def lay_out(
    operands: tuple[tuple[tuple[Token, ...], tuple[int, ...]], ...],
    output: tuple[Token, ...],
    known: tuple[tuple[str, int], ...],
) -> Layout:
    """Make the common index space of operands, each given by its tokens and its shape."""
    sizes = measure(operands, dict(known))
    letters = tuple(dict.fromkeys(t for tokens, _ in operands for token in tokens for t in token))
    home = {t: dim for dim, token in enumerate(output) for t in token}

    def side(tokens: tuple[Token, ...], shape: tuple[int, ...]) -> Side:
        wide = tuple(tuple(t for t in token if sizes[t] > 1) for token in tokens)
        place = tuple(letters.index(w[0]) if len(w) == 1 else None for w in wide)
        present = frozenset(t for token, size in zip(tokens, shape) if size > 1 for t in token)
        common = tuple(sizes[t] if t in present else 1 for t in letters)
        named = tuple(i for i, token in enumerate(tokens) if token)
        single = tuple((i, at) for i, at in enumerate(place) if at is not None and shape[i] > 1)
        order = tuple(letters.index(t) for token in tokens for t in token)
        rest = tuple(i for i in range(len(letters)) if i not in order)
        plain = all(len(w) < 2 for w in wide)
        return Side(tokens, wide, place, present, common, named, order, rest, single, plain)

    sides = tuple(side(*operand) for operand in operands)
    result = side(output, tuple(math.prod(sizes[t] for t in token) for token in output))
    return Layout(letters, sizes, sides, result, result.order, home, all(s.plain for s in (*sides, result)))


def contract(
    space: Space,
    notation: Notation,
    operands: Sequence[Operand],
    known: Mapping[str, int],
    rank: int,
) -> tuple[list[Family], Contraction]:
    """Let the operands meet and return the families of the output, of the given rank."""
    given = tuple((operand.tokens, operand.value.shape) for operand in operands)
    layout = lay_out(given, spell(notation.output, rank), tuple(known.items()))
    pairs = sorted(zip(operands, layout.sides), key=lambda pair: len(pair[0].value.unbound))
    if layout.plain and all(_single_letters(operand.value.families) for operand in operands):
        return _letter_by_letter(space, pairs, layout)
    reached: frozenset[str] = frozenset()
    frames = []
    for operand, side in pairs:
        frames.append(_frame(space, operand, side, layout, reached))
        reached |= side.present
    common = Contraction(layout, meet(space, frames))
    for (operand, side), frame in zip(pairs, frames):
        _write_back(space, operand.value, side, frame, layout)
    left = [f for family in common.families if (f := project(space, family, layout.kept)) is not None]
    families = [moved for family in distinct(left) for moved in _to_dims(space, family, layout.output, layout)]
    return fuse(space, families), common


def _single_letters(families: Sequence[Family]) -> bool:
    """Whether families run along one dimension each, and no two along the same."""
    return all(len(f.dims) == 1 for f in families) and (
        len(families) < 2 or len({f.dims for f in families}) == len(families)
    )


def _letter_by_letter(
    space: Space, pairs: Sequence[tuple[Operand, Side]], layout: Layout
) -> tuple[list[Family], Contraction]:
    """Meet as below where every family runs along a single letter, as most do: no letter then minds the others."""
    known: dict[int, Family | None] = {}
    because = ""
    for operand, side in pairs:
        value = operand.value
        _drop_unnamed(space, value, side)
        own = {f.dims[0]: f for f in value.families}
        for dim, place in side.single:
            met, new = known.get(place), place not in known
            mine = _taken(space, value, dim, met, new) if dim in value.unbound else own.get(dim)
            if new:
                known[place] = mine
            elif mine is None and met is not None:
                space.pin(met.labels, operand.because or SOLID)
                known[place] = None
            elif met is None and mine is not None:
                space.pin(mine.labels, because or SOLID)
            elif met is not None and mine is not None:
                space.unify(met.along(len(value.shape), dim).labels, mine.labels)
        because = because or operand.because
    output = layout.output
    found = [(dim, family) for dim, place in output.single if (family := known.get(place)) is not None]
    return [f.along(len(output.tokens), dim) for dim, f in found], Contraction(layout, single=known)


def _taken(space: Space, value: Value, dim: int, met: Family | None, new: bool) -> Family | None:
    """Give a dimension that no call has used the labels that it meets, or fresh ones where it meets nothing."""
    value.unbound.discard(dim)
    family = fresh_family(space, len(value.shape), dim, value.shape[dim]) if new else met
    if family is None:
        return None
    value.families.append(family.along(len(value.shape), dim))
    return value.families[-1]


def _drop_unnamed(space: Space, value: Value, side: Side) -> None:
    """Dimensions without a letter stay as they are."""
    for dim, token in enumerate(side.tokens):
        if not token and dim in value.unbound:
            value.unbound.discard(dim)
        elif not token and value.families:
            make_solid(space, value, dim, "kernel taps and pixels stay")


def _frame(space: Space, operand: Operand, side: Side, layout: Layout, reached: frozenset[str]) -> Frame:
    """Put one operand into the common index space."""
    value = operand.value
    families = []
    _drop_unnamed(space, value, side)
    for dim, token in enumerate(side.tokens):
        if dim in value.unbound and not reached.issuperset(side.wide[dim]):
            whole = _product_with(token, side, layout)
            if whole:
                shape = [layout.sizes[t] if t in whole else 1 for t in layout.letters]
                families += build(space, space.fresh(*shape))[:1]
            else:
                bind_leaf(space, value, [dim])
    for family in value.families:
        left = project(space, family, side.named)
        if left is not None:
            families.extend(_to_letters(space, left, side, layout))
    unbound = {layout.letters.index(t) for dim in value.unbound for t in side.wide[dim]}
    if unbound:
        unbound -= {d for family in families for d in family.dims}
    return Frame(side.sizes, families, unbound, operand.because)


def _product_with(token: Token, side: Side, layout: Layout) -> Token:
    """Return the output's product of letters that a new dimension is part of, if the operand has all of them.

    The outputs of a grouped transposed convolution, ``weight[(g i) o] -> (g o)``, are then labelled group by group.
    """
    dim = layout.home.get(token[0])
    if len(token) > 1 or dim is None:
        return ()
    product = layout.output.tokens[dim]
    mine = {t for own in side.tokens for t in own}
    return product if len(layout.output.wide[dim]) > 1 and set(product) <= mine else ()


def _write_back(space: Space, value: Value, side: Side, frame: Frame, layout: Layout) -> None:
    """Store what a parameter took over from the operands that it met."""
    if not value.unbound:
        return
    value.unbound.clear()
    old = {f.dims for f in value.families}
    taken = [f for family in frame.families for f in _to_dims(space, family, side, layout)]
    value.families.extend(fuse(space, [f for f in taken if f.dims not in old]))


def _to_letters(space: Space, family: Family, side: Side, layout: Layout) -> list[Family]:
    """Move a family from an operand's dimensions to the common index space."""
    if len(family.dims) == 1:
        place = side.place[family.dims[0]]
        if place is not None:
            return [family.along(len(layout.letters), place)]

    def run(labels: Tensor) -> Tensor:
        shape = [s for dim, token in enumerate(side.tokens) for s in _factors(labels.size(dim), token, layout)]
        names = [t for token in side.tokens for t in token or ("",)]
        split = labels.reshape(shape)
        solid = [i for i, name in enumerate(names) if not name]
        for i in reversed(solid):
            split = split.squeeze(i)
        present = [name for name in names if name]
        split = split.permute([present.index(t) for t in layout.letters if t in present])
        for i, letter in enumerate(layout.letters):
            if letter not in present:
                split = split.unsqueeze(i)
        return split

    parents = [Family(run(p.labels)) for p in family.parents]
    return build(space, run(family.labels), parents)


def _factors(size: int, token: Token, layout: Layout) -> list[int]:
    if size == 1:
        return [1] * max(1, len(token))
    return [layout.sizes[t] for t in token] if len(token) > 1 else [size]


def _to_dims(space: Space, family: Family, side: Side, layout: Layout) -> list[Family]:
    """Move a family from the common index space to the dimensions of an operand or of the output."""
    tokens = side.tokens
    if len(family.dims) == 1 and family.dims[0] in side.place:
        return [family.along(len(tokens), side.place.index(family.dims[0]))]

    def run(labels: Tensor) -> Tensor:
        labels = labels.permute(*side.order, *side.rest)
        labels = labels.reshape(labels.shape[: len(side.order)])  # a family varies along none of the rest
        full, shape, at = [], [], 0
        for token in tokens:
            sizes = list(labels.shape[at : at + len(token)])
            at += len(token)
            if len(token) > 1 and max(sizes) > 1:
                sizes = [layout.sizes[t] for t in token]
            full.extend(sizes)
            shape.append(math.prod(sizes))
        return labels.expand(full).reshape(shape)

    # Several letters become one dimension: what varied along one of them varies along it.
    return assembled(space, run(family.labels), [Family(run(p.labels)) for p in family.parents])
