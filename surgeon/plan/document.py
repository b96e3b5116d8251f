"""A plan as a JSON document: canonical, one line per tensor, and read with suspicion (docs/plan-format.md)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from surgeon.errors import PlanMismatch
from surgeon.plan import strict
from surgeon.plan.records import Cut, Edit, GroupCut, LayerCost, Masked, Scale, Selection
from surgeon.plan.runs import parse

if TYPE_CHECKING:
    from surgeon.plan.plan import Plan

FORMAT = "surgeon-plan"
VERSION = 1

OPTIONAL = ("tied", "transient")
REQUIRED = (
    "format", "version", "settings", "totals", "loss", "bound", "groups", "attributes", "pins", "cuts", "scales",
    "masked", "cost", "out_of_reach", "fingerprint",
)  # fmt: skip


# -- writing -----------------------------------------------------------------------------------------


def document(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data, names in order: equal plans give equal documents, key by key."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "settings": _ordered(plan.settings),
        "totals": {name: [float(n) for n in pair] for name, pair in _ordered(plan.totals).items()},
        "loss": None if plan.loss is None else float(plan.loss),
        "bound": None if plan.bound is None else float(plan.bound),
        "groups": [group.to_json() for group in plan.groups],
        "attributes": [edit.to_json() for edit in plan.edits],
        "pins": _ordered(plan.pins),
        "cuts": {name: cut.to_json() for name, cut in _ordered(plan.cuts).items()},
        "scales": [scale.to_json() for scale in plan.scales],
        "masked": [masked.to_json() for masked in plan.masked],
        "cost": {name: cost.to_json() for name, cost in _ordered(plan.cost).items()},
        "out_of_reach": {reason: float(share) for reason, share in _ordered(plan.out_of_reach).items()},
        "fingerprint": {name: list(shape) for name, shape in _ordered(plan.fingerprint).items()},
        "tied": _ordered(plan.tied),
        "transient": sorted(plan.transient, key=_natural),
    }


def written(plan: Plan, compact: bool = False) -> str:
    """Return a plan as text: a line for each item of each part, or a single line.

    Raises
    ------
    PlanMismatch for numbers that JSON has not, such as NaN.
    """
    try:
        if compact:
            return json.dumps(document(plan), separators=(",", ":"), allow_nan=False)
        parts = (f" {json.dumps(key)}: {_part(value)}" for key, value in document(plan).items())
        return "{\n" + ",\n".join(parts) + "\n}\n"
    except (ValueError, TypeError) as error:
        raise PlanMismatch(f"the plan can't be written as JSON: {error}") from error


def _part(value: Any) -> str:
    if not value or not isinstance(value, (dict, list)):
        return _line(value)
    if isinstance(value, dict):
        lines = [f"  {_line(key)}: {_line(item)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + "\n }"
    return "[\n" + ",\n".join(f"  {_line(item)}" for item in value) + "\n ]"


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts ``layer2`` before ``layer10``."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(p), p) if p.isdigit() and p.isascii() else (1, 0, p) for p in parts]


def _ordered(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {name: _ordered(data[name]) for name in sorted(data, key=_natural)}
    return [_ordered(item) for item in data] if isinstance(data, (list, tuple)) else data


# -- reading -----------------------------------------------------------------------------------------


def fields(text: str | bytes) -> dict[str, Any]:
    """Return the fields of the plan that a text holds.

    Raises
    ------
    PlanMismatch for anything that the format does not allow; nothing is allocated that the text does not spell out.
    """
    data = strict.parsed(text)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else data
        raise PlanMismatch(f"not a plan: expected an object with the format {FORMAT!r}, got {found!r:.80}")
    if type(data.get("version")) is not int or data["version"] != VERSION:
        raise PlanMismatch(
            f"a plan of version {data.get('version')!r:.40}, this version of surgeon reads version {VERSION}"
        )
    strict.record(data, "the plan", REQUIRED, OPTIONAL)
    fingerprint = strict.mapping(data["fingerprint"], "fingerprint", strict.shape)
    cuts = strict.mapping(data["cuts"], "cuts", _cut)
    for name, cut in cuts.items():
        if cut.shape != fingerprint.get(name):
            raise PlanMismatch(f"{name!r:.80}: {list(cut.shape)} in cuts, {fingerprint.get(name)} in the fingerprint")
    scales = strict.sequence(data["scales"], "scales", _scale)
    for scale in scales:
        _check_scale(scale, cuts)
    totals = strict.mapping(data["totals"], "totals", strict.pair)
    strict.record(totals, "totals", ("flops", "params"), totals)
    return {
        "cuts": cuts,
        "fingerprint": fingerprint,
        "edits": _edits(data["attributes"]),
        "groups": strict.sequence(data["groups"], "groups", _group),
        "pins": strict.mapping(data["pins"], "pins", strict.text),
        "cost": strict.mapping(data["cost"], "cost", _layer_cost),
        "totals": totals,
        "settings": strict.settings(data["settings"], "settings"),
        "masked": strict.sequence(data["masked"], "masked", _masked),
        "scales": scales,
        "out_of_reach": strict.mapping(data["out_of_reach"], "out_of_reach", strict.number),
        "loss": strict.optional(data["loss"], "loss", strict.number),
        "bound": strict.optional(data["bound"], "bound", strict.number),
        "tied": _tied(data.get("tied", {}), fingerprint),
        "transient": _transient(data.get("transient", []), fingerprint),
    }


def _selection(value: Any, where: str) -> Selection:
    data = strict.record(value, where, ("dims", "of", "keep"))
    dims = strict.sequence(data["dims"], f"{where}.dims", strict.integer)
    if not dims or list(dims) != sorted(set(dims)) or dims[-1] > 64:
        raise strict.wrong(f"{where}.dims", data["dims"], "dimensions in increasing order")
    of = strict.integer(data["of"], f"{where}.of")
    return Selection(dims, of, _runs(data["keep"], of, f"{where}.keep"))


def _runs(value: Any, of: int, where: str) -> Any:
    try:
        return parse(value, of)
    except PlanMismatch as error:
        raise PlanMismatch(f"the plan is malformed: {where}: {error}") from error


def _cut(value: Any, where: str) -> Cut:
    data = strict.record(value, where, ("shape", "new_shape", "keep"))
    old, new = (strict.shape(data[key], f"{where}.{key}") for key in ("shape", "new_shape"))
    cut = Cut(old, new, strict.sequence(data["keep"], f"{where}.keep", _selection))
    if len(old) != len(new) or any(not 0 < n <= o for n, o in zip(new, old)):
        raise PlanMismatch(f"{where}: shape {list(old)} can't become {list(new)}")
    for s in cut.selections:
        if s.dims[-1] >= len(old) or s.of != math.prod(old[d] for d in s.dims):
            raise PlanMismatch(f"{where}: no {s.of} positions along {list(s.dims)} of {list(old)}")
    _check_counts(cut, where)
    return cut


def _check_counts(cut: Cut, where: str) -> None:
    """Refuse a new shape other than what stays, as far as that shows without writing the indices out."""
    chosen = [d for s in cut.selections for d in s.dims]
    for d, (old, new) in enumerate(zip(cut.shape, cut.new_shape)):
        if d not in chosen and old != new:
            raise PlanMismatch(f"{where}: dim {d} becomes {new} from {old}, and nothing says which positions stay")
    for s in cut.selections:
        left = math.prod(cut.new_shape[d] for d in s.dims)
        alone = sum(bool({*s.dims} & {*other.dims}) for other in cut.selections) == 1
        if len(s) < left or (alone and len(s) != left):
            raise PlanMismatch(f"{where}: {len(s)} positions along {list(s.dims)} can't fill {list(cut.new_shape)}")


def _scale(value: Any, where: str) -> Scale:
    data = strict.record(value, where, ("parameter", "dim", "of", "positions", "factor"))
    of, factor = strict.integer(data["of"], f"{where}.of"), strict.number(data["factor"], f"{where}.factor")
    if not factor:
        raise strict.wrong(f"{where}.factor", factor, "a positive number")
    name, dim = strict.text(data["parameter"], f"{where}.parameter"), strict.integer(data["dim"], f"{where}.dim")
    return Scale(name, dim, of, _runs(data["positions"], of, f"{where}.positions"), factor)


def _check_scale(scale: Scale, cuts: Mapping[str, Cut]) -> None:
    shape = cuts[scale.parameter].shape if scale.parameter in cuts else ()
    if scale.dim >= len(shape) or shape[scale.dim] != scale.of:
        raise PlanMismatch(f"{scale.parameter!r:.80}: no {scale.of} positions along dim {scale.dim} of {list(shape)}")


def _edits(value: Any) -> tuple[Edit, ...]:
    edits = strict.sequence(value, "attributes", _edit)
    seen: set[tuple[str, str, int | None]] = set()
    for edit in edits:
        place = (edit.owner, edit.name, edit.index)
        if place in seen:
            raise PlanMismatch(f"the plan is malformed: attributes sets {edit.owner}.{edit.name} twice")
        seen.add(place)
    return edits


def _edit(value: Any, where: str) -> Edit:
    data = strict.record(value, where, ("owner", "name", "index", "old", "new"))
    name = strict.text(data["name"], f"{where}.name")
    if any(not part or part.startswith("__") for part in name.split(".")):
        raise strict.wrong(f"{where}.name", name, "the name of an attribute, without leading double underscores")
    return Edit(
        strict.text(data["owner"], f"{where}.owner"),
        name,
        strict.optional(data["index"], f"{where}.index", strict.integer),
        strict.integer(data["old"], f"{where}.old", least=-strict.LARGEST),
        strict.integer(data["new"], f"{where}.new", least=-strict.LARGEST),
    )


def _group(value: Any, where: str) -> GroupCut:
    data = strict.record(value, where, ("name", "size", "removed", "layers"))
    size, removed = (strict.integer(data[key], f"{where}.{key}") for key in ("size", "removed"))
    if removed > size:
        raise strict.wrong(f"{where}.removed", removed, f"at most {size}")
    layers = strict.sequence(data["layers"], f"{where}.layers", strict.text)
    return GroupCut(strict.text(data["name"], f"{where}.name"), size, removed, layers)


def _layer_cost(value: Any, where: str) -> LayerCost:
    data = strict.record(value, where, ("flops", "params"))
    return LayerCost(strict.pair(data["flops"], f"{where}.flops"), strict.pair(data["params"], f"{where}.params"))


def _masked(value: Any, where: str) -> Masked:
    data = strict.record(value, where, ("call", "op", "position", "dims", "sizes", "keep"))
    sizes = strict.shape(data["sizes"], f"{where}.sizes")
    selection = _selection({"dims": data["dims"], "of": math.prod(sizes), "keep": data["keep"]}, where)
    if len(sizes) != len(selection.dims):
        raise strict.wrong(f"{where}.sizes", data["sizes"], f"the sizes of {len(selection.dims)} dimensions")
    call, position = (strict.integer(data[key], f"{where}.{key}") for key in ("call", "position"))
    return Masked(call, strict.text(data["op"], f"{where}.op"), position, selection, sizes)


def _tied(value: Any, fingerprint: Mapping[str, Any]) -> dict[str, str]:
    tied = strict.mapping(value, "tied", strict.text)
    for alias, name in tied.items():
        if alias in fingerprint or name not in fingerprint:
            raise PlanMismatch(f"the plan is malformed: tied says {alias!r:.80} is {name!r:.80}")
    return tied


def _transient(value: Any, fingerprint: Iterable[str]) -> tuple[str, ...]:
    names: Sequence[str] = strict.sequence(value, "transient", strict.text)
    unknown = sorted(set(names) - set(fingerprint))
    if unknown or len(set(names)) < len(names):
        raise PlanMismatch(f"the plan is malformed: transient names {(unknown or names)[0]!r:.80} twice or in vain")
    return tuple(names)


__all__ = ["FORMAT", "VERSION", "document", "fields", "written"]
