"""A report on a terminal: what became of layers and groups, what stays and why, totals, and the proof."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

from surgeon.marks import bar, fitted, milliseconds, share, short, sizes
from surgeon.report.records import GroupRow, LayerRow

if TYPE_CHECKING:
    from surgeon.report.report import Report

WIDTH = 80
# Rows of each part that are shown unless all are asked for.
LAYERS, GROUPS, REASONS = 20, 10, 6
FULL, QUIET = "cyan", "dim"
ITSELF = "(the model itself)"


def rendered(
    report: Report, console: Console, options: ConsoleOptions, rows: int | None = LAYERS
) -> Iterator[RenderableType]:
    """Yield what rich prints on a console."""
    yield from _Page(report, options.max_width, options.ascii_only or limited(console.file), rows).parts()


@dataclass(frozen=True)
class Whole:
    """A report that a console prints with all its rows."""

    report: Report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield from rendered(self.report, console, options, rows=None)


def plain(report: Report, width: int, layers: int | None, ascii_only: bool | None) -> str:
    """Return the report as text without colours."""
    ascii_only = limited(sys.stdout) if ascii_only is None else ascii_only
    # A file of its own: captured output would still ask whether standard output is a terminal.
    console = Console(file=io.StringIO(), width=width, color_system=None, force_jupyter=False, highlight=False)
    with console.capture() as captured:
        console.print(*_Page(report, width, ascii_only, layers).parts(), sep="\n")
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def limited(stream: Any) -> bool:
    """Tell whether a stream's encoding lacks the characters of bars and arrows."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        "█▏─→".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return True
    return False


