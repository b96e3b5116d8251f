"""A folder with a module of models in it, and command lines that run there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from surgeon.cli import app

MODELS = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        print("making a net")
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.mean((2, 3)))

    @classmethod
    def wide(cls):
        return cls(16)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(30, 6), nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, ids, scale):
        return self.head(torch.relu(self.hidden(self.embed(ids)))) * scale


made = Net()
number = 3


def fails():
    raise ZeroDivisionError("no width")


def gives_a_list():
    return [Net()]
"""

Surgeon = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the current folder, which is importable during the test as it is for a command of its own."""
    (tmp_path / "nets.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if _below(tmp_path, module)]:
        del sys.modules[name]


def _below(folder: Path, module: object) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and folder in Path(file).parents


@pytest.fixture
def surgeon(folder: Path) -> Surgeon:
    """Return what runs a command line."""

    def run(*words: object) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="surgeon")

    return run
