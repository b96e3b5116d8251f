"""What hangs together in a model, as plain data: what a report draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Histogram:
    """Scores of the units of a group, counted between ``edges [bins + 1]``: those that stay and those that go [bins].

    cut  a score between the two, where every unit that goes scores below every unit that stays; None where rows lose
         their own weakest, or nothing goes
    """

    edges: tuple[float, ...]
    stay: tuple[int, ...]
    go: tuple[int, ...]
    cut: float | None

    def __str__(self) -> str:
        line = "" if self.cut is None else f", cut at {self.cut:.4g}"
        return f"{sum(self.stay)} stay, {sum(self.go)} go, scores {self.edges[0]:.4g} to {self.edges[-1]:.4g}{line}"


@dataclass(frozen=True)
class Member:
    """Dimensions of a parameter that a group is cut from, and how its layer sees them.

    side  "out" where they are what the layer makes, "in" where they are what it reads, "both", or "" for neither, as
          in a norm
    """

    parameter: str
    dims: tuple[int, ...]
    side: str

    def __str__(self) -> str:
        return f"{self.parameter} dim {', '.join(map(str, self.dims))}"


@dataclass(frozen=True)
class Coupling:
    """A group: what is cut together, why, and how much of it went.

    size    removal steps, of which ``removed`` went
    units   units, ``gone`` of which went; more than steps where there are rows
    rows    sets of units that lose equally many
    pinned  why nothing may go, empty where something may
    ties    the calls that tied the members together, each with module and source line
    """

    name: str
    size: int
    removed: int
    units: int
    gone: int
    rows: int
    members: tuple[Member, ...]
    pinned: str = ""
    ties: tuple[str, ...] = ()
    scores: Histogram | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.pinned or f'{self.size} -> {self.size - self.removed}'}"


@dataclass(frozen=True)
class LayerPart:
    """A layer that owns parameters: its first call, the groups that it is part of, and its width.

    groups  names; the first is the one of what the layer makes
    width   channels that it makes, before and after; None where its parameters have no such dimension
    """

    name: str
    op: str
    source: str
    parameters: tuple[str, ...]
    groups: tuple[str, ...]
    width: tuple[int, int] | None

    def __str__(self) -> str:
        return f"{self.op} in {self.name or 'the model'}"


@dataclass(frozen=True)
class Anatomy:
    """What hangs together in a model and what was cut of it.

    model   name of the model's class
    layers  in the order of their first calls
    edges   (from, to), numbers of layers: the second computes with what the first made
    groups  those that may be cut first
    ops     name of an op -> how often it was called
    """

    model: str
    layers: tuple[LayerPart, ...]
    edges: tuple[tuple[int, int], ...]
    groups: tuple[Coupling, ...]
    ops: Mapping[str, int]

    def __str__(self) -> str:
        calls = sum(self.ops.values())
        return f"{self.model}: {len(self.layers)} layers, {len(self.groups)} groups, {calls} calls"
