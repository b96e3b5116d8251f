"""Score the units of every group: the larger, the longer it stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surgeon.errors import ScoreError
from surgeon.score.magnitude import l1, l2, random

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph, Group

    Criterion = str | Callable[[DependencyGraph, Group], Tensor]

CRITERIA: dict[str, Callable[..., dict[str, Tensor]]] = {"l1": l1, "l2": l2, "random": random}


def score(graph: DependencyGraph, criterion: Criterion = "l1", **options: Any) -> dict[str, Tensor]:
    """Return the importance of every unit of every free group, float64 ``[units]`` by group name.

    Parameters
    ----------
    criterion : one of ``CRITERIA``, or a callable ``(graph, group) -> Tensor[units]``
    options : passed to the criterion, such as ``seed`` for "random"

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
