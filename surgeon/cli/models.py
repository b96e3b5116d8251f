"""Models by reference: ``package.module:factory``, ``timm:NAME``, ``torchvision:NAME``, ``hf:PATH`` or ``file.pt2``.

Nothing is downloaded and nothing is unpickled; code of the user's runs when it is named as ``package.module:factory``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import typer
from torch import nn

from surgeon.cli.inputs import tensors
from surgeon.deploy import load as cut
from surgeon.deploy.hugging_face import PLAN
from surgeon.errors import ModelNotFound, SurgeonError
from surgeon.exported import load

FORMS = "package.module:factory, torchvision:NAME, timm:NAME, hf:PATH or file.pt2"

# What makes libraries fetch or unpickle weights.
_FETCHING = ("pretrained", "weights", "weights_backbone", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")


@dataclass(frozen=True)
class Reference:
    """What a reference leads to.

    make    makes the model, with the weights that it starts with
    inputs  example inputs for it where none are given, if they are known
    source  the file or folder that the model is in
    """

    text: str
    make: Callable[[], Any]
    inputs: Callable[[Any, int], Any] | None = None
    source: Path | None = None

    def __str__(self) -> str:
        return self.text


def resolve(text: str, arguments: Sequence[str] = ()) -> Reference:
    """Read a model reference, with ``key=value`` arguments for what makes it.

    Raises
    ------
    ModelNotFound where it leads nowhere, with the nearest names.
    """
    given = parse_arguments(arguments)
    kind, colon, name = text.partition(":")
    if Path(text).suffix == ".pt2":
        _refuse(given, "an exported program takes none")
        return Reference(text, lambda: load(text), _recorded_inputs, Path(text))
    if not colon or not kind or not name:
        raise ModelNotFound(f"{text!r} is no model reference; write {FORMS}")
    return SOURCES.get(kind, _from_module)(text, given)


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs: values are Python literals, and texts where they are none."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in found:
            raise typer.BadParameter(f"{text!r}: write key=value, each key once", param_hint="--arg")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found[name] = value
    return found


def build(reference: Reference, seed: int = 0) -> Any:
    """Make the model of a reference, its random weights from a seed.

    Raises
    ------
    ModelNotFound where that fails or gives something else than a model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = reference.make()
        except SurgeonError:
            raise
        except Exception as error:
            raise ModelNotFound(f"{reference} could not be made: {reason(error)}") from error
    if not isinstance(model, (nn.Module, torch.export.ExportedProgram)):
        raise ModelNotFound(f"{reference} gave a {type(model).__name__}, no torch.nn.Module")
    return model


def reason(error: BaseException) -> str:
    """Return kind, message and place of an error in code of the user's."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def _refuse(given: Mapping[str, Any], why: str) -> None:
    if given:
        raise typer.BadParameter(f"{next(iter(given))}: {why}", param_hint="--arg")


def _near(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=3)
    return f"; did you mean {', '.join(map(repr, near))}?" if near else ""


# -- the user's own ----------------------------------------------------------------------------------


def _from_module(text: str, given: Mapping[str, Any]) -> Reference:
    path, _, name = text.partition(":")
    held: Any = _imported(path)
    for part in name.split("."):
        if not hasattr(held, part):
            known = [known for known in vars(held) if not known.startswith("_")]
            raise ModelNotFound(f"{text!r}: {path} has no {name!r}{_near(part, known)}")
        held = getattr(held, part)
    if isinstance(held, nn.Module):
        _refuse(given, f"{text} is a model, which takes no arguments")
        return Reference(text, lambda: held)
    if not callable(held):
        raise ModelNotFound(f"{text!r} is a {type(held).__name__}; name a function or class that makes the model")
    _check_arguments(text, held, given)
    return Reference(text, lambda: held(**given))


def _imported(path: str) -> ModuleType:
    """Import a module, from the current folder first, as ``python -m`` does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise ModelNotFound(f"importing {path!r} failed: {reason(error)}") from error
        near = _near(path, [file.stem for file in Path().glob("*.py")])
        raise ModelNotFound(
            f"there is no module {error.name!r} in {os.getcwd()} or among what is installed{near}; models are {FORMS}"
        ) from error
    except Exception as error:
        raise ModelNotFound(f"importing {path!r} failed: {reason(error)}") from error


