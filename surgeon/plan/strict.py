"""Read JSON with suspicion: every value has the type, the range and the place that the format gives it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from surgeon.errors import PlanMismatch
from surgeon.files import strict

T = TypeVar("T")

# Sizes are those of tensors that fit into 64 bits; nothing in a plan nests deeply, whatever its settings are.
LARGEST = 2**63 - 1
DEEPEST = 32


def parsed(text: str | bytes) -> Any:
    """Parse JSON; raises PlanMismatch for what is none, and for duplicate keys, NaN and infinities."""
    try:
        return strict.parsed(text)
    except ValueError as error:
        raise PlanMismatch(f"not a plan: {error!s:.200}") from error


def wrong(where: str, value: Any, expected: str) -> PlanMismatch:
    return PlanMismatch(f"the plan is malformed: {where} is {value!r:.80}, expected {expected}")


def record(value: Any, where: str, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """Return an object that has the keys it must have, and no others."""
    if not isinstance(value, dict):
        raise wrong(where, value, "an object")
    for key in required:
        if key not in value:
            raise PlanMismatch(f"the plan is malformed: {where} lacks {key!r}")
    for key in value.keys() - {*required, *optional}:
        raise PlanMismatch(f"the plan is malformed: {where} has {key!r:.80}, which this version does not know")
    return value


def mapping(value: Any, where: str, read: Callable[[Any, str], T]) -> dict[str, T]:
    if not isinstance(value, dict):
        raise wrong(where, value, "an object")
    return {text(key, f"a name in {where}"): read(item, f"{where}[{key!r:.80}]") for key, item in value.items()}


def sequence(value: Any, where: str, read: Callable[[Any, str], T]) -> tuple[T, ...]:
    if not isinstance(value, list):
        raise wrong(where, value, "a list")
    return tuple(read(item, f"{where}[{i}]") for i, item in enumerate(value))


def text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise wrong(where, value, "a text")
    if any("\ud800" <= letter <= "\udfff" for letter in value) or "\0" in value:
        raise wrong(where, value, "a text of valid characters")
    return value


def integer(value: Any, where: str, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= LARGEST:
        raise wrong(where, value, f"an integer of at least {least}")
    return value


def number(value: Any, where: str) -> float:
    """Return a finite number of at least zero."""
    if type(value) not in (int, float) or not 0 <= value < 1e300:
        raise wrong(where, value, "a finite number of at least 0")
    return float(value)


def optional(value: Any, where: str, read: Callable[[Any, str], T]) -> T | None:
    return None if value is None else read(value, where)


def pair(value: Any, where: str) -> tuple[float, float]:
    found = sequence(value, where, number)
    if len(found) != 2:
        raise wrong(where, value, "two numbers, before and after")
    return found[0], found[1]


def shape(value: Any, where: str) -> tuple[int, ...]:
    sizes = sequence(value, where, integer)
    if len(sizes) > 64 or math.prod(sizes) > LARGEST:
        raise wrong(where, value, "the shape of a tensor")
    return sizes


def free_form(value: Any, where: str, depth: int = 0) -> Any:
    """Return any JSON that does not nest deeply."""
    if depth > DEEPEST:
        raise PlanMismatch(f"the plan is malformed: {where:.80} nests deeper than {DEEPEST}")
    if isinstance(value, dict):
        return {text(k, where): free_form(v, f"{where}[{k!r:.80}]", depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [free_form(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if type(value) is int and abs(value) > LARGEST:
        raise wrong(where, value, "a number of 64 bits")
    return text(value, where) if isinstance(value, str) else value


def settings(value: Any, where: str) -> Mapping[str, Any]:
    return mapping(value, where, free_form)
