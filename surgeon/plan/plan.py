"""The plan: what goes, what stays, what it will cost. Plain data, no torch, JSON in and out."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgeon.files.atomic import explained, write_text
from surgeon.plan.compose import composed
from surgeon.plan.diff import Difference, difference
from surgeon.plan.document import VERSION, fields, written
from surgeon.plan.records import Cut, Edit, GroupCut, LayerCost, Masked, Scale, Selection, plain
from surgeon.plan.summary import summarised


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
    tied         other names of tied parameters -> the name in the fingerprint
    transient    buffers that a state dict does not hold

    Examples
    --------
    >>> plan = surgeon.prune(model, x, flops=0.7).plan
    >>> plan.save("net.plan.json")
    >>> small = surgeon.operate(model, surgeon.Plan.load("net.plan.json"))
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
    tied: Mapping[str, str] = field(default_factory=dict)
    transient: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", plain(self.settings))  # a plan that is read again is equal

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

    def summary(self) -> str:
        """Return what goes from each group, what that costs, and what stays and why, as text of some lines.

        Examples
        --------
        >>> print(plan.summary())
        """
        return summarised(self)

    def diff(self, other: Plan) -> Difference:
        """Return where another plan differs; false where it does not, and printable.

        Examples
        --------
        >>> print(plan.diff(surgeon.Plan.load("reviewed.plan.json")))
        """
        return difference(self, other)

    def then(self, second: Plan) -> Plan:
        """Return one plan for the original that does what this one and then a second one do.

        Parameters
        ----------
        second : a plan for the model that this plan makes

        Raises
        ------
        PlanMismatch when the second plan is for another model, or its result has no single cut.

        Examples
        --------
        >>> first = surgeon.prune(model, x, flops=0.7)
        >>> second = surgeon.prune(first.model, x, flops=0.7)
        >>> surgeon.operate(model, first.plan.then(second.plan))
        """
        return Plan(**composed(self, second))

    def to_json(self, compact: bool = False) -> str:
        """Write the plan as canonical JSON: the same plan gives the same bytes. See docs/plan-format.md.

        Parameters
        ----------
        compact : a single line without spaces, in place of one line per tensor
        """
        return written(self, compact)

    @staticmethod
    def from_json(text: str | bytes) -> Plan:
        """Read a plan; raises PlanMismatch for anything malformed."""
        return Plan(**fields(text))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a JSON file, whole or not at all; raises FileError where that fails."""
        write_text(path, self.to_json())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan from a JSON file; raises PlanMismatch for anything malformed, FileError for no file."""
        with explained(path):
            text = Path(path).read_bytes()
        return Plan.from_json(text)


__all__ = ["VERSION", "Cut", "Edit", "GroupCut", "LayerCost", "Masked", "Plan", "Scale", "Selection"]
