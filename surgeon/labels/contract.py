"""Run a line of notation on values: put operands in one index space, let them meet, keep the output's letters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from torch import Tensor

from surgeon.labels.family import Extent, Family, Value, bind_leaf, build, extent, fuse, make_solid, project
from surgeon.labels.meet import Frame, distinct, meet
from surgeon.labels.notation import Notation, Token
from surgeon.labels.space import Space


@dataclass(eq=False)
class Operand:
    """A value and the letters of each of its dimensions; ``*`` dimensions have none."""

    value: Value
    tokens: Sequence[Token]
    because: str = ""

    def letters(self) -> list[str]:
        return [letter for token in self.tokens for letter in token]


@dataclass(eq=False)
class Contraction:
    """The common index space after a contraction: letters, their sizes, the families over them."""

    letters: list[str]
    sizes: dict[str, int]
    families: list[Family] = field(default_factory=list)

    def extent(self, letter: str) -> Extent | int:
        """Return the width of a letter."""
        shape = [self.sizes[name] for name in self.letters]
        return extent(shape, self.families, self.letters.index(letter))


def spell(tokens: Sequence[Token], rank: int) -> tuple[Token, ...]:
    """Name each of ``rank`` dimensions: ``...`` becomes letters counted from the right, ``*`` no letter.

    >>> spell([("...",), ("i",)], 3)
    (('...1',), ('...0',), ('i',))
    """
    return _spell(tuple(tokens), rank)


@lru_cache(maxsize=4096)
def _spell(tokens: tuple[Token, ...], rank: int) -> tuple[Token, ...]:
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


def measure(operands: Sequence[Operand], known: Mapping[str, int]) -> dict[str, int]:
    """Return the size of every letter, given those inside products that can't be read off a shape."""
    sizes = dict(known)
    for operand in operands:
        for token, size in zip(operand.tokens, operand.value.shape):
            if len(token) == 1:
                sizes[token[0]] = max(size, sizes.get(token[0], 1))
    for operand in operands:
        for token, size in zip(operand.tokens, operand.value.shape):
            missing = [letter for letter in token if letter not in sizes]
            if len(missing) == 1:
                sizes[missing[0]] = size // math.prod(sizes[letter] for letter in token if letter in sizes)
    return sizes


def contract(
    space: Space,
    notation: Notation,
    operands: Sequence[Operand],
    known: Mapping[str, int],
    rank: int,
) -> tuple[list[Family], Contraction]:
    """Let the operands meet and return the families of the output, of the given rank."""
    sizes = measure(operands, known)
    letters = list(dict.fromkeys(letter for operand in operands for letter in operand.letters()))
    common = Contraction(letters, sizes)
    ordered = sorted(operands, key=lambda operand: len(operand.value.unbound))
    reached: set[str] = set()
    frames = []
    for operand in ordered:
        frames.append(_frame(space, operand, common, reached, spell(notation.output, rank)))
        reached |= {t for token, s in zip(operand.tokens, operand.value.shape) if s > 1 for t in token if sizes[t] > 1}
    common.families = meet(space, frames)
    for operand, frame in zip(ordered, frames):
        _write_back(space, operand, frame, common)
    output = spell(notation.output, rank)
    kept = [letters.index(letter) for token in output for letter in token]
    left = [f for family in common.families if (f := project(space, family, kept)) is not None]
    families = [moved for family in distinct(left) for moved in _to_dims(space, family, output, common)]
    return fuse(space, families), common


def _frame(space: Space, operand: Operand, common: Contraction, reached: set[str], output: Sequence[Token]) -> Frame:
    """Put one operand into the common index space."""
    value, tokens, sizes = operand.value, operand.tokens, common.sizes
    families = []
    for dim, token in enumerate(tokens):
        if not token and dim in value.unbound:
            value.unbound.discard(dim)
        elif not token:
            make_solid(space, value, dim, "kernel taps and pixels stay")
        elif dim in value.unbound and not {t for t in token if sizes[t] > 1} <= reached:
            whole = _product_with(token, operand, output, sizes)
            if whole:
                families.append(_fresh_over(space, whole, common))
            else:
                bind_leaf(space, value, [dim])
    named = [dim for dim, token in enumerate(tokens) if token]
    present = {t for dim in named if value.shape[dim] > 1 for t in tokens[dim]}
    for family in value.families:
        left = project(space, family, named)
        if left is not None:
            families.extend(_to_letters(space, left, tokens, common))
    taken = {d for family in families for d in family.dims}
    unbound = {common.letters.index(t) for dim in value.unbound for t in tokens[dim] if sizes[t] > 1} - taken
    shape = tuple(sizes[t] if t in present else 1 for t in common.letters)
    return Frame(shape, families, unbound, operand.because)


