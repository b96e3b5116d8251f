"""Score the units of every group: the larger, the longer it stays."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surgeon.errors import ScoreError
from surgeon.modules import named_parameters, uncollected
from surgeon.progress import working
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


class Scores(dict[str, Tensor]):
    """Importance per unit by group name, and the name of the criterion."""

    def __init__(self, values: Mapping[str, Tensor], criterion: str) -> None:
        super().__init__(values)
        self.criterion = criterion

    def __reduce__(self) -> tuple[Any, ...]:
        """Be a mapping that ``torch.load`` takes as weights only."""
        return OrderedDict, (), None, None, iter(self.items())


def score(graph: DependencyGraph, criterion: Criterion = "l1", **options: Any) -> Scores:
    """Return the importance of every unit of every free group, float64 ``[units]`` by group name.

    Parameters
    ----------
    criterion : one of ``CRITERIA``, or a callable ``(graph, group) -> Tensor[units]``
    options : passed to the criterion: ``seed`` for "random", ``data`` for those that look at activations, ``data`` and
        ``loss`` for those that take gradients, ``example_inputs`` for "synflow". Data are batches: a DataLoader, a list
        or a generator; of a tuple or list the first item is given to the model, and ``loss(output, *rest)`` is a scalar
        ``weights`` for "l1" and "l2": files of a checkpoint larger than memory, for a graph traced on ``meta``

    Raises
    ------
    ScoreError for an unknown criterion, or scores of the wrong shape.

    Examples
    --------
    >>> scores = surgeon.score(graph, "l2")
    >>> scores = surgeon.score(graph, "l1", weights="model-*.safetensors")
    """
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise ScoreError(
                f"unknown criterion {criterion!r}; choose one of {', '.join(sorted(CRITERIA))}, or pass a callable"
            )
        _check_options(criterion, options)
        _check_weights(graph, criterion, options)
        with working("scoring"), nullcontext() if "data" in options else uncollected():
            return Scores(CRITERIA[criterion](graph, **options), criterion)
    scores = {}
    for group in graph.free:
        values = torch.as_tensor(criterion(graph, group)).detach().double().cpu()
        if values.shape != (len(group.units),):
            raise ScoreError(
                f"the criterion gave shape {tuple(values.shape)} for group {group.name!r}, "
                f"which has {len(group.units)} units"
            )
        scores[group.name] = values
    return Scores(scores, getattr(criterion, "__qualname__", type(criterion).__qualname__))


def _check_options(criterion: str, options: dict[str, Any]) -> None:
    taken = dict(list(signature(CRITERIA[criterion]).parameters.items())[1:])
    missing = [name for name, p in taken.items() if p.default is p.empty and options.get(name) is None]
    if missing:
        raise ScoreError(f"criterion {criterion!r} needs {' and '.join(missing)}: score(graph, {criterion!r}, ...)")
    for name in options:
        if name not in taken:
            raise ScoreError(f"criterion {criterion!r} takes no {name!r}; it takes {', '.join(taken) or 'no options'}")


def _check_weights(graph: DependencyGraph, criterion: str, options: dict[str, Any]) -> None:
    """Refuse to look at weights that are not there."""
    if criterion == "random" or options.get("weights") is not None:
        return
    missing = next((name for name, p in named_parameters(graph.model).items() if p.is_meta), None)
    if missing is not None:
        raise ScoreError(
            f"{missing} is on the meta device and has no values; give them with "
            'score(graph, "l1", weights="model-*.safetensors"), or trace a model that has them'
        )
