"""Compensation without data: what is cut goes into the offsets, and into what resembles it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.calibrate import Contraction, Slot, Step, Tape, contractions, record
from surgeon.plan.plan import Plan
from surgeon.recover.gaussian import FUNCTIONS, Normal, normals
from surgeon.recover.target import affine, kept_outputs, lost_inputs, norm_behind
from surgeon.recover.write import shift

# Share of the mean variance that is added to each channel's before one is expressed by others.
RIDGE = 1e-9
# Nodes along each axis of the quadrature for products of two activations.
NODES = 20


@dataclass(frozen=True)
class Fold:
    """What became of one layer: how much of the variance of what it lost is made up for by what stays."""

    layer: str
    lost: int
    explained: float
    note: str = ""

    @property
    def taken(self) -> bool:
        return not self.note

    def __str__(self) -> str:
        if self.note:
            return f"{self.layer}: left, {self.note}"
        return f"{self.layer}: means of {self.lost} inputs folded, {self.explained:.0%} of their variance merged"


def fold(model: nn.Module, small: nn.Module, plan: Plan, example_inputs: object, *, merge: bool) -> list[Fold]:
    """Make up for lost inputs with what batch norms and layer norms tell of them, in place.

    The mean of each lost input, ``E f(z)`` for z normal with the mean and deviation of the norm before it, goes into
    the offset of every layer that read it. With ``merge``, lost channels are also expressed by those that stay, as far
    as the filters that make them are alike, their columns are added to those of what stays, and the batch norm behind
    is given the variance that is left.
    """
    whole, cut = record(model, example_inputs), record(small, example_inputs)
    known = normals(whole)
    theirs = {layer.weight: layer for layer in contractions(cut)}
    found = []
    for layer in contractions(whole):
        lost = lost_inputs(plan, layer, whole.leaves[layer.weight])
        if lost is None or layer.weight not in theirs:
            continue
        name, x = layer.weight.rpartition(".")[0], known.get(layer.x)
        if x is None:
            found.append(Fold(name, int(lost.sum()), 0.0, "no norm tells what it is given"))
            continue
        spread = covariance(whole, layer.x, x, known) if merge and layer.groups == 1 else torch.diag(x.var)
        found.append(_folded(name, small, plan, whole, cut, theirs[layer.weight], layer, x.mean, spread, lost, merge))
    return found


def _folded(
    name: str,
    small: nn.Module,
    plan: Plan,
    whole: Tape,
    cut: Tape,
    theirs: Contraction,
    layer: Contraction,
    mean: Tensor,
    spread: Tensor,
    lost: Tensor,
    merge: bool,
) -> Fold:
    """Fold one layer: ``w_S + w_P B`` and ``w_P (m_P - B m_S)`` with ``B = C_PS C_SS^-1`` and the covariance C."""
    weight = whole.leaves[layer.weight].detach().double().cpu()
    keep = kept_outputs(plan, layer.weight)
    norm = norm_behind(cut, theirs)
    gone = lost.view(layer.groups, 1, -1).expand(-1, len(weight) // layer.groups, -1).reshape(len(weight), -1)
    taps = weight.reshape(len(weight), weight.shape[1], -1)
    means = mean.view(layer.groups, 1, -1).expand(-1, len(weight) // layer.groups, -1).reshape(len(weight), -1)
    offset = ((taps * gone.unsqueeze(2)).sum(2) * means).sum(1)
    explained = 0.0
    if merge and layer.groups == 1 and not bool(lost.all()):
        by, explained = _by_others(spread, lost[0])
        added = torch.einsum("opt,ps->ost", taps[:, lost[0]], by)
        new = taps[:, ~lost[0]] + added
        offset = offset - added.sum(2) @ mean[~lost[0]]
        _repair(norm, cut, taps, new, spread, lost[0], keep)
        new = (new if keep is None else new[keep]).reshape(cut.leaves[layer.weight].shape)
        cut.leaves[layer.weight].data.copy_(new)
    offset = offset if keep is None else offset[keep]
    placed = shift(small, theirs, norm, offset, [cut])
    return Fold(name, int(lost.sum()), explained, "" if placed else "it can hold no offset")


def _by_others(spread: Tensor, lost: Tensor) -> tuple[Tensor, float]:
    """Return how lost channels follow from those that stay ``[lost, stay]``, and the share of variance explained."""
    stays = spread[~lost][:, ~lost]
    penalty = RIDGE * stays.diagonal().mean().clamp(min=1e-300)
    by = torch.linalg.solve(stays + penalty * torch.eye(len(stays)).to(stays), spread[~lost][:, lost]).mT
    before = spread[lost][:, lost].diagonal().sum()
    explained = (by * spread[lost][:, ~lost]).sum()
    return by, float(explained / before.clamp(min=1e-300))


def _repair(
    norm: Step | None, cut: Tape, old: Tensor, new: Tensor, spread: Tensor, lost: Tensor, keep: Tensor | None
) -> None:
    """Give the batch norm behind a layer the share of the variance that is left, as if taps were independent."""
    if norm is None:
        return
    before = torch.einsum("oct,cd,odt->o", old, spread, old)
    after = torch.einsum("oct,cd,odt->o", new, spread[~lost][:, ~lost], new)
    share = (after / before.clamp(min=1e-300)).clamp(min=1e-3, max=1.0)
    var = cut.leaves[norm.argument(4, "running_var").name]
    var.data.mul_((share if keep is None else share[keep]).to(var))


def covariance(tape: Tape, slot: Slot, x: Normal, known: dict[Slot, Normal]) -> Tensor:
    """Return the covariance of channels behind one activation, norm and layer ``[c, c]``; diagonal for others.

    Before the activation, two channels are normal with the cosine of their filters as correlation, over inputs that
    are independent.
    """
    made = _maker(tape, slot)
    if made is None:
        return torch.diag(x.var)
    layer, norm, function = made
    before = _before(tape, norm)
    filters = layer.matrix(tape.leaves[layer.weight].detach().double().cpu()).reshape(len(before.mean), -1)
    given = known.get(layer.x)
    if given is not None and layer.groups == 1:
        filters = filters * given.var.sqrt().repeat(filters.shape[1] // len(given.var))
    filters = filters * affine(norm, tape.leaves, len(filters))[0].cpu().sign().unsqueeze(1)
    unit = filters / filters.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return _products(function, before.mean, before.var.sqrt(), (unit @ unit.mT).clamp(-1, 1))


def _products(function: Callable[[Tensor], Tensor], mean: Tensor, sd: Tensor, cosine: Tensor) -> Tensor:
    """Return covariances of ``f(z_i), f(z_j)`` for normal z of given correlation, by quadrature over both."""
    at, weights = np.polynomial.hermite.hermgauss(NODES)
    u, w = torch.from_numpy(at * sqrt(2)), torch.from_numpy(weights / sqrt(np.pi))
    first = function(mean.unsqueeze(1) + sd.unsqueeze(1) * u)  # [c, nodes]
    average = first @ w
    rows = []
    for i in range(len(mean)):
        rho = cosine[i].view(-1, 1, 1)
        both = rho * u.view(1, -1, 1) + (1 - rho**2).clamp(min=0).sqrt() * u.view(1, 1, -1)
        second = function(mean.view(-1, 1, 1) + sd.view(-1, 1, 1) * both)  # [c, nodes of i, nodes of j]
        rows.append((first[i].view(1, -1, 1) * second * w.view(1, -1, 1) * w).sum((1, 2)))
    found = torch.stack(rows)
    found = (found + found.mT) / 2 - average.unsqueeze(1) * average
    return found


def _maker(tape: Tape, slot: Slot) -> tuple[Contraction, Step, Callable[[Tensor], Tensor]] | None:
    """Return the layer, norm and activation that a value comes from, if it comes from nothing else."""
    makers = {s: step for step in tape.steps for s in step.outputs if s not in step.inputs}
    step = makers.get(slot)
    if step is None or step.name not in FUNCTIONS:
        return None
    norm = makers.get(step.argument(0, "input"))
    if norm is None or norm.name != "batch_norm":
        return None
    layers = {layer.y: layer for layer in contractions(tape)}
    layer = layers.get(norm.argument(0, "input"))
    return (layer, norm, FUNCTIONS[step.name]) if layer is not None else None


def _before(tape: Tape, norm: Step) -> Normal:
    weight, bias = (
        tape.leaves[norm.argument(p, n).name].detach().double().cpu() for p, n in ((1, "weight"), (2, "bias"))
    )
    return Normal(bias, weight.square(), 1)
