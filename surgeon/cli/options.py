"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

_MODEL = "Model"
_BUDGET = "How much"
_LIMITS = "What may go"
_OUTPUT = "Output"

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="package.module:factory, torchvision:NAME, timm:NAME, hf:PATH, file.pt2")
]
SmallPath = Annotated[
    Path, typer.Argument(metavar="SMALL", help="what prune or apply wrote: a folder, .safetensors or .pt2")
]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--arg", metavar="KEY=VALUE", help="argument of the factory, repeatable", rich_help_panel=_MODEL),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="weights of the model: .safetensors, or .pt read as weights only", rich_help_panel=_MODEL),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="SHAPE[:DTYPE]",
        help="example input: 1x3x224x224, 1x16:int64, ids=1x16:int64:30000 for values below 30000; repeatable",
        rich_help_panel=_MODEL,
    ),
]
Seed = Annotated[int, typer.Option(help="of random weights, inputs and scores", rich_help_panel=_MODEL)]
Device = Annotated[str, typer.Option(help="where to run: cpu, cuda", rich_help_panel=_MODEL)]
Method = Annotated[str, typer.Option(help="method to run instead of forward", rich_help_panel=_MODEL)]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[out:|in:]NAME",
        help="layer or glob to leave as it is, or its outputs or inputs alone; repeatable",
        rich_help_panel=_LIMITS,
    ),
]
PlanPath = Annotated[
    Path | None,
    typer.Option("--plan", help="the plan, where SMALL has none inside or beside it", rich_help_panel=_MODEL),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="one JSON document on standard output, of an error as well",
        rich_help_panel=_OUTPUT,
    ),
]
Backend = Literal["eager", "compile", "onnxruntime"]

_AMOUNT = "SHARE|AMOUNT"
Flops = Annotated[
    str | None,
    typer.Option(metavar=_AMOUNT, help="multiply-adds that may remain: 0.5, 1.2G", rich_help_panel=_BUDGET),
]
Params = Annotated[
    str | None, typer.Option(metavar=_AMOUNT, help="parameters that may remain: 0.5, 10M", rich_help_panel=_BUDGET)
]
Memory = Annotated[
    str | None,
    typer.Option(metavar=_AMOUNT, help="bytes of activations at their peak: 0.5, 64M", rich_help_panel=_BUDGET),
]
Latency = Annotated[
    str | None, typer.Option(metavar="SHARE|TIME", help="measured latency: 0.6, 8ms", rich_help_panel=_BUDGET)
]
LatencyBackend = Annotated[Backend, typer.Option(help="what runs the model for --latency", rich_help_panel=_BUDGET)]
Ratio = Annotated[float | None, typer.Option(help="share of the units that goes, instead", rich_help_panel=_BUDGET)]
Scope = Annotated[
    Literal["global", "local"],
    typer.Option(help="with --ratio: over the model, or in every group", rich_help_panel=_BUDGET),
]
RoundTo = Annotated[str, typer.Option(metavar="N|auto", help="widths are multiples of this", rich_help_panel=_LIMITS)]
Floor = Annotated[float, typer.Option(help="smallest share of a group that stays", rich_help_panel=_LIMITS)]
Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        metavar="NAME=[LEAST:]MOST",
        help="share of a layer's units that may go, such as 'layer1.*=0.3'; repeatable",
        rich_help_panel=_LIMITS,
    ),
]
Heads = Annotated[
    Literal["columns", "rows", "both"],
    typer.Option(help="widths of heads go, whole heads, or both", rich_help_panel=_LIMITS),
]
Uniform = Annotated[bool, typer.Option("--uniform", help="one width for layers of a kind", rich_help_panel=_LIMITS)]
Criterion = Annotated[
    str, typer.Option(help="how units are ranked: l1, l2, lamp, random, ...", rich_help_panel=_LIMITS)
]


def amount(text: str | None) -> float | str | None:
    """Read a budget: numbers are shares or amounts, anything else is for the budget to read."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def multiple(text: str) -> int | str:
    """Read ``--round-to``."""
    return int(text) if text.isdecimal() else text


def limits(texts: Sequence[str]) -> dict[str, Any]:
    """Read ``NAME=MOST`` and ``NAME=LEAST:MOST``."""
    found: dict[str, Any] = {}
    for text in texts:
        name, _, shares = text.rpartition("=")
        try:
            numbers = [float(share) for share in shares.split(":")]
        except ValueError:
            numbers = []
        if not name or name in found or len(numbers) not in (1, 2):
            raise typer.BadParameter(
                f"{text!r}: write 'layer1.*=0.3' or 'layer1.*=0.1:0.3', each name once", param_hint="--group"
            )
        found[name] = numbers[0] if len(numbers) == 1 else tuple(numbers)
    return found


def kept(texts: Sequence[str]) -> Any:
    """Read ``NAME``, ``out:NAME`` and ``in:NAME``."""
    sides: dict[str, list[str]] = {"out": [], "in": []}
    for text in texts:
        side, _, name = text.partition(":")
        for each in sides:
            if side not in sides:
                sides[each].append(text)
            elif each == side:
                sides[each].append(name)
    return sides
