"""What a training loop keeps beside its model, and how that follows a cut: optimizers and averages of weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from surgeon.errors import PrunerError
from surgeon.modules import bare, first_names, named_tensors
from surgeon.operate import migrate, operate
from surgeon.operate.moments import cut_state, powers
from surgeon.plan import Plan

logger = logging.getLogger("surgeon.pruner")

Average = AveragedModel | nn.Module | MutableMapping[str, Tensor]


class Following:
    """Optimizers and averages that belong to a model.

    Parameters
    ----------
    state : for optimizers that aren't torch's: see ``surgeon.migrate``
    """

    def __init__(self, model: nn.Module, optimizer: Any, ema: Any, state: Mapping[str, float] | None) -> None:
        self.optimizers: list[Optimizer] = [_bare_optimizer(each) for each in _listed(optimizer)]
        self.averages: list[Average] = _listed(ema)
        self.state = state
        for each in self.optimizers:
            powers(each, state)  # raises for those that can't follow
        self._check_owned(model)
        for average in self.averages:
            _check_average(average, model)

    def __str__(self) -> str:
        return ", ".join(type(each).__name__ for each in (*self.optimizers, *self.averages)) or "nothing"

    def _check_owned(self, model: nn.Module) -> None:
        own = {id(p): name for name, p in model.named_parameters()}
        for optimizer in self.optimizers:
            theirs = list(held(optimizer))
            foreign = [p for p in theirs if id(p) not in own]
            if foreign:
                raise PrunerError(_unowned(type(optimizer).__name__, theirs, foreign, model))
        if not self.optimizers:
            return
        trained = {id(p) for optimizer in self.optimizers for p in held(optimizer)}
        left = [own[id(p)] for p in model.parameters() if p.requires_grad and id(p) not in trained]
        if left:
            logger.warning("no optimizer trains %s%s", left[0], f" and {len(left) - 1} others" if left[1:] else "")

    def check(self, model: nn.Module) -> None:
        """Raise PrunerError where an optimizer no longer holds the model's parameters; cheap."""
        own = {id(p) for p in model.parameters()}
        for optimizer in self.optimizers:
            if any(id(p) not in own for p in held(optimizer)):
                raise PrunerError(
                    f"the {type(optimizer).__name__} no longer holds parameters of the model that the pruner cuts: one "
                    "of the two was replaced. Give a new Pruner the model and the optimizer that train now"
                )

    def rehearse(self, model: nn.Module, plan: Plan) -> None:
        """Raise what carrying out a plan would raise, before anything changes.

        Raises
        ------
        MigrateError, PlanMismatch, PrunerError
        """
        names = {id(p): name for name, p in model.named_parameters()}
        for optimizer in self.optimizers:
            known, kind = powers(optimizer, self.state), type(optimizer).__name__
            for p in held(optimizer):
                if p in optimizer.state:
                    cut_state(optimizer.state[p], p, plan, names[id(p)], known, kind)
        for average in self.averages:
            _check_average(average, model)

    def follow(self, model: nn.Module, plan: Plan) -> None:
        """Cut all of it, after the model was cut in place by the plan."""
        for optimizer in self.optimizers:
            migrate(optimizer, plan, small=model, state=self.state)
        for average in self.averages:
            if isinstance(average, nn.Module):
                operate(_inside(average), plan, inplace=True)
            else:
                migrate(average, plan, model=model)


def held(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    """Yield the parameters of an optimizer."""
    for group in optimizer.param_groups:
        yield from group["params"]


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _bare_optimizer(given: Any) -> Optimizer:
    """Unwrap optimizers that hold the one that steps, as Accelerate's and Lightning's do."""
    inner = given
    while not isinstance(inner, Optimizer) and isinstance(getattr(inner, "optimizer", None), Optimizer):
        inner = inner.optimizer
    if type(inner).__name__ in ("AcceleratedOptimizer", "LightningOptimizer") and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if type(inner).__name__ == "ZeroRedundancyOptimizer":
        raise PrunerError(
            "ZeroRedundancyOptimizer spreads its state over processes, and that can't follow a cut; use the optimizer "
            "inside of it while the model is pruned"
        )
    if not isinstance(inner, Optimizer):
        raise PrunerError(
            f"optimizer={type(given).__name__} is no torch.optim.Optimizer, nor a list of them; optimizer=None says "
            "that there is nothing to take along"
        )
    return inner


def _unowned(kind: str, theirs: list[nn.Parameter], foreign: list[nn.Parameter], model: nn.Module) -> str:
    some = "none" if len(foreign) == len(theirs) else f"{len(theirs) - len(foreign)}"
    return (
        f"the {kind} holds {len(theirs)} parameters, {some} of which belong to the {type(model).__name__} that is to "
        f"be cut (one that does not has shape {list(foreign[0].shape)}); make the optimizer of model.parameters(), "
        "after the model was moved or wrapped, and one of its own for parameters of other modules"
    )


def _inside(average: nn.Module) -> nn.Module:
    """Return the averaged copy of the model, which AveragedModel and other packages' averages hold as ``module``."""
    inner = getattr(average, "module", None)
    return bare(inner if isinstance(inner, nn.Module) else average)


def _check_average(average: Average, model: nn.Module) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    if isinstance(average, nn.Module):
        found = {name: tuple(tensor.shape) for name, tensor in named_tensors(_inside(average)).items()}
        if _inside(average) is model:
            raise PrunerError("ema= is the model itself; give the average of its weights, or leave it out")
    elif isinstance(average, MutableMapping):
        found = {name: tuple(value.shape) for name, value in average.items() if isinstance(value, Tensor)}
    else:
        raise PrunerError(f"ema={type(average).__name__} is no AveragedModel, module or state dict of averages")
    wrong = next((n for n, shape in found.items() if shape and shapes.get(n, shape) != shape), None)
    if wrong is not None:
        raise PrunerError(
            f"ema= has {wrong} of shape {list(found[wrong])}, the model of shape {list(shapes[wrong])}; it has to be "
            "of the same model, cut as far"
        )
    known = first_names(named_tensors(model))
    if not known.keys() & found.keys():
        raise PrunerError(
            f"ema= has none of the model's names: {next(iter(found), 'it is empty')!r} there, {next(iter(known))!r} "
            "here; take prefixes such as 'module.' off"
        )


__all__ = ["Following", "held"]
