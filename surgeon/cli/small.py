"""What commands work on: the original with its inputs, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn

from surgeon.cli.answer import note, step
from surgeon.cli.inputs import moved, tensors
from surgeon.cli.models import Reference, build, resolve
from surgeon.cli.weights import load_weights
from surgeon.deploy import load
from surgeon.deploy.weights import read_contents
from surgeon.errors import FileError, PlanMismatch
from surgeon.files.header import read_header
from surgeon.plan import Plan

PLAN = "plan.json"
WEIGHTS = "model.safetensors"
PROGRAM = "model.pt2"


@dataclass(frozen=True)
class Subject:
    """A model, what it was made from, and example inputs for it."""

    reference: Reference
    model: Any
    inputs: Any


def subject(
    text: str,
    arguments: Sequence[str] | None,
    weights: Path | None,
    inputs: Sequence[str] | None,
    seed: int,
    device: str,
) -> Subject:
    """Make the model and the inputs that a command line asks for."""
    given = tensors(inputs, seed) if inputs else None
    reference, model = original(text, arguments, weights, seed)
    if given is None:
        given = reference.inputs(model, seed) if reference.inputs else None
        if given is None:
            raise typer.BadParameter(
                f"{text} does not tell what it takes; write --input 1x3x224x224", param_hint="--input"
            )
        note(f"inputs: {_shapes(given)}, as {text} takes them; --input gives others")
    if isinstance(model, nn.Module):
        model = model.to(_device(device))
    return Subject(reference, model, moved(given, device))


def original(text: str, arguments: Sequence[str] | None, weights: Path | None, seed: int) -> tuple[Reference, Any]:
    """Make the model that a command line asks for."""
    with step("making the model"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for models that are made as their module is imported
        reference = resolve(text, arguments or ())
        model = build(reference, seed)
        if weights is not None and not isinstance(model, nn.Module):
            raise typer.BadParameter(f"{text} has its weights in it", param_hint="--weights")
        if weights is not None:
            load_weights(model, weights)
    return reference, model


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise typer.BadParameter(f"{name!r} can't be used: {first}", param_hint="--device") from error
    return device


def _shapes(inputs: Any) -> str:
    named = inputs.items() if isinstance(inputs, dict) else (("", value) for value in inputs)
    return ", ".join(
        (f"{name}=" if name else "") + "x".join(map(str, value.shape)) + f":{value.dtype}".replace("torch.", "")
        for name, value in named
    )


def small_model(path: Path, reference: Reference, seed: int, device: str) -> Any:
    """Load what ``prune`` or ``apply`` wrote, into the class of the original.

    Raises
    ------
    FileError, PlanMismatch
    """
    if not path.exists():
        raise FileError(f"there is no {str(path)!r}; give the folder or file that surgeon prune or apply wrote")
    program = path / PROGRAM if path.is_dir() else path
    if program.suffix == ".pt2" and program.exists():
        return build(resolve(str(program)))
    if reference.source is not None and reference.source.suffix == ".pt2":
        raise FileError(f"{path} holds no {PROGRAM}, which is what a cut of the exported program {reference} is")
    with step("loading the small model"):
        complete = (path / "config.json").exists()  # a folder of transformers names its class
        model = load(path) if complete else load(partial(build, reference, seed), path)
    return model.to(_device(device))


def plan_of(path: Path, given: Path | None) -> Plan:
    """Return the plan that made a small model: a file of its own, in the folder, or in the weights file.

    Raises
    ------
    PlanMismatch where there is none.
    """
    beside = (path if path.is_dir() else path.parent) / PLAN
    if given is not None:
        return Plan.load(given)
    if path.suffix == ".safetensors":
        return read_contents(read_header(path)).plan
    if beside.exists():
        return Plan.load(beside)
    raise PlanMismatch(f"no plan in {path} or beside it; give it with --plan")
