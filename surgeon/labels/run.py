"""Record a model with labels: the forward, its auxiliary branches, pins asked for, and the sizes it used."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import TraceError, UnknownLayer
from surgeon.labels.auxiliary import auxiliary
from surgeon.labels.family import Extent, extent
from surgeon.labels.flow import Flow
from surgeon.labels.ops import Op
from surgeon.labels.rules import RULES
from surgeon.labels.rules.custom import TAUGHT
from surgeon.labels.scale import Rescaling, rescalings
from surgeon.labels.sizes import Constraint
from surgeon.labels.space import Space
from surgeon.modules import as_arguments, distinct, named_tensors, submodules
from surgeon.trace import Arithmetic, Attribute, Width, record
from surgeon.trace.integers import Ledger, leaves

# Widths that layers declare and no forward reads: attribute -> (operand or result, dimension of an unbatched
# or batched channel). Setting them keeps ``print(model)`` and readers of ``out_channels`` right.
_DECLARED: dict[str, tuple[str, int]] = {
    "in_channels": ("operand", 1),
    "out_channels": ("result", 1),
    "in_features": ("operand", -1),
    "out_features": ("result", -1),
    "num_features": ("operand", 1),
    "num_channels": ("operand", 1),
    "embedding_dim": ("result", -1),
    "input_size": ("operand", -1),
    "hidden_size": ("result", -1),
}


_DECLARING = ("conv", "linear", "batch_norm", "group_norm", "instance_norm", "embedding", "lstm", "gru", "rnn")


@dataclass(eq=False)
class Run:
    """What one recording says."""

    flow: Flow
    constraints: list[Constraint]
    calls: int
    rescalings: list[Rescaling]


def run(model: nn.Module, example_inputs: Any, keep: Iterable[Any] = ()) -> Run:
    """Record the forward pass with labels.

    Branches that only run in training mode (auxiliary heads) are recorded in a second pass, so that
    they stay in step; if that pass fails, they are left alone.
    """
    tensors = distinct(named_tensors(model))
    if not any(p.is_floating_point() for p in model.parameters()):
        raise TraceError("the model has no floating-point parameters; there is nothing to cut")
    flow = Flow({**RULES, **TAUGHT}, tensors)
    args, kwargs = as_arguments(example_inputs)
    flow.give([args, kwargs])
    output, entries, calls = record(model, example_inputs, flow)
    flow.take(output)
    flow.lifetimes.stop()
    main, outputs = len(flow.ops), set(flow.outputs)
    entries = auxiliary(model, example_inputs, flow, calls, entries)
    rescaled, stuck = rescalings(flow, main)
    _keep(model, flow, keep)
    constraints = _constraints(flow, entries) + _declared(model, flow.ops)
    constraints += _read(flow, constraints)
    constraints += [Constraint(root.width, root.value, root.call, root.reason) for root in stuck]
    tie_widths(flow.space, constraints)
    del flow.ops[main:]
    flow.outputs = outputs
    return Run(flow, constraints, calls, rescaled)


def tie_widths(space: Space, constraints: Sequence[Constraint]) -> None:
    """Widths that the model takes for the same number have to shrink by the same number.

    ``x.reshape(b, t, c)`` with ``c`` read off another tensor, or two layers sized by one attribute: the labels of all
    these widths become rows of one table. So do ``c`` and all columns of all heads in ``(c // heads) == d``.
    """
    equal: dict[Any, list[Width]] = {}
    for constraint in (c for c in constraints if c.equation):
        _tie_quotient(space, constraint)
        sides = (constraint.left, constraint.right)
        widths = [side for side in sides if isinstance(side, Width)]
        attributes = [side for side in sides if isinstance(side, Attribute)]
        if len(widths) + len(attributes) == 2:
            equal.setdefault(attributes[0] if attributes else id(constraint), []).extend(widths)
    for same in equal.values():
        # Most are one width that several layers declare.
        sources = {(id(w.source.labels), id(w.source.rows)): w.source for w in same}
        if len(sources) == 1 and next(iter(sources.values())).rows is None:
            continue
        rows = {row.numpy().tobytes(): row for source in sources.values() for row in _rows(source)}
        if len(rows) > 1 and len({len(row) for row in rows.values()}) == 1:
            space.balance(torch.stack(list(rows.values())))


def _tie_quotient(space: Space, constraint: Constraint) -> None:
    whole, part = constraint.left, constraint.right
    if not (isinstance(whole, Arithmetic) and whole.operator == "//" and isinstance(part, Width)):
        return
    if not isinstance(whole.left, Width) or whole.left.source.rows is not None or part.source.rows is None:
        return
    labels, size = part.source.labels, whole.left.size
    if size % part.size == 0 and labels.numel() % size == 0:
        space.balance(torch.cat([whole.left.source.labels.reshape(1, -1), labels.reshape(-1, size)]))


def _rows(width: Extent) -> list[Tensor]:
    """Return the labels that a width counts, row by row where it is the width of every row."""
    if width.rows is None:
        return [width.labels.reshape(-1).sort().values]
    return list(width.labels.reshape(width.rows.numel(), -1))


def _constraints(flow: Flow, entries: Ledger) -> list[Constraint]:
    found = []
    for use in flow.sizes_used:
        right = Width(use.extent, use.extent.size) if isinstance(use.extent, Extent) else use.extent
        found.append(Constraint(use.expression, right, use.at, use.what))
    for c in entries.comparisons:
        found.append(Constraint(c.left, c.right, -1, f"compared at {c.source}", c.relation, c.outcome))
    for expression, value, source in entries.escaped():
        found.append(Constraint(expression, value, -1, f"read as a number at {source}"))
    return found


def _read(flow: Flow, others: Sequence[Constraint]) -> list[Constraint]:
    """Integers that are only read keep their values; most are attributes that nothing changes, such as strides."""
    moving = frozenset().union(*(c.attributes for c in others))
    found = []
    for use in flow.sizes_read:
        parts = list(leaves(use.expression))
        if not moving.isdisjoint(parts) or any(isinstance(part, Width) for part in parts):
            found.append(Constraint(use.expression, int(use.extent), use.at, use.what))  # type: ignore[arg-type]
    return found


def _declared(model: nn.Module, ops: Sequence[Op]) -> list[Constraint]:
    found = []
    modules = submodules(model)
    for op in (op for op in ops if op.name.startswith(_DECLARING)):
        attributes = vars(modules[op.module])
        for name, (side, dim) in _DECLARED.items():
            if type(attributes.get(name)) is not int:
                continue
            shape = op.operands[0] if side == "operand" else op.results[0]
            if shape is None or not shape[0]:
                continue
            channel = dim if dim < 0 or op.name == "batch_norm" else _channel_dim(op, side)
            width = extent(shape[0], shape[1], channel % len(shape[0]))
            if isinstance(width, Extent) and width.size == attributes[name]:
                found.append(Constraint(Attribute(op.module, name), Width(width, width.size), op.index, name))
    return found


def _channel_dim(op: Op, side: str) -> int:
    """Return where channels are: before the pixels, whose number the weight tells."""
    spatial = {"1d": 1, "2d": 2, "3d": 3}.get(op.name[-2:], 0)
    shape = op.operands[0] if side == "operand" else op.results[0]
    assert shape is not None
    return len(shape[0]) - 1 - spatial if spatial else min(1, len(shape[0]) - 1)


def _keep(model: nn.Module, flow: Flow, keep: Iterable[Any]) -> None:
    """Pin what the user wants kept: names, globs, modules, or ``{"out": ..., "in": ...}``."""
    if isinstance(keep, Mapping):
        for side, names in keep.items():
            if side not in ("in", "out"):
                raise UnknownLayer(str(side), ("in", "out"))
            _keep_side(model, flow, _listed(names), {side})
        return
    for each in _listed(keep):
        if isinstance(each, Mapping):
            _keep(model, flow, each)
        else:
            _keep_side(model, flow, [each], {"in", "out"})


def _listed(names: Any) -> list[Any]:
    return [names] if isinstance(names, (str, nn.Module)) else list(names)


def _keep_side(model: nn.Module, flow: Flow, names: Sequence[Any], sides: set[str]) -> None:
    flow.space.at = -1
    for name in names:
        for leaf in matching(model, flow, name):
            value = flow.leaves[leaf]
            for family in value.families:
                known = set().union(*(flow.role.get((leaf, d), {"in", "out"}) for d in family.dims))
                if known & sides:
                    for part in (family, *family.parents):
                        flow.space.pin(part.labels, f"kept as asked ({name if isinstance(name, str) else leaf})")


def matching(model: nn.Module, flow: Flow, name: Any) -> list[str]:
    """Return the parameters of the layers that a name, a glob or a module stands for."""
    if isinstance(name, nn.Module):
        paths = [path for path, module in model.named_modules() if module is name]
        if not paths:
            raise UnknownLayer(type(name).__name__, [path for path, _ in model.named_modules()])
        name = paths[0]
    if not isinstance(name, str):
        raise UnknownLayer(
            f"{name!r:.60}, which is no name, glob or module", [path for path, _ in model.named_modules()]
        )
    found = [
        leaf
        for leaf in flow.leaves
        if fnmatch.fnmatchcase(leaf, name) or any(fnmatch.fnmatchcase(prefix, name) for prefix in _prefixes(leaf))
    ]
    if not found and name not in dict(model.named_modules()):
        known = {prefix for leaf in flow.leaves for prefix in (*_prefixes(leaf), leaf)}
        raise UnknownLayer(str(name), sorted(known))
    return found


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


__all__ = ["Run", "matching", "run"]
