"""A progress bar of training, on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def bar(shown: bool | None, epochs: int) -> Iterator[Callable[[float, str], None]]:
    """Show a bar on standard error, on a terminal where nothing else is asked; yield what moves it: (share, text)."""
    console = Console(stderr=True)
    if not (console.is_terminal if shown is None else shown):
        yield lambda _done, _text: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"{epochs} epochs", total=1.0)
        yield lambda done, text: progress.update(task, completed=done, description=text)
