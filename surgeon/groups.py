"""Coupled groups: the units that may be cut, and the places in parameters that they are cut from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import sparse

from surgeon.labels.family import Family
from surgeon.labels.flow import Flow
from surgeon.labels.space import Reason
from surgeon.labels.units import Block, Solution, incidence


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
