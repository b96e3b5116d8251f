"""Where parameters sit, and where multiply-adds do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from surgeon.errors import SurgeonError, UnknownLayer

if TYPE_CHECKING:
    from surgeon.report.report import Report


@dataclass(frozen=True)
class Share:
    """What part one layer has in the multiply-adds and in the parameters of some layers, each in [0, 1]."""

    flops: float
    params: float

    def __str__(self) -> str:
        return f"{self.flops:.1%} of the FLOPs, {self.params:.1%} of the parameters"


def shares(report: Report, patterns: Sequence[str], kind: str | None, after: bool) -> dict[str, Share]:
    """Return each layer's part in what the chosen layers have together, in the order of the model."""
    names = [row.name for row in report.layers]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UnknownLayer(pattern, names)
    kinds = sorted({row.kind for row in report.layers})
    if kind is not None and kind not in kinds:
        raise SurgeonError(f"no layer is a {kind!r}; there are {', '.join(kinds) or 'none'}")
    rows = [
        row
        for row in report.layers
        if (kind is None or row.kind == kind)
        and (not patterns or any(fnmatchcase(row.name, pattern) for pattern in patterns))
    ]
    side = 1 if after else 0
    flops, params = sum(row.flops[side] for row in rows), sum(row.params[side] for row in rows)
    return {
        row.name: Share(row.flops[side] / flops if flops else 0.0, row.params[side] / params if params else 0.0)
        for row in rows
    }
