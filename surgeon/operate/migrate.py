"""Take training along: an optimizer, or an average of weights, follows its model through a cut."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Adagrad, Optimizer
from torch.optim.swa_utils import AveragedModel

from surgeon.errors import MigrateError, PlanMismatch
from surgeon.modules import bare, first_names, named_tensors
from surgeon.operate.lineage import descents, parameters
from surgeon.operate.moments import cut_state, powers
from surgeon.operate.operate import operate
from surgeon.operate.select import shrunk
from surgeon.plan.plan import Plan

T = TypeVar("T", Optimizer, AveragedModel, MutableMapping[str, Tensor])


def migrate(
    target: T,
    plan: Plan,
    *,
    small: nn.Module | None = None,
    model: nn.Module | None = None,
    state: Mapping[str, float] | None = None,
) -> T:
    """Cut what training keeps beside a model by the model's plan, in place, so that it goes on where it was.

    An optimizer is left with the small model's parameters in the same groups, and with its state of the positions that
    stay. The object is the same, and so are its groups: schedulers and ``GradScaler`` go on with it. Parameters that
    the small model has gained, such as biases from ``recover``, join the group of their layer's weight.
    Nothing is changed where an error is raised.

    Parameters
    ----------
    target : a ``torch.optim`` optimizer, an ``AveragedModel``, or a state dict of averages
    plan : the plan that the model was cut by; for several cuts, migrate by each in turn
    small : the small model, where ``operate`` has made several by this plan, or another process did
    model : the model whose parameters the optimizer holds, where that is not the one that was cut in this process; for
        a state dict, a model that tells which entries are tied, where the plan does not
    state : for optimizers that aren't torch's: what they keep in the shape of a weight -> the power of the gradient
        that it grows with, such as ``{"exp_avg": 1, "exp_avg_sq": 2}``

    Returns
    -------
    ``target``

    Raises
    ------
    MigrateError for state that can't follow, or where it is not clear which parameter became which; PlanMismatch

    Examples
    --------
    >>> surgeon.operate(model, plan, inplace=True)
    >>> surgeon.migrate(optimizer, plan)
    """
    if isinstance(target, AveragedModel):
        operate(target.module, plan, inplace=True)
    elif isinstance(target, Optimizer):
        _migrate(target, plan, small, model, state)
    elif isinstance(target, MutableMapping):
        _migrate_averages(target, plan, model)
    else:
        raise MigrateError(
            f"{type(target).__name__} is no torch.optim.Optimizer, AveragedModel or state dict; of a wrapper, give the "
            "optimizer inside"
        )
    return target


# -- optimizers --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Successor:
    """What an optimizer's parameter became."""

    name: str
    new: nn.Parameter


