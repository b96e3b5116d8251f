"""Run notebooks from top to bottom, and fail where a cell does.

    python -m tests.run_notebooks examples/tour.ipynb

Nothing is written back: notebooks are kept without outputs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def run_notebook(path: Path, seconds: int = 300) -> list[str]:
    """Run a notebook in a folder that is thrown away, and return what its cells show, as text.

    Raises
    ------
    CellExecutionError, with the traceback of the cell that failed; TimeoutError for a cell that takes longer.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as scratch:
        client = NotebookClient(notebook, timeout=seconds, resources={"metadata": {"path": scratch}})
        client.execute()
    return [_text(output) for cell in notebook.cells for output in cell.get("outputs", ())]


def _text(output: nbformat.NotebookNode) -> str:
    return str(output.get("text") or output.get("data", {}).get("text/plain", ""))


def main(names: list[str]) -> int:
    """Run all notebooks; return the number of those that failed."""
    failed = 0
    for name in names:
        start, error = time.perf_counter(), ""
        try:
            print("".join(run_notebook(Path(name))))
        except CellExecutionError as found:
            failed, error = failed + 1, str(found)
        print(f"{name}: {time.perf_counter() - start:.1f} s", error, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
