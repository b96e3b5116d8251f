"""Weights without a fit: what is cut goes into the offsets, and into what resembles it, as norms tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod, sqrt

import numpy as np
import torch
from torch import Tensor

from surgeon.calibrate import Contraction, Leaf, Slot, Step, Tape, contractions
from surgeon.plan.plan import Plan
from surgeon.recover.gaussian import Normal, function_of, normals, taps
from surgeon.recover.kept import Kept, kept
from surgeon.recover.problem import Weights
from surgeon.recover.target import Target, frozen
from surgeon.recover.write import affine

# Share of the mean variance that is added to each channel's before one is expressed by others.
RIDGE = 1e-9
# Nodes along each axis of the quadrature for products of two activations.
NODES = 20


class Folds:
    """Weights that make up for lost inputs with what batch norms and layer norms of the original tell of them.

    The mean of each lost input, ``E f(z)`` for z normal with the mean and deviation of the norm before it, goes into
    the offset of every layer that read it. With ``merge``, lost channels are also expressed by those that stay, as far
    as the filters that make them are alike, their columns are added to those of what stays, and what goes into a batch
    norm keeps its variance.
    """

    def __init__(self, whole: Tape, plan: Plan, merge: bool) -> None:
        self.whole, self.plan, self.merge = whole, plan, merge
        self.known = normals(whole)
        self.calls = {call.at: call for call in contractions(whole)}

    def __str__(self) -> str:
        return f"{'Merges' if self.merge else 'Folds'} of {len(self.calls)} layers"

    def __call__(self, target: Target, small: Tape, old: Weights) -> Weights | str:
        """Return new weights for a layer of the small model, or why there are none."""
        call = self.calls[target.layer.first.at]
        stay = kept(self.plan, call, self.whole.leaves)
        lost = _lost(stay, call)
        if not bool(lost.any()):
            return "it lost no inputs"
        if len(target.goals) > 1 or len(stay.groups) < call.groups:
            return "several calls use its weight" if len(target.goals) > 1 else "it lost whole groups of filters"
        x = self.known.get(call.x)
        rank = len(self.whole.shapes[call.x])
        if x is None or x.dim % rank != call.channel % rank or len(x.mean) != lost.numel():
            return "no norm tells what it is given"
        weight, mean = taps(call, self.whole.leaves), x.mean.view(call.groups, 1, -1)
        share = prod(call.spread)
        gone = lost.unsqueeze(1)
        offset = (weight.sum(2) * gone * mean).sum(2) / share
        note = f"means of {int(lost.sum())} inputs folded"
        if not self.merge or call.groups > 1 or bool(lost.all()):
            return self._weights(stay, offset, old, old.weight, note)
        spread = covariance(self.whole, call, x, self.known)
        by, explained = _by_others(spread, lost[0])
        added = torch.einsum("gotp,ps->gots", weight[..., lost[0]], by)
        offset = offset - (added.sum(2) @ x.mean[~lost[0]]) / share
        new = weight[..., ~lost[0]] + added
        found = self._weights(stay, offset, old, stay.rows(new.flatten(2)), f"{note}, {explained:.0%} merged")
        return self._repaired(target, small, found, stay, (weight, new), (spread, lost[0]))

    def _weights(self, stay: Kept, offset: Tensor, old: Weights, weight: Tensor, note: str) -> Weights:
        mine = offset[stay.outputs].mul(stay.factor).view(old.offset.shape).to(old.offset)
        return Weights(weight.to(old.weight), old.offset + mine, note=note)

    def _repaired(
        self,
        target: Target,
        small: Tape,
        found: Weights,
        stay: Kept,
        weights: tuple[Tensor, Tensor],
        given: tuple[Tensor, Tensor],
    ) -> Weights:
        """Scale what goes into a batch norm so that its variance is what it was, as if taps were independent."""
        norm = target.norm
        if norm is None:
            return found
        (before, after), (spread, lost) = weights, given
        was = torch.einsum("gotc,cd,gotd->go", before, spread, before)
        now = torch.einsum("gotc,cd,gotd->go", after, spread[~lost][:, ~lost], after)
        share = (now / was.clamp(min=1e-300)).clamp(min=1e-3, max=1.0)[stay.outputs]
        mean, var = (small.leaves[norm.argument(p, "").name].double().cpu() for p in (3, 4))
        eps = norm.argument(7, "eps", 1e-5)
        gain = ((var + eps) / (var * share + eps)).sqrt().view(found.offset.shape).to(found.offset)
        centre = mean.view(found.offset.shape).to(found.offset)
        offset = gain * (found.offset - centre) + centre
        return Weights(found.weight * gain.unsqueeze(2), offset, note=found.note)


def _lost(stay: Kept, call: Contraction) -> Tensor:
    """Return which inputs are lost to groups that stay, bool ``[groups, i]``."""
    alive = stay.inputs.unflatten(1, (prod(call.kernel), -1))[:, 0]
    return ~alive & stay.outputs.any(1, keepdim=True)


def _by_others(spread: Tensor, lost: Tensor) -> tuple[Tensor, float]:
    """Return how lost channels follow from those that stay ``[lost, stay]``, and the share of variance explained."""
    stays = spread[~lost][:, ~lost]
    penalty = RIDGE * stays.diagonal().mean().clamp(min=1e-300)
    by = torch.linalg.solve(stays + penalty * torch.eye(len(stays)).to(stays), spread[~lost][:, lost]).mT
    before = spread[lost][:, lost].diagonal().sum()
    explained = (by * spread[lost][:, ~lost]).sum()
    return by, float(explained / before.clamp(min=1e-300))


def covariance(tape: Tape, reader: Contraction, x: Normal, known: Mapping[Slot, Normal]) -> Tensor:
    """Return the covariance of what a layer is given ``[c, c]``: behind one activation, norm and layer; else diagonal.

    Before the activation, two channels are normal with the cosine of their filters as correlation, over inputs that
    are independent.
    """
    made = _maker(tape, reader)
    if made is None or made[0].groups > 1:
        return torch.diag(x.var)
    layer, norm, function = made
    before = _before(tape, norm)
    filters, given = taps(layer, tape.leaves)[0], known.get(layer.x)
    filters = (filters if given is None else filters * given.var.sqrt()).flatten(1)
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


def _maker(tape: Tape, reader: Contraction) -> tuple[Contraction, Step, Callable[[Tensor], Tensor]] | None:
    """Return the layer, norm and activation that make what a layer is given, if it comes from nothing else."""
    at = _writer(tape, reader.x, reader.at)
    function = None if at is None else function_of(tape.steps[at])
    if at is None or function is None:
        return None
    behind = tape.steps[at].argument(0, "input")
    norm_at = _writer(tape, behind, at)
    norm = None if norm_at is None else tape.steps[norm_at]
    if norm is None or norm_at is None or norm.name != "batch_norm" or not frozen(norm, norm.argument(0, "input")):
        return None
    made_at = _writer(tape, norm.argument(0, "input"), norm_at)
    layer = next((call for call in contractions(tape) if call.at == made_at), None)
    scaled = isinstance(norm.argument(1, "weight"), Leaf) and isinstance(norm.argument(2, "bias"), Leaf)
    return (layer, norm, function) if layer is not None and scaled else None


def _writer(tape: Tape, slot: Slot, before: int) -> int | None:
    """Return the last call before another that wrote a value."""
    return next((at for at in reversed(range(before)) if slot in tape.steps[at].written), None)


def _before(tape: Tape, norm: Step) -> Normal:
    weight, bias = (
        tape.leaves[norm.argument(p, n).name].detach().double().cpu() for p, n in ((1, "weight"), (2, "bias"))
    )
    return Normal(bias, weight.square(), 1)