def _product_with(token: Token, operand: Operand, output: Sequence[Token], sizes: Mapping[str, int]) -> Token:
    """Return the output's product of letters that a new dimension is part of, if the operand has all of them.

    The outputs of a grouped transposed convolution, ``weight[(g i) o] -> (g o)``, are then labelled group by group.
    """
    for product in output:
        if len(token) == 1 and token[0] in product and set(product) <= set(operand.letters()):
            return product if sum(sizes[t] > 1 for t in product) > 1 else ()
    return ()


def _fresh_over(space: Space, letters: Token, common: Contraction) -> Family:
    shape = [common.sizes[t] if t in letters else 1 for t in common.letters]
    return build(space, space.fresh(*shape))[0]


def _write_back(space: Space, operand: Operand, frame: Frame, common: Contraction) -> None:
    """Store what a parameter took over from the operands that it met."""
    value = operand.value
    if not value.unbound:
        return
    value.unbound.clear()
    old = {f.dims for f in value.families}
    taken = [f for family in frame.families for f in _to_dims(space, family, operand.tokens, common)]
    value.families.extend(fuse(space, [f for f in taken if f.dims not in old]))


def _to_letters(space: Space, family: Family, tokens: Sequence[Token], common: Contraction) -> list[Family]:
    """Move a family from an operand's dimensions to the common index space."""
    if len(family.dims) == 1:
        wide = [t for t in tokens[family.dims[0]] if common.sizes[t] > 1]
        if len(wide) == 1:
            return [_along(family, len(common.letters), common.letters.index(wide[0]))]

    def run(labels: Tensor) -> Tensor:
        shape = [s for dim, token in enumerate(tokens) for s in _factors(labels.size(dim), token, common)]
        names = [t for token in tokens for t in token or ("",)]
        split = labels.reshape(shape)
        solid = [i for i, name in enumerate(names) if not name]
        for i in reversed(solid):
            split = split.squeeze(i)
        present = [name for name in names if name]
        split = split.permute([present.index(t) for t in common.letters if t in present])
        for i, letter in enumerate(common.letters):
            if letter not in present:
                split = split.unsqueeze(i)
        return split

    parents = [Family(run(p.labels)) for p in family.parents]
    return build(space, run(family.labels), parents)


def _along(family: Family, rank: int, dim: int) -> Family:
    """Put a family over one dimension along another one; most are of this kind."""
    return Family(family.labels.reshape([-1 if i == dim else 1 for i in range(rank)]))


def _factors(size: int, token: Token, common: Contraction) -> list[int]:
    if size == 1:
        return [1] * max(1, len(token))
    return [common.sizes[t] for t in token] if len(token) > 1 else [size]


def _to_dims(space: Space, family: Family, tokens: Sequence[Token], common: Contraction) -> list[Family]:
    """Move a family from the common index space to the dimensions of an operand or of the output."""
    if len(family.dims) == 1:
        letter = common.letters[family.dims[0]]
        dim, token = next((i, token) for i, token in enumerate(tokens) if letter in token)
        if all(common.sizes[t] == 1 for t in token if t != letter):
            return [_along(family, len(tokens), dim)]
    order = [common.letters.index(t) for token in tokens for t in token]
    rest = [i for i in range(len(common.letters)) if i not in order]

    def run(labels: Tensor) -> Tensor:
        labels = labels.permute(*order, *rest)
        for _ in rest:
            labels = labels.squeeze(-1)
        full, shape, at = [], [], 0
        for token in tokens:
            sizes = list(labels.shape[at : at + len(token)])
            at += len(token)
            if len(token) > 1 and max(sizes) > 1:
                sizes = [common.sizes[t] for t in token]
            full.extend(sizes)
            shape.append(math.prod(sizes))
        return labels.expand(full).reshape(shape)

    parents = [Family(run(p.labels)) for p in family.parents]
    return build(space, run(family.labels), parents)
