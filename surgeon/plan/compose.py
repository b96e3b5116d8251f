"""Two rounds of surgery as one plan for the original."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.errors import PlanMismatch
from surgeon.plan.records import Cut, Edit, GroupCut, LayerCost, Masked, Scale, Selection

if TYPE_CHECKING:
    from surgeon.plan.plan import Plan


def composed(first: Plan, second: Plan) -> dict[str, Any]:
    """Return the fields of the plan that does what two plans do one after the other.

    Raises
    ------
    PlanMismatch when the second is not for the model that the first makes.
    """
    _check(first, second)
    cuts = {
        name: _cut(name, first.cuts.get(name), second.cuts.get(name))
        for name in first.fingerprint
        if name in first.cuts or name in second.cuts
    }
    rounds = [r for plan in (first, second) for r in plan.settings.get("rounds", [plan.settings])]
    method = {} if first.method == "forward" else {"method": first.method}
    return {
        "cuts": cuts,
        "fingerprint": first.fingerprint,
        "edits": _edits(first.edits, second.edits),
        "groups": _groups(first.groups, second.groups),
        "pins": first.pins,
        "cost": _costs(first.cost, second.cost),
        "totals": _before_and_after(first.totals, second.totals),
        "settings": {"rounds": rounds, **method},
        "masked": _masked(first.masked, second.masked),
        "scales": (*first.scales, *(_scale(scale, first.cuts.get(scale.parameter)) for scale in second.scales)),
        "out_of_reach": first.out_of_reach,
        "tied": first.tied,
        "transient": first.transient,
    }


def _check(first: Plan, second: Plan) -> None:
    """Refuse a second plan for anything but what the first one makes."""
    left = {name: first.cuts[name].new_shape if name in first.cuts else s for name, s in first.fingerprint.items()}
    for name, shape in second.fingerprint.items():
        if name not in left:
            raise PlanMismatch(
                f"the second plan is not for the model that the first one makes: it has {name!r}, which the first "
                "does not know (a bias that compensation added, for one, is not part of the original)"
            )
        if tuple(shape) != tuple(left[name]):
            raise PlanMismatch(
                f"the second plan is not for the model that the first one makes: {name} is {list(shape)} there, "
                f"{list(left[name])} after the first"
            )
    missing = sorted(left.keys() - second.fingerprint.keys())
    if missing:
        raise PlanMismatch(
            f"the second plan is not for the model that the first one makes: it does not know {missing[0]!r}"
        )
    if first.method != second.method:
        raise PlanMismatch(f"the first plan is for {first.method!r}, the second for {second.method!r}")


# -- positions ---------------------------------------------------------------------------------------


def _cut(name: str, first: Cut | None, second: Cut | None) -> Cut:
    if first is None or second is None:
        found = first or second
        assert found is not None  # one of the plans cuts it
        return found
    chosen = []
    for dims in _blocks([*first.selections, *second.selections]):
        keep = _within(dims, first.shape, first.selections)
        keep = keep[_within(dims, first.new_shape, second.selections)]
        chosen.append(Selection(dims, math.prod(first.shape[d] for d in dims), keep))
    return Cut(first.shape, second.new_shape, tuple(chosen))


def _blocks(selections: Iterable[Selection]) -> list[tuple[int, ...]]:
    """Return sets of dimensions that are selected from together, directly or through others."""
    blocks: list[set[int]] = []
    for selection in selections:
        joined = [block for block in blocks if block & {*selection.dims}]
        blocks = [block for block in blocks if block not in joined]
        blocks.append({*selection.dims}.union(*joined))
    return sorted(tuple(sorted(block)) for block in blocks)


def _within(
    dims: tuple[int, ...], shape: Mapping[int, int] | Sequence[int], selections: Iterable[Selection]
) -> np.ndarray:
    """Return which positions along some dimensions survive all selections there, flattened."""
    here = [s for s in selections if s.dims[0] in dims]
    if len(here) == 1 and here[0].dims == dims:
        return here[0].keep
    alive = np.ones([shape[d] for d in dims], bool)
    for selection in here:
        flags = np.zeros(selection.of, bool)
        flags[selection.keep] = True
        alive &= flags.reshape([shape[d] if d in selection.dims else 1 for d in dims])
    return np.flatnonzero(alive)


def _scale(scale: Scale, cut: Cut | None) -> Scale:
    """Say where the positions of a factor were before the first cut."""
    touching = [s for s in cut.selections if scale.dim in s.dims] if cut is not None else []
    if cut is None or not touching:
        return scale
    if any(s.dims != (scale.dim,) for s in touching):
        raise PlanMismatch(
            f"{scale}: the first plan takes other positions from each row of {scale.parameter}, so the factors of the "
            "second have no single place in the original; keep the two plans apart"
        )
    kept = _within((scale.dim,), cut.shape, touching)
    return Scale(scale.parameter, scale.dim, cut.shape[scale.dim], kept[scale.positions], scale.factor)


# -- statistics, for the proof -----------------------------------------------------------------------


def _masked(first: Sequence[Masked], second: Sequence[Masked]) -> tuple[Masked, ...]:
    """Compose what statistics leave out, call by call."""
    calls: dict[tuple[int, int], tuple[list[Masked], list[Masked]]] = defaultdict(lambda: ([], []))
    for k, entries in enumerate((first, second)):
        for masked in entries:
            calls[masked.call, masked.position][k].append(masked)
    found: list[Masked] = []
    for (call, position), (before, after) in sorted(calls.items()):
        ops = {masked.op for masked in (*before, *after)}
        if len(ops) > 1:
            raise PlanMismatch(f"call {call} is {' in one plan and '.join(sorted(ops))} in the other")
        op = ops.pop()
        for selection, sizes in _statistics(before, after):
            found.append(Masked(call, op, position, selection, sizes))
    return tuple(found)


def _statistics(first: list[Masked], second: list[Masked]) -> Iterator[tuple[Selection, tuple[int, ...]]]:
    """Yield what both leave of a tensor, and the sizes of the dimensions, which are known where one selects."""
    for dims in _blocks(m.selection for m in (*first, *second)):
        before, after = ([m for m in side if m.selection.dims[0] in dims] for side in (first, second))
        old, new = _sizes(before), _sizes(after)
        old = {**{d: n for d, n in new.items() if d not in old}, **old}
        keep = _within(dims, old, [m.selection for m in before])
        # Dimensions that only the first cut touches have sizes that follow from what it leaves.
        new = {**_left(dims, old, keep), **new}
        keep = keep[_within(dims, new, [m.selection for m in after])]
        yield Selection(dims, math.prod(old[d] for d in dims), keep), tuple(old[d] for d in dims)


def _sizes(entries: Iterable[Masked]) -> dict[int, int]:
    return {d: n for m in entries for d, n in zip(m.selection.dims, m.sizes)}


def _left(dims: tuple[int, ...], sizes: Mapping[int, int], keep: np.ndarray) -> dict[int, int]:
    """Return the sizes of what is left of a table, whose rows keep equally many columns."""
    alive = np.zeros([sizes[d] for d in dims], bool)
    alive.reshape(-1)[keep] = True
    found = {}
    for k, d in reversed(list(enumerate(dims))):
        found[d] = int(alive.sum(k).max(initial=0))
        alive = np.asarray(alive.any(k))
    return found


# -- the rest ----------------------------------------------------------------------------------------


def _edits(first: Iterable[Edit], second: Iterable[Edit]) -> tuple[Edit, ...]:
    found = {(edit.owner, edit.name, edit.index): edit for edit in first}
    for edit in second:
        place = (edit.owner, edit.name, edit.index)
        earlier = found.pop(place, None)
        if earlier is not None and earlier.new != edit.old:
            raise PlanMismatch(f"the first plan sets {earlier}, the second {edit}")
        found[place] = Edit(*place, earlier.old if earlier else edit.old, edit.new)
    changed = [edit for edit in found.values() if edit.old != edit.new]
    return tuple(sorted(changed, key=lambda e: (e.owner, e.name, -1 if e.index is None else e.index)))


def _groups(first: Sequence[GroupCut], second: Sequence[GroupCut]) -> tuple[GroupCut, ...]:
    """Count what is gone of the first plan's groups; groups that only the second has follow as it counts them."""
    later = {group.name: group for group in second}
    found = []
    for group in first:
        again = later.pop(group.name, None)
        left = group.size - group.removed if again is None else again.size - again.removed
        removed = group.size - left if left <= group.size else group.removed
        found.append(GroupCut(group.name, group.size, removed, group.layers))
    return (*found, *(group for group in second if group.name in later))


def _costs(first: Mapping[str, LayerCost], second: Mapping[str, LayerCost]) -> dict[str, LayerCost]:
    return {
        name: LayerCost((cost.flops[0], second[name].flops[1]), (cost.params[0], second[name].params[1]))
        if name in second
        else cost
        for name, cost in first.items()
    }


def _before_and_after(
    first: Mapping[str, tuple[float, float]], second: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Return totals that both plans predict."""
    return {name: (first[name][0], second[name][1]) for name in first if name in second}
