"""Print a table and keep it as Markdown and JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def environment() -> str:
    """Say where numbers were measured."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return f"torch {torch.__version__}, Python {platform.python_version()}, {device}"


def publish(name: str, title: str, rows: Sequence[dict[str, Any]], notes: Sequence[str] = ()) -> None:
    """Print rows and write ``results/<name>.md`` and ``results/<name>.json``."""
    columns = list(rows[0])
    table = Table(*columns, title=title, caption=environment())
    for row in rows:
        table.add_row(*(_text(row[c]) for c in columns))
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    lines = [f"# {title}", "", f"Measured with {environment()}.", "", *notes, ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_text(row[c]) for c in columns) + " |" for row in rows]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    data = {"title": title, "environment": environment(), "notes": list(notes), "rows": list(rows)}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1))


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
