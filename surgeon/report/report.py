"""The report: what a model was, what became of it, and how it is shown."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console

from surgeon.plan.plan import Plan
from surgeon.report.document import document, read, written
from surgeon.report.html import table, to_html
from surgeon.report.plot import plot
from surgeon.report.records import Environment, GroupRow, Latency, LayerRow, Totals
from surgeon.report.shares import Share, shares
from surgeon.report.text import LAYERS, WIDTH, plain, rendered
from surgeon.report.tracking import log, metrics
from surgeon.verify.verify import Proof

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType


@dataclass(frozen=True)
class Report:
    """Before and after.

    ``compression_ratio`` is original / new parameters and ``theoretical_speedup`` original / new multiply-adds,
    each also by non-zero weights (Blalock et al., 2020, "What is the State of Neural Network Pruning?").

    before, after  sums over the model
    layers         a row per layer that owns parameters
    model          name of the model's class
    counter        what counted the FLOPs
    uncounted      operators that it does not count
    note           why nothing was counted, if so
    out_of_reach   reason -> share of the multiply-adds that no cut makes cheaper
    groups, pins   coupled groups and what was cut of them, and group -> why it stays; empty without a plan
    plan, proof    what made the small model, and what was checked, where they were given
    latency        what was measured, where that was asked for
    environment    where the report was made
    anatomy        what pictures of the graph need, beside the report; no part of its equality or its JSON
    """

    before: Totals
    after: Totals
    layers: tuple[LayerRow, ...]
    counter: str = "fvcore (one FLOP is one multiply-add)"
    uncounted: tuple[str, ...] = ()
    note: str = ""
    out_of_reach: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    groups: tuple[GroupRow, ...] = ()
    pins: Mapping[str, str] = field(default_factory=dict)
    plan: Plan | None = None
    proof: Proof | None = None
    latency: Latency | None = None
    environment: Environment | None = None
    anatomy: Any = field(default=None, compare=False, repr=False)

    @property
    def compression_ratio(self) -> float:
        return _ratio(self.before.params, self.after.params)

    @property
    def theoretical_speedup(self) -> float:
        return _ratio(self.before.flops, self.after.flops)

    @property
    def nonzero_compression_ratio(self) -> float:
        return _ratio(self.before.params, self.after.nonzero_params)

    @property
    def nonzero_theoretical_speedup(self) -> float:
        return _ratio(self.before.flops, self.after.nonzero_flops)

    def document(self, plan: bool = True) -> dict[str, Any]:
        """Return the report as plain data, as ``to_json`` writes it, with or without the plan."""
        return document(self, plan)

    def to_json(self) -> str:
        """Write the report, with its plan, as JSON: see docs/report-format.md."""
        return written(self)

    @staticmethod
    def from_json(text: str | bytes) -> Report:
        """Read a report that ``to_json`` wrote; raises SurgeonError for anything else."""
        return Report(**read(text))

    def to_html(self, path: str | os.PathLike[str], *, pareto: Any = None, sensitivity: Any = None) -> None:
        """Write the report as one HTML file that needs no network: see docs/report-page.md.

        Parameters
        ----------
        pareto : a ``Pareto``, to show the trade between budgets and losses
        sensitivity : a ``Sensitivity``, to show what each group costs alone

        Raises
        ------
        FileError where the file can't be written.

        Examples
        --------
        >>> surgeon.prune(model, x, flops=0.5).report.to_html("report.html")
        """
        to_html(self, path, pareto, sensitivity)

    def _repr_html_(self) -> str:
        return table(self)

    def text(self, *, layers: int | None = LAYERS, width: int = WIDTH, ascii_only: bool | None = None) -> str:
        """Return what a terminal shows, without colours.

        Parameters
        ----------
        layers : rows of layers at most, the largest ones, and half as many groups; None for all
        width : cells per line
        ascii_only : without arrows and blocks; by default where standard output can't show them

        Examples
        --------
        >>> print(result.report.text(layers=None, width=120))
        """
        return plain(self, width, layers, ascii_only)

    def shares(self, *patterns: str, kind: str | None = None, after: bool = False) -> dict[str, Share]:
        """Return each layer's part in the multiply-adds and the parameters of some layers, together 1 of each.

        Parameters
        ----------
        patterns : names or globs of layers, all by default
        kind : class of layers, such as "Conv2d"
        after : of the small model, not of the original

        Raises
        ------
        UnknownLayer for a pattern, SurgeonError for a class that there is not.

        Examples
        --------
        >>> last = list(report.shares(kind="Conv2d").values())[-3:]
        >>> sum(share.params for share in last), sum(share.flops for share in last)
        """
        return shares(self, patterns, kind, after)

    def metrics(self) -> dict[str, float]:
        """Return what the report says in numbers, flat: ``{"surgeon/flops_before": 4.1e9, ...}``.

        FLOPs are multiply-adds, ``memory`` and ``bytes`` are bytes, ``latency`` is seconds. What is not known is left
        out.
        """
        return metrics(self)

    def log(self, target: Any, step: int | None = None) -> None:
        """Give metrics, report and plan to an experiment tracker: see docs/tracking.md.

        Parameters
        ----------
        target : the module ``mlflow``, a TensorBoard ``SummaryWriter``, a run of Weights & Biases, or anything with
            ``log_metrics(metrics, step)`` and ``log_artifact(path)``
        step : where on the tracker's axis

        Raises
        ------
        SurgeonError for a target that is no tracker.

        Examples
        --------
        >>> result.report.log(mlflow)
        >>> result.report.log(SummaryWriter("runs/pruned"), step=10)
        """
        log(self, target, step)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw FLOPs, parameters and widths per layer, before and after, and where both sit; return the figure.

        Parameters
        ----------
        path : where to write a picture, such as "report.svg"

        Raises
        ------
        SurgeonError where matplotlib is missing.

        Examples
        --------
        >>> result.report.plot("report.png")
        """
        return plot(self, path)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield from rendered(self, console, options)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"Report({self.model}: {self.before} -> {self.after})"


def _ratio(old: float, new: float) -> float:
    return old / new if new else math.inf
