"""A report as a picture, with matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from surgeon.drawing import plottable
from surgeon.marks import fitted, short

if TYPE_CHECKING:
    from surgeon.report.records import LayerRow
    from surgeon.report.report import Report

BEFORE, AFTER, OTHER = "#b8c4d0", "#1f6fb2", "#d9822b"
NAMED = 60  # more layers than this are numbered, since their names would lie on top of each other


def plot(report: Report, path: str | os.PathLike[str] | None) -> Any:
    """Draw what layers cost before and after, where parameters and multiply-adds sit, and widths; return the figure."""
    rows = [row for row in report.layers if len(row.shape[0]) > 1] or list(report.layers)
    figure = plottable()(figsize=(max(8.0, min(24.0, 2 + 0.24 * len(rows))), 12.5), layout="constrained")
    figure.suptitle(_title(report), fontsize=11)
    flops, params, parts, widths = figure.subplots(4, 1, sharex=True)
    _pairs(flops, [row.flops for row in rows], "FLOPs (multiply-adds)")
    _pairs(params, [row.params for row in rows], "parameters")
    _parts(parts, rows)
    _pairs(widths, [(row.shape[0][0], row.shape[1][0]) for row in rows if row.shape[0]], "width (filters)", plain=True)
    _names(widths, rows)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _title(report: Report) -> str:
    before, after = report.before, report.after
    cost = f"FLOPs {short(before.flops)} to {short(after.flops)}, parameters {short(before.params)} to "
    return f"{report.model or 'Model'}: {cost}{short(after.params)}"


def _pairs(axes: Any, pairs: Sequence[tuple[float, float]], label: str, plain: bool = False) -> None:
    """Draw what was, wide and light, and in front of it what is."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    at = range(len(pairs))
    axes.bar(at, [old for old, _ in pairs], width=0.86, color=BEFORE, label="before")
    axes.bar(at, [new for _, new in pairs], width=0.5, color=AFTER, label="after")
    axes.set_ylabel(label)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if plain else short(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.97), frameon=False, ncols=2, fontsize=8)


def _parts(axes: Any, rows: Sequence[LayerRow]) -> None:
    """Draw each layer's share of the original's multiply-adds and parameters side by side."""
    from matplotlib.ticker import PercentFormatter

    at = range(len(rows))
    for k, (what, colour, label) in enumerate((("flops", AFTER, "of FLOPs"), ("params", OTHER, "of parameters"))):
        values = [getattr(row, what)[0] for row in rows]
        total = sum(values) or 1
        axes.bar([i + 0.4 * k - 0.2 for i in at], [v / total for v in values], width=0.4, color=colour, label=label)
    axes.set_ylabel("share, before")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.97), frameon=False, ncols=2, fontsize=8)


def _names(axes: Any, rows: Sequence[LayerRow]) -> None:
    axes.set_xlim(-0.8, len(rows) - 0.2)
    if len(rows) > NAMED:
        axes.set_xlabel(f"{len(rows)} layers with weights, in the order of the model")
        return
    names = [fitted(row.name or "(the model itself)", 28) for row in rows]
    axes.set_xticks(range(len(rows)), names, rotation=90, fontsize=7, parse_math=False)
