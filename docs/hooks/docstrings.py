"""Read docstrings as they are written in surgeon into those of numpy's convention, which the reference is made from.

In the source, a parameter and what it is are one line, ``keep : layers to leave as they are``, since types are in the
signature. There, what follows the colon is a type. ``Returns`` and ``Raises`` are prose in the source, and fields of
a record are an aligned block of names and meanings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

_RULE = re.compile(r"-{3,}$")
_PARAMETER = re.compile(r"(?P<names>\*{0,2}\w+(?:, \w+)*) : (?P<text>.*)")
_FIELD = re.compile(r"(?P<name>\w+)(?P<gap> {2,})\S")
_ERROR = re.compile(r"(?<![`\w.])(?P<name>[A-Z]\w+)")
_PAGE = re.compile(r"\bdocs/(?P<name>[\w-]+)\.md")


class Docstrings(griffe.Extension):
    """Rewrites every docstring as it is found."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """Return a docstring in numpy's convention."""
    parts = []
    for title, lines in sections(text):
        if title is None:
            parts.append("\n".join(listed(lines)))
        elif title in ("Parameters", "Attributes"):
            parts.append("\n".join([title, "-" * len(title), *parameters(lines)]))
        elif title in ("Returns", "Raises"):
            parts.append(f"**{title}:** " + linked(" ".join(line.strip() for line in lines)))
        else:
            parts.append("\n".join([title, "-" * len(title), *lines]))
    # What is prose comes before the sections, for a section lasts until the next one.
    return _PAGE.sub(r"[\g<name>](../\g<name>.md)", "\n\n".join(sorted(parts, key=_order)))


def _order(part: str) -> int:
    heads = ("**Returns", "**Raises", "Parameters\n", "Attributes\n", "Examples\n")
    return 1 + next((i for i, head in enumerate(heads) if part.startswith(head)), -1)


def sections(text: str) -> Iterator[tuple[str | None, list[str]]]:
    """Yield (title, lines), with no title for what comes before the first."""
    lines = text.strip().splitlines()
    title: str | None = None
    body: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""]):
        if _RULE.match(line) and title is not None and not body:
            continue
        if line and _RULE.match(following):
            yield title, _stripped(body)
            title, body = line, []
            continue
        body.append(line)
    yield title, _stripped(body)


def _stripped(lines: list[str]) -> list[str]:
    return "\n".join(lines).strip("\n").splitlines()


def parameters(lines: list[str]) -> Iterator[str]:
    """Put what follows a parameter's colon below its name."""
    for line in lines:
        found = _PARAMETER.match(line)
        if found is None:
            yield line
            continue
        yield found["names"]
        yield f"    {found['text']}"


def listed(lines: list[str]) -> Iterator[str]:
    """Make lists of aligned blocks, whose lines are a name and, in one column, what it means."""
    paragraphs = "\n".join(lines).split("\n\n")
    for number, paragraph in enumerate(paragraphs):
        if number:
            yield ""
        rows = paragraph.splitlines()
        column = next((found.end() - 1 for row in rows if (found := _FIELD.match(row))), 0)
        for row in rows:
            name, text = row[:column].strip(), row[column:]
            yield row if not column else f"- `{name}`: {text}" if name else f"    {text}"


def linked(text: str) -> str:
    """Link the names of errors to their own entries."""
    return _ERROR.sub(lambda found: _link(found["name"]), text)


def _link(name: str) -> str:
    return f"[{name}][surgeon.errors.{name}]" if name in ERRORS else name


ERRORS = frozenset(
    griffe.load("surgeon.errors", search_paths=[str(Path(__file__).parents[2])], allow_inspection=False).exports
    or ()  # names in __all__
)