class _Page:
    """A report laid out for a width, an encoding, and so many rows.

    Parameters
    ----------
    rows : rows of layers at most; None for all rows of every part
    """

    def __init__(self, report: Report, width: int, ascii_only: bool = False, rows: int | None = LAYERS) -> None:
        self.report, self.width, self.ascii_only, self.rows = report, width, ascii_only, rows
        self.arrow = "->" if ascii_only else "→"
        self.overflow: OverflowMethod = "fold" if ascii_only else "ellipsis"
        self.wide = 16 if width >= 100 else 8 if width >= 76 else 0

    def parts(self) -> Iterator[RenderableType]:
        """Yield the parts of the page, from the details to the sums."""
        report = self.report
        if report.layers:
            yield from self.section(f"Layers of {report.model}" if report.model else "Layers", *self.layers())
        if any(row.share_cut for row in report.groups):
            yield from self.section("Groups", *self.groups())
        if report.pins or report.out_of_reach:
            yield from self.section("What stays, and why", self.reasons())
        yield from self.section("Totals", self.totals())
        yield from self.remarks()

    def section(self, title: str, *body: RenderableType) -> Iterator[RenderableType]:
        line = ("-" if self.ascii_only else "─") * max(0, self.width - cell_len(title) - 1)
        yield self.line((title, "bold"), (f" {line}", QUIET))
        yield from body
        yield ""

    # -- layers --------------------------------------------------------------------------------------

    def layers(self) -> Iterator[RenderableType]:
        shown = largest(self.report, self.rows)
        names = {row.name for row in shown}
        rest = [row for row in self.report.layers if row.name not in names]
        headings = ("weight", "FLOPs", "parameters") if self.wide else ("FLOPs", "parameters")
        lines: list[tuple[str, ...]] = [(sizes(*row.shape, self.arrow), *self.costs([row])) for row in shown]
        lines += [("", *self.costs(rest))] if rest else []
        lines = [line[-len(headings) :] for line in lines]
        table = self.table("layer", *headings, "stays")
        taken = [max(map(cell_len, column)) for column in zip(headings, *lines)]
        room = max(12, self.width - sum(taken) - self.wide - 9)
        for row, line in zip(shown, lines):
            style = "" if row.changed else QUIET
            self.add(table, fitted(row.name or ITSELF, room), *line, self.meter(row.params), style=style)
        if rest:
            params = (sum(row.params[0] for row in rest), sum(row.params[1] for row in rest))
            self.add(table, f"{len(rest)} smaller", *lines[-1], self.meter(params), style=QUIET)
        yield table
        if rest:
            yield Text("all of them: report.text(layers=None)", style=QUIET)

    def costs(self, rows: Sequence[LayerRow]) -> tuple[str, str]:
        flops, params = ([sum(getattr(row, what)[i] for row in rows) for i in (0, 1)] for what in ("flops", "params"))
        return self.pair(*map(short, flops)), self.pair(*map(short, params))

    # -- groups --------------------------------------------------------------------------------------

    def groups(self) -> Iterator[RenderableType]:
        cut = [row for row in self.report.groups if row.share_cut]
        shown = _first(cut, GROUPS if self.rows is not None else None, lambda row: row.units[0] - row.units[1])
        table = self.table("group", "units", "stays", "cut together with")
        room = max(12, (self.width - 19 - self.wide) // 2)
        for row in shown:
            units = self.pair(*map(str, row.units))
            self.add(table, fitted(row.name or ITSELF, room), units, self.meter(row.units), _members(row, room))
        yield table
        whole = len(self.report.groups) - len(cut)
        rest = [f"{len(cut) - len(shown)} more are cut"] if len(shown) < len(cut) else []
        rest += [f"{whole} stay{'s' * (whole == 1)} whole"] if whole else []
        if rest:
            yield Text(", ".join(rest), style=QUIET)

    # -- what stays ----------------------------------------------------------------------------------

    def reasons(self) -> RenderableType:
        pins, costs = self.report.pins, self.report.out_of_reach
        groups: dict[str, list[str]] = {}
        for name, reason in pins.items():
            groups.setdefault(reason, []).append(name or ITSELF)
        order = sorted({**groups, **costs}, key=lambda r: (-costs.get(r, 0.0), -len(groups.get(r, ()))))
        shown = order if self.rows is None else order[:REASONS]
        table = Table.grid(padding=(0, 2), pad_edge=False)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(overflow="fold")
        for reason in shown:
            cost = f"{share(costs[reason], 1.0)} of FLOPs" if reason in costs else ""
            where = _listed(groups.get(reason, []), self.width - 18)
            self.add(table, cost, self.line(reason, (f": {where}" if where else "", QUIET)))
        if len(shown) < len(order):
            self.add(table, "", f"{len(order) - len(shown)} more reasons", style=QUIET)
        return table

    # -- totals --------------------------------------------------------------------------------------

    def totals(self) -> RenderableType:
        old, new, latency = self.report.before, self.report.after, self.report.latency
        table = self.table("", "before", "after", "stays", "ratio", "", right=("before", "after", "ratio"))
        self.total(table, "FLOPs, multiply-adds", old.flops, new.flops, "theoretical speed-up")
        if _sparse(old.nonzero_flops, old.flops) or _sparse(new.nonzero_flops, new.flops):
            self.total(table, "  non-zero weights", old.nonzero_flops, new.nonzero_flops)
        self.total(table, "parameters", old.params, new.params, "compression ratio")
        if _sparse(old.nonzero_params, old.params) or _sparse(new.nonzero_params, new.params):
            self.total(table, "  that are not zero", old.nonzero_params, new.nonzero_params)
        self.total(table, "bytes of weights", old.bytes, new.bytes, form=_bytes)
        if old.memory is not None and new.memory is not None:
            self.total(table, "activations' peak", old.memory, new.memory, form=_bytes)
        if latency is not None:
            self.total(table, "latency, measured", *latency.seconds, "speed-up", milliseconds)
        return table

    def total(
        self, table: Table, name: str, old: float, new: float, what: str = "", form: Callable[[float], str] = short
    ) -> None:
        known = old == old and new == new and new
        ratio = f"{old / new:.2f}x" if known else "-"
        self.add(table, name, form(old), form(new), self.meter((old, new), "{:.1%}"), ratio, what if self.wide else "")

    # -- below the tables ----------------------------------------------------------------------------

    def remarks(self) -> Iterator[RenderableType]:
        report = self.report
        if report.plan is not None:
            yield from self.asked(report.plan.settings)
        if report.latency is not None:
            yield self.line(f"Latency: {report.latency.how}.")
        if report.uncounted:
            yield self.line(f"Not counted by fvcore: {', '.join(report.uncounted)}.")
        if report.note:
            yield self.line((report.note, "bold yellow"))
        if report.proof is not None:
            yield self.proved()
        elif report.plan is not None:
            yield self.line(("Not verified.", "bold yellow"))

    def asked(self, settings: Any) -> Iterator[RenderableType]:
        amounts = [f"{name}={settings[name]}" for name in AMOUNTS if settings.get(name) is not None]
        criterion = settings.get("criterion")
        by = f", by {criterion}" if criterion else ""
        if amounts:
            yield self.line(f"Asked for: {', '.join(amounts)}{by}.")

    def proved(self) -> RenderableType:
        proof = self.report.proof
        assert proof is not None  # asked before
        _, predicted, _, counted = proof.flops
        same = predicted == counted
        flops = "FLOPs as planned" if same else f"FLOPs {short(predicted)} planned, {short(counted)} counted"
        return self.line(
            ("Proved: ", "bold green"),
            f"masked original = small model to {proof.difference:.1e} of the output in {proof.dtype} (allowed "
            f"{proof.tolerance:.0e}); {flops}{f'; {proof.note}' if proof.note else ''}.",
        )

    # -- pieces --------------------------------------------------------------------------------------

    def line(self, *parts: str | tuple[str, str]) -> Text:
        """Return a text of (parts, style) as it is, since names may look like markup."""
        pairs = [(part, "") if isinstance(part, str) else part for part in parts]
        return Text.assemble(*((self.clean(text), style) for text, style in pairs))

    def clean(self, text: str) -> str:
        return text.encode("ascii", "replace").decode() if self.ascii_only else text

    def add(self, table: Table, *cells: str | Text, style: str = "") -> None:
        table.add_row(*(cell if isinstance(cell, Text) else self.line(cell) for cell in cells), style=style)

    def table(self, *headings: str, right: Sequence[str] = ()) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style=QUIET)
        for heading in headings:
            table.add_column(
                heading, justify="right" if heading in right else "left", no_wrap=True, overflow=self.overflow
            )
        return table

    def pair(self, old: str, new: str) -> str:
        """Return two numbers around an arrow that stands below the one above it."""
        return f"{old:>5}" if old == new else f"{old:>5}{self.arrow}{new}"

    def meter(self, pair: Sequence[float], form: str = "") -> Text:
        """Return a bar of what stays, with the number; the number alone where there is little room."""
        old, new = pair
        part = new / old if old else float("nan")
        number = f"{form.format(part):>6}" if form and part == part else f"{share(new, old):>4}"
        full, empty = bar(part, self.wide, self.ascii_only)
        return Text.assemble((full, FULL), (empty, QUIET), " " if self.wide else "", number)


