"""A plan from a model and what another tool made of it, by matching values."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.api import trace
from surgeon.convert.match import ALIVE, DEAD, UNKNOWN, Axis, Matching, bits
from surgeon.convert.removal import removal, visible
from surgeon.errors import ConvertError
from surgeon.graph import DependencyGraph
from surgeon.modules import bare, first_names, named_tensors, records
from surgeon.operate.select import select, shrunk
from surgeon.plan.plan import Cut, Edit, Plan, Selection
from surgeon.plan.runs import encode


def plan_from_pair(
    original: nn.Module,
    pruned: nn.Module,
    example_inputs: Any = None,
    *,
    changed: Iterable[str] = (),
    method: str = "forward",
) -> Plan:
    """Return the plan that makes a pruned model of its original, found by matching their values.

    ``operate(original, plan)`` has the tensors of the pruned model, bit for bit. Take the pruned model as it was cut:
    values that were tuned since can't be found again.

    Parameters
    ----------
    original, pruned : models whose tensors have the same names
    example_inputs : for a plan with groups and costs, that can be proved; what is ambiguous in one tensor is then
        settled by those that are coupled with it. Without, the plan only replays, and every tensor has to speak for
        itself
    changed : globs of tensors that were changed since and are not compared, such as ``"*.running_mean"``; without
        example inputs they may not have shrunk

    Raises
    ------
    ConvertError where values don't match, or match in several ways

    Examples
    --------
    >>> plan = surgeon.plan_from_pair(original, pruned, torch.randn(1, 3, 224, 224))
    >>> small = surgeon.operate(original, plan)
    """
    original, pruned = bare(original), bare(pruned)
    before, after = tensors(original), tensors(pruned)
    graph = None if example_inputs is None else trace(original, example_inputs, method=method)
    return matched(original, pruned, before, after, graph, tuple(changed), {"source": "pair"})


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def matched(
    original: nn.Module,
    pruned: nn.Module,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    graph: DependencyGraph | None,
    changed: tuple[str, ...],
    settings: Mapping[str, Any],
) -> Plan:
    """Return the plan that makes one set of tensors of another."""
    _check_names(before, after)
    axes = _free_axes(before, after) if graph is None else _coupled_axes(graph, before, after)
    count = 1 + max((int(a.classes.max()) for own in axes.values() for a in own), default=-1)
    state = np.zeros(count if graph is None else graph.solution.classes, np.int8)
    skipped = {name for name in before for pattern in changed if fnmatch.fnmatchcase(name, pattern)}
    scaled = () if graph is None else [name for r in graph.rescalings for name, _, _ in r.places]
    found = Matching(before, after, axes, state, set(skipped), frozenset(scaled))
    found.solve((lambda state: None) if graph is None else _Closures(graph))
    _check_known(found, skipped, graph)
    if graph is None:
        plan = _replay(original, pruned, found, settings)
    else:
        plan = removal(graph, found.state == DEAD, {**settings, "method": graph.method})
    return _reproducing(plan, before, after, skipped)


def _check_names(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    for name in sorted(before.keys() ^ after.keys()):
        raise ConvertError(
            f"{name!r} is only in the {'original' if name in before else 'pruned model'}; the two have to be the same "
            "architecture with the same names; take wrappers and masks off first"
        )
    for name, old in before.items():
        new = after[name]
        if old.dtype != new.dtype or old.dim() != new.dim() or any(n > o for n, o in zip(new.shape, old.shape)):
            raise ConvertError(
                f"{name} is {list(old.shape)} {old.dtype} in the original and {list(new.shape)} {new.dtype} in the "
                "pruned model, which is no part of it"
            )
        if "meta" in (old.device.type, new.device.type):
            raise ConvertError(f"{name} has no values (device meta); load the weights of both models")


def _coupled_axes(
    graph: DependencyGraph, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> dict[str, list[Axis]]:
    axes: dict[str, list[Axis]] = {}
    widths: dict[bytes, tuple[Any, int]] = {}
    for place in graph.places:
        axes.setdefault(place.parameter, []).append(Axis(place.parameter, place.dims, place.classes))
        left = prod(after[place.parameter].shape[d] for d in place.dims)
        stay = int((graph.solution.pinned[place.classes] >= 0).sum())
        if left < stay:
            reason = next((graph.reason(g) for g in graph.groups if g.pinned and place in g.members), "they are pinned")
            raise ConvertError(
                f"{place} shrank from {len(place.classes)} to {left}, and surgeon takes {stay} positions to stay: "
                f"{reason}; without example_inputs the plan only replays, and takes anything"
            )
        other, width = widths.setdefault(np.sort(place.classes).tobytes(), (place, left))
        if width != left:
            raise ConvertError(
                f"{place} has {left} positions left, and {other}, which is coupled with it, {width}: the pruned model "
                "is not consistent, as where a head that only training uses was left as it was; without example_inputs "
                "the plan only replays, and takes anything"
            )
    for name, old in before.items():
        covered = {d for axis in axes.get(name, ()) for d in axis.dims}
        for d, (o, n) in enumerate(zip(old.shape, after[name].shape)):
            if o != n and d not in covered:
                raise ConvertError(f"{name} dim {d} shrank from {o} to {n}, and surgeon's graph has it stay")
    return axes


def _free_axes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, list[Axis]]:
    """Return an axis for every dimension that shrank, coupled with no other."""
    axes: dict[str, list[Axis]] = {}
    count = 0
    for name, old in before.items():
        for d, (o, n) in enumerate(zip(old.shape, after[name].shape)):
            if o != n:
                axes.setdefault(name, []).append(Axis(name, (d,), np.arange(count, count + o)))
                count += o
    return axes


class _Closures:
    """What the graph says: what dies with what, and what can't die at all."""

    def __init__(self, graph: DependencyGraph) -> None:
        self.closure = graph.solution.closure
        self.seen = visible(graph)

    def __call__(self, state: np.ndarray) -> None:
        """A unit with a part that lives does not go; what is dead takes its only possible unit along."""
        closure = self.closure
        possible = np.asarray((closure @ (state == ALIVE).astype(np.int32)) == 0)
        ways = np.asarray(closure.T @ possible.astype(np.int32))
        state[self.seen & (ways == 0) & (state == UNKNOWN)] = ALIVE
        needed = possible & np.asarray((closure @ ((ways == 1) & (state == DEAD)).astype(np.int32)) > 0)
        dead = np.asarray((closure.T @ needed.astype(np.int32)) > 0)
        state[dead & self.seen & (state == UNKNOWN)] = DEAD


