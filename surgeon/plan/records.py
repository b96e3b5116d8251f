"""What a plan consists of: plain records, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from surgeon.plan.runs import Runs, runs_of


class Selection:
    """Positions that stay along some dimensions of a tensor: indices into those dimensions, flattened.

    dims  increasing
    of    how many positions there are
    keep  int64 ``[kept]``, increasing; those of a plan that was read are written out when they are first asked for
    """

    def __init__(self, dims: tuple[int, ...], of: int, keep: np.ndarray | Runs) -> None:
        self.dims, self.of, self._kept = dims, of, keep

    @cached_property
    def keep(self) -> np.ndarray:
        return self._kept.indices() if isinstance(self._kept, Runs) else self._kept

    @cached_property
    def runs(self) -> Runs:
        return self._kept if isinstance(self._kept, Runs) else runs_of(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Selection):
            return NotImplemented
        return (self.dims, self.of, str(self.runs)) == (other.dims, other.of, str(other.runs))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Selection({len(self)} of {self.of} along {list(self.dims)})"

    def to_json(self) -> dict[str, Any]:
        return {"dims": list(self.dims), "of": self.of, "keep": str(self.runs)}


@dataclass(frozen=True)
class Cut:
    """One parameter or buffer: its shape before and after, and what stays."""

    shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    selections: tuple[Selection, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "new_shape": list(self.new_shape),
            "keep": [s.to_json() for s in self.selections],
        }


@dataclass(frozen=True)
class Edit:
    """An integer attribute of a module, before and after: ``layer1.0.conv2.groups 32 -> 16``."""

    owner: str
    name: str
    index: int | None
    old: int
    new: int

    def __str__(self) -> str:
        item = "" if self.index is None else f"[{self.index}]"
        return f"{self.owner + '.' if self.owner else ''}{self.name}{item} {self.old} -> {self.new}"

    def to_json(self) -> dict[str, Any]:
        return {"owner": self.owner, "name": self.name, "index": self.index, "old": self.old, "new": self.new}


@dataclass(frozen=True)
class GroupCut:
    """How many units of a group go."""

    name: str
    size: int
    removed: int
    layers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.size} -> {self.size - self.removed}"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "size": self.size, "removed": self.removed, "layers": list(self.layers)}


@dataclass(frozen=True)
class Masked:
    """A call that sums or normalises along cut positions: the masked reference leaves them out there.

    ``call`` counts the torch-level calls of the forward pass, ``position`` the tensors among its arguments, and
    ``sizes`` are those of the selected dimensions.
    """

    call: int
    op: str
    position: int
    selection: Selection
    sizes: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        chosen = self.selection.to_json()
        return {
            "call": self.call,
            "op": self.op,
            "position": self.position,
            "dims": chosen["dims"],
            "sizes": list(self.sizes),
            "keep": chosen["keep"],
        }


class Scale:
    """Positions of a parameter along one dimension that are multiplied by a factor before the cut.

    positions  int64, increasing
    """

    def __init__(self, parameter: str, dim: int, of: int, positions: np.ndarray | Runs, factor: float) -> None:
        self.parameter, self.dim, self.of, self.factor = parameter, dim, of, factor
        self._at = Selection((dim,), of, positions)

    @property
    def positions(self) -> np.ndarray:
        return self._at.keep

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scale) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"{self.parameter} dim {self.dim}: {len(self._at)} of {self.of} positions times {self.factor:.6g}"

    __repr__ = __str__

    def to_json(self) -> dict[str, Any]:
        return {
            "parameter": self.parameter,
            "dim": self.dim,
            "of": self.of,
            "positions": str(self._at.runs),
            "factor": self.factor,
        }


@dataclass(frozen=True)
class LayerCost:
    """Multiply-adds and parameters of a layer before and after."""

    flops: tuple[float, float]
    params: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        return {"flops": [float(n) for n in self.flops], "params": [float(n) for n in self.params]}


def plain(value: Any) -> Any:
    """Return a setting as JSON knows it: numbers, texts, lists and objects; what is none of these as text."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and np.isfinite(value):
        return float(value)
    return str(value)
