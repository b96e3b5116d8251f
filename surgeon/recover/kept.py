"""What a cut left of a layer: which filters, which of their inputs, and factors on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.calibrate import Contraction
from surgeon.errors import RecoverError
from surgeon.operate.select import mask, spread
from surgeon.plan.plan import Plan


@dataclass(frozen=True, eq=False)
class Kept:
    """What stays of a matrix ``[groups, o / groups, k]``.

    outputs  bool ``[groups, o / groups]``
    inputs   bool ``[groups, k]``
    factor   what each filter that stays is multiplied by, ``[o]``, float64
    """

    outputs: Tensor
    inputs: Tensor
    factor: Tensor

    @property
    def filters(self) -> Tensor:
        """Indices of the filters that stay, ``[o]``."""
        return self.outputs.reshape(-1).nonzero().squeeze(1)

    @property
    def groups(self) -> Tensor:
        """Indices of the groups that stay."""
        return self.outputs.any(1).nonzero().squeeze(1)

    def __str__(self) -> str:
        return f"{len(self.factor)} of {self.outputs.numel()} filters, {int(self.inputs.sum())} of their inputs"

    def rows(self, matrix: Tensor) -> Tensor:
        """Return the filters of a matrix that stay, with all inputs, times their factors."""
        stay = torch.stack([matrix[g][self.outputs[g]] for g in self.groups])
        return stay * self.factor.to(stay).view(*stay.shape[:2], 1)


def kept(plan: Plan, call: Contraction, leaves: Mapping[str, Tensor]) -> Kept:
    """Return what a plan leaves of a layer of the original.

    Raises RecoverError where that is no set of rows and columns of its matrix.
    """
    leaf = leaves[call.weight.leaf]
    cut = plan.cuts.get(call.weight.leaf)
    alive = torch.ones(leaf.shape, dtype=torch.bool) if cut is None else mask(leaf.detach(), cut).cpu()
    matrix = call.matrix({call.weight.leaf: alive})
    outputs, inputs = matrix.any(2), matrix.any(1)
    counts = outputs.sum(1), inputs.sum(1)
    even = all(len(set(c[c > 0].tolist())) <= 1 for c in counts)
    if not even or not bool((matrix == outputs.unsqueeze(2) & inputs.unsqueeze(1)).all()):
        raise RecoverError(f"{call.weight} keeps no set of rows and columns")
    return Kept(outputs, inputs, _factor(plan, call, leaf, matrix)[outputs])


def _factor(plan: Plan, call: Contraction, leaf: Tensor, alive: Tensor) -> Tensor:
    """Return what each filter is multiplied by, ``[groups, o / groups]``."""
    factors = torch.ones(alive.shape[:2], dtype=torch.float64)
    for scale in plan.scales:
        if scale.parameter != call.weight.leaf:
            continue
        matrix = call.matrix({call.weight.leaf: spread(scale, leaf.detach().double()).cpu()})
        if bool((matrix != matrix[:, :, :1]).any()):
            raise RecoverError(f"{call.weight} is multiplied by factors that differ from input to input")
        factors = factors * matrix[:, :, 0]
    return factors
