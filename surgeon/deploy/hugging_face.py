"""Folders of Hugging Face models: the layout of ``save_pretrained``, and the plan."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from surgeon.deploy.configuration import fitting_configuration, original_configuration
from surgeon.deploy.weights import checked, write_weights
from surgeon.errors import FileError, UnsupportedModel
from surgeon.files.atomic import explained, synced
from surgeon.plan.plan import Plan

PLAN = "surgeon-plan.json"
WEIGHTS = "model.safetensors"


def is_pretrained(model: Any) -> bool:
    """Tell whether a model is one of transformers, without importing it."""
    return any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__)


def save_folder(small: nn.Module, plan: Plan, folder: Path, example_inputs: Any = None) -> str:
    """Write a folder that ``from_pretrained`` loads, or, where no configuration says the widths, ``surgeon.load``.

    Returns
    -------
    why the plan is needed to load it; nothing where it is not
    """
    model: Any = checked(small, plan)
    fitting, reason = fitting_configuration(model, plan, example_inputs)
    with _replacing_files(folder) as new:
        if fitting is not None:
            fitting.save_pretrained(new)
        else:
            config = original_configuration(model, plan)
            config.architectures = [type(model).__name__]
            config.dtype = str(model.dtype).removeprefix("torch.")
            config.save_pretrained(new)
            if getattr(model, "generation_config", None) is not None:
                model.generation_config.save_pretrained(new)
            write_weights(model, plan, new / WEIGHTS)
        plan.save(new / PLAN)
    return reason


@contextmanager
def _replacing_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files move to ``folder`` when the block ends, the configuration last."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".surgeon-", dir=folder))
    try:
        yield new
        with explained(folder):
            written = sorted(new.iterdir(), key=lambda path: (path.name.endswith(".json"), path.name == "config.json"))
            for path in written:
                synced(path)
            for path in written:
                os.replace(path, folder / path.name)
            synced(folder)
    finally:
        shutil.rmtree(new)


def model_class(folder: Path) -> Any:
    """Return the class of transformers that a folder's configuration names.

    Raises
    ------
    FileError, UnsupportedModel where transformers is missing.
    """
    try:
        import transformers
    except ImportError as error:
        raise UnsupportedModel(
            f"{folder} is a folder of transformers, which is not installed: pip install transformers, or give a factory"
        ) from error
    if not (folder / "config.json").exists():
        raise FileError(f"{folder} has no config.json; give what makes the original model: surgeon.load(factory, path)")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise FileError(f"{folder}: its configuration can't be read: {type(error).__name__}: {error}") from error
    names = config.architectures or []
    kind = getattr(transformers, names[0], None) if names and isinstance(names[0], str) else None
    if kind is None or not is_pretrained_class(kind):
        raise FileError(
            f"{folder}: transformers has no model class {names[:1]}; give what makes the original model: "
            "surgeon.load(factory, path)"
        )
    return kind


def is_pretrained_class(kind: Any) -> bool:
    return isinstance(kind, type) and any(base.__name__ == "PreTrainedModel" for base in kind.__mro__)


def loaded(folder: Path) -> nn.Module:
    """Load a folder whose configuration says all widths, from safetensors only."""
    try:
        model: nn.Module = model_class(folder).from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise FileError(f"{folder}: {error}") from error
    return model


def original(folder: Path) -> nn.Module:
    """Build the original model from a folder's configuration, in eval mode, with the weights that it starts with."""
    kind = model_class(folder)
    model: nn.Module = kind(kind.config_class.from_pretrained(folder, local_files_only=True)).eval()
    return model
