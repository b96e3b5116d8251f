"""Soft pruning: units are zero before they are cut, and may come back."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from surgeon.errors import PrunerError
from surgeon.modules import as_arguments, entering, evaluating, named_tensors, tensors_in, untouched
from surgeon.operate import operate
from surgeon.operate.select import flags
from surgeon.plan import Plan
from surgeon.plan.describe import units_of

logger = logging.getLogger("surgeon.pruner")

# State of optimizers that moves a weight without a gradient: it is zero as long as the weight is masked. Means of
# squares are left to decay.
MOVING = ("momentum_buffer", "exp_avg", "grad_avg", "prev")


class Masks:
    """What a plan would remove is zero, in every tensor that it would be cut from: weights, biases, norms and buffers.

    What was there is kept, and comes back with its unit.

    hidden  tensor name -> its values, valid where it is masked
    scores  group name -> the scores with which units were ranked when they were masked, ``[units]``
    """

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.hidden: dict[str, Tensor] = {}
        self.scores: dict[str, Tensor] = {}
        self._dead: dict[str, list[Tensor]] = {}
        self._told = False

    def __str__(self) -> str:
        return "nothing masked" if self.plan is None else f"{sum(g.removed for g in self.plan.groups)} units masked"

    # -- ranking ---------------------------------------------------------------------------------------

    def ranked(self, graph: Any, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return scores in which masked units, whose weights are zero, have those that they were masked with."""
        if self.plan is None:
            return dict(scores)
        masked = np.zeros(graph.solution.closure.shape[0], bool)
        masked[units_of(graph, self.plan)] = True
        found = {}
        for group in graph.free:
            mine = torch.from_numpy(masked[group.units])
            now = torch.as_tensor(scores[group.name]).detach().double().cpu()
            found[group.name] = torch.where(mine, self.scores[group.name], now) if group.name in self.scores else now
        return found

    # -- masking ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def set(self, model: nn.Module, plan: Plan | None, scores: Mapping[str, Tensor]) -> None:
        """Mask what a plan would remove, and give all other units that were masked back what they were.

        Parameters
        ----------
        scores : what the plan was made from
        """
        tensors = named_tensors(model)
        dead = {} if plan is None else _dead(tensors, plan)
        hidden = {}
        for name in {**self._dead, **dead}:
            tensor = tensors[name]
            whole = tensor.detach().clone()
            for each in self._dead.get(name, ()):
                whole = torch.where(each, self.hidden[name], whole)
            tensor.copy_(whole)
            if name in dead:
                hidden[name] = whole
        self.plan, self.hidden, self._dead = plan, hidden, dead
        self.scores = {} if plan is None else {name: torch.as_tensor(value) for name, value in scores.items()}
        self.apply(model, ())

    @torch.no_grad()
    def apply(self, model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
        """Put zeros back where training has moved masked weights, and where optimizers would."""
        if self.plan is None:
            return
        tensors = named_tensors(model)
        for name, dead in self._dead.items():
            tensor = tensors[name]
            states = [optimizer.state[tensor] for optimizer in optimizers if tensor in optimizer.state]
            moving = [state[key] for state in states for key in MOVING if isinstance(state.get(key), Tensor)]
            for each in (tensor, *(value for value in moving if value.shape == tensor.shape)):
                for where in dead:
                    each.masked_fill_(where, 0)

    def compare(self, model: nn.Module, example_inputs: Any, method: str) -> None:
        """Say how far the masked model is from the one that it will be cut to, where calls look at whole dimensions.

        Raises
        ------
        PrunerError where the masked model gives NaN or infinity.
        """
        assert self.plan is not None  # something is masked
        apart = gap(model, operate(model, self.plan), example_inputs, method)
        ops = ", ".join(sorted({masked.op for masked in self.plan.masked}))
        if not math.isfinite(apart):
            raise PrunerError(
                f"soft=True: the model gives NaN or infinity with units at zero, where {ops} run over them; prune with "
                "soft=False"
            )
        if apart > 1e-3 and not self._told:
            self._told = True
            said = "outputs of the masked model are %.1g apart from those after the cut: %s count masked units as zeros"
            logger.warning(said, apart, ops)

    def clear(self) -> None:
        """Forget everything: what was masked has been cut."""
        self.plan, self.hidden, self.scores, self._dead = None, {}, {}, {}

    # -- state -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what is masked as plain data and tensors."""
        return {
            "plan": None if self.plan is None else self.plan.to_json(compact=True),
            "hidden": {name: value.clone() for name, value in self.hidden.items()},
            "scores": {name: value.clone() for name, value in self.scores.items()},
        }

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Go on with the masks of an earlier process; weights are not touched."""
        self.plan = None if state["plan"] is None else Plan.from_json(state["plan"])
        tensors = named_tensors(model)
        self._dead = {} if self.plan is None else _dead(tensors, self.plan)
        self.hidden = {name: value.to(tensors[name]).clone() for name, value in state["hidden"].items()}
        self.scores = {name: value.clone() for name, value in state["scores"].items()}


def gap(masked: nn.Module, small: nn.Module, example_inputs: Any, method: str) -> float:
    """Return the largest difference of outputs, relative to the largest output; infinite where one is not finite."""
    args, kwargs = as_arguments(example_inputs)
    outputs = []
    with torch.no_grad(), untouched(masked), evaluating(masked, small), entering(method, masked, small):
        for model in (masked, small):
            outputs.append([t.double() for t in tensors_in(model(*args, **kwargs)) if t.is_floating_point()])
    worst = 0.0
    for a, b in zip(*outputs):
        apart = float(((a - b).abs().amax() / b.abs().amax().clamp(min=1e-12)).nan_to_num(nan=math.inf))
        worst = max(worst, apart)
    return worst


def _dead(tensors: Mapping[str, Tensor], plan: Plan) -> dict[str, list[Tensor]]:
    """Return where each tensor is masked: flags with size 1 along all dimensions that they do not depend on."""
    return {name: [~keep.to(tensors[name].device) for keep in flags(cut)] for name, cut in plan.cuts.items()}