def _migrate(
    optimizer: Optimizer,
    plan: Plan,
    small: nn.Module | None,
    model: nn.Module | None,
    given: Mapping[str, float] | None,
) -> None:
    known, kind = powers(optimizer, given), type(optimizer).__name__
    small, successors = _successors(optimizer, plan, small, model)
    states: dict[nn.Parameter, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        for old in group["params"]:
            if id(old) in successors and old in optimizer.state:
                after = successors[id(old)]
                kept = cut_state(optimizer.state[old], old, plan, after.name, known, kind)
                states[old] = {key: _at_home(value, old, after.new) for key, value in kept.items()}
    added = list(_added(optimizer, plan, small, successors))
    fresh = [_initial(optimizer, group, new) for group, _, new in added]
    for group in optimizer.param_groups:
        for i, old in enumerate(group["params"]):
            if id(old) not in successors:
                continue
            group["params"][i] = successors[id(old)].new
            if old in states:
                del optimizer.state[old]
                optimizer.state[successors[id(old)].new] = states[old]
    for (group, name, new), begin in zip(added, fresh):
        group["params"].append(new)
        if "param_names" in group:
            group["param_names"].append(name)
        if begin:
            optimizer.state[new] = begin


def _parameters(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _successors(
    optimizer: Optimizer, plan: Plan, small: nn.Module | None, model: nn.Module | None
) -> tuple[nn.Module, dict[int, _Successor]]:
    """Return the small model, and what becomes of the optimizer's parameters, by their ids.

    Raises MigrateError for a parameter that is neither of the model before the cut nor of the one after it.
    """
    if model is not None and small is None:
        raise MigrateError("model= is the model before the cut; give the one after it as well, as small=")
    if model is None or small is None:
        small, found = _remembered(optimizer, plan, None if small is None else bare(small))
    else:
        small, found = _by_name(bare(model), bare(small))
    own = {id(p) for p in small.parameters()}
    for old in _parameters(optimizer):
        if id(old) in found:
            _check(plan, old, found[id(old)])
        elif id(old) not in own and all(d.small() is not small for d in descents(old)):
            raise MigrateError(
                f"the optimizer holds a parameter of shape {list(old.shape)} that is neither of the model before the "
                "cut nor of the one after it; give model= and small=, and an optimizer of that model"
            )
    return small, found


def _by_name(model: nn.Module, small: nn.Module) -> tuple[nn.Module, dict[int, _Successor]]:
    after = parameters(small)
    before = dict(model.named_parameters())
    missing = sorted(before.keys() - after.keys())
    if missing:
        raise PlanMismatch(f"the small model is of another architecture: it has no parameter {missing[0]!r}")
    return small, {id(old): _Successor(name, after[name]) for name, old in before.items()}


def _remembered(optimizer: Optimizer, plan: Plan, small: nn.Module | None) -> tuple[nn.Module, dict[int, _Successor]]:
    """Follow the cuts of this process; refuse where a parameter has more than one successor."""
    made = _made(optimizer, plan, small)
    if len(made) > 1:
        gc.collect()  # models that nobody holds any more may only wait for this
        made = _made(optimizer, plan, small)
    if len(made) > 1:
        raise MigrateError(f"{len(made)} models were cut by this plan; say which one is trained: small=")
    if (
        not made
        and small is not None
        and {id(p) for p in _parameters(optimizer)} <= {id(p) for p in small.parameters()}
    ):
        return small, {}  # an optimizer of the small model from the start
    if not made:
        raise MigrateError(
            "no model that holds these parameters was cut by this plan in this process, or the small model is gone; "
            "give the model that the optimizer belongs to and the one that was made of it: model=, small="
        )
    (chosen,) = made.values()
    found = {}
    for old in _parameters(optimizer):
        for descent in descents(old):
            new = descent.successor
            if descent.small() is chosen and descent.of(plan) and new is not None:
                found[id(old)] = _Successor(descent.name, new)
    return chosen, found


def _made(optimizer: Optimizer, plan: Plan, small: nn.Module | None) -> dict[int, nn.Module]:
    """Return the living models that the plan made of the optimizer's parameters."""
    made = {}
    for old in _parameters(optimizer):
        for descent in descents(old):
            candidate = descent.small()
            if candidate is not None and (small is None or candidate is small) and descent.of(plan):
                made[id(candidate)] = candidate
    return made


def _check(plan: Plan, old: nn.Parameter, after: _Successor) -> None:
    """Hold shapes before and after against the plan."""
    before = plan.fingerprint.get(after.name)
    if before is None or tuple(old.shape) != tuple(before):
        raise PlanMismatch(
            f"the optimizer's {after.name} is {list(old.shape)}, and {list(before) if before else 'missing'} in the "
            "plan; give the plan and the model that the optimizer belongs to"
        )
    wanted = plan.cuts[after.name].new_shape if after.name in plan.cuts else before
    if tuple(after.new.shape) != tuple(wanted):
        raise PlanMismatch(
            f"{after.name} is {list(after.new.shape)} in the small model, and {list(wanted)} after the plan; where it "
            "was cut several times, migrate after each cut"
        )


def _at_home(value: Any, old: nn.Parameter, new: nn.Parameter) -> Any:
    """Put state where its parameter went, if that has moved since; step counts stay where they are kept."""
    moved = old.device != new.device or old.dtype != new.dtype
    if not moved or not isinstance(value, Tensor):
        return value
    if value.dim() == 0:
        return value.to(new.device) if value.device == old.device else value
    return value.to(device=new.device, dtype=new.dtype if value.dtype == old.dtype else value.dtype)


def _added(
    optimizer: Optimizer, plan: Plan, small: nn.Module, successors: Mapping[int, _Successor]
) -> Iterator[tuple[dict[str, Any], str, nn.Parameter]]:
    """Yield the parameters that the small model has gained, each with the group of its layer's other parameters."""
    held = {id(successors[id(p)].new if id(p) in successors else p) for p in _parameters(optimizer)}
    names = dict(small.named_parameters())
    for name, new in names.items():
        if name in plan.fingerprint or id(new) in held or not new.requires_grad:
            continue
        owner = name.rpartition(".")[0]
        others = {id(p) for other, p in names.items() if other.rpartition(".")[0] == owner} & held
        for group in optimizer.param_groups:
            mine = {id(successors[id(p)].new if id(p) in successors else p) for p in group["params"]}
            if mine & others:
                yield group, name, new
                break


def _initial(optimizer: Optimizer, group: Mapping[str, Any], new: nn.Parameter) -> dict[str, Any]:
    """Return the state that an optimizer gives a parameter when it is made, which only Adagrad does."""
    if not isinstance(optimizer, Adagrad):
        return {}
    options = {key: group[key] for key in optimizer.defaults if key in group}
    return dict(type(optimizer)([new], **options).state.get(new, {}))


# -- averages ----------------------------------------------------------------------------------------


def _migrate_averages(averages: MutableMapping[str, Tensor], plan: Plan, model: nn.Module | None) -> None:
    """Cut a state dict of averages, ``average(cut(w)) = cut(average(w))``."""
    first = {**plan.tied, **(first_names(named_tensors(bare(model))) if model is not None else {})}
    by_name = {name: first.get(name, name) for name in averages}
    for name, known in by_name.items():
        shape = plan.fingerprint.get(known)
        value = averages[name]
        if shape is None and isinstance(value, Tensor) and value.dim():
            raise PlanMismatch(
                f"the plan does not know {name!r}; where it is tied to another weight, give model=, and take prefixes "
                "such as 'module.' off the names"
            )
        if shape is not None and tuple(value.shape) != tuple(shape):
            raise PlanMismatch(f"{name} is {list(value.shape)} here, {list(shape)} in the plan")
    missing = sorted(plan.cuts.keys() - set(by_name.values()))
    if plan.cuts and missing == sorted(plan.cuts):
        raise PlanMismatch(f"the plan cuts {missing[0]!r} and others, and none of them is here")
    new = {n: shrunk(averages[n], plan, known) for n, known in by_name.items() if known in plan.cuts}
    averages.update(new)
