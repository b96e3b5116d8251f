"""The session of docs/cli.md runs, and prints what it shows."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from surgeon.cli.app import DISPROVED, FAILED, REFUSED, USAGE
from tests.cli.conftest import Surgeon
from tests.run_code_blocks import blocks

PAGE = Path(__file__).parents[2] / "docs/cli.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="a distribution without the documentation")


def commands(code: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the command lines of a console block, each with the lines that it prints."""
    lines = code.splitlines()
    starts = [at for at, line in enumerate(lines) if line.startswith("$ ")]
    for start, end in zip(starts, [*starts[1:], len(lines)]):
        yield lines[start].removeprefix("$ "), lines[start + 1 : end]


def test_the_session(surgeon: Surgeon, folder: Path) -> None:
    found = [block for block in blocks(PAGE.read_text(encoding="utf-8")) if not block.skip]
    (module,) = [block.code for block in found if block.language == "python"]
    (folder / "net.py").write_text(module)
    ran = set()
    for block in found:
        for line, printed in commands(block.code) if block.language == "console" else ():
            words = shlex.split(line)
            assert words[0] == "surgeon"
            done = surgeon(*words[1:])
            assert done.exit_code == 0, f"{line}: {done.stderr}"
            assert "\n".join(printed) in done.stdout
            ran.add(words[1])
    assert ran == {"inspect", "prune", "verify", "report", "export", "bench", "plan", "apply"}


def test_every_exit_status_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for status in (0, REFUSED, USAGE, DISPROVED, FAILED, 130):
        assert f"\n| {status} | " in text
