"""Sets of indices as text: ``0-3,8,10-15``."""

from __future__ import annotations

import numpy as np

from surgeon.errors import PlanMismatch


def encode(indices: np.ndarray) -> str:
    """Write sorted indices as runs.

    >>> encode(np.array([0, 1, 2, 3, 8, 10, 11]))
    '0-3,8,10-11'
    """
    if not len(indices):
        return ""
    breaks = np.flatnonzero(np.diff(indices) != 1)
    starts = indices[np.concatenate([[0], breaks + 1])]
    stops = indices[np.concatenate([breaks, [len(indices) - 1]])]
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in zip(starts.tolist(), stops.tolist()))


def decode(text: str, size: int) -> np.ndarray:
    """Read runs; raises PlanMismatch unless they are increasing and below ``size``.

    >>> decode('0-3,8', 10)
    array([0, 1, 2, 3, 8])
    """
    if not isinstance(text, str):
        raise PlanMismatch(f"expected runs such as '0-3,8', got {text!r}")
    parts, last = [], -1
    for piece in text.split(",") if text else []:
        first, dash, stop = piece.partition("-")
        if not first.isdecimal() or (dash and not stop.isdecimal()):
            raise PlanMismatch(f"expected runs such as '0-3,8', got {piece!r}")
        start, end = int(first), int(stop or first)
        if not last < start <= end < size:
            raise PlanMismatch(f"run {piece!r} is out of order or beyond size {size}")
        parts.append(np.arange(start, end + 1))
        last = end
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
