"""Scores from the gradients that a training loop leaves on its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import PrunerError
from surgeon.graph import DependencyGraph

# Criterion -> what a weight and its gradient give, and what becomes of the sum over a unit: as in surgeon.score, where
# the papers are.
CRITERIA: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "taylor": (lambda w, g: w * g, torch.abs),
    "taylor_squared": (lambda w, g: w * g, torch.square),
    "fisher": (lambda w, g: 0.5 * (w * g).square(), lambda sums: sums),
    "gradient": (lambda w, g: g.abs(), lambda sums: sums),
}


class Gradients:
    """The mean of a criterion over the last training steps, for one graph.

    Parameters
    ----------
    criterion : one of ``CRITERIA``
    """

    def __init__(self, criterion: str) -> None:
        self.criterion = criterion
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, graph: DependencyGraph) -> None:
        """Add what the gradients say that the parameters hold now; steps with gradients that overflowed are left out.

        Raises
        ------
        PrunerError where there are no gradients, or nothing but zeros.
        """
        each, then = CRITERIA[self.criterion]
        slopes = {name: p.grad for name, p in graph.model.named_parameters() if p.grad is not None}
        if not slopes or not any(bool(slope.any()) for slope in slopes.values()):
            raise PrunerError(
                f"criterion {self.criterion!r} reads gradients, and {'all are zero' if slopes else 'there are none'}: "
                "call pruner.step() after optimizer.step() and before optimizer.zero_grad(), on the model that trains"
            )
        if not all(bool(torch.isfinite(slope).all()) for slope in slopes.values()):
            return
        found = {name: each(graph.tensor(name).detach(), slope.detach()) for name, slope in slopes.items()}
        for name, total in graph.per_unit(found).items():
            value = then(total)
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1

    def scores(self) -> dict[str, Tensor]:
        """Return the mean over the steps that were added.

        Raises
        ------
        PrunerError where there was none.
        """
        if not self.count:
            raise PrunerError(
                f"criterion {self.criterion!r}: no step before this cut had finite gradients; lower the learning rate, "
                "or unscale gradients before the step"
            )
        return {name: total / self.count for name, total in self.sums.items()}

    def clear(self) -> None:
        """Forget what was added: a cut makes other units of it."""
        self.sums, self.count = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far, as tensors and plain data."""
        return {"count": self.count, "sums": {name: total.clone() for name, total in self.sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with sums of an earlier process."""
        self.count = int(state["count"])
        self.sums = {str(name): total.double().cpu().clone() for name, total in state["sums"].items()}

    def __str__(self) -> str:
        return f"{self.criterion} over {self.count} steps"