def _check_known(found: Matching, skipped: set[str], graph: DependencyGraph | None) -> None:
    """Raise ConvertError where values of the pruned model are not of the original, or of several places there."""
    hint = "" if graph is not None else "; give example_inputs, so that coupled tensors settle it"
    for axes in found.axes.values():
        for axis in axes:
            unknown = np.flatnonzero(found.state[axis.classes] == UNKNOWN)
            if not len(unknown):
                continue
            lost = sorted(found.changed - skipped)
            if lost:
                raise ConvertError(
                    f"values of {lost[0]} in the pruned model are not those of the original; make the plan from the "
                    f"model as it was cut, before it was tuned, or name what may differ in changed="
                )
            raise ConvertError(
                f"{axis}: positions {encode(unknown)} have the same values in the original, so that it is ambiguous "
                f"which of them stay{hint}"
            )


# -- plans that only replay ----------------------------------------------------------------------------


def _replay(original: nn.Module, pruned: nn.Module, found: Matching, settings: Mapping[str, Any]) -> Plan:
    cuts = {}
    for name, axes in found.axes.items():
        chosen = tuple(
            Selection(axis.dims, len(axis.classes), np.flatnonzero(found.state[axis.classes] == ALIVE)) for axis in axes
        )
        cuts[name] = Cut(tuple(found.before[name].shape), tuple(found.after[name].shape), chosen)
    parameters = [sum(float(p.numel()) for p in model.parameters()) for model in (original, pruned)]
    return Plan(
        cuts=cuts,
        fingerprint={name: tuple(tensor.shape) for name, tensor in found.before.items()},
        edits=tuple(_edits(original, pruned)),
        groups=(),
        pins={},
        cost={},
        totals={"flops": (0.0, 0.0), "params": (parameters[0], parameters[1])},
        settings=dict(settings),
        tied={name: first for name, first in first_names(named_tensors(original)).items() if name != first},
    )


def _edits(original: nn.Module, pruned: nn.Module) -> Iterator[Edit]:
    """Yield the integers that differ between the modules of two models, and their configurations."""
    twins = dict(pruned.named_modules(remove_duplicate=False))
    for owner, module in original.named_modules(remove_duplicate=False):
        twin = twins.get(owner)
        if twin is None:
            raise ConvertError(f"the pruned model has no module {owner!r}")
        theirs = dict(records(twin))
        yield from _integers(owner, "", vars(module), vars(twin))
        for name, held in records(module):
            yield from _integers(owner, f"{name}.", held, theirs.get(name, {}))


def _integers(owner: str, prefix: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Edit]:
    for name, old in ours.items():
        new = theirs.get(name)
        if type(old) is int and type(new) is int and old != new:
            yield Edit(owner, prefix + name, None, old, new)
        elif isinstance(old, (tuple, list)) and isinstance(new, (tuple, list)) and len(new) == len(old):
            for i, (a, b) in enumerate(zip(old, new)):
                if type(a) is int and type(b) is int and a != b:
                    yield Edit(owner, prefix + name, i, a, b)


# -- the check at the end --------------------------------------------------------------------------------


def _reproducing(plan: Plan, before: Mapping[str, Tensor], after: Mapping[str, Tensor], skipped: set[str]) -> Plan:
    """Return the plan, with its factors or without them, if it makes the one set of tensors of the other."""
    plain = replace(plan, scales=())
    for candidate in (plain, plan):
        wrong = [n for n in before if n not in skipped and not _same(_cut(before[n], candidate, n), after[n])]
        if not wrong:
            return candidate
    raise ConvertError(
        f"the positions that match do not make {wrong[0]} of the pruned model out of that of the original; make the "
        "plan from the model as it was cut, before it was tuned, or name what may differ in changed="
    )


def _cut(tensor: Tensor, plan: Plan, name: str) -> Tensor:
    if name not in plan.cuts:
        return tensor
    return shrunk(tensor, plan, name) if plan.scales else select(tensor, plan.cuts[name])


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool(torch.equal(bits(ours), bits(theirs)))
