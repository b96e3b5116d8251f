"""Parameters as calls are given them: whole, or a part that views and splits took out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from surgeon.calibrate.tape import Leaf, Player, Slot, Tape

# Calls that only say which positions of a tensor are meant, and in which order.
MOVES = frozenset(
    """
view reshape permute transpose swapaxes swapdims movedim moveaxis t T mT flatten unflatten squeeze unsqueeze chunk split
split_with_sizes tensor_split unbind getitem select narrow contiguous clone detach data identity
""".split()
)


@dataclass(frozen=True, eq=False)
class Operand:
    """What a call is given of a parameter.

    leaf     name of the parameter
    at       flat positions in it, in the shape that the call sees; None for the parameter as it is
    through  the calls that take them out
    sources  what those calls take and, last, what the call itself is given
    """

    leaf: str
    at: Tensor | None = None
    through: tuple[int, ...] = ()
    sources: tuple[Slot, ...] = ()

    def __str__(self) -> str:
        if self.at is None:
            return self.leaf
        first, last = int(self.at.min()), int(self.at.max())
        return f"{self.leaf}[{first}:{last + 1}]"

    def read(self, leaves: Mapping[str, Tensor]) -> Tensor:
        """Return its values."""
        leaf = leaves[self.leaf].detach()
        return leaf if self.at is None else leaf.reshape(-1)[self.at.to(leaf.device)]

    def write(self, leaves: Mapping[str, Tensor], value: Tensor) -> None:
        """Set its values in the parameter, in place."""
        leaf = leaves[self.leaf].data
        leaf.copy_(self.within(leaf, value))

    def within(self, leaf: Tensor, value: Tensor) -> Tensor:
        """Return a parameter with these values in place of its own."""
        if self.at is None:  # in the parameter's own layout: that of results follows, and views depend on it
            return torch.empty_like(leaf).copy_(value.reshape(leaf.shape))
        flat = leaf.detach().clone().reshape(-1)
        flat[self.at.to(leaf.device).reshape(-1)] = value.to(leaf).reshape(-1)
        return flat.view(leaf.shape)

    def turned(self, leaves: Mapping[str, Tensor]) -> Operand:
        """Return a matrix with its dimensions exchanged."""
        at = torch.arange(leaves[self.leaf].numel()).view(leaves[self.leaf].shape) if self.at is None else self.at
        return replace(self, at=at.mT)

    def same(self, other: Operand) -> bool:
        """Tell whether two operands are the same positions of one parameter, in the same order."""
        if self.leaf != other.leaf or self.at is None or other.at is None:
            return self.leaf == other.leaf and self.at is other.at
        return torch.equal(self.at, other.at)

    def overlaps(self, other: Operand) -> bool:
        """Tell whether two operands have positions of one parameter in common."""
        if self.leaf != other.leaf or self.at is None or other.at is None:
            return self.leaf == other.leaf
        return bool(torch.isin(self.at.flatten(), other.at.flatten()).any())


class Operands:
    """Finds what calls of a tape are given of parameters."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.makers: dict[Slot, list[int]] = {}
        for at, step in enumerate(tape.steps):
            for slot in step.written:
                self.makers.setdefault(slot, []).append(at)

    def __str__(self) -> str:
        return f"Operands of {self.tape}"

    def find(self, value: Any) -> Operand | None:
        """Return which parameter an argument comes from, if it comes from one through nothing but movements."""
        if isinstance(value, Leaf):
            return Operand(value.name)
        chain: list[int] = []
        sources: list[Slot] = []
        source = value
        while isinstance(source, Slot):
            made = self.makers.get(source, [])
            step = self.tape.steps[made[0]] if len(made) == 1 else None
            if step is None or step.name not in MOVES or len((*step.inputs, *step.leaves)) != 1:
                return None
            chain.insert(0, made[0])
            sources.insert(0, source)
            source = (*step.inputs, *step.leaves)[0]
        if not isinstance(source, Leaf):
            return None
        leaf = self.tape.leaves[source.name]
        places = torch.arange(leaf.numel(), device=leaf.device).view(leaf.shape)
        part = Tape([self.tape.steps[at] for at in chain], {}, (value,), {source.name: places}, {})
        return Operand(source.name, Player(part).finish()[0].cpu(), tuple(chain), tuple(sources))
