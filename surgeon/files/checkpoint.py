"""Checkpoints of one or many safetensors files, read a piece at a time."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import FileError
from surgeon.files import strict
from surgeon.files.atomic import explained
from surgeon.files.header import DTYPES, Header, Stored, read_header

INDEX = "model.safetensors.index.json"

# Bytes that are read at once: large enough to cost few calls, small enough to be nothing beside the interpreter.
PIECE = 16 * 2**20

Source = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def headers(source: Source) -> list[Header]:
    """Return the headers of a checkpoint: a file, a pattern, a folder, an index, or a list of files.

    Raises
    ------
    FileError for what is missing, damaged or contradictory, and for file names that lead out of an index's folder.
    """
    if isinstance(source, (str, os.PathLike)):
        paths, listed = _paths(source)
    else:
        paths, listed = [Path(path) for path in source], {}
    if not paths:
        raise FileError("no files given")
    found = [read_header(path) for path in paths]
    seen: dict[str, Path] = {}
    for header in found:
        for name in header.tensors:
            if name in seen:
                raise FileError(f"{name!r:.80} is in {seen[name].name} and in {header.path.name}")
            seen[name] = header.path
    if listed and {name: path.name for name, path in seen.items()} != listed:
        name = sorted(listed.items() ^ {name: path.name for name, path in seen.items()}.items())[0][0]
        where = seen[name].name if name in seen else "none of the files"
        raise FileError(f"the index has {name!r:.80} in {listed.get(name)}, it is in {where}")
    return found


def tensors(source: Source) -> dict[str, Stored]:
    """Return the tensors of a checkpoint by name, in the order of files and bytes."""
    return {name: stored for header in headers(source) for name, stored in header.tensors.items()}


def _paths(source: str | os.PathLike[str]) -> tuple[list[Path], dict[str, str]]:
    """Return the files of a checkpoint, and which tensor an index has in which."""
    path = Path(source)
    if path.is_dir():
        path = path / INDEX if (path / INDEX).exists() else path / "*.safetensors"
    if path.name.endswith(".json"):
        return _indexed(path)
    if path.exists() or not glob.has_magic(str(path)):
        return [path], {}
    found = sorted(map(Path, glob.glob(str(path))))
    if not found:
        raise FileError(f"no file matches {path}")
    return found, {}


def _indexed(path: Path) -> tuple[list[Path], dict[str, str]]:
    with explained(path):
        text = path.read_bytes()
    try:
        data = strict.parsed(text)
    except ValueError as error:
        raise FileError(f"{path} is no index: {error}") from error
    listed = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise FileError(f"{path} is no index: it has no weight_map")
    for name in listed.values():
        # Names come from whoever wrote the file: they may only name its neighbours.
        plain = isinstance(name, str) and name.endswith(".safetensors") and not {"/", "\\", "\0", ":"} & {*name}
        if not plain or name.startswith("."):
            raise FileError(f"{path}: {name!r:.80} is not the name of a safetensors file in the same folder")
    return [path.parent / name for name in dict.fromkeys(listed.values())], listed


class Reader:
    """Reads ranges of files into two buffers in turn: what a read returns holds until the next but one."""

    def __init__(self) -> None:
        self._buffer, self._other = bytearray(), bytearray()
        self._file: Any = None
        self._path: Path | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._open(None)

    def _open(self, path: Path | None) -> None:
        if path == self._path:
            return
        if self._file is not None:
            self._file.close()
        self._file = None if path is None else open(path, "rb", buffering=0)  # noqa: SIM115  # until another is asked for
        self._path = path

    def range(self, path: Path, begin: int, end: int) -> memoryview:
        """Return bytes ``[begin, end)`` of a file."""
        self._buffer, self._other = self._other, self._buffer
        if len(self._buffer) < end - begin:
            self._buffer = bytearray(end - begin)
        view = memoryview(self._buffer)[: end - begin]
        with explained(path):
            self._open(path)
            self._file.seek(begin)
            done = 0
            while done < len(view):
                count = self._file.readinto(view[done:])
                if not count:
                    raise FileError(f"{path} is truncated: it ended at byte {begin + done}, expected {end}")
                done += count
            if hasattr(os, "posix_fadvise"):  # the disk reads on while this piece is worked on
                os.posix_fadvise(self._file.fileno(), end, end - begin, os.POSIX_FADV_WILLNEED)
        return view

    def pieces(self, stored: Stored) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """Yield pieces of a tensor in row-major order: where each is, and its values, gone with the next but one.

        Values are in a buffer; each piece has all dimensions, and is whole along the last ones.
        """
        dtype = DTYPES[stored.dtype]
        for where in slices(stored.shape, dtype.itemsize):
            shape = [len(range(*s.indices(n))) for s, n in zip(where, stored.shape)]
            begin = stored.begin + dtype.itemsize * _offset(where, stored.shape)
            view = self.range(stored.path, begin, begin + dtype.itemsize * prod(shape))
            # An empty buffer is no buffer to torch.
            values = torch.frombuffer(view, dtype=dtype) if view else torch.empty(0, dtype=dtype)
            yield where, values.reshape(shape)


def slices(shape: tuple[int, ...], itemsize: int, piece: int | None = None) -> Iterator[tuple[slice, ...]]:
    """Yield slices that cover a tensor in row-major order, of contiguous memory, none above a piece where possible."""
    piece = PIECE if piece is None else piece
    if not shape or prod(shape) * itemsize <= piece:
        yield (slice(None),) * len(shape)
        return
    # The first dimension whose rows fit is cut into pieces; those before it are walked through one by one.
    rows = [prod(shape[d + 1 :]) * itemsize for d in range(len(shape))]
    at = next((d for d, row in enumerate(rows) if row <= piece), len(shape) - 1)
    step = max(1, piece // rows[at])
    for outer in product(*(range(n) for n in shape[:at])):
        for start in range(0, shape[at], step):
            inner = slice(start, min(start + step, shape[at]))
            yield (*(slice(i, i + 1) for i in outer), inner, *(slice(None),) * (len(shape) - at - 1))


def _offset(where: tuple[slice, ...], shape: tuple[int, ...]) -> int:
    """Return how many elements come before a slice."""
    return sum((s.start or 0) * prod(shape[d + 1 :]) for d, s in enumerate(where))
