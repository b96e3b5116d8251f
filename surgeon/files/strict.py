"""JSON from anyone: no duplicate keys, no NaN, no infinities."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any, NoReturn


def parsed(text: str | bytes) -> Any:
    """Parse JSON; raises ValueError for what is malformed, deeply nested, or says something twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refused, parse_float=_finite)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error!s:.200}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = sorted(key for key, _ in pairs)
        twice = next(a for a, b in pairwise(names) if a == b)
        raise ValueError(f"the key {twice!r:.80} occurs twice in one object")
    return found


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is too large")
    return value
