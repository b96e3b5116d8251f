"""Headers of safetensors files: where each tensor's bytes are.

The library maps a whole file into memory, and pages that were touched count as this process's own; reading ranges of a
file leaves them to the system's cache. So the layout is read here: eight bytes of length, that much JSON, the data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from surgeon.errors import FileError
from surgeon.files import strict
from surgeon.files.atomic import explained

# What the library takes at most.
LONGEST = 100_000_000

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its bytes are ``[begin, end)`` of the file, in row-major order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape)} in {self.path.name}"


@dataclass(frozen=True)
class Header:
    """The tensors of a file, in the order of their bytes, and what else its header says."""

    path: Path
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]
    text: bytes


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of a safetensors file, and check it against the length of the file.

    Raises
    ------
    FileError for a file that is truncated, or no safetensors file.
    """
    path = Path(path)
    with explained(path), open(path, "rb") as file:
        whole = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little") if whole >= 8 else -1
        if not 0 < length <= min(LONGEST, whole - 8):
            raise FileError(f"{path} is truncated, or no safetensors file: {whole} bytes, a header of {length}")
        text = file.read(length)
    try:
        data = strict.parsed(text)
    except ValueError as error:
        raise FileError(f"{path} is no safetensors file: {error}") from error
    if not isinstance(data, dict):
        raise FileError(f"{path} is no safetensors file: its header is no object")
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(value, str) for value in metadata.values()):
        raise FileError(f"{path} is no safetensors file: its metadata are no texts")
    found = sorted((_stored(path, name, entry, 8 + length) for name, entry in data.items()), key=_place)
    _check_places(path, found, 8 + length, whole)
    return Header(path, {stored.name: stored for stored in found}, metadata, text)


def _place(stored: Stored) -> tuple[int, int]:
    return stored.begin, stored.end


def _stored(path: Path, name: str, entry: Any, start: int) -> Stored:
    keys = {"dtype", "shape", "data_offsets"}
    if not isinstance(entry, dict) or entry.keys() != keys:
        raise FileError(f"{path}: the entry of {name!r:.80} is malformed")
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
            raise FileError(f"{path}: shape or offsets of {name!r:.80} are no lists of sizes")
    if dtype not in DTYPES:
        raise FileError(f"{path}: {name!r:.80} is of type {dtype!r:.20}; this version knows {', '.join(DTYPES)}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise FileError(f"{path}: {name!r:.80} has {offsets} for {dtype} of shape {shape}")
    return Stored(name, dtype, tuple(shape), path, start + offsets[0], start + offsets[1])


def _check_places(path: Path, found: Iterable[Stored], at: int, whole: int) -> None:
    """Refuse overlaps and holes, which the format does not allow, and files that end too early or too late."""
    for stored in found:
        if stored.begin != at:
            raise FileError(f"{path}: {stored.name!r:.80} begins at byte {stored.begin}, expected {at}")
        at = stored.end
    if at != whole:
        kind = "truncated" if whole < at else "longer than it should be"
        raise FileError(f"{path} is {kind}: {whole} bytes, its header says {at}")


def header_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a file that holds tensors one after the other: name -> (type, shape)."""
    data: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        end = at + math.prod(shape) * DTYPES[dtype].itemsize
        data[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(data, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LONGEST:
        raise FileError(f"a header of {len(text)} bytes is more than safetensors files have ({LONGEST})")
    return len(text).to_bytes(8, "little") + text
