"""A report as one HTML file, and as a small table for notebooks (docs/report-page.md)."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from surgeon.files.atomic import write_text
from surgeon.plan.plan import Plan
from surgeon.report.anatomy import Anatomy, Coupling, Histogram, LayerPart
from surgeon.report.document import document

if TYPE_CHECKING:
    from surgeon.report.report import Report

FORMAT = "surgeon-page"
VERSION = 1

# What the page may load: nothing. The one script is named by its hash, so that no other runs, wherever it came from.
POLICY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="channel-surgeon">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<noscript><main><h1>{title}</h1><pre>{text}</pre></main></noscript>
<script type="application/json" id="payload">{payload}</script>
<script type="application/json" id="licences">{licences}</script>
<script>{script}</script>
</body>
</html>
"""


def payload(report: Report, pareto: Any = None, sensitivity: Any = None) -> dict[str, Any]:
    """Return all that the page shows, as JSON has it; docs/report-page.md lists the fields."""
    anatomy: Anatomy | None = report.anatomy
    return {
        "format": FORMAT,
        "version": VERSION,
        "report": document(report, plan=False),
        "chosen": None if report.plan is None else _chosen(report.plan),
        "settings": None if report.plan is None else dict(report.plan.settings),
        "graph": None if anatomy is None else _graph(anatomy),
        "pareto": None if pareto is None else _pareto(pareto),
        "sensitivity": None if sensitivity is None else _sensitivity(sensitivity),
        "plan": None if report.plan is None else report.plan.to_json(),
    }


