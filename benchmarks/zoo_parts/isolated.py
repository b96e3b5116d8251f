"""Run each piece of work in a process of its own, under limits of time and memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
_PAGE = os.sysconf("SC_PAGE_SIZE")
_FORK = multiprocessing.get_context("fork")  # a child starts with torch and the libraries of models imported


@dataclass(frozen=True)
class Limits:
    """What one process may take: seconds of time, gigabytes of memory."""

    seconds: float
    gigabytes: float


class Running:
    """One piece of work on its way."""

    def __init__(self, key: Any, work: Callable[[], Row]) -> None:
        self.key, self.start, self.peak = key, time.monotonic(), 0.0
        self.receiver, sender = _FORK.Pipe(duplex=False)
        self.process = _FORK.Process(target=_child, args=(work, sender), daemon=True)
        self.process.start()
        sender.close()

    def poll(self, limits: Limits) -> Row | None:
        """Return the row if there is one by now, or say which limit ended the work."""
        self.peak = max(self.peak, _resident(self.process.pid))
        if self.receiver.poll():
            return self._ended(self._received())
        if not self.process.is_alive():
            return self._ended({"outcome": "killed", "reason": f"exit code {self.process.exitcode}"})
        if time.monotonic() - self.start > limits.seconds:
            return self._ended({"outcome": "timeout", "reason": f"more than {limits.seconds:.0f} s"})
        if self.peak > limits.gigabytes:
            return self._ended({"outcome": "memory", "reason": f"more than {limits.gigabytes:.0f} GB"})
        return None

    def _received(self) -> Row:
        try:
            row: Row = self.receiver.recv()
            return row
        except EOFError:
            self.process.join()
            return {"outcome": "killed", "reason": f"exit code {self.process.exitcode}"}

    def _ended(self, row: Row) -> Row:
        self.process.kill()
        self.process.join()
        return row | {"seconds": time.monotonic() - self.start, "peak_gb": self.peak}


def run_all(
    tasks: Iterable[tuple[Any, Callable[[], Row]]], limits: Limits, jobs: int = 1, step: float = 0.05
) -> Iterator[tuple[Any, Row]]:
    """Run tasks ``(key, work)``, at most ``jobs`` at a time, and yield ``(key, row)`` as they end."""
    waiting, active = iter(tasks), list[Running]()
    while True:
        while len(active) < jobs and (task := next(waiting, None)) is not None:
            active.append(Running(*task))
        if not active:
            return
        time.sleep(step)
        for running in list(active):
            row = running.poll(limits)
            if row is not None:
                active.remove(running)
                yield running.key, row


def _child(work: Callable[[], Row], sender: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silent, stream)
    sender.send(work())
    sender.close()


def _resident(process: int | None) -> float:
    """Return the resident memory of a process in gigabytes."""
    try:
        with open(f"/proc/{process}/statm") as file:
            return int(file.read().split()[1]) * _PAGE / 1e9
    except (OSError, IndexError):
        return 0.0
