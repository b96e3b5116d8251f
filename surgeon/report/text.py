"""A report on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from surgeon.report.report import Report


def rendered(report: Report, options: Any) -> Iterator[Any]:
    """Yield what rich prints."""
    yield _layer_table(report)
    yield _total_table(report)
    if report.uncounted:
        yield f"Not counted by fvcore: {', '.join(report.uncounted)}"
    if report.out_of_reach:
        yield _reach(report.out_of_reach)
    if report.note:
        yield report.note


def _layer_table(report: Report) -> Table:
    table = Table(title="Layers", title_justify="left", header_style="bold", pad_edge=False)
    table.add_column("layer", overflow="fold")
    for heading in ("weight", "FLOPs", "parameters", "cut"):
        table.add_column(heading, justify="right")
    for row in report.layers:
        if row.share_cut > 0 or row.flops[0] != row.flops[1]:
            table.add_row(
                row.name,
                _arrow(_shape(row.shape[0]), _shape(row.shape[1])),
                _arrow(*map(_short, row.flops)),
                _arrow(*map(_short, row.params)),
                f"{row.share_cut:.0%}",
            )
    same = sum(row.share_cut <= 0 and row.flops[0] == row.flops[1] for row in report.layers)
    table.caption = f"{same} layer{'s' * (same > 1)} as before" if same else None
    return table


def _total_table(report: Report) -> Table:
    table = Table(title="Totals", title_justify="left", header_style="bold", pad_edge=False)
    for heading in ("", "before", "after", "left", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = (
        ("FLOPs (multiply-adds)", report.before.flops, report.after.flops, "theoretical speed-up"),
        ("parameters", report.before.params, report.after.params, "compression ratio"),
        ("bytes of weights", report.before.bytes, report.after.bytes, ""),
        ("FLOPs, non-zero weights", report.before.nonzero_flops, report.after.nonzero_flops, ""),
        ("parameters, non-zero", report.before.nonzero_params, report.after.nonzero_params, ""),
    )
    for name, old, new, what in rows:
        share = f"{new / old:.1%}" if old else "-"
        table.add_row(name, _short(old), _short(new), share, f"{_ratio(old, new):.2f}x {what}".strip())
    return table


def _reach(shares: Mapping[str, float], most: int = 5) -> str:
    """Say what could not be cut: the largest shares with their reasons."""
    lines = [f"Out of reach: {sum(shares.values()):.1%} of the FLOPs"]
    lines += [f"  {share:.1%}  {reason}" for reason, share in list(shares.items())[:most]]
    return "\n".join(lines + ([f"  and {len(shares) - most} more reasons, in the plan"] if len(shares) > most else []))


def _ratio(old: float, new: float) -> float:
    return old / new if new else math.inf


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _arrow(old: str, new: str) -> str:
    return old if old == new else f"{old} -> {new}"


def _short(value: float) -> str:
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"