def page(report: Report, pareto: Any = None, sensitivity: Any = None) -> str:
    """Return the page as text, with everything that it needs inside."""
    script, style, licences = (_part(name) for name in ("page.js", "page.css", "THIRD_PARTY_LICENSES.txt"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return PAGE.format(
        policy=POLICY.format(script=digest),
        title=escape(f"{report.model or 'Model'}: surgery report"),
        style=style,
        text=escape(report.text(layers=None, width=100, ascii_only=False)),
        payload=inert(payload(report, pareto, sensitivity)),
        licences=inert(licences),
        script=script,
    )


def to_html(report: Report, path: str | os.PathLike[str], pareto: Any = None, sensitivity: Any = None) -> None:
    """Write the page, whole or not at all; raises FileError where that fails."""
    write_text(path, page(report, pareto, sensitivity))


def inert(data: Any) -> str:
    """Write JSON that no reader of HTML takes for markup, whatever texts it holds: not even ``</script>``."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


@cache
def _part(name: str) -> str:
    return (files("surgeon.report") / "page" / name).read_text(encoding="utf-8")


def _chosen(plan: Plan) -> dict[str, Any]:
    """Return how many units go, and how far that is from the least possible loss; null where that is not known."""
    gap = None if plan.gap is None or not math.isfinite(plan.gap) else plan.gap
    return {"removed": sum(g.removed for g in plan.groups), "units": sum(g.size for g in plan.groups), "gap": gap}


# -- the graph ---------------------------------------------------------------------------------------


def _graph(anatomy: Anatomy) -> dict[str, Any]:
    """Return the graph with parameters and groups by number, which for large models is a third of the size."""
    names = [m.parameter for g in anatomy.groups for m in g.members] + [p for n in anatomy.layers for p in n.parameters]
    parameters = {name: i for i, name in enumerate(dict.fromkeys(names))}
    groups = {group.name: i for i, group in enumerate(anatomy.groups)}
    direct = unimplied(len(anatomy.layers), anatomy.edges)
    return {
        "parameters": list(parameters),
        "layers": [_layer(layer, parameters, groups) for layer in anatomy.layers],
        "edges": [[a, b, int((a, b) in direct)] for a, b in anatomy.edges],
        "groups": [_group(group, parameters) for group in anatomy.groups],
        "ops": dict(anatomy.ops),
    }


def _layer(layer: LayerPart, parameters: Mapping[str, int], groups: Mapping[str, int]) -> dict[str, Any]:
    return {
        "name": layer.name,
        "op": layer.op,
        "source": layer.source,
        "parameters": [parameters[name] for name in layer.parameters],
        "groups": [groups[name] for name in layer.groups],
        "width": layer.width,
    }


def _group(group: Coupling, parameters: Mapping[str, int]) -> dict[str, Any]:
    return {
        "name": group.name,
        "steps": [group.size, group.size - group.removed],
        "units": [group.units, group.units - group.gone],
        "rows": group.rows,
        "members": [[parameters[m.parameter], list(m.dims), m.side] for m in group.members],
        "pinned": group.pinned,
        "ties": list(group.ties),
        "scores": None if group.scores is None else _histogram(group.scores),
    }


def _histogram(scores: Histogram) -> dict[str, Any]:
    return {"edges": [_rounded(e) for e in scores.edges], "stay": scores.stay, "go": scores.go, "cut": scores.cut}


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")


def unimplied(count: int, edges: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return the edges that no longer path stands for: those that a picture needs.

    Edges against the order of the layers, as where a layer is called twice, are kept.

    Complexity: one union of bit sets of ``count`` bits per edge; ``networkx.transitive_reduction`` searches from every
    node, which takes minutes where thousands of layers share a residual stream.
    """
    after: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        if a < b:
            after[a].append(b)
    reached = [0] * count
    kept = {(a, b) for a, b in edges if a >= b}
    for a in reversed(range(count)):
        for b in sorted(after[a]):
            if not reached[a] >> b & 1:
                kept.add((a, b))
                reached[a] |= reached[b] | 1 << b
    return kept


# -- curves ------------------------------------------------------------------------------------------


def _pareto(curve: Any) -> dict[str, Any]:
    return {"resource": curve.resource, "left": list(curve.left), "losses": list(curve.losses)}


def _sensitivity(found: Any) -> dict[str, Any]:
    curves = [
        {"group": c.group, "size": c.size, "removed": list(c.removed), "value": list(c.value)} for c in found.curves
    ]
    return {"base": found.base, "curves": curves}


# -- notebooks ---------------------------------------------------------------------------------------

CELL = "padding:2px 12px 2px 0;border:0;background:none"
NUMBER = f"{CELL};text-align:right;font-variant-numeric:tabular-nums"
HEAD = f"{NUMBER};border-bottom:1px solid;font-weight:600"


def table(report: Report, rows: int = 12) -> str:
    """Return totals and the layers that gave most as an HTML table, for notebooks.

    Only inline styles and the surrounding colours: it looks like its notebook, light or dark, and needs no script, so
    that it shows in notebooks that are not trusted and on pages that render them. ``rows`` layers are shown at most.
    """
    sums = [("FLOPs (multiply-adds)", report.before.flops, report.after.flops)]
    sums += [("parameters", report.before.params, report.after.params)]
    sums += [("bytes of weights", report.before.bytes, report.after.bytes)]
    if report.before.memory is not None and report.after.memory is not None:
        sums.append(("bytes at the peak, predicted", report.before.memory, report.after.memory))
    if report.latency is not None:
        before, after = report.latency.seconds
        sums.append(("milliseconds, measured", 1e3 * before, 1e3 * after))
    changed = sorted((row for row in report.layers if row.changed), key=lambda row: row.params[1] - row.params[0])
    layers = [(row.name or "(the model)", row.params[0], row.params[1]) for row in changed[:rows]]
    more = len(changed) - len(layers)
    parts = [
        f"<p style='margin:0 0 6px'><b>{escape(report.model or 'Model')}</b>, cut by surgeon</p>",
        _table(("", "before", "after", "left"), sums),
        _table(("parameters of", "before", "after", "left"), layers) if layers else "",
        f"<p style='margin:0 0 6px;opacity:.75'>and {more} more layers</p>" if more > 0 else "",
        f"<p style='margin:0;opacity:.75'>{escape(_proved(report))}</p>",
    ]
    return f"<div>{''.join(parts)}</div>"


def _proved(report: Report) -> str:
    return "not verified" if report.proof is None else f"Proved: {report.proof}"


def _table(heads: Sequence[str], rows: Sequence[tuple[str, float, float]]) -> str:
    top = "".join(f"<th style='{HEAD}{';text-align:left' * (not i)}'>{head}</th>" for i, head in enumerate(heads))
    body = "".join(
        f"<tr style='background:none'><td style='{CELL};text-align:left'>{escape(name)}</td>"
        f"<td style='{NUMBER}'>{_amount(old)}</td><td style='{NUMBER}'>{_amount(new)}</td>"
        f"<td style='{NUMBER}'>{f'{new / old:.1%}' if old > 0 else '-'}</td></tr>"
        for name, old, new in rows
    )
    table = "<table style='border-collapse:collapse;margin:0 0 8px'>"
    return f"{table}<tr style='background:none'>{top}</tr>{body}</table>"


def _amount(value: float) -> str:
    return "-" if value != value else f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
