"""Folders that appear with all of their files, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from surgeon.errors import FileError
from surgeon.files.atomic import explained, synced

# What ``prune`` may write, the plan last: who finds it finds the rest.
NAMES = (
    "model.safetensors",
    "model.pt2",
    "model.onnx.data",
    "model.onnx",
    "config.json",
    "generation_config.json",
    "surgeon-plan.json",
    "report.html",
    "report.txt",
    "report.json",
    "plan.json",
)


def require_free(out: Path, force: bool, sources: Iterable[Path | None] = ()) -> None:
    """Refuse a folder that holds something already, or what is being pruned.

    Raises
    ------
    FileError
    """
    if out.exists() and not out.is_dir():
        raise FileError(f"{out} is a file; give a folder to write to")
    held = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if held and not force:
        raise FileError(f"{out} holds {held[0]} already; give an empty folder, or --force to replace what prune wrote")
    for source in sources:
        home = None if source is None else source if source.is_dir() else source.parent
        if held and home is not None and home.resolve() == out.resolve():
            raise FileError(f"{out} holds {source}, which is being pruned; give another folder")


@contextmanager
def published(out: Path) -> Iterator[Path]:
    """Yield a folder to write to; when the block ends, its files are in ``out``.

    A folder that does not exist appears at once with all of its files. Of one that does, files of ``NAMES`` that are
    not written anew go, as they belong to another model, and others stay.
    """
    out = out.resolve()
    new = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with explained(out):
            new.mkdir(parents=True)
        yield new
        with explained(out):
            for path in sorted(new.iterdir(), key=_rank):
                synced(path)
            if not out.exists():
                os.rename(new, out)
            else:
                _replace(new, out)
            synced(out.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace(new: Path, out: Path) -> None:
    written = sorted(new.iterdir(), key=_rank)
    for name in reversed(NAMES):
        if not (new / name).exists():
            with suppress(FileNotFoundError):
                (out / name).unlink()
    for path in written:
        os.replace(path, out / path.name)
    synced(out)


def _rank(path: Path) -> int:
    return NAMES.index(path.name) if path.name in NAMES else -1
