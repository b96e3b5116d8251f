"""Run the Python code blocks of Markdown pages: what the documentation shows must work.

The blocks of one page share a namespace and run from top to bottom, in a directory that is thrown away afterwards.
A block right after the comment ``<!-- skip -->`` is not run.

    python -m tests.run_code_blocks README.md docs/*.md
"""

from __future__ import annotations

import os
import random
import re
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tests.torchvision_stub import install

_OPEN = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>[\w+-]*)")
_SKIP = "<!-- skip -->"


@dataclass(frozen=True)
class Block:
    """A fenced code block: its language, the number of its first line of code, its code."""

    language: str
    line: int
    code: str
    skip: bool = False


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a Markdown text.

    Raises ValueError for a block that is never closed.
    """
    lines = text.splitlines()
    skip, number = False, 0
    while number < len(lines):
        line = lines[number]
        number += 1
        opened = _OPEN.match(line)
        if opened is None:
            skip = line.strip() == _SKIP or (skip and not line.strip())
            continue
        start = number
        while number < len(lines) and not _closes(lines[number], opened["fence"]):
            number += 1
        if number == len(lines):
            raise ValueError(f"the code block opened in line {start} is never closed")
        indent = len(opened["indent"])
        code = "\n".join(row[indent:] if row[:indent].isspace() else row for row in lines[start:number])
        yield Block(opened["language"], start + 1, code, skip)
        number, skip = number + 1, False


def _closes(line: str, fence: str) -> bool:
    return line.strip().startswith(fence) and not line.strip().strip(fence[0])


def run_page(path: Path) -> tuple[int, str | None]:
    """Run the Python blocks of a page in one namespace.

    Returns the number of blocks that ran, and ``file:line: error`` with a traceback, or None if all went well.
    """
    # A module that can be found by name: dataclasses and pickle look the namespace up there.
    module = types.ModuleType("page_" + re.sub(r"\W", "_", path.stem))
    sys.modules[module.__name__] = module
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    count = 0
    try:
        found = list(blocks(path.read_text(encoding="utf-8")))
    except ValueError as error:
        return count, f"{path}: {error}"
    for block in found:
        if block.language not in ("python", "py") or block.skip:
            continue
        try:
            # Blank lines in front give the code the page's line numbers, in tracebacks and to whoever reads the source.
            code = compile("\n" * (block.line - 1) + block.code, str(path), "exec", dont_inherit=True)
            exec(code, module.__dict__)
        except (Exception, SystemExit) as error:
            return count, f"{path}:{_line(error, path, block)}: {type(error).__name__}: {error}\n{_trace(error)}"
        count += 1
    return count, None


def _line(error: BaseException, path: Path, block: Block) -> int:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or block.line
    here = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return (here[-1] if here else None) or block.line


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


def main(names: list[str]) -> int:
    """Run all pages; return the number of pages that failed."""
    install()
    failed = 0
    for path in [Path(name).resolve() for name in names]:
        start, home = time.perf_counter(), os.getcwd()
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)
            try:
                count, error = run_page(path)
            finally:
                os.chdir(home)
        failed += error is not None
        print(f"{path.name}: {count} blocks in {time.perf_counter() - start:.1f} s", error or "", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
