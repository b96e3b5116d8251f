"""``surgeon export`` and ``bench``: files that run elsewhere, and how fast models run here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from surgeon.cli import options
from surgeon.cli.answer import Answer, step
from surgeon.cli.small import small_model, subject
from surgeon.deploy import export as write
from surgeon.errors import FileError
from surgeon.latency import measure

EXPORT = """
surgeon export torchvision:resnet50 small/ --out small.onnx
surgeon export net:make --weights net.pt --input 1x3x32x32 --static --out net.pt2
"""
BENCH = """
surgeon bench torchvision:resnet50 small/
surgeon bench net:make small/ smaller/ --input 8x3x32x32 --backend onnxruntime
"""


def export(
    model: options.ModelName,
    out: Annotated[Path, typer.Option(help="file: .onnx, .pt2, .ts (TorchScript) or .pte (ExecuTorch)")],
    small: Annotated[
        Path | None, typer.Argument(metavar="[SMALL]", help="what prune or apply wrote; MODEL itself without")
    ] = None,
    arg: options.Arguments = None,
    weights: options.Weights = None,
    input: options.Inputs = None,
    static: Annotated[bool, typer.Option("--static", help="for the shapes of the example alone")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace the file")] = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> Answer:
    """Write a model to a file that runs without it, and check that it computes the same."""
    if out.exists() and not force:
        raise FileError(f"{out} exists; --force replaces it")
    given = subject(model, arg, weights, input, seed, device)
    exported = given.model if small is None else small_model(small, given.reference, seed, device)
    with step(f"writing {out.name}"):
        done = write(exported, out, given.inputs, dynamic=not static)
    document = {
        "out": str(out),
        "format": done.format,
        "bytes": out.stat().st_size,
        "difference": done.difference,
        "checked": list(done.checked),
    }
    return Answer(document, (str(done),))


def bench(
    model: options.ModelName,
    small: Annotated[list[Path], typer.Argument(metavar="SMALL...", help="what prune or apply wrote, one or more")],
    arg: options.Arguments = None,
    weights: options.Weights = None,
    input: options.Inputs = None,
    backend: Annotated[options.Backend, typer.Option(help="what runs the models")] = "eager",
    runs: Annotated[int, typer.Option(min=1, help="rounds at least")] = 15,
    precision: Annotated[float, typer.Option(help="how well ratios have to be known")] = 0.01,
    seconds: Annotated[float, typer.Option(help="time after which no further round starts")] = 20.0,
    method: options.Method = "forward",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> Answer:
    """Measure the latency of a model and of what became of it, in turn and in one process."""
    given = subject(model, arg, weights, input, seed, device)
    models = [given.model, *(small_model(path, given.reference, seed, device) for path in small)]
    with step("measuring"):
        found = measure(
            *models,
            example_inputs=given.inputs,
            backend=backend,
            method=method,
            runs=runs,
            precision=precision,
            seconds=seconds,
        )
    names = [model, *map(str, small)]
    lines = [
        f"{name}: {1e3 * time:.3g} ms" + (f", {1 / ratio:.2f}x as fast" if at else "")
        for at, (name, time, ratio) in enumerate(zip(names, found.seconds, found.ratios))
    ]
    return Answer({"models": names, **asdict(found)}, (*lines, str(found)))
