"""Save and load small models."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.deploy.hugging_face import PLAN, WEIGHTS, is_pretrained, loaded, original, save_folder
from surgeon.deploy.load import filled, rebuilt
from surgeon.deploy.weights import Contents, read_contents, read_tensors, write_weights
from surgeon.errors import FileError, UnsupportedModel
from surgeon.files.checkpoint import headers
from surgeon.files.header import Header, Stored, read_header
from surgeon.modules import Model
from surgeon.plan.plan import Plan


@dataclass(frozen=True)
class Saved:
    """Where a model was written.

    needs_plan  why a folder of transformers loads with ``surgeon.load`` only; empty where ``from_pretrained`` does
    """

    path: Path
    needs_plan: str = ""

    def __str__(self) -> str:
        return f"{self.path}" + (f", for surgeon.load: {self.needs_plan}" if self.needs_plan else "")

    def __fspath__(self) -> str:
        return os.fspath(self.path)


def save(small: Model, plan: Plan, path: str | os.PathLike[str], *, example_inputs: Any = None) -> Saved:
    """Write a small model and the plan that made it to a safetensors file, or to a folder of Hugging Face's layout.

    A file holds the plan in its metadata. Tied tensors are stored once; buffers that a state dict would leave out are
    stored too. A model of transformers is written as a folder, unless the path ends in ``.safetensors``: with its
    widths in ``config.json`` where the configuration can say them, so that ``from_pretrained`` loads it, and with the
    original configuration and the plan beside it for ``surgeon.load`` otherwise. Files are replaced whole or not at
    all.

    Parameters
    ----------
    small : what ``operate`` or ``prune`` returned for the plan, trained or refitted since or not
    example_inputs : for a model of transformers: what to compare outputs on, of the small model and of the one that the
        new configuration makes; tokens or an image of the model's size where none are given

    Raises
    ------
    PlanMismatch for a model that the plan does not make, FileError where it can't be written.

    Examples
    --------
    >>> surgeon.save(result.model, result.plan, "small.safetensors")
    """
    path = Path(path)
    if is_pretrained(small) and path.suffix != ".safetensors":
        return Saved(path, save_folder(small, plan, path, example_inputs))  # type: ignore[arg-type]
    return Saved(write_weights(small, plan, path))


def load(
    source: Callable[[], Any] | nn.Module | str | os.PathLike[str], path: str | os.PathLike[str] | None = None
) -> nn.Module:
    """Return the small model of a file: the original class, cut by the plan in the file, with the file's tensors.

    Nothing is unpickled. Train and eval mode and ``requires_grad`` are as the factory makes them; precision is that of
    the file.

    Parameters
    ----------
    source : a function that makes the original model, called under ``torch.device("meta")`` where that suffices; or the
        original model, which is not changed. A folder of transformers needs none: ``surgeon.load("small/")``
    path : what ``save`` or ``operate_file`` wrote

    Raises
    ------
    PlanMismatch for a factory of another architecture.
    FileError for a file that is damaged, holds no plan, or lacks a tensor.

    Examples
    --------
    >>> small = surgeon.load(lambda: resnet50(), "small.safetensors")
    """
    if path is None:
        if not isinstance(source, (str, os.PathLike)):
            raise UnsupportedModel("give the file as well: surgeon.load(factory, path)")
        return _folder(Path(source))
    if isinstance(source, (str, os.PathLike)):
        raise UnsupportedModel(f"expected what makes the original model and a path, got two paths: {source}, {path}")
    found, contents = _opened(Path(path))
    stored = {name: tensor for header in found for name, tensor in header.tensors.items()}
    model = rebuilt(source, contents.plan, {*stored, *contents.tied})
    return filled(model, contents, stored, partial(_read, found))


def _folder(folder: Path) -> nn.Module:
    """Load a folder without a factory: its configuration names the class."""
    if not folder.is_dir():
        raise FileError(f"{folder} is no folder; of a file, give what makes the original: surgeon.load(factory, path)")
    cut = (folder / WEIGHTS).exists() and "surgeon" not in read_header(folder / WEIGHTS).metadata
    if cut:
        return loaded(folder)
    return load(partial(original, folder), folder)


def _opened(path: Path) -> tuple[list[Header], Contents]:
    """Return the headers of a file or folder, and its plan."""
    if not path.is_dir():
        header = read_header(path)
        return [header], read_contents(header)
    if (path / WEIGHTS).exists():
        return _opened(path / WEIGHTS)
    if not (path / PLAN).exists():
        raise FileError(f"{path} holds no {PLAN}; it was written neither by surgeon.save nor by surgeon.operate_file")
    plan = Plan.load(path / PLAN)
    return headers(path), Contents(plan, plan.tied, (), (), {})


def _read(found: list[Header], names: dict[str, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for header in found:
        here: dict[str, Stored] = {name: header.tensors[name] for name in names if name in header.tensors}
        tensors.update(read_tensors(header, here))
    return tensors
