"""Penalties on units, for training that prepares a cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surgeon.errors import TrainingError
from surgeon.plan.plan import Plan
from surgeon.regularize.sums import UnitSums
from surgeon.score.magnitude import norm_weights

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph


def norms(squares: Tensor) -> Tensor:
    """Return square roots whose slope at zero is zero, ``[units] -> [units]``: a unit that is gone stays gone."""
    return torch.where(squares > 0, squares, torch.ones_like(squares)).sqrt() * (squares > 0)


def group_lasso(regularizer: Regularizer) -> Tensor:
    """Sum of ``sqrt(n) |w|`` over units of n weights, which makes whole units zero.

    Yuan and Lin, 2006, "Model selection and estimation in regression with grouped variables"; Wen et al., 2016,
    "Learning Structured Sparsity in Deep Neural Networks". Behind a norm, smaller weights everywhere lower it as well
    and change nothing: see ``hoyer_square``.
    """
    sums = regularizer.sums
    return (sums.sizes.to(regularizer.device).sqrt() * norms(sums())).sum()


def hoyer_square(regularizer: Regularizer) -> Tensor:
    """Sum over groups of ``(sum of |w|)^2 / sum of |w|^2``: how many equal units would be like the group.

    Yang et al., 2020, "DeepHoyer: Learning Sparser Neural Network with Differentiable Sparsity Measures", equation 4,
    over units. It is the same for all multiples of a group's weights, so only the differences between units count:
    those below ``sum of |w|^2 / sum of |w|`` shrink, those above grow.
    """
    squares = regularizer.sums()
    sizes = norms(squares)
    total, second = (_by_group(regularizer.sums, values) for values in (sizes, squares))
    alive = second > 0
    return (total.square()[alive] / second[alive]).sum()


def bn_scale(regularizer: Regularizer) -> Tensor:
    """Sum of absolute weights of the norms that units run through.

    Liu et al., 2017, "Learning Efficient Convolutional Networks through Network Slimming".
    """
    return regularizer.sums(torch.abs).sum()


def growing(regularizer: Regularizer) -> Tensor:
    """Half of ``|w|^2`` over the units that are to go, with a strength that grows as training goes on.

    Wang et al., 2021, "Neural Pruning via Growing Regularization", GReg-1.
    """
    assert regularizer.targets is not None
    return 0.5 * (regularizer.targets.to(regularizer.device) * regularizer.sums()).sum()


KINDS: dict[str, Callable[[Regularizer], Tensor]] = {
    "group_lasso": group_lasso,
    "hoyer_square": hoyer_square,
    "bn_scale": bn_scale,
    "growing": growing,
}


class Regularizer:
    """A penalty on the units that a graph may cut: a term for the loss, or something to add to gradients.

    Parameters
    ----------
    graph : what ``trace`` returned
    kind : "group_lasso", "hoyer_square", "bn_scale" or "growing"
    strength : factor of the penalty; of "growing", what it grows by
    plan : for "growing", the cut that is prepared; or group name -> indices of its units that are to go
    every : for "growing", after how many calls of ``step`` the factor grows
    ceiling : for "growing", where that ends
    heads : what is penalised where heads and their columns are the same weights: False columns, True heads, "both"

    Raises
    ------
    TrainingError for an unknown kind, a strength that is no positive number, a model without norms for "bn_scale", and
    "growing" without a plan.

    Examples
    --------
    >>> penalty = surgeon.Regularizer(surgeon.trace(model, x), "group_lasso", 1e-4)
    >>> (loss(model(x), y) + penalty()).backward()
    """

    def __init__(
        self,
        graph: DependencyGraph,
        kind: str = "group_lasso",
        strength: float = 1e-4,
        *,
        plan: Plan | Mapping[str, Any] | None = None,
        every: int = 10,
        ceiling: float = 1.0,
        heads: bool | str = False,
    ) -> None:
        if kind not in KINDS:
            raise TrainingError(f"unknown regularizer {kind!r}; choose one of {', '.join(KINDS)}")
        for name, value in (("strength", strength), ("every", every), ("ceiling", ceiling)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise TrainingError(f"{name}={value!r} must be a finite number above 0")
        if (plan is None) == (kind == "growing"):
            raise TrainingError(
                "'growing' drives out what a cut will take: give plan=, from surgeon.plan"
                if plan is None
                else f"{kind!r} takes no plan: it looks at all units"
            )
        self.kind, self.strength, self.every, self.ceiling, self.heads = kind, strength, every, ceiling, heads
        self.calls = 0
        self.follow(graph, plan)

    def __str__(self) -> str:
        return f"{self.kind}, {self.factor:.3g} times over {self.sums.count} units"

    def follow(self, graph: DependencyGraph, plan: Plan | Mapping[str, Any] | None = None) -> None:
        """Go on with the graph of the model after a cut; "growing" with the next plan, or nothing to drive out."""
        graph.require_free()
        only = norm_weights(graph) if self.kind == "bn_scale" else None
        self.sums = UnitSums(graph, heads=self.heads, only=only)
        if not self.sums.places:
            raise TrainingError(
                "'bn_scale' needs norms with weights behind the layers that can be cut; this model has none, use "
                "'group_lasso'"
            )
        self.targets = _targets(self.sums, plan or {}) if self.kind == "growing" else None

    @property
    def device(self) -> torch.device:
        """Where the penalty is computed."""
        return next(iter(self.sums.parameters().values())).device

    @property
    def factor(self) -> float:
        """What the penalty is multiplied by."""
        if self.kind != "growing":
            return self.strength
        return min(self.strength * (1 + self.calls // self.every), self.ceiling)

    def __call__(self) -> Tensor:
        """Return the penalty, a scalar that gradients flow through to all weights of the units."""
        return self.factor * KINDS[self.kind](self)

    def add_gradients(self) -> float:
        """Add the penalty's gradients to those of the loss, between backward pass and step; return the penalty."""
        parameters = [p for p in self.sums.parameters().values() if p.requires_grad]
        with torch.enable_grad():
            penalty = self()
            slopes = torch.autograd.grad(penalty, parameters, allow_unused=True)
        for p, slope in zip(parameters, slopes):
            if slope is not None:
                p.grad = slope if p.grad is None else p.grad.add_(slope)
        return float(penalty.detach())

    def step(self) -> None:
        """Say that a training step was taken: "growing" grows by these."""
        self.calls += 1

    def norms(self) -> dict[str, Tensor]:
        """Return the norm of every unit by group, ``[units]``."""
        with torch.no_grad():
            found = norms(UnitSums(self.sums.graph, heads=self.heads)() if self.kind == "bn_scale" else self.sums())
        return {name: found[at] for name, at in self.sums.groups.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs beside the graph."""
        return {"kind": self.kind, "calls": self.calls, "targets": self.targets}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a run stopped; the graph has to be that of the model then."""
        if state["kind"] != self.kind:
            raise TrainingError(f"the state is of {state['kind']!r}, and this regularizer is {self.kind!r}")
        if state["targets"] is not None and len(state["targets"]) != self.sums.count:
            raise TrainingError(
                f"the state is of {len(state['targets'])} units, and the graph has {self.sums.count}; follow the graph "
                "of the model as it was cut first"
            )
        self.calls, self.targets = state["calls"], state["targets"]


def _by_group(sums: UnitSums, values: Tensor) -> Tensor:
    """Sum over the units of each group, ``[units] -> [groups]``."""
    lengths = [at.stop - at.start for at in sums.groups.values()]
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(values.device)
    return values.new_zeros(len(lengths)).index_add(0, owner, values)


def _targets(sums: UnitSums, plan: Plan | Mapping[str, Any]) -> Tensor:
    """Return which units are to go, 1 or 0, ``[units]``."""
    found = torch.zeros(sums.count)
    if isinstance(plan, Plan):
        removed = sums.removed(plan)
        plan = {name: removed[at].nonzero().squeeze(1) for name, at in sums.groups.items()}
    for name, units in plan.items():
        if name not in sums.groups:
            raise TrainingError(f"the graph has no free group {name!r}; it has {', '.join(sums.groups)}")
        found[sums.groups[name]][torch.as_tensor(units, dtype=torch.long)] = 1
    return found
