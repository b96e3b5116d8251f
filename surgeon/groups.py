"""Coupled groups: the units that may be cut, and the places in parameters that they are cut from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from surgeon.labels.family import Family
from surgeon.labels.flow import Flow
from surgeon.labels.space import Reason
from surgeon.labels.units import Block, Solution, incidence


@dataclass(frozen=True, eq=False)
class Pieces:
    """A tensor as slices that cover it, each with its values, which may be gone when the next comes."""

    shape: tuple[int, ...]
    pieces: Iterable[tuple[tuple[slice, ...], Tensor]]


@dataclass(frozen=True, eq=False)
class Place:
    """Where labels sit in a parameter: the classes of all positions along ``dims``, flattened."""

    parameter: str
    dims: tuple[int, ...]
    classes: np.ndarray
    sides: frozenset[str] = frozenset()

    @property
    def layer(self) -> str:
        return self.parameter.rpartition(".")[0]

    def __str__(self) -> str:
        return f"{self.parameter} dim {', '.join(map(str, self.dims))}"


@dataclass(frozen=True, eq=False)
class Group:
    """Units that are cut from the same places.

    units    ids of the units; one removal step takes one unit of each row of ``grid``
    grid     ``[rows][units]``: sets of units that have to lose equally many; one row where there is no grid
    size     number of removal steps, which is the number of units where there is no grid
    touched  per removal step, how many positions go from each counted width
    least    how many steps' worth has to stay
    """

    name: str
    size: int
    units: np.ndarray
    grid: tuple[np.ndarray, ...]
    members: tuple[Place, ...]
    touched: Mapping[int, int] = field(default_factory=dict)
    pinned: Reason | None = None
    least: int = 1

    @property
    def first_step(self) -> np.ndarray:
        """The units of one removal step: so many of each row."""
        return np.concatenate([row[: len(row) // self.size] for row in self.grid])

    def __str__(self) -> str:
        state = f"pinned: {self.pinned}" if self.pinned else f"{self.size} steps"
        rows = f" in {len(self.grid)} rows" if len(self.grid) > 1 else ""
        return f"{self.name}: {len(self.units)} units{rows}, {state}; {', '.join(map(str, self.members))}"


def first_steps(blocks: Sequence[Block], units: int) -> sparse.csr_matrix:
    """Return which units the first step of each block takes, ``[blocks, units]``."""
    taken = [np.concatenate([atom[: len(atom) // b.steps] for atom in b.atoms]) for b in blocks]
    return incidence(taken, units)


def pin(group: Group, reason: Reason) -> Group:
    return replace(group, pinned=reason)


def named(groups: Sequence[Group]) -> list[Group]:
    """Name groups by the layer whose outputs they are, with a number where that is ambiguous."""
    seen: dict[str, int] = {}
    found = []
    for g in groups:
        producers = [m for m in g.members if "out" in m.sides and m.dims[0] == 0] or list(g.members)
        base = producers[0].layer or producers[0].parameter
        seen[base] = seen.get(base, 0) + 1
        name = base if seen[base] == 1 else f"{base}#{seen[base]}"
        found.append(replace(g, name=name))
    return found


def locate(name: str, family: Family, flow: Flow, solution: Solution) -> Place:
    """Return where a family of a parameter sits."""
    sides = frozenset().union(*(flow.role.get((name, dim), set()) for dim in family.dims))
    return Place(name, family.dims, solution.of(family.labels), sides)


def sums(places: Sequence[Place], value: Tensor | Pieces) -> list[np.ndarray]:
    """Sum a tensor over everything but the dimensions of each place, flattened, in float64."""
    if isinstance(value, Tensor):
        return [total.reshape(-1) for total in _sums(places, value.detach())]
    totals = [np.zeros([value.shape[d] for d in place.dims]) for place in places]
    for where, piece in value.pieces:
        for place, total, part in zip(places, totals, _sums(places, piece)):
            total[tuple(where[d] for d in place.dims)] += part
    return [total.reshape(-1) for total in totals]


def _sums(places: Sequence[Place], value: Tensor) -> list[np.ndarray]:
    used = {d for place in places for d in place.dims}
    taps = [d for d in range(value.dim()) if d not in used]
    wide = torch.promote_types(value.dtype, torch.float32)  # what torch adds up in, whatever it returns
    if taps and value.numel() > max(1, prod(value.shape[d] for d in used)):
        value = value.sum(dim=taps, keepdim=True, dtype=wide)
    found = []
    for place in places:
        rest = [d for d in range(value.dim()) if d not in place.dims]
        along = value.sum(dim=rest, dtype=wide) if rest else value
        found.append(along.to("cpu", torch.float64, copy=True).numpy())
    return found
