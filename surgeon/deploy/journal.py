"""A record of what is finished, line by line, that the next run goes on from."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from surgeon.errors import FileError
from surgeon.files.atomic import explained

FORMAT = "surgeon-cut-journal"


class Journal:
    """Digests of finished tensors, for one run; the first line says which.

    A line that a kill cut short is dropped. What a line says is held against the bytes before it is believed, so lines
    need not wait for the disk.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path = path
        first = json.dumps({"format": FORMAT, "version": 1, "run": run}).encode() + b"\n"
        with explained(path):
            content = path.read_bytes() if path.exists() else b""
            start, *rest = content[: content.rfind(b"\n") + 1].splitlines(keepends=True) or [b""]
            if start not in (b"", first):
                raise FileError(
                    f"{path.parent} holds the beginning of another cut: of another checkpoint, plan or shard_size; "
                    "delete that folder to start over"
                )
            self.done: dict[str, str] = dict(filter(None, map(_entry, rest)))
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115  # closed by close
            if not _locked(self._file.fileno()):
                self._file.close()
                raise FileError(f"{path.parent}: another process is writing there")
            os.truncate(path, sum(map(len, (start, *rest))) if start else 0)
            if not start:
                self._file.write(first)

    def add(self, name: str, digest: str) -> None:
        """Note that a tensor is written, and what its bytes are."""
        with explained(self.path):
            self._file.write(json.dumps({"tensor": name, "sha256": digest}).encode() + b"\n")
        self.done[name] = digest

    def close(self) -> None:
        self._file.close()


def _entry(line: bytes) -> tuple[str, str] | None:
    with suppress(ValueError, KeyError, TypeError):
        data = json.loads(line)
        return str(data["tensor"]), str(data["sha256"])
    return None  # damaged: that tensor is written again


def _locked(handle: int) -> bool:
    """Keep a second run out while this one writes, where the system has locks; they end with the process."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
