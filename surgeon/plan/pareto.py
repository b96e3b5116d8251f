"""The trade between a cost and what a cut loses, as nested plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.errors import BudgetError, SurgeonError
from surgeon.plan.make import plan
from surgeon.plan.plan import Plan

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph


@dataclass(frozen=True)
class Pareto:
    """Nested plans, the mildest first, each with the least loss found for its budget.

    resource  what the budgets are about: "flops", "params" or "memory"

    Examples
    --------
    >>> curve = surgeon.pareto(graph, scores, params=(0.5, 0.9), points=3)
    >>> for left, loss, plan in zip(curve.left, curve.losses, curve.plans):
    ...     print(f"{left:.0%} left, loss {loss:.3f}", plan)
    """

    resource: str
    plans: tuple[Plan, ...]

    @property
    def left(self) -> tuple[float, ...]:
        """The share of the cost that each plan leaves."""
        return tuple(after / before for before, after in (p.totals[self.resource] for p in self.plans))

    @property
    def losses(self) -> tuple[float, ...]:
        """The predicted loss of each plan: summed normalised importance, or that of the curves that were given."""
        return tuple(float(p.loss or 0.0) for p in self.plans)

    def __str__(self) -> str:
        rows = [f"{self.resource:>8} left      loss"]
        return "\n".join(rows + [f"{left:>13.1%}  {loss:8.4g}" for left, loss in zip(self.left, self.losses)])

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Draw the curve with matplotlib; returns the axes, and writes a picture where a path is given.

        Raises
        ------
        SurgeonError where matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise SurgeonError("plots need matplotlib: pip install 'channel-surgeon[plot]'") from error
        figure = Figure(layout="constrained")
        axes = figure.add_subplot()
        axes.plot(self.left, self.losses, marker="o")
        axes.set_xlabel(f"{self.resource} left, share of the original")
        axes.set_ylabel("predicted loss")
        axes.grid(alpha=0.3)
        if path is not None:
            figure.savefig(path)
        return axes


def pareto(graph: DependencyGraph, scores: Mapping[str, Any], *, points: int = 15, **options: Any) -> Pareto:
    """Return nested plans between two budgets, and the curve of what they lose.

    Parameters
    ----------
    points : how many plans, evenly between the two budgets, both included
    options : ``flops``, ``params`` or ``memory``, one of them as a pair ``(0.2, 0.9)`` of what may remain at the ends;
        the others hold for all plans; and what else ``plan`` takes

    Raises
    ------
    BudgetError, InfeasibleBudget and what else ``plan`` raises.

    Examples
    --------
    >>> curve = surgeon.pareto(graph, scores, flops=(0.2, 0.9), points=15)
    >>> curve.plot("curve.svg")
    """
    pairs = {name: value for name, value in options.items() if isinstance(value, (tuple, list)) and name != "groups"}
    if len(pairs) != 1:
        raise BudgetError("give one budget as a pair of what may remain at the ends, such as flops=(0.2, 0.9)")
    (resource, ends), *_ = pairs.items()
    numbers = len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    if not numbers or not 0 < min(ends) < max(ends):
        raise BudgetError(f"{resource}={ends!r} must be two different positive numbers, such as (0.2, 0.9)")
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise BudgetError(f"points={points!r} must be an integer of at least 2")
    budgets = [float(b) for b in np.linspace(max(ends), min(ends), points)]
    found = plan(graph, scores, **{**options, resource: budgets})
    assert isinstance(found, list)
    return Pareto(resource, tuple(found))
