"""Apply a plan to a module: allocate everything, then commit."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from surgeon.errors import PlanMismatch, SurgeonError, UnsupportedModel
from surgeon.exported import Program, rebuild
from surgeon.files.names import prefix_hint
from surgeon.modules import Model, bare, holder, named_parameters, named_tensors, records, submodules, uncollected
from surgeon.operate.lineage import remember
from surgeon.operate.select import factors, select, shrunk
from surgeon.plan.plan import Edit, Plan
from surgeon.progress import working


@overload
def operate(model: nn.Module, plan: Plan, *, inplace: bool = False) -> nn.Module: ...
@overload
def operate(model: ExportedProgram | str | os.PathLike[str], plan: Plan) -> ExportedProgram: ...
@uncollected()
@working("cutting")
def operate(model: Model, plan: Plan, *, inplace: bool = False) -> nn.Module | ExportedProgram:
    """Return a smaller model of the same class; the original is untouched unless ``inplace``.

    Works on any checkpoint of the architecture that the plan was made for. Gradients are cut along. Of an exported
    program, or the path of a saved one, it makes a smaller program; these are never cut in place.
    In place, configuration objects that are edited are replaced by copies, for other models may hold them.
    Memory: at most the original and the small model.

    Raises
    ------
    PlanMismatch, naming the tensor or attribute, when the plan is for another architecture.

    Examples
    --------
    >>> small = surgeon.operate(model, plan)
    """
    model = bare(model)
    if inplace and isinstance(model, Program):
        raise UnsupportedModel("an exported program can't be cut in place; use what operate returns")
    modules, tensors, before = submodules(model), named_tensors(model), named_parameters(model)
    _check(modules, tensors, before, plan)
    new = {id(tensors[name]): _cut(tensors[name], plan, name) for name in plan.cuts}
    if inplace:
        twins = _twins(modules, plan)
        _replace(modules, new)
        _hold(modules, twins)
        small = model
    else:
        small = _copy(model, new)
        modules = submodules(small)
    for edit in plan.edits:
        _apply(modules[edit.owner], edit)
    for module in modules.values():
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()  # a list of its parameters, laid out as one piece on a GPU
    if isinstance(small, Program):
        return rebuild(small)
    remember(before, small, plan, inplace)
    return small


def _check(modules: dict[str, nn.Module], tensors: dict[str, Tensor], parameters: Iterable[str], plan: Plan) -> None:
    """Refuse a model that is not of the architecture; nothing has been touched so far."""
    _check_names(tensors, parameters, plan)
    for edit in plan.edits:
        found = _read(modules.get(edit.owner), edit)
        if found != edit.old:
            raise PlanMismatch(
                f"the plan is for another architecture: {edit.owner or 'the model'}.{edit.name} is {found!r}, "
                f"not {edit.old}"
            )


def _check_names(tensors: dict[str, Tensor], parameters: Iterable[str], plan: Plan) -> None:
    other = "the plan is for another architecture: "
    names: dict[int, str] = {}
    for name, shape in plan.fingerprint.items():
        if name not in tensors:
            raise PlanMismatch(f"{other}this model has no tensor {name!r}{prefix_hint(tensors, plan.fingerprint)}")
        if tuple(tensors[name].shape) != tuple(shape):
            raise PlanMismatch(f"{other}{name} is {list(tensors[name].shape)} here, {list(shape)} in the plan")
        twin = names.setdefault(id(tensors[name]), name)
        if twin != name:
            raise PlanMismatch(f"{other}{twin} and {name} are one tensor here, and two in the plan")
    unknown = set(parameters) - set(plan.fingerprint)
    for name in sorted(unknown):
        if name in plan.tied:
            raise PlanMismatch(f"{other}{name} is tied to {plan.tied[name]} in the plan, and not in this model")
        raise PlanMismatch(f"{other}it does not know {name!r}{prefix_hint(tensors, plan.fingerprint)}")


def _read(module: nn.Module | None, edit: Edit) -> int | None:
    """Return the integer that an edit changes, None where there is none; looks it up and calls nothing."""
    try:
        held, name = holder(module, edit.name) if module is not None else ({}, edit.name)
        value = held[name]
        if edit.index is not None:
            value = value[edit.index] if type(value) in (tuple, list, torch.Size) else None
    except (KeyError, IndexError, TypeError):
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _apply(module: nn.Module, edit: Edit) -> None:
    held, name = holder(module, edit.name)
    value = edit.new
    if edit.index is not None:
        items = list(held[name])
        items[edit.index] = edit.new
        value = type(held[name])(items)
    if held is vars(module):
        setattr(module, name, value)
    else:
        held[name] = value


def _cut(tensor: Tensor, plan: Plan, name: str) -> Tensor:
    kept = shrunk(tensor, plan, name)
    if isinstance(tensor, nn.Parameter):
        kept = type(tensor)(kept, requires_grad=tensor.requires_grad)
        if tensor.grad is not None:
            kept.grad = select(tensor.grad, plan.cuts[name])
            for factor in factors(tensor, plan, name):
                kept.grad /= factor  # the loss depends on factor * weight as it did on the weight
    for key, value in vars(tensor).items():
        setattr(kept, key, value)
    return kept


def _replace(modules: dict[str, nn.Module], new: dict[int, Tensor]) -> None:
    for module in modules.values():
        for registry in (module._parameters, module._buffers):
            for name, tensor in registry.items():
                if tensor is not None and id(tensor) in new:
                    registry[name] = new[id(tensor)]  # type: ignore[assignment]


def _twins(modules: dict[str, nn.Module], plan: Plan) -> dict[int, Any]:
    """Copy the plain objects that edits write to, and those that hold them; id of the original -> copy."""
    owners = {id(vars(modules[edit.owner])) for edit in plan.edits}
    written = {id(holder(modules[edit.owner], edit.name)[0]) for edit in plan.edits} - owners
    if not written:
        return {}
    held = {id(vars(m)[name]): vars(m)[name] for m in modules.values() for name, _ in records(m)}
    found = {key: record for key, record in held.items() if id(vars(record)) in written}
    while more := [k for k, r in held.items() if k not in found and any(id(v) in found for v in vars(r).values())]:
        found.update((key, held[key]) for key in more)
    return {key: copy.copy(record) for key, record in found.items()}


def _hold(modules: dict[str, nn.Module], twins: dict[int, Any]) -> None:
    """Make modules, and the copies themselves, hold the copies."""
    if not twins:
        return
    holders: list[dict[str, Any]] = [vars(held) for held in (*modules.values(), *twins.values())]
    for attributes in holders:
        attributes.update({name: twins[id(value)] for name, value in attributes.items() if id(value) in twins})


def _copy(model: nn.Module, new: dict[int, Tensor]) -> nn.Module:
    """Deep-copy a model; tensors that shrink are never copied whole."""
    memo: dict[int, Any] = dict(new)
    for module in model.modules():
        for value in vars(module).values():
            # Weights that a hook computes before each call (weight_norm, spectral_norm) can't be deep-copied.
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        small: nn.Module = copy.deepcopy(model, memo)
    except Exception as error:
        raise SurgeonError(
            f"the model can't be copied ({type(error).__name__}: {error}); make it deep-copyable, "
            "or operate with inplace=True"
        ) from error
    with torch.no_grad():
        for old in model.parameters():
            twin = memo.get(id(old))
            if old.grad is not None and isinstance(twin, nn.Parameter) and twin.grad is None:
                twin.grad = old.grad.clone()
    return small
