"""Apply a plan to the files of a checkpoint, whatever their size."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from surgeon.deploy.journal import Journal
from surgeon.deploy.layout import Shard, Target, parse_size, run_digest, shards
from surgeon.errors import FileError, PlanMismatch
from surgeon.files.atomic import explained, synced, write_text
from surgeon.files.checkpoint import INDEX, PIECE, Reader, Source, headers
from surgeon.operate.pieces import Sieve
from surgeon.plan.plan import Plan
from surgeon.progress import Work, working

PLAN = "surgeon-plan.json"

# Where unfinished files are, inside the output folder.
PARTS = ".surgeon-parts"


@dataclass(frozen=True)
class CutFiles:
    """What ``operate_file`` wrote: the folder, its files, and bytes before and after.

    resumed  tensors that an earlier run had finished
    """

    folder: Path
    shards: tuple[str, ...]
    tensors: int
    read: int
    written: int
    resumed: int

    def __str__(self) -> str:
        again = f", {self.resumed} finished before" if self.resumed else ""
        return (
            f"{self.folder}: {self.tensors} tensors in {len(self.shards)} files, "
            f"{self.read:,} -> {self.written:,} bytes{again}"
        )


def operate_file(
    plan: Plan, source: Source, out_dir: str | os.PathLike[str], *, shard_size: int | str = "5GB"
) -> CutFiles:
    """Cut a checkpoint from files to files, a piece of a tensor at a time, whatever the size of the model.

    Every tensor is read once, and only what stays is written. The output folder gets files named
    ``model-0000k-of-0000n.safetensors``, the plan, and ``model.safetensors.index.json``; these names appear when
    everything is on the disk, the index last. A run that was interrupted goes on where it stopped when it is called
    again with the same arguments. The source is not touched.

    Parameters
    ----------
    source : a safetensors file, a pattern such as "model-*.safetensors", a folder, an index, or a list of files
    out_dir : a folder, made if missing
    shard_size : most bytes of tensors per file, such as "2GB"; a larger tensor has a file of its own

    Raises
    ------
    PlanMismatch when the files are not a checkpoint of the plan's architecture.
    FileError for damaged files, a full disk, or an output folder that holds another model.

    Examples
    --------
    >>> surgeon.operate_file(plan, "model-*.safetensors", "small/")
    """
    limit = parse_size(shard_size)
    given = headers(source)
    outputs = shards(plan, given, limit)
    run = _Run(plan, Path(out_dir), run_digest(plan, given, limit), tuple(outputs))
    resumed = run.carry_out()
    targets = [target for shard in outputs for target in shard.targets]
    return CutFiles(
        run.folder,
        tuple(shard.name for shard in outputs),
        len(targets),
        sum(target.stored.size for target in targets),
        sum(shard.size for shard in outputs),
        resumed,
    )


@dataclass(frozen=True)
class _Run:
    """One cut of one checkpoint into one folder, from wherever an earlier run of the same stopped."""

    plan: Plan
    folder: Path
    digest: str
    shards: tuple[Shard, ...]

    @property
    def parts(self) -> Path:
        return self.folder / PARTS

    def carry_out(self) -> int:
        """Do what is left to do; return how many tensors were finished before."""
        if self._finished():
            with suppress(FileNotFoundError):
                shutil.rmtree(self.parts)
            return sum(len(shard.targets) for shard in self.shards)
        with explained(self.folder):
            self._check_names()
            self.parts.mkdir(parents=True, exist_ok=True)
            self._check_room()
        journal = Journal(self.parts / "journal", self.digest)
        try:
            # One thread reads and picks while the other digests and writes.
            many = sum(len(shard.targets) for shard in self.shards)
            with Reader() as reader, ThreadPoolExecutor(1) as thread, working("cutting", many) as work:
                writer = _Beside(thread)
                resumed = sum(self._write(shard, reader, writer, journal, work) for shard in self.shards)
            self._publish(journal)
        except FileError as error:
            raise FileError(
                f"{error} (what is finished is kept in {self.parts}; the same call goes on from there)"
            ) from error
        finally:
            journal.close()
        shutil.rmtree(self.parts)
        return resumed

    # -- before anything is written --------------------------------------------------------------------

    def _finished(self) -> bool:
        """Tell whether the folder holds the result of this very run."""
        try:
            index = json.loads((self.folder / INDEX).read_bytes())
            same = index["metadata"]["surgeon"]["run"] == self.digest
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return same and all(self._size(self.folder / shard.name) == shard.size for shard in self.shards)

    def _check_names(self) -> None:
        """Refuse a folder with a model in it, unless this run began to put it there."""
        if (self.parts / "journal").exists():
            return
        for name in (*(shard.name for shard in self.shards), INDEX, PLAN):
            if (self.folder / name).exists():
                raise FileError(f"{self.folder} holds {name} already; choose an empty folder, nothing was written")

    def _check_room(self) -> None:
        there = sum(path.stat().st_blocks * 512 for path in self.parts.iterdir())
        there += sum(self._size(self.folder / shard.name) for shard in self.shards)
        needed, free = sum(shard.size for shard in self.shards) - there, shutil.disk_usage(self.folder).free
        if needed > free:
            raise FileError(
                f"{self.folder}: the result takes {needed:,} bytes more, the disk has {free:,}; free some space"
            )

    @staticmethod
    def _size(path: Path) -> int:
        return path.stat().st_size if path.exists() else 0

    # -- tensors ---------------------------------------------------------------------------------------

    def _write(self, shard: Shard, reader: Reader, writer: _Beside, journal: Journal, work: Work) -> int:
        """Write what is missing of a file; return how many of its tensors were there."""
        path = self.parts / shard.name
        if not path.exists() and (self.folder / shard.name).exists():
            path = self.folder / shard.name  # a run that was stopped while files took their names
        with explained(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            try:
                os.ftruncate(handle, shard.size)
                _write_at(handle, memoryview(shard.header), 0)
                intact = 0
                for target in shard.targets:
                    work.done += 1
                    name = target.stored.name
                    if name in journal.done and _digest(path, target, reader) == journal.done[name]:
                        intact += 1
                        continue
                    journal.add(name, self._carry(target, handle, reader, writer))
                os.fsync(handle)
            finally:
                writer.settle()  # before the file is closed, or its number is another's
                os.close(handle)
        return intact

    def _carry(self, target: Target, handle: int, reader: Reader, writer: _Beside) -> str:
        """Write what stays of a tensor; return the digest of its bytes."""
        sieve = Sieve(self.plan, target.known) if target.known in self.plan.cuts else None
        digest, at = hashlib.sha256(), target.begin
        for where, values in reader.pieces(target.stored):
            kept = values if sieve is None else sieve(where, values)
            data = kept.reshape(-1).view(torch.uint8).numpy().data
            if at + len(data) > target.begin + target.size:
                raise PlanMismatch(f"the plan keeps more positions of {target.known} than {list(target.shape)} has")
            writer.run(_put, handle, data, at, digest)
            at += len(data)
        writer.finish()
        if at != target.begin + target.size:
            raise PlanMismatch(f"the plan keeps fewer positions of {target.known} than {list(target.shape)} has")
        return digest.hexdigest()

    # -- names -----------------------------------------------------------------------------------------

    def _publish(self, journal: Journal) -> None:
        """Give finished files their names, the index last: who finds an index finds everything."""
        targets = [target for shard in self.shards for target in shard.targets]
        index = {
            "metadata": {
                "total_size": sum(target.size for target in targets),
                "surgeon": {
                    "run": self.digest,
                    "plan": PLAN,
                    "sha256": {target.stored.name: journal.done[target.stored.name] for target in targets},
                },
            },
            "weight_map": {t.stored.name: self.shards[t.shard].name for t in targets},
        }
        with explained(self.folder):
            for shard in self.shards:
                if (self.parts / shard.name).exists():
                    os.replace(self.parts / shard.name, self.folder / shard.name)
            synced(self.folder)
        write_text(self.folder / PLAN, self.plan.to_json())
        write_text(self.folder / INDEX, json.dumps(index, indent=1) + "\n")


def _digest(path: Path, target: Target, reader: Reader) -> str:
    """Return the digest of the bytes that are where a tensor should be."""
    digest = hashlib.sha256()
    for start in range(target.begin, target.begin + target.size, PIECE):
        digest.update(reader.range(path, start, min(start + PIECE, target.begin + target.size)))
    return digest.hexdigest()


class _Beside:
    """Runs one thing at a time beside its caller, who waits only when the next is to be run."""

    def __init__(self, thread: Executor) -> None:
        self.thread = thread
        self.running: Future[None] | None = None

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Start something, when what ran before is done; raises what that raised."""
        self.finish()
        self.running = self.thread.submit(function, *args)

    def finish(self) -> None:
        """Wait for what runs; raises what it raised."""
        running, self.running = self.running, None
        if running is not None:
            running.result()

    def settle(self) -> None:
        """Wait for what runs, whatever becomes of it."""
        wait([self.running] if self.running is not None else [])
        self.running = None


def _put(handle: int, data: memoryview, at: int, digest: Any) -> None:
    digest.update(data)
    _write_at(handle, data, at)


def _write_at(handle: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(handle, data, at)
        data, at = data[count:], at + count
