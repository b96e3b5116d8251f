"""``surgeon inspect``, ``verify``, ``report``: look at a model, and at what became of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from surgeon.api import trace
from surgeon.cli import options
from surgeon.cli.answer import Answer, step
from surgeon.cli.small import Subject, plan_of, small_model, subject
from surgeon.comparison import compare
from surgeon.errors import FileError
from surgeon.graph import DependencyGraph
from surgeon.report import Whole
from surgeon.verify import count_flops
from surgeon.verify import verify as prove
from surgeon.verify.count import Count

INSPECT = """
surgeon inspect torchvision:resnet50
surgeon inspect net:make --input 1x3x32x32 --explain block1.conv1
surgeon inspect timm:vit_tiny_patch16_224 --json > groups.json
"""
VERIFY = """
surgeon verify torchvision:resnet50 --weights resnet50.safetensors small/
surgeon verify net.pt2 small.pt2 --plan plan.json
"""
REPORT = """
surgeon report net:make small/ --input 1x3x32x32 --html report.html
surgeon report torchvision:resnet50 small/ --all --latency
"""


def inspect(
    model: options.ModelName,
    arg: options.Arguments = None,
    weights: options.Weights = None,
    input: options.Inputs = None,
    keep: options.Keep = None,
    explain: Annotated[
        str | None, typer.Option(metavar="NAME", help="say what is cut together with a layer and why, or why it stays")
    ] = None,
    method: options.Method = "forward",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> Answer:
    """Show what hangs together in a model: coupled groups, what is pinned and why, and layers."""
    given = subject(model, arg, weights, input, seed, device)
    with step("tracing"):
        graph = trace(given.model, given.inputs, keep=options.kept(keep or ()), method=method)
    if explain is not None:
        text = graph.explain(explain)
        return Answer({"model": model, "layer": explain, "explanation": text}, (text,))
    with step("counting"):
        count = count_flops(given.model, given.inputs, method=method)
    return Answer(
        _described(graph, given, count), (_free(graph), _pinned(graph), _layers(graph, count), _sums(graph, count))
    )


def verify(
    model: options.ModelName,
    small: options.SmallPath,
    plan: options.PlanPath = None,
    arg: options.Arguments = None,
    weights: options.Weights = None,
    input: options.Inputs = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> Answer:
    """Prove that a small model computes what the original computes without what was cut; exit status 3 if it does not.

    The weights have to be those that were cut: of a model that was trained further there is nothing to prove.
    """
    made = plan_of(small, plan)
    given = subject(model, arg, weights, input, seed, device)
    cut = small_model(small, given.reference, seed, device)
    with step("proving"):
        proof = prove(given.model, cut, made, given.inputs)
    return Answer({"model": model, "small": str(small), **asdict(proof)}, (str(proof),))


def report(
    model: options.ModelName,
    small: options.SmallPath,
    plan: options.PlanPath = None,
    arg: options.Arguments = None,
    weights: options.Weights = None,
    input: options.Inputs = None,
    whole: Annotated[bool, typer.Option("--all", help="show all layers and groups")] = False,
    latency: Annotated[bool, typer.Option("--latency", help="measure both in turn, too")] = False,
    html: Annotated[Path | None, typer.Option(help="file to write the report to as a page for browsers")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace that file")] = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> Answer:
    """Count a model and what became of it, layer by layer: FLOPs, parameters, bytes, and time where asked."""
    if html is not None and html.exists() and not force:
        raise FileError(f"{html} exists; --force replaces it")
    made = plan_of(small, plan)
    given = subject(model, arg, weights, input, seed, device)
    cut = small_model(small, given.reference, seed, device)
    with step("counting"):
        found = compare(given.model, cut, given.inputs, plan=made, latency=latency)
    if html is not None:
        found.to_html(html)
    return Answer(
        {**found.document(plan=False), "model": model, "small": str(small)}, (Whole(found) if whole else found,)
    )


# -- inspect -----------------------------------------------------------------------------------------


def _described(graph: DependencyGraph, given: Subject, count: Count) -> dict[str, Any]:
    return {
        "model": given.reference.text,
        "flops": count.total,
        "params": _parameters(graph),
        "uncounted": dict(count.uncounted),
        "ops": len(graph.nodes),
        "groups": [
            {
                "name": group.name,
                "units": group.size,
                "rows": len(group.grid),
                "pinned": graph.reason(group) if group.pinned is not None else None,
                "members": [{"parameter": m.parameter, "dims": list(m.dims)} for m in group.members],
            }
            for group in graph.groups
        ],
        "layers": [
            {"name": name, **layer, "flops": count.by_module.get(name)} for name, layer in graph.layers.nodes(data=True)
        ],
    }


def _parameters(graph: DependencyGraph) -> int:
    return sum(p.numel() for p in graph.model.parameters())


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _free(graph: DependencyGraph) -> Any:
    table = _table("Groups that may be cut", "group", "units", "cut from")
    for group in graph.free:
        rows = f" in {len(group.grid)} rows" if len(group.grid) > 1 else ""
        layers = dict.fromkeys(member.layer or member.parameter for member in group.members)
        table.add_row(_plain(group.name), f"{group.size}{rows}", _plain(", ".join(layers)))
    return table


def _pinned(graph: DependencyGraph) -> Any:
    table = _table("Groups that stay", "group", "positions", "why")
    for group in graph.groups:
        if group.pinned is not None:
            table.add_row(_plain(group.name), str(len(group.units)), _plain(graph.reason(group)))
    return table


def _layers(graph: DependencyGraph, count: Count) -> Any:
    table = _table("Layers", "layer", "op", "FLOPs", "groups")
    for name, layer in graph.layers.nodes(data=True):
        flops = count.by_module.get(name)
        counted = "-" if flops is None else f"{flops:.4g}"
        table.add_row(_plain(name), _plain(layer["op"]), counted, _plain(", ".join(layer["groups"])))
    return table


def _plain(text: str) -> str:
    """Keep rich from reading ``[0]`` as a style."""
    return text.replace("[", r"\[")


def _sums(graph: DependencyGraph, count: Count) -> str:
    return f"{graph}; {count}, {_parameters(graph)} parameters"
