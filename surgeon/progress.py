"""What is under way, shown to whoever watches a terminal for more than two seconds.

Work that counts adds to an integer; a thread of its own looks at it ten times a second. Nothing is ever written where
standard error is no terminal, or where the environment has ``SURGEON_PROGRESS=0``.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

Item = TypeVar("Item")

# Seconds before anything is shown, and between two looks.
PATIENCE, PAUSE = 2.0, 0.1


class Work:
    """Something under way: what to call it, how much of it there is, how much is done, and if it wants quiet."""

    __slots__ = ("done", "still", "text", "total")

    def __init__(self, text: str, total: int | None = None, done: int = 0, still: bool = False) -> None:
        self.text, self.total, self.done, self.still = text, total, done, still

    def __str__(self) -> str:
        return self.text if self.total is None else f"{self.text} {self.done}/{self.total}"


# All that is under way, the innermost last.
_works: list[Work] = []
if hasattr(os, "register_at_fork"):
    # Whoever forks may be at work; nobody shows what the child does, or ever will.
    os.register_at_fork(after_in_child=_works.clear)


@contextmanager
def working(
    text: str,
    total: int | None = None,
    *,
    done: int = 0,
    still: bool = False,
    wanted: bool | None = None,
    patience: float | None = None,
) -> Iterator[Work]:
    """Call a block something, for whoever watches; blocks inside others are shown in their place.

    Parameters
    ----------
    total, done : how many steps there are, and how many are done already; the block adds to ``done``
    still : say it once and draw nothing more, for what is measured
    wanted : True to show it though nobody watches, False never to; by default, where standard error is a terminal
    patience : seconds before it is shown, two by default

    Examples
    --------
    >>> with working("cutting", total=len(layers)) as work:
    ...     for layer in layers:
    ...         work.done += 1
    """
    work = Work(text, total, done, still)
    if wanted is False:
        yield work
        return
    shown = _Shown(PATIENCE if patience is None else patience) if not _works and _watched(wanted) else None
    _works.append(work)
    try:
        if shown is not None:
            shown.thread.start()
        yield work
    finally:
        if shown is not None:
            shown.end()
        with suppress(ValueError):  # in a process that was forked meanwhile
            _works.remove(work)


def tracked(items: Iterable[Item], text: str, total: int | None = None) -> Iterator[Item]:
    """Yield items and count them.

    Parameters
    ----------
    total : how many there are, where ``len(items)`` does not tell
    """
    with working(text, length(items) if total is None else total) as work:
        for item in items:
            yield item
            work.done += 1


def length(items: Any) -> int | None:
    """Return how many items there are, where they know."""
    try:
        return len(items)
    except (TypeError, NotImplementedError):
        return None


def _watched(wanted: bool | None) -> bool:
    if os.environ.get("SURGEON_PROGRESS", "").lower() in ("0", "false", "no", "off"):
        return False
    try:
        return bool(wanted) or sys.stderr.isatty()
    except (AttributeError, ValueError):  # no standard error, or a closed one
        return False


class _Shown:
    """A line on standard error that says what is under way, drawn by a thread."""

    def __init__(self, patience: float) -> None:
        self.patience, self.start = patience, time.monotonic()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, name="surgeon-progress", daemon=True)

    def end(self) -> None:
        """Take the line away, before anything else is written."""
        self.over.set()
        self.thread.join()

    def _run(self) -> None:
        if self.over.wait(self.patience) and time.monotonic() - self.start < self.patience:
            return
        with suppress(OSError, ValueError):  # a terminal that is gone is no reason to stop the work
            self._draw()

    def _draw(self) -> None:
        # Imported when it is needed: most work is over by then.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (
            SpinnerColumn("line" if console.options.ascii_only else "dots"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
        )
        # What others print stays as it is: worker processes are forked with whatever stands in for sys.stdout.
        quiet = {"redirect_stdout": False, "redirect_stderr": False, "auto_refresh": False}
        bar = Progress(*columns, console=console, transient=console.is_terminal, **quiet)  # type: ignore[arg-type]
        works = list(_works) or [Work("")]
        task = bar.add_task(**_said(works))
        bar.tasks[0].start_time = bar.get_time() - (time.monotonic() - self.start)
        with bar:  # which draws it
            while not self.over.wait(PAUSE):
                works = self._again(bar, task, works)
            self._again(bar, task, works)

    def _again(self, bar: Any, task: Any, before: list[Work]) -> list[Work]:
        """Draw what is under way now, unless it is what wanted quiet before; return it."""
        works = list(_works) or before
        if not (works[-1].still and works[-1] is before[-1]):
            bar.update(task, **_said(works))
            bar.refresh()
        return works


def _said(works: list[Work]) -> dict[str, Any]:
    """Return what to show of all that is under way: the outermost and the innermost by name, and how far that is."""
    outer, inner = works[0], works[-1]
    text = inner.text if outer.text == inner.text else f"{outer.text}: {inner.text}"
    count = f"{inner.done}/{inner.total}" if inner.total is not None else ""
    return {"description": text, "total": inner.total, "completed": inner.done, "count": count}
