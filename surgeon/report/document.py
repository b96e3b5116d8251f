"""A report as a JSON document, and back (docs/report-format.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from surgeon.errors import SurgeonError
from surgeon.plan.plan import Plan
from surgeon.report.records import Environment, GroupRow, Latency, LayerRow, Totals
from surgeon.verify.verify import Proof

if TYPE_CHECKING:
    from surgeon.report.report import Report

FORMAT = "surgeon-report"
VERSION = 1
RATIOS = ("compression_ratio", "theoretical_speedup", "nonzero_compression_ratio", "nonzero_theoretical_speedup")
_PARTS = {"proof": Proof, "latency": Latency, "environment": Environment}


def document(report: Report, plan: bool = True) -> dict[str, Any]:
    """Return a report as plain data: what JSON has, with null for numbers that are not finite.

    Parameters
    ----------
    plan : with the plan, in its own format
    """
    parts = {name: getattr(report, name) for name in _PARTS}
    found = {
        "format": FORMAT,
        "version": VERSION,
        "model": report.model,
        "before": asdict(report.before),
        "after": asdict(report.after),
        **{name: getattr(report, name) for name in RATIOS},
        "layers": [asdict(row) for row in report.layers],
        "groups": [asdict(row) for row in report.groups],
        "pins": report.pins,
        "out_of_reach": report.out_of_reach,
        **{name: None if part is None else asdict(part) for name, part in parts.items()},
        "counter": report.counter,
        "uncounted": report.uncounted,
        "note": report.note,
    }
    if plan:
        found["plan"] = None if report.plan is None else json.loads(report.plan.to_json())
    plain: dict[str, Any] = _plain(found)
    return plain


def written(report: Report) -> str:
    """Return a report as JSON text."""
    return json.dumps(document(report), indent=1, allow_nan=False)


def read(text: str | bytes) -> dict[str, Any]:
    """Return the fields of a report.

    Raises
    ------
    SurgeonError for anything that is not a report; PlanMismatch for a malformed plan in it.
    """
    try:
        data = json.loads(text)
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise ValueError(f"format {data['format']!r}, version {data['version']!r}")
        return {
            "before": _record(Totals, data["before"]),
            "after": _record(Totals, data["after"]),
            "layers": tuple(_layer(row) for row in data["layers"]),
            "groups": tuple(
                GroupRow(row["name"], _pair(row["units"]), tuple(map(str, row["layers"]))) for row in data["groups"]
            ),
            "pins": dict(data["pins"]),
            "out_of_reach": dict(data["out_of_reach"]),
            "uncounted": tuple(data["uncounted"]),
            **{name: str(data[name]) for name in ("model", "counter", "note")},
            **{name: _optional(kind, data[name]) for name, kind in _PARTS.items()},
            "plan": None if data.get("plan") is None else Plan.from_json(json.dumps(data["plan"])),
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SurgeonError(
            f"not a report of surgeon ({type(error).__name__}: {error}); report.to_json() writes one"
        ) from error


def _layer(row: Mapping[str, Any]) -> LayerRow:
    before, after = (tuple(map(int, shape)) for shape in row["shape"])
    return LayerRow(str(row["name"]), (before, after), _pair(row["flops"]), _pair(row["params"]), str(row["kind"]))


def _pair(values: Sequence[Any]) -> tuple[Any, Any]:
    before, after = (math.nan if value is None else value for value in values)
    return before, after


def _optional(kind: type, value: Any) -> Any:
    return None if value is None else _record(kind, value)


def _record(kind: type, data: Mapping[str, Any]) -> Any:
    """Return a dataclass from its fields; numbers that are missing where one is needed are NaN."""
    found = {}
    for each in fields(kind):
        value = data[each.name]
        if value is None and each.type == "float":
            value = math.nan
        found[each.name] = tuple(value) if isinstance(value, list) else value
    return kind(**found)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
