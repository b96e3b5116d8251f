"""Score the units of every group: the larger, the longer it stays."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surgeon.errors import ScoreError
from surgeon.modules import uncollected
from surgeon.score.activations import activation, apoz, variance, wanda
from surgeon.score.gradients import fisher, gradient, grasp, snip, synflow, taylor, taylor_squared
from surgeon.score.magnitude import bn_scale, fpgm, l1, l2, lamp, linf, random
from surgeon.score.moments import obs

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph, Group

    Criterion = str | Callable[[DependencyGraph, Group], Tensor]

CRITERIA: dict[str, Callable[..., dict[str, Tensor]]] = {
    # from weights
    "l1": l1,
    "l2": l2,
    "linf": linf,
    "lamp": lamp,
    "fpgm": fpgm,
    "bn_scale": bn_scale,
    "random": random,
    # from gradients: data and loss
    "taylor": taylor,
    "taylor_squared": taylor_squared,
    "fisher": fisher,
    "gradient": gradient,
    "snip": snip,
    "grasp": grasp,
    # from example inputs
    "synflow": synflow,
    # from what layers are given: data
    "activation": activation,
    "apoz": apoz,
    "variance": variance,
    "wanda": wanda,
    "obs": obs,
}


def score(graph: DependencyGraph, criterion: Criterion = "l1", **options: Any) -> dict[str, Tensor]:
    """Return the importance of every unit of every free group, float64 ``[units]`` by group name.

    Parameters
    ----------
    criterion : one of ``CRITERIA``, or a callable ``(graph, group) -> Tensor[units]``
    options : passed to the criterion: ``seed`` for "random", ``data`` for those that look at activations, ``data`` and
        ``loss`` for those that take gradients, ``example_inputs`` for "synflow". Data are batches: a DataLoader, a list
        or a generator; of a tuple or list the first item is given to the model, and ``loss(output, *rest)`` is a scalar

    Raises
    ------
    ScoreError for an unknown criterion, or scores of the wrong shape.

    Examples
    --------
    >>> scores = surgeon.score(graph, "l2")
    """
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise ScoreError(
                f"unknown criterion {criterion!r}; choose one of {', '.join(sorted(CRITERIA))}, or pass a callable"
            )
        _check_options(criterion, options)
        with nullcontext() if "data" in options else uncollected():
            return CRITERIA[criterion](graph, **options)
    scores = {}
    for group in graph.free:
        values = torch.as_tensor(criterion(graph, group)).detach().double().cpu()
        if values.shape != (len(group.units),):
            raise ScoreError(
                f"the criterion gave shape {tuple(values.shape)} for group {group.name!r}, "
                f"which has {len(group.units)} units"
            )
        scores[group.name] = values
    return scores


def _check_options(criterion: str, options: dict[str, Any]) -> None:
    taken = dict(list(signature(CRITERIA[criterion]).parameters.items())[1:])
    missing = [name for name, p in taken.items() if p.default is p.empty and options.get(name) is None]
    if missing:
        raise ScoreError(f"criterion {criterion!r} needs {' and '.join(missing)}: score(graph, {criterion!r}, ...)")
    for name in options:
        if name not in taken:
            raise ScoreError(f"criterion {criterion!r} takes no {name!r}; it takes {', '.join(taken) or 'no options'}")
