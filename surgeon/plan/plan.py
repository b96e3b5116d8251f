"""The plan: what goes, what stays, what it will cost. Plain data, no torch, JSON in and out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from surgeon.errors import PlanMismatch
from surgeon.plan.runs import decode, encode

VERSION = 1


@dataclass(frozen=True, eq=False)
class Selection:
    """Positions that stay along some dimensions of a tensor: indices into those dimensions, flattened."""

    dims: tuple[int, ...]
    of: int
    keep: np.ndarray

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Selection):
            return NotImplemented
        return self.dims == other.dims and self.of == other.of and np.array_equal(self.keep, other.keep)

    __hash__ = None  # type: ignore[assignment]

    def to_json(self) -> dict[str, Any]:
        return {"dims": list(self.dims), "of": self.of, "keep": encode(self.keep)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Selection:
        return Selection(tuple(data["dims"]), int(data["of"]), decode(data["keep"], int(data["of"])))


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

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Cut:
        selections = tuple(Selection.from_json(s) for s in data["keep"])
        return Cut(tuple(data["shape"]), tuple(data["new_shape"]), selections)


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


@dataclass(frozen=True)
class GroupCut:
    """How many units of a group go."""

    name: str
    size: int
    removed: int
    layers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.size} -> {self.size - self.removed}"


@dataclass(frozen=True)
class Masked:
    """A call that sums or normalises along cut positions: the masked reference leaves them out there.

    ``call`` counts the torch-level calls of the forward pass, ``position`` the tensors among its arguments.
    """

    call: int
    op: str
    position: int
    selection: Selection


@dataclass(frozen=True, eq=False)
class Scale:
    """Positions of a parameter along one dimension that are multiplied by a factor before the cut."""

    parameter: str
    dim: int
    of: int
    positions: np.ndarray
    factor: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scale) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"{self.parameter} dim {self.dim}: {len(self.positions)} of {self.of} positions times {self.factor:.6g}"

    def to_json(self) -> dict[str, Any]:
        return {
            "parameter": self.parameter,
            "dim": self.dim,
            "of": self.of,
            "positions": encode(self.positions),
            "factor": self.factor,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Scale:
        of = int(data["of"])
        return Scale(data["parameter"], int(data["dim"]), of, decode(data["positions"], of), float(data["factor"]))


@dataclass(frozen=True)
class LayerCost:
    """Multiply-adds and parameters of a layer before and after."""

    flops: tuple[float, float]
    params: tuple[float, float]


def above(loss: float, bound: float) -> float:
    """Return how far a loss is above a bound, relative to the bound."""
    return (loss - bound) / bound if bound > 0 else 0.0 if loss - bound <= 1e-12 else math.inf


@dataclass(frozen=True)
class Plan:
    """What goes from one architecture, what stays, and what that will cost.

    cuts         parameter or buffer -> what stays, for those that shrink
    fingerprint  parameter or buffer -> shape, for all
    edits        integer attributes to set
    groups       units removed per group
    pins         group -> why it can't be cut
    cost         layer -> predicted multiply-adds and parameters before and after
    totals       "flops" and "params" -> predicted (before, after)
    settings     the budget and options it was made with
    masked       statistics over cut positions, for the proof
    scales       factors that make up for a root of a width, in attention
    out_of_reach share of the multiply-adds that no cut makes cheaper, by reason
    loss         summed normalised importance that goes
    bound        what every choice of widths under the budgets loses at least; of nested plans, every one that removes
                 what the plan before removes
    """

    cuts: Mapping[str, Cut]
    fingerprint: Mapping[str, tuple[int, ...]]
    edits: tuple[Edit, ...]
    groups: tuple[GroupCut, ...]
    pins: Mapping[str, str]
    cost: Mapping[str, LayerCost]
    totals: Mapping[str, tuple[float, float]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    masked: tuple[Masked, ...] = ()
    scales: tuple[Scale, ...] = ()
    out_of_reach: Mapping[str, float] = field(default_factory=dict)
    loss: float | None = None
    bound: float | None = None

    @property
    def method(self) -> str:
        """The method of the model that was traced."""
        return str(self.settings.get("method", "forward"))

    @property
    def gap(self) -> float | None:
        """How far the loss is above the bound, relative to the bound; None where nothing was to be chosen."""
        return None if self.loss is None or self.bound is None else above(self.loss, self.bound)

    def __str__(self) -> str:
        removed = sum(g.removed for g in self.groups)
        total = sum(g.size for g in self.groups)
        (f0, f1), (p0, p1) = self.totals["flops"], self.totals["params"]
        return (
            f"Plan({removed} of {total} units, FLOPs {f0:.4g} -> {f1:.4g} multiply-adds ({f1 / max(f0, 1):.1%}), "
            f"parameters {p0:.4g} -> {p1:.4g} ({p1 / max(p0, 1):.1%})"
            + (f", loss at most {self.gap:.2%} above the least possible" if self.gap is not None else "")
            + ")"
        )

    __repr__ = __str__

    def to_json(self) -> str:
        """Write the plan as canonical JSON: the same plan gives the same bytes."""
        data = {
            "format": "surgeon-plan",
            "version": VERSION,
            "settings": dict(self.settings),
            "totals": {k: list(v) for k, v in self.totals.items()},
            "groups": [
                {"name": g.name, "size": g.size, "removed": g.removed, "layers": list(g.layers)} for g in self.groups
            ],
            "pins": dict(self.pins),
            "attributes": [vars(e) for e in self.edits],
            "cost": {name: {"flops": list(c.flops), "params": list(c.params)} for name, c in self.cost.items()},
            "cuts": {name: cut.to_json() for name, cut in self.cuts.items()},
            "masked": [
                {"call": m.call, "op": m.op, "position": m.position, **m.selection.to_json()} for m in self.masked
            ],
            "out_of_reach": dict(self.out_of_reach),
            "scales": [scale.to_json() for scale in self.scales],
            "loss": self.loss,
            "bound": self.bound,
            "fingerprint": {name: list(shape) for name, shape in self.fingerprint.items()},
        }
        return json.dumps(data, indent=1, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan; raises PlanMismatch for anything malformed."""
        try:
            return _read(json.loads(text))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanMismatch(
                f"not a plan that this version of surgeon can read: {type(error).__name__}: {error}"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file."""
        Path(path).write_text(self.to_json())

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan from a JSON file."""
        return Plan.from_json(Path(path).read_text())


def _read(data: Mapping[str, Any]) -> Plan:
    if data.get("format") != "surgeon-plan" or data.get("version") != VERSION:
        raise PlanMismatch(
            f"expected a surgeon plan of version {VERSION}, got {data.get('format')!r} {data.get('version')!r}"
        )
    cuts = {name: Cut.from_json(cut) for name, cut in data["cuts"].items()}
    for name, cut in cuts.items():
        _check_cut(name, cut)
    scales = tuple(Scale.from_json(scale) for scale in data["scales"])
    for scale in scales:
        _check_scale(scale, cuts)
    return Plan(
        cuts=cuts,
        fingerprint={name: tuple(shape) for name, shape in data["fingerprint"].items()},
        edits=tuple(Edit(**e) for e in data["attributes"]),
        groups=tuple(GroupCut(g["name"], g["size"], g["removed"], tuple(g["layers"])) for g in data["groups"]),
        pins=data["pins"],
        cost={n: LayerCost(tuple(c["flops"]), tuple(c["params"])) for n, c in data["cost"].items()},
        totals={k: tuple(v) for k, v in data["totals"].items()},
        settings=data["settings"],
        masked=tuple(Masked(m["call"], m["op"], m["position"], Selection.from_json(m)) for m in data["masked"]),
        scales=scales,
        out_of_reach=data["out_of_reach"],
        loss=data["loss"],
        bound=data["bound"],
    )


def _check_scale(scale: Scale, cuts: Mapping[str, Cut]) -> None:
    shape = cuts[scale.parameter].shape if scale.parameter in cuts else ()
    if not 0 <= scale.dim < len(shape) or shape[scale.dim] != scale.of or not 0 < scale.factor < math.inf:
        raise PlanMismatch(f"{scale.parameter}: no factor {scale.factor} along dim {scale.dim} of {list(shape)}")


def _check_cut(name: str, cut: Cut) -> None:
    """Refuse selections that don't fit the shapes they are for."""
    if len(cut.shape) != len(cut.new_shape) or any(not 0 < n <= o for n, o in zip(cut.new_shape, cut.shape)):
        raise PlanMismatch(f"{name}: shape {list(cut.shape)} can't become {list(cut.new_shape)}")
    for s in cut.selections:
        if not s.dims or any(not 0 <= d < len(cut.shape) for d in s.dims) or list(s.dims) != sorted(set(s.dims)):
            raise PlanMismatch(f"{name}: dimensions {list(s.dims)} are not dimensions of {list(cut.shape)}")
        if s.of != math.prod(cut.shape[d] for d in s.dims):
            raise PlanMismatch(f"{name}: {s.of} positions along {list(s.dims)} of {list(cut.shape)}")
