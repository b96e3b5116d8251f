"""Weights from files: safetensors, or what ``torch.load`` reads as weights only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from surgeon.errors import FileError
from surgeon.modules import named_tensors

# Where training scripts put the weights among other things.
_INSIDE = ("state_dict", "model", "model_state_dict")

# What wrappers put in front of names.
_WRAPPERS = ("module.", "_orig_mod.", "model.")


def load_weights(model: nn.Module, path: Path) -> None:
    """Give a model the weights of a file; every tensor has to be there and to fit.

    Raises
    ------
    FileError naming the tensor.
    """
    state = read_weights(path)
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        raise FileError(f"{path} is of another architecture: {(lines or [str(error)])[0]}") from error
    named = named_tensors(model)
    given = {id(named[name]) for name in state if name in named}
    missing = [name for name in result.missing_keys if name not in named or id(named[name]) not in given]
    for names, what in ((missing, "has no tensor"), (result.unexpected_keys, "has a tensor too many,")):
        if names:
            rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise FileError(f"{path} is of another architecture: it {what} {names[0]!r}{rest}{_wrapped(state, named)}")


def _wrapped(state: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    """Say what all names in a file have in front, if that is all that is wrong."""
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) and name.removeprefix(prefix) in named for name in state):
            return f"; all names begin with {prefix!r}: save the state dict of what is inside the wrapper"
    return ""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; nothing but tensors and plain values is unpickled.

    Raises
    ------
    FileError
    """
    if not path.is_file():
        raise FileError(f"there is no file {str(path)!r} to read weights from")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise FileError(f"{path} can't be read as safetensors: {error}") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip file, a pickle of anything but tensors, ...
        first = (str(error).splitlines() or [""])[0]
        raise FileError(
            f"{path} can't be read as weights only ({type(error).__name__}: {first:.160}); save a state dict, "
            "best as safetensors"
        ) from error
    return _state_dict(found, path)


def _state_dict(found: Any, path: Path) -> dict[str, Tensor]:
    inside = [found] if isinstance(found, Mapping) else []
    inside += [found[key] for key in _INSIDE if inside and isinstance(found.get(key), Mapping)]
    for state in inside:
        if state and all(isinstance(value, Tensor) for value in state.values()):
            return dict(state)
    raise FileError(f"{path} holds no state dict, on its own or as {', '.join(map(repr, _INSIDE))}")