# What a plan may have been asked for, and what rounds it.
AMOUNTS = ("flops", "params", "memory", "latency", "ratio", "max_drop")


def largest(report: Report, most: int | None) -> list[LayerRow]:
    """Return the layers with the largest shares of multiply-adds and parameters, in the order of the model."""
    flops, params = report.before.flops or 1.0, report.before.params or 1

    def weight(row: LayerRow) -> float:
        counted = row.flops[0] / flops if flops == flops else 0.0
        return counted + row.params[0] / params

    return _first(report.layers, most, weight)


def _first(rows: Sequence[Any], most: int | None, weight: Callable[[Any], float]) -> list[Any]:
    """Return the heaviest rows, in their own order."""
    if most is None or len(rows) <= most + 1:  # a line that says "1 more" would save nothing
        return list(rows)
    chosen = sorted(range(len(rows)), key=lambda i: -weight(rows[i]))[:most]
    return [rows[i] for i in sorted(chosen)]


def _members(row: GroupRow, room: int) -> str:
    """Name the other layers of a group, without what they have in common with the first."""
    own = row.name.partition("#")[0]
    home = own.rpartition(".")[0]
    others = [name.removeprefix(f"{home}.") if home else name for name in row.layers if name != own]
    parent = home.rpartition(".")[2]
    return _listed([f"{parent}.{name}" if name.isdigit() and parent else name or ITSELF for name in others], room)


def _listed(names: Sequence[str], room: int) -> str:
    """Return as many names as there is room for, and how many more there are."""
    for count in range(len(names), 0, -1):
        more = f" and {len(names) - count} more" if count < len(names) else ""
        text = ", ".join(names[:count]) + more
        if cell_len(text) <= room:
            return text
    return f"{len(names)} layers" if len(names) > 1 else "".join(fitted(name, room) for name in names)


def _sparse(nonzero: float, all_of_them: float) -> bool:
    return nonzero < 0.99 * all_of_them


def _bytes(value: float) -> str:
    return short(value, "B")
