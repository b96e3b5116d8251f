"""Rewinding: what a plan leaves, with the weights of an earlier checkpoint."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import FileError, PlanMismatch
from surgeon.modules import bare
from surgeon.operate import operate
from surgeon.plan.plan import Plan


def rewind(
    model: nn.Module, plan: Plan | Sequence[Plan], state: Mapping[str, Any] | str | os.PathLike[str]
) -> nn.Module:
    """Return the small model that a plan makes of earlier weights; nothing is traced or scored again.

    Lottery tickets (Frankle and Carbin, 2019, "The Lottery Ticket Hypothesis") take the initial weights, or those of an
    early step (Frankle et al., 2020). With the final weights, and the learning rates of the last epochs for
    ``finetune``'s schedule, it is learning-rate rewinding (Renda et al., 2020, "Comparing Rewinding and Fine-tuning in
    Neural Network Pruning").

    Parameters
    ----------
    model : the original, with any weights; untouched
    plan : what was cut from the trained model; of several cuts in turn, their plans in order
    state : a state dict of the original, or the path of one: ``.safetensors``, or what ``torch.save`` wrote

    Raises
    ------
    PlanMismatch when the state is not of the model that the plan cuts; FileError when it can't be read.

    Examples
    --------
    >>> initial = copy.deepcopy(model.state_dict())
    >>> train(model)
    >>> ticket = surgeon.rewind(model, surgeon.prune(model, x, flops=0.3).plan, initial)
    """
    early = copy.deepcopy(bare(model))
    _load(early, _read(state) if isinstance(state, (str, os.PathLike)) else state)
    for each in [plan] if isinstance(plan, Plan) else plan:
        early = operate(early, each, inplace=True)
    return early


def _load(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load weights under the model's own names, all of them and with their shapes."""
    own = model.state_dict()
    for name, value in own.items():
        if name not in state:
            raise PlanMismatch(
                f"the checkpoint has no {name!r}; it has to be of the original, as it was before the cut"
            )
        if isinstance(value, Tensor) and tuple(state[name].shape) != tuple(value.shape):
            raise PlanMismatch(
                f"{name} is {list(state[name].shape)} in the checkpoint and {list(value.shape)} in the original; pass "
                "weights from before the cut"
            )
    unknown = sorted(state.keys() - own.keys())
    if unknown:
        raise PlanMismatch(f"the original has no {unknown[0]!r}, which the checkpoint has")
    model.load_state_dict(state)


def _read(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise FileError(f"{os.fspath(path)} can't be read as weights: {type(error).__name__}: {error}") from error
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise FileError(f"{os.fspath(path)} holds a {type(found).__name__}, not a state dict")
    return found
