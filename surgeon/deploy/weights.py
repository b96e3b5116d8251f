"""A small model as one safetensors file: its tensors, and in the metadata the plan that made it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.export import ExportedProgram

from surgeon.deploy.tensors import added_bias, layout_of, transient_names
from surgeon.errors import FileError, PlanMismatch, UnsupportedModel
from surgeon.exported import Program
from surgeon.files import strict
from surgeon.files.atomic import replacing
from surgeon.files.header import DTYPES, LONGEST, Header
from surgeon.modules import Model, bare, named_tensors
from surgeon.plan.plan import Plan

FORMAT = "surgeon-weights"
VERSION = 1


@dataclass(frozen=True)
class Contents:
    """What the metadata of a weights file say.

    tied       further names of a tensor -> the name under which the file has it
    transient  buffers that a state dict would not hold
    added      biases that the original does not have
    layouts    tensors that were not in row-major order: channels_last, channels_last_3d
    """

    plan: Plan
    tied: Mapping[str, str]
    transient: tuple[str, ...]
    added: tuple[str, ...]
    layouts: Mapping[str, str]


def write_weights(small: Model, plan: Plan, path: str | os.PathLike[str]) -> Path:
    """Write a model that a plan made to a safetensors file; see ``surgeon.save``."""
    model = checked(small, plan)
    names, tied = _names(model, plan)
    tensors = named_tensors(model)
    contents = Contents(
        plan,
        tied,
        tuple(name for name in names if name in transient_names(model)),
        tuple(name for name in names if name not in plan.fingerprint),
        {name: layout for name in names if (layout := layout_of(tensors[name]))},
    )
    metadata = _metadata(contents)
    size = sum(len(json.dumps(text)) for text in metadata.values())
    if size + 200 * len(names) > LONGEST:
        raise FileError(
            f"{path}: the plan takes {size:,} bytes, and the header of a safetensors file has {LONGEST:,} at most; "
            "keep the plan in a file of its own (plan.save) beside the state dict"
        )
    with replacing(path) as temporary:
        safetensors.torch.save_file(_stored(tensors, names), temporary, metadata)
    return Path(path)


def checked(small: Any, plan: Plan) -> nn.Module:
    """Return a model after making sure that a file can hold it and that it is what the plan makes.

    Raises
    ------
    PlanMismatch, UnsupportedModel
    """
    if isinstance(small, (ExportedProgram, Program, str, os.PathLike)):
        raise UnsupportedModel("an exported program is saved with torch.export.save, and its plan with plan.save")
    model = bare(small)
    tensors = named_tensors(model)
    for name, shape in plan.fingerprint.items():
        expected = plan.cuts[name].new_shape if name in plan.cuts else shape
        if name not in tensors or tuple(tensors[name].shape) != tuple(expected):
            found = list(tensors[name].shape) if name in tensors else "missing"
            raise PlanMismatch(f"the model is not what the plan makes: {name} is {found}, not {list(expected)}")
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.layout != torch.strided or tensor.dtype not in DTYPES.values():
            raise UnsupportedModel(
                f"{name} is {tensor.dtype} of layout {tensor.layout} on {tensor.device}; files hold plain tensors"
            )
        if name not in plan.fingerprint and name not in plan.tied and not added_bias(model, name):
            raise PlanMismatch(f"the model has {name}, which the plan does not know; it is not what the plan makes")
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise UnsupportedModel(
                f"{path or 'the model'} keeps state other than tensors, which a weights file has not"
            )
    return model


def _names(model: nn.Module, plan: Plan) -> tuple[list[str], dict[str, str]]:
    """Return the names to store, one per tensor, and the other names of tied ones."""
    first: dict[int, str] = {}
    tensors = named_tensors(model)
    for name in sorted(tensors, key=lambda name: name not in plan.fingerprint):
        first.setdefault(id(tensors[name]), name)
    names = [name for name, tensor in tensors.items() if first[id(tensor)] == name]
    return names, {n: first[id(t)] for n, t in tensors.items() if first[id(t)] != n}


def _stored(tensors: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Return tensors as the format wants them: in row-major order, none in the memory of another."""
    shared = Counter(tensors[name].untyped_storage().data_ptr() for name in names)
    found = {}
    for name in names:
        tensor = tensors[name].detach().cpu().contiguous()
        alone = shared[tensors[name].untyped_storage().data_ptr()] == 1
        found[name] = tensor if alone else tensor.clone()
    return found


def _metadata(contents: Contents) -> dict[str, str]:
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "tied": dict(contents.tied),
        "transient": list(contents.transient),
        "added": list(contents.added),
        "layouts": dict(contents.layouts),
    }
    return {"format": "pt", "surgeon": json.dumps(facts), "surgeon.plan": contents.plan.to_json(compact=True)}


def read_contents(header: Header) -> Contents:
    """Return what the metadata of a weights file say.

    Raises
    ------
    FileError for a file without a plan, PlanMismatch for a malformed one.
    """
    texts = header.metadata
    if "surgeon" not in texts or "surgeon.plan" not in texts:
        raise FileError(
            f"{header.path} holds no plan, so it was not written by surgeon.save; with the plan at hand, cut the model "
            "with surgeon.operate and load the file as its state dict"
        )
    try:
        facts = strict.parsed(texts["surgeon"])
        if facts["format"] != FORMAT or facts["version"] != VERSION:
            raise FileError(
                f"{header.path} is {facts['format']!r:.40} of version {facts['version']!r:.40}, and this version of "
                f"surgeon reads {FORMAT} of version {VERSION}"
            )
        tied, layouts = (_texts(facts[key].items()) for key in ("tied", "layouts"))
        transient, added = (_texts((name, name) for name in facts[key]) for key in ("transient", "added"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{header.path}: its metadata are malformed: {type(error).__name__}: {error!s:.80}") from error
    return Contents(Plan.from_json(texts["surgeon.plan"]), tied, tuple(transient), tuple(added), layouts)


def _texts(pairs: Any) -> dict[str, str]:
    found = dict(pairs)
    if any(not isinstance(text, str) for pair in found.items() for text in pair):
        raise TypeError("expected texts")
    return found


def read_tensors(header: Header, names: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return tensors of a file, in memory of their own: nothing that happens to the file later shows in them."""
    try:
        with safetensors.safe_open(header.path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError) as error:
        raise FileError(f"{header.path}: {error}") from error
