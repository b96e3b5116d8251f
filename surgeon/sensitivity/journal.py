"""A file of evaluations that a run adds to, line by line, and that the next run goes on from.

The first line says what the values belong to. A line that was cut short by a kill is dropped; a file that belongs to
another run is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.errors import SensitivityError
from surgeon.sensitivity.curves import finite

FORMAT = "surgeon-sensitivity-journal"

# What the first line says, and what it means where it says otherwise.
DIFFERENCES = {
    "architecture": "is for a model of another architecture",
    "weights": "is for other weights of this architecture",
    "evaluate": "has values of another evaluate",
    "method": "is for another method of the model",
    "criterion": "is for another criterion",
    "cuts": "is for other groups, or for units in another order of importance (another keep= or criterion)",
}


class Point(NamedTuple):
    """A group and how many of its units go; no group is the original."""

    group: str
    removed: int


ORIGINAL = Point("", 0)


def header(
    model: nn.Module, evaluate: Any, *, method: str, criterion: Any, orders: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return the first line for a run: what its values depend on.

    Parameters
    ----------
    orders : group name -> units in the order of removal, [steps, units per step]
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    shapes = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in tensors]
    cuts = [(name, order.tolist()) for name, order in orders.items()]
    return {
        "format": FORMAT,
        "version": 1,
        "architecture": _digest(json.dumps([type(model).__qualname__, shapes]).encode()),
        "weights": _digest(*(_bytes(tensor) for _, tensor in tensors)),
        "evaluate": name_of(evaluate),
        "method": method,
        "criterion": name_of(criterion),
        "cuts": _digest(json.dumps(cuts).encode()),
    }


def begin(path: str | os.PathLike[str], first: Mapping[str, Any]) -> dict[Point, float]:
    """Start a file, or return the values that it holds already.

    Raises
    ------
    SensitivityError for a file of another run, or one that can't be read.
    """
    path, line = Path(path), _line(first)
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if not whole:
        if not line.startswith(content):
            raise SensitivityError(f"{path} is not a file of sensitivities; give another path to resume from")
        path.write_bytes(line)
        return {}
    start, *rest = whole.splitlines()
    _check(path, _parsed(path, 1, start), first)
    values = dict(_value(path, number, _parsed(path, number, text)) for number, text in enumerate(rest, 2))
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return values


def add(path: str | os.PathLike[str], point: Point, value: float) -> None:
    """Append a value, and return when it is on the disk."""
    with open(path, "ab", buffering=0) as file:
        file.write(_line({"group": point.group, "removed": point.removed, "value": value}))
        os.fsync(file.fileno())


def name_of(function: Any) -> str:
    """Return the name of a criterion or of a function."""
    return function if isinstance(function, str) else getattr(function, "__qualname__", type(function).__qualname__)


def _line(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data) + "\n").encode()


def _parsed(path: Path, number: int, text: bytes) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise SensitivityError(f"{path}, line {number} is damaged ({error}); delete the line or the file") from error
    if not isinstance(data, dict):
        raise SensitivityError(f"{path}, line {number} is not an object; this is not a file of sensitivities")
    return data


def _check(path: Path, found: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    if found.get("format") != FORMAT or found.get("version") != first["version"]:
        raise SensitivityError(f"{path} is not a file of sensitivities of version {first['version']}")
    for name, difference in DIFFERENCES.items():
        if found.get(name) != first[name]:
            raise SensitivityError(f"{path} {difference}; give another path to resume from, or delete the file")


def _value(path: Path, number: int, data: Mapping[str, Any]) -> tuple[Point, float]:
    try:
        return Point(str(data["group"]), int(data["removed"])), finite(data["value"])
    except (KeyError, TypeError, ValueError) as error:
        raise SensitivityError(f"{path}, line {number} is damaged ({error}); delete the line or the file") from error


def _digest(*parts: bytes | memoryview) -> str:
    whole = sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's values, in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
