"""Measurements that outlive the process: one JSON file, by environment and by op."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon.errors import SurgeonError
from surgeon.modules import as_arguments, tensors_in

VERSION = 1


class Cache:
    """Seconds by key, in a file or, where the path is None, in memory.

    Keys hold all that a measurement depends on: see ``environment``. Writes merge with what other processes wrote
    meanwhile and replace the file at once, so that no reader finds half of one.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self.entries: dict[str, dict[str, Any]] = _read(self.path)

    def get(self, environment: str, key: str) -> Any:
        """Return what was measured, or None."""
        return self.entries.get(environment, {}).get(key)

    def put(self, environment: str, values: Mapping[str, Any]) -> None:
        """Add measurements and write the file."""
        if self.path is not None:
            for name, known in _read(self.path).items():
                self.entries[name] = {**known, **self.entries.get(name, {})}
        self.entries.setdefault(environment, {}).update(values)
        if self.path is not None:
            _write(self.path, {"format": "surgeon-latency", "version": VERSION, "entries": self.entries})

    def __str__(self) -> str:
        return f"{sum(map(len, self.entries.values()))} measurements in {self.path or 'memory'}"


def _read(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None or not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = data["entries"] if data["version"] == VERSION else {}
        return {environment: dict(values) for environment, values in found.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SurgeonError(f"{path} is not a file of latency measurements ({error}); delete it") from error


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=0, sort_keys=True)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def default_path() -> Path:
    """Return where measurements are kept: ``$SURGEON_CACHE``, or the user's cache folder."""
    if os.environ.get("SURGEON_CACHE"):
        return Path(os.environ["SURGEON_CACHE"]) / "latency.json"
    home = Path.home()
    folder = {
        "darwin": home / "Library" / "Caches",
        "win32": Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"),
    }.get(sys.platform, Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache"))
    return folder / "surgeon" / "latency.json"


def environment(model: nn.Module, example_inputs: Any, backend: str) -> str:
    """Say what a measurement depends on besides the op: device, dtype, back end, threads, batch, layout, versions."""
    tensors = tensors_in(as_arguments(example_inputs))
    device = tensors[0].device if tensors else torch.device("cpu")
    batch = tensors[0].shape[0] if tensors and tensors[0].dim() else 1
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    images = [p for p in parameters if p.dim() == 4 and not p.is_contiguous()]
    parts = [
        device_name(device),
        str(parameters[0].dtype).removeprefix("torch.") if parameters else "no parameters",
        backend,
        f"{torch.get_num_threads()} threads",
        f"batch {batch}",
        f"torch {torch.__version__}",
        *(["channels last"] if images else []),
        *(["reduced float32"] if torch.get_float32_matmul_precision() != "highest" else []),
    ]
    return ", ".join(parts)


def device_name(device: torch.device) -> str:
    """Return the name of a processor or accelerator."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type != "cpu":
        return device.type
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
