"""``surgeon apply``: a plan, and a checkpoint that it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from torch.export import ExportedProgram

from surgeon.cli import options
from surgeon.cli.answer import Answer, note, step
from surgeon.cli.small import original
from surgeon.deploy import operate_file, save
from surgeon.errors import FileError
from surgeon.files.atomic import replacing
from surgeon.operate import operate
from surgeon.plan import Plan

EXAMPLES = """
surgeon apply small/plan.json net:make --weights ema.pt --out ema-small.safetensors
surgeon apply small/plan.json --weights 'model-*.safetensors' --out small-shards/
"""


def apply(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json of an earlier cut")],
    out: Annotated[Path, typer.Option(help=".safetensors or .pt2 file, or a folder where files are cut to files")],
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="as for prune; files are cut to files without one")
    ] = None,
    arg: options.Arguments = None,
    weights: Annotated[
        str | None, typer.Option(help="checkpoint: .safetensors, .pt, or a pattern, folder or index of shards")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="most bytes of tensors per file, of shards")] = "5GB",
    seed: options.Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="replace the file")] = False,
    as_json: options.AsJson = False,
) -> Answer:
    """Cut another checkpoint of the same architecture by a plan, without tracing.

    A pattern, a folder or an index of shards is cut a tensor at a time, whatever its size, and needs no MODEL; an
    interrupted run goes on when it is called again.
    """
    made = Plan.load(plan)
    if weights is not None and (model is None or _sharded(weights)):
        return _files(made, weights, model, out, shard_size)
    if model is None:
        raise typer.BadParameter("give a MODEL, or --weights with the files to cut", param_hint="MODEL")
    _check(out, force)
    _, net = original(model, arg, None if weights is None else Path(weights), seed)
    with step("cutting"):
        if isinstance(net, nn.Module):
            _require_suffix(out, ".safetensors", "a model")
            save(operate(net, made, inplace=True), made, out)
        else:
            _require_suffix(out, ".pt2", "an exported program")
            _save_program(operate(net, made), out)
    document = {"out": str(out), "plan": str(plan), "bytes": out.stat().st_size}
    return Answer(document, (str(made), f"{out}: {out.stat().st_size / 1e6:.3g} MB"))


def _save_program(program: ExportedProgram, out: Path) -> None:
    with replacing(out) as temporary, open(temporary, "wb") as file:
        torch.export.save(program, file)


def _sharded(weights: str) -> bool:
    return any(sign in weights for sign in "*?[") or weights.endswith(".index.json") or Path(weights).is_dir()


def _files(made: Plan, weights: str, model: str | None, out: Path, shard_size: str) -> Answer:
    if model is not None:
        note(f"{model} is not needed to cut files and was not made")
    with step("cutting files"):
        done = operate_file(made, weights, out, shard_size=shard_size)
    document = {
        "out": str(done.folder),
        "files": list(done.shards),
        "tensors": done.tensors,
        "bytes": {"before": done.read, "after": done.written},
        "resumed": done.resumed,
    }
    return Answer(document, (str(done),))


def _check(out: Path, force: bool) -> None:
    if out.is_dir():
        raise FileError(f"{out} is a folder; give a file that ends in .safetensors, or .pt2 for an exported program")
    if out.exists() and not force:
        raise FileError(f"{out} exists; --force replaces it")
    if not out.parent.is_dir():
        raise FileError(f"there is no folder {str(out.parent)!r} to write {out.name!r} to")


def _require_suffix(out: Path, suffix: str, what: str) -> None:
    if out.suffix != suffix:
        raise typer.BadParameter(f"{what} is written to a file that ends in {suffix}", param_hint="--out")
