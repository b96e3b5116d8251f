"""A pruner's state as a file next to a framework's checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from surgeon.errors import FileError
from surgeon.files.atomic import replacing
from surgeon.pruner import Pruner

FILE = "surgeon.pt"


def write(pruner: Pruner, folder: str | os.PathLike[str]) -> None:
    """Write a pruner's state into a checkpoint's folder, whole or not at all."""
    with replacing(Path(folder) / FILE) as temporary:
        torch.save(pruner.state_dict(), temporary)


def read(folder: str | os.PathLike[str]) -> Any:
    """Read a pruner's state from a checkpoint's folder.

    Raises
    ------
    FileError where there is none, or one that can't be read
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileError(
            f"{path} is not there: the checkpoint was saved without a pruner, or the run was stopped while it was "
            "written; take one that has it"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise FileError(f"{path} can't be read: {type(error).__name__}: {error}") from error
