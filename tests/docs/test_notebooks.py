"""Notebooks run, a cell that fails is told, and no outputs are kept."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.run_notebooks import main, run_notebook

EXAMPLES = Path(__file__).parents[2] / "examples"


def _notebook(path: Path, *cells: str) -> Path:
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), path)
    return path


def test_cells_share_a_kernel_and_show_their_values(tmp_path: Path) -> None:
    path = _notebook(tmp_path / "good.ipynb", "x = 20", "print(x + 1)", "x + 2")
    assert run_notebook(path) == ["21\n", "22"]


def test_a_cell_that_fails_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(_notebook(tmp_path / "bad.ipynb", "1 / 0"))]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
