"""Where two plans differ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surgeon.plan.document import document
from surgeon.plan.runs import Runs, parse

if TYPE_CHECKING:
    from surgeon.plan.plan import Plan

MOST = 12


@dataclass(frozen=True)
class Change:
    """One entry of a part of the document, in the one plan and in the other; None where it is missing.

    part  "groups", "cuts", "attributes", "settings", ...
    name  the group, tensor, attribute or setting
    """

    part: str
    name: str
    ours: Any
    theirs: Any

    def __str__(self) -> str:
        if self.part == "cuts" and self.ours and self.theirs:
            return f"{self.name}: " + "; ".join(_positions(self.ours, self.theirs))
        return f"{self.name + ': ' if self.name else ''}{_said(self.part, self.ours)} | {_said(self.part, self.theirs)}"


@dataclass(frozen=True)
class Difference:
    """Where two plans differ; false where they don't."""

    changes: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __str__(self) -> str:
        if not self.changes:
            return "no difference"
        lines: list[str] = []
        for part in dict.fromkeys(change.part for change in self.changes):
            found = [change for change in self.changes if change.part == part]
            lines.append(f"{part}, {len(found)} different:")
            lines += [f"  {change}" for change in found[:MOST]]
            lines += [f"  and {len(found) - MOST} more"] if len(found) > MOST else []
        return "\n".join(lines)

    __repr__ = __str__


def difference(ours: Plan, theirs: Plan) -> Difference:
    """Return where two plans differ, part by part of their documents."""
    return Difference(tuple(_changes(document(ours), document(theirs))))


def _changes(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[Change]:
    for part, value in ours.items():
        if value == theirs[part]:
            continue
        mine, other = _named(part, value), _named(part, theirs[part])
        different = [name for name in dict.fromkeys([*mine, *other]) if mine.get(name) != other.get(name)]
        yield from (Change(part, name, mine.get(name), other.get(name)) for name in different)
        if not different:
            yield Change(part, "order", list(mine), list(other))


def _named(part: str, value: Any) -> dict[str, Any]:
    """Return the entries of a part by name."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, list):
        return {"": value}
    found: dict[str, Any] = {}
    for item in value:
        name = _name(part, item)
        while name in found:
            name += "'"
        found[name] = item
    return found


def _name(part: str, item: Any) -> str:
    if part == "attributes":
        place = ".".join(filter(None, (item["owner"], item["name"])))
        return place if item["index"] is None else f"{place}[{item['index']}]"
    if part == "scales":
        return f"{item['parameter']} dim {item['dim']}"
    if part == "masked":
        return f"call {item['call']} ({item['op']}), tensor {item['position']}, dims {item['dims']}"
    return str(item["name"]) if isinstance(item, dict) else str(item)


def _said(part: str, item: Any) -> str:
    if item is None:
        return "-"
    if part == "groups":
        return f"{item['size']} -> {item['size'] - item['removed']}"
    if part == "attributes":
        return f"{item['old']} -> {item['new']}"
    if part == "cuts":
        return f"{item['shape']} -> {item['new_shape']}"
    if part == "totals":
        return f"{item[0]:.6g} -> {item[1]:.6g}"
    said = str(item)
    return said if len(said) <= 60 else said[:57] + "..."


def _positions(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    """Yield the positions along each dimension that stay in one plan only."""
    if ours["shape"] != theirs["shape"]:
        yield f"of {ours['shape']} | of {theirs['shape']}"
        return
    if ours["new_shape"] != theirs["new_shape"]:
        yield f"{ours['shape']} -> {ours['new_shape']} | {theirs['new_shape']}"
    mine, other = ({tuple(s["dims"]): s for s in cut["keep"]} for cut in (ours, theirs))
    found = False
    for dims in sorted(mine.keys() | other.keys()):
        a, b = (_kept(kept, dims, ours["shape"]) for kept in (mine, other))
        here, there = str(a.without(b)), str(b.without(a))
        if here or there:
            found = True
            yield f"dim {', '.join(map(str, dims))} keeps {_short(here)} | {_short(there)} alone"
    if not found and ours["new_shape"] == theirs["new_shape"]:
        yield "the same positions, put in another way"


def _kept(found: dict[tuple[int, ...], Any], dims: tuple[int, ...], shape: list[int]) -> Runs:
    of = math.prod(shape[d] for d in dims)
    return parse(found[dims]["keep"] if dims in found else f"0-{of - 1}" if of > 1 else "0", of)


def _short(runs: str) -> str:
    if not runs:
        return "-"
    return runs if len(runs) <= 40 else runs[: runs.rfind(",", 0, 38)] + ",..."
