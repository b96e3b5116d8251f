"""What commands say: a result on standard output, progress and notes on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np
from rich.console import Console

from surgeon.progress import Work, working

# Columns of tables that go to a file or a pipe.
WIDTH = 100


@dataclass(frozen=True)
class Answer:
    """What a command found: as a document for machines, and as things to print one below the other."""

    document: Mapping[str, Any]
    shown: tuple[Any, ...]


def write(answer: Answer, stream: TextIO, as_json: bool) -> None:
    """Write an answer to a stream, as one JSON document or for readers."""
    if as_json:
        print(dumps(answer.document), file=stream)
        return
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    for thing in answer.shown:
        if isinstance(thing, str):
            console.print(thing, markup=False, soft_wrap=True)
        else:
            console.print(thing)


def dumps(document: Any) -> str:
    """Return JSON that any reader takes: what is not finite is null."""
    return json.dumps(plain(document), indent=1, allow_nan=False)


def plain(value: Any) -> Any:
    """Return nested values as what JSON has."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def note(text: str) -> None:
    """Say something that is not the result."""
    print(text, file=sys.stderr)


def step(text: str) -> AbstractContextManager[Work]:
    """Show what is being done while it is, where a person is watching."""
    return working(text, patience=0.0)
