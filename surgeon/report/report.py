"""What was saved: totals and a row per layer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from surgeon.modules import Model, bare
from surgeon.plan.plan import Plan
from surgeon.verify.count import Count, count_flops


@dataclass(frozen=True)
class LayerRow:
    """One layer: weight shape, multiply-adds and parameters, each before and after."""

    name: str
    shape: tuple[tuple[int, ...], tuple[int, ...]]
    flops: tuple[float, float]
    params: tuple[int, int]

    @property
    def share_cut(self) -> float:
        """Share of the layer's parameters that went."""
        return 1 - self.params[1] / self.params[0] if self.params[0] else 0.0


@dataclass(frozen=True)
class Totals:
    """Sums over a model: multiply-adds, parameters, bytes, and the same counting non-zero weights only."""

    flops: float
    params: int
    bytes: int
    nonzero_flops: float
    nonzero_params: int


@dataclass(frozen=True)
class Report:
    """Before and after.

    ``compression_ratio`` is original / new parameters and ``theoretical_speedup`` original / new multiply-adds,
    each also by non-zero weights (Blalock et al., 2020, "What is the State of Neural Network Pruning?").
    """

    before: Totals
    after: Totals
    layers: tuple[LayerRow, ...]
    counter: str = "fvcore (one FLOP is one multiply-add)"
    uncounted: tuple[str, ...] = ()
    note: str = ""
    out_of_reach: Mapping[str, float] = field(default_factory=dict)

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

    def to_json(self) -> str:
        """Write the report as JSON."""
        ratios = (
            "compression_ratio",
            "theoretical_speedup",
            "nonzero_compression_ratio",
            "nonzero_theoretical_speedup",
        )
        return json.dumps({**asdict(self), **{name: getattr(self, name) for name in ratios}}, indent=1)

    def __rich_console__(self, console: Console, options: Any) -> Any:
        yield self._layer_table()
        yield self._total_table()
        if self.uncounted:
            yield f"Not counted by fvcore: {', '.join(self.uncounted)}"
        if self.out_of_reach:
            yield _reach(self.out_of_reach)
        if self.note:
            yield self.note

    def __str__(self) -> str:
        console = Console(width=100, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return captured.get()

    def _layer_table(self) -> Table:
        table = Table(title="Layers", title_justify="left", header_style="bold", pad_edge=False)
        table.add_column("layer", overflow="fold")
        for heading in ("weight", "FLOPs", "parameters", "cut"):
            table.add_column(heading, justify="right")
        for row in self.layers:
            if row.share_cut > 0 or row.flops[0] != row.flops[1]:
                table.add_row(
                    row.name,
                    _arrow(_shape(row.shape[0]), _shape(row.shape[1])),
                    _arrow(*map(_short, row.flops)),
                    _arrow(*map(_short, row.params)),
                    f"{row.share_cut:.0%}",
                )
        same = sum(row.share_cut <= 0 and row.flops[0] == row.flops[1] for row in self.layers)
        table.caption = f"{same} layer{'s' * (same > 1)} as before" if same else None
        return table

    def _total_table(self) -> Table:
        table = Table(title="Totals", title_justify="left", header_style="bold", pad_edge=False)
        for heading in ("", "before", "after", "left", "ratio"):
            table.add_column(heading, justify="left" if not heading else "right")
        rows = (
            ("FLOPs (multiply-adds)", self.before.flops, self.after.flops, "theoretical speed-up"),
            ("parameters", self.before.params, self.after.params, "compression ratio"),
            ("bytes of weights", self.before.bytes, self.after.bytes, ""),
            ("FLOPs, non-zero weights", self.before.nonzero_flops, self.after.nonzero_flops, ""),
            ("parameters, non-zero", self.before.nonzero_params, self.after.nonzero_params, ""),
        )
        for name, old, new, what in rows:
            share = f"{new / old:.1%}" if old else "-"
            table.add_row(name, _short(old), _short(new), share, f"{_ratio(old, new):.2f}x {what}".strip())
        return table


def compare(
    model: Model,
    small: Model,
    example_inputs: Any,
    *,
    plan: Plan | None = None,
    counts: tuple[Count, Count] | None = None,
) -> Report:
    """Count both models and put them side by side; a plan tells what was out of reach.

    Examples
    --------
    >>> print(surgeon.compare(model, small, x))
    """
    model, small = bare(model), bare(small)
    method = plan.method if plan is not None else "forward"
    before, after = counts or tuple(count_flops(m, example_inputs, method=method) for m in (model, small))
    rows = []
    layers = dict(small.named_modules())
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own and name in layers:
            new = list(layers[name].parameters(recurse=False))
            shapes = (tuple(own[0].shape), tuple(new[0].shape))
            params = (sum(p.numel() for p in own), sum(p.numel() for p in new))
            rows.append(
                LayerRow(name, shapes, (_own_flops(model, name, before), _own_flops(small, name, after)), params)
            )
    note = before.failed or after.failed
    return Report(
        _totals(model, before),
        _totals(small, after),
        tuple(rows),
        uncounted=tuple(sorted(after.uncounted)),
        note=note,
        out_of_reach=plan.out_of_reach if plan is not None else {},
    )


def _reach(shares: Mapping[str, float], most: int = 5) -> str:
    """Say what could not be cut: the largest shares with their reasons."""
    lines = [f"Out of reach: {sum(shares.values()):.1%} of the FLOPs"]
    lines += [f"  {share:.1%}  {reason}" for reason, share in list(shares.items())[:most]]
    return "\n".join(lines + ([f"  and {len(shares) - most} more reasons, in the plan"] if len(shares) > most else []))


def _own_flops(model: nn.Module, name: str, count: Count) -> float:
    """Multiply-adds of a layer without those of its children."""
    children = (f"{name}.{child}" if name else child for child, _ in model.get_submodule(name).named_children())
    return count.by_module.get(name, 0.0) - sum(count.by_module.get(child, 0.0) for child in children)


def _totals(model: nn.Module, count: Count) -> Totals:
    params = list(model.parameters())
    tensors = {id(t): t for t in (*params, *model.buffers())}.values()
    zero_flops = 0.0
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() > 1 and weight.numel():
            zeros = 1 - int(weight.detach().count_nonzero()) / weight.numel()
            zero_flops += zeros * _own_flops(model, name, count) if zeros else 0.0
    return Totals(
        flops=count.total,
        params=sum(p.numel() for p in params),
        bytes=sum(t.numel() * t.element_size() for t in tensors),
        nonzero_flops=count.total - zero_flops,
        nonzero_params=sum(int(p.detach().count_nonzero()) for p in params),
    )


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