def _check_arguments(text: str, factory: Callable[..., Any], given: Mapping[str, Any]) -> None:
    try:
        inspect.signature(factory).bind(**given)
    except TypeError as error:
        raise typer.BadParameter(f"{text}: {error}", param_hint="--arg") from error
    except ValueError:
        return  # functions written in C may have no signature


# -- libraries ---------------------------------------------------------------------------------------


def _required(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # torchvision raises RuntimeError where its operators do not load
        raise ModelNotFound(f"{name} can't be imported ({reason(error)}): pip install {name}") from error


def _refuse_fetching(given: Mapping[str, Any]) -> None:
    for name in given:
        if name in _FETCHING:
            raise typer.BadParameter(
                f"{name}: nothing is downloaded; give the weights as a file with --weights", param_hint="--arg"
            )


def _from_torchvision(text: str, given: Mapping[str, Any]) -> Reference:
    name = text.partition(":")[2]
    models = _required("torchvision").models
    if name not in models.list_models():
        raise ModelNotFound(f"torchvision has no model {name!r}{_near(name, models.list_models())}")
    _refuse_fetching(given)
    builder = models.get_model_builder(name)
    none = {key: None for key in ("weights", "weights_backbone") if key in inspect.signature(builder).parameters}

    def make() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about defaults that are to change
            return builder(**none, **given)

    def inputs(model: Any, seed: int) -> Any:
        size = getattr(models.get_model_weights(name).DEFAULT.transforms, "keywords", {}).get("crop_size")
        return tensors([f"1x3x{size}x{size}"], seed) if isinstance(size, int) else None

    return Reference(text, make, inputs)


def _from_timm(text: str, given: Mapping[str, Any]) -> Reference:
    name = text.partition(":")[2]
    timm = _required("timm")
    if not timm.is_model(name):
        raise ModelNotFound(f"timm has no model {name!r}{_near(name, timm.list_models())}")
    _refuse_fetching(given)

    def inputs(model: Any, seed: int) -> Any:
        size = getattr(model, "pretrained_cfg", {}).get("input_size")
        return tensors(["x".join(map(str, (1, *size)))], seed) if size else None

    return Reference(text, lambda: timm.create_model(name, pretrained=False, **given), inputs)


def _from_hugging_face(text: str, given: Mapping[str, Any]) -> Reference:
    path = Path(text.partition(":")[2]).expanduser()
    if not (path / "config.json").is_file():
        raise ModelNotFound(
            f"{text!r}: {path} is no folder with a config.json; models are read from local folders only, so download "
            "it first"
        )
    _refuse(given, "the configuration in the folder says what the model is")
    return Reference(text, lambda: _pretrained(path), _hugging_face_inputs, path)


def _pretrained(folder: Path) -> Any:
    """Load a folder of transformers: with its weights where it has safetensors, new ones otherwise."""
    transformers: Any = _required("transformers")
    if (folder / PLAN).exists():
        return cut(folder)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    name = (config.architectures or ["none"])[0]
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ModelNotFound(f"{folder}: transformers has no class {name!r}, which its config.json names")
    if any(folder.glob("*.safetensors")):
        model, told = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        if told["missing_keys"]:
            raise ModelNotFound(f"{folder}: its safetensors lack {sorted(told['missing_keys'])[0]!r}")
        return model
    if any(folder.glob("*.bin")):
        raise ModelNotFound(f"{folder} has pickled weights; convert them to safetensors, which run no code")
    return kind(config).eval()


def _hugging_face_inputs(model: Any, seed: int) -> Any:
    if model.main_input_name == "input_ids":
        return dict(model.dummy_inputs)
    size, channels = (getattr(model.config, name, None) for name in ("image_size", "num_channels"))
    if model.main_input_name == "pixel_values" and isinstance(size, int) and isinstance(channels, int):
        return tensors([f"pixel_values=1x{channels}x{size}x{size}"], seed)
    return None


def _recorded_inputs(program: Any, seed: int) -> Any:
    args, kwargs = program.example_inputs or ((), {})
    return None if args and kwargs else args or kwargs or None


SOURCES: dict[str, Callable[[str, Mapping[str, Any]], Reference]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "hf": _from_hugging_face,
}
