"""Run a line of notation on values: put operands in one index space, let them meet, keep the output's letters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from torch import Tensor

from surgeon.labels.family import Extent, Family, Value, assembled, bind_leaf, build, extent, fuse, make_solid, project
from surgeon.labels.meet import Frame, distinct, meet
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
    """

    tokens: tuple[Token, ...]
    wide: tuple[Token, ...]
    place: tuple[int | None, ...]
    present: frozenset[str]
    sizes: tuple[int, ...]
    named: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """The common index space of an op: its letters, their sizes, and how each side lies in it."""

    letters: tuple[str, ...]
    sizes: Mapping[str, int]
    sides: tuple[Side, ...]
    output: Side
    kept: tuple[int, ...]
    home: Mapping[str, int]


@dataclass(eq=False)
class Contraction:
    """What the operands have in common after they met."""

    layout: Layout
    families: list[Family] = field(default_factory=list)

    def extent(self, letter: str) -> Extent | int:
        """Return the width of a letter."""
        letters = self.layout.letters
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
        return Side(tokens, wide, place, present, common, tuple(i for i, token in enumerate(tokens) if token))

    sides = tuple(side(*operand) for operand in operands)
    result = side(output, tuple(math.prod(sizes[t] for t in token) for token in output))
    kept = tuple(letters.index(t) for token in output for t in token)
    return Layout(letters, sizes, sides, result, kept, home)


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


def _frame(space: Space, operand: Operand, side: Side, layout: Layout, reached: frozenset[str]) -> Frame:
    """Put one operand into the common index space."""
    value = operand.value
    families = []
    for dim, token in enumerate(side.tokens):
        new = dim in value.unbound
        if not token and new:
            value.unbound.discard(dim)
        elif not token:
            if value.families:
                make_solid(space, value, dim, "kernel taps and pixels stay")
        elif new and not reached.issuperset(side.wide[dim]):
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
    order = [layout.letters.index(t) for token in tokens for t in token]
    rest = [i for i in range(len(layout.letters)) if i not in order]

    def run(labels: Tensor) -> Tensor:
        labels = labels.permute(*order, *rest)
        for _ in rest:
            labels = labels.squeeze(-1)
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
