"""Write a file whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from surgeon.errors import FileError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what is written there takes the name ``path`` when the block ends.

    When the block fails, the temporary file goes, and whatever was at ``path`` is as it was. The file's permissions are
    those of the one that it replaces, or of any new file.

    Raises
    ------
    FileError where the folder can't be written to, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with explained(path):
            temporary.touch()
            mode = (path if path.exists() else temporary).stat().st_mode & 0o777
            yield temporary
            temporary.chmod(mode)  # some libraries write files that nobody else may read
            synced(temporary)
            os.replace(temporary, path)
            synced(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all, as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


def synced(path: Path) -> None:
    """Return when a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # folders can't be opened there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of the operating system into FileError, with the path and what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "; free some space, or write elsewhere" if full else ""
        raise FileError(f"{path}: {error.strerror or error}{hint}") from error
