"""What activations are on average, from the statistics that norms hold: no data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import pi, prod, sqrt

import torch
from torch import Tensor

from surgeon.calibrate import Contraction, Leaf, Slot, Step, Tape, contractions
from surgeon.recover.target import frozen

# Nodes of the quadrature for activations without a closed form.
NODES = 96


@dataclass(frozen=True, eq=False)
class Normal:
    """Mean and variance per channel ``[c]``, float64, of a value whose channels lie along ``dim``."""

    mean: Tensor
    var: Tensor
    dim: int

    def __str__(self) -> str:
        return f"{len(self.mean)} channels along dim {self.dim}"


def relu(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and second moment of ``max(0, z)`` for normal z: ``s phi(m/s) + m Phi(m/s)`` and its like."""
    sd = var.clamp(min=1e-24).sqrt()
    density = torch.exp(-0.5 * (mean / sd) ** 2) / sqrt(2 * pi)
    below = torch.special.ndtr(mean / sd)
    return sd * density + mean * below, (mean**2 + var) * below + mean * sd * density


def relu6(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and second moment of ``min(max(0, z), 6)``."""
    low, high = relu(mean, var), relu(mean - 6, var)
    return low[0] - high[0], low[1] - high[1] - 12 * high[0]


def quadrature(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return mean and second moment of a smooth function of a normal value, by Gauss and Hermite."""

    def moments(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        nodes, weights = (torch.from_numpy(v).to(mean) for v in _hermite(NODES))
        values = function(mean.unsqueeze(1) + (2 * var).sqrt().unsqueeze(1) * nodes)
        return values @ weights, values.square() @ weights

    return moments


def _hermite(nodes: int) -> tuple[object, object]:
    import numpy as np

    at, weights = np.polynomial.hermite.hermgauss(nodes)
    return at, weights / sqrt(pi)


CLOSED: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {"relu": relu, "relu6": relu6}
SMOOTH = frozenset({"silu", "gelu", "hardswish", "sigmoid", "tanh", "leaky_relu", "elu", "mish", "softplus"})


def function_of(step: Step) -> Callable[[Tensor], Tensor] | None:
    """Return the activation of a call, with the call's own options."""
    clipped = step.name == "hardtanh"
    if len((*step.inputs, *step.leaves)) != 1 or not (clipped or step.name in SMOOTH or step.name in CLOSED):
        return None
    options = {name: value for name, value in step.kwargs.items() if name != "input"}
    return lambda values: step.func(values, *step.args[1:], **options)


def moments_of(step: Step) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Return what gives mean and second moment behind an activation."""
    function = function_of(step)
    if function is None:
        return None
    if step.name == "hardtanh" and (step.argument(1, "min_val"), step.argument(2, "max_val")) == (0.0, 6.0):
        return relu6
    return CLOSED.get(step.name) or quadrature(function)


_SAME = frozenset({"dropout", "feature_dropout", "alpha_dropout", "contiguous", "identity"})
_POOLED = frozenset({"avg_pool2d", "adaptive_avg_pool2d", "avg_pool1d", "adaptive_avg_pool1d"})


def normals(tape: Tape) -> dict[Slot, Normal]:
    """Return mean and variance of what contractions are given, as far as norms tell.

    Behind a norm, a channel is normal with the norm's bias as mean and its weight as deviation. Activations,
    sums of independent values, pooling and further layers follow from there.
    """
    known: dict[Slot, Normal] = {}
    given: dict[Slot, Normal] = {}
    layers = {layer.at: layer for layer in contractions(tape)}
    for at, step in enumerate(tape.steps):
        if at in layers and layers[at].x in known:
            given[layers[at].x] = known[layers[at].x]
        found = _after(step, known, tape.leaves, layers.get(at), tape.shapes)
        for slot in step.written:
            known.pop(slot, None)
        if found is None or len(step.outputs) != 1:
            continue
        after = tape.shapes[step.outputs[0]]
        dim = found.dim % len(after)
        if after[dim] == len(found.mean):
            known[step.outputs[0]] = Normal(found.mean, found.var, dim)
    return given


def _after(
    step: Step,
    known: Mapping[Slot, Normal],
    leaves: Mapping[str, Tensor],
    layer: Contraction | None,
    shapes: Mapping[Slot, torch.Size],
) -> Normal | None:
    x = step.argument(0, "input")
    mine = known.get(x) if isinstance(x, Slot) else None
    if step.name == "batch_norm" and isinstance(x, Slot) and frozen(step, x):
        return _norm(step, leaves, 1)
    if step.name == "layer_norm":
        return _norm(step, leaves, -1, at=2)
    if mine is None:
        return None
    if step.name == "add":
        other = known.get(step.argument(1, "other"))
        if other is None or other.dim != mine.dim or len(other.mean) != len(mine.mean):
            return None
        return Normal(mine.mean + other.mean, mine.var + other.var, mine.dim)
    if step.name in _SAME:
        return mine
    moments = moments_of(step)
    if moments is not None:
        return _activated(moments, mine)
    if step.name in _POOLED:
        return Normal(mine.mean, torch.zeros_like(mine.var), mine.dim)
    if step.name in ("mean", "flatten", "view", "reshape", "squeeze"):
        return _flat(step, mine, shapes[x])
    return _through(layer, mine, leaves) if layer is not None else None


def _activated(moments: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Normal) -> Normal:
    mean, second = moments(x.mean, x.var)
    return Normal(mean, (second - mean**2).clamp(min=0), x.dim)


def _norm(step: Step, leaves: Mapping[str, Tensor], dim: int, at: int = 1) -> Normal | None:
    weight, bias = step.argument(at, "weight"), step.argument(at + 1, "bias")
    if not isinstance(weight, Leaf) or leaves[weight.name].dim() != 1:
        return None
    scale = leaves[weight.name].detach().double().cpu()
    mean = leaves[bias.name].detach().double().cpu() if isinstance(bias, Leaf) else torch.zeros_like(scale)
    return Normal(mean, scale**2, dim)


def _flat(step: Step, x: Normal, shape: torch.Size) -> Normal | None:
    """Means over positions, and views that drop positions of which there is one only."""
    if step.name != "mean":
        return Normal(x.mean, x.var, 1) if shape[1:].numel() == len(x.mean) and x.dim == 1 else None
    dims = step.argument(1, "dim")
    dims = [d % len(shape) for d in (dims if isinstance(dims, (tuple, list)) else [dims])] if dims is not None else []
    if not dims or x.dim in dims:
        return None
    kept = bool(step.argument(2, "keepdim", False))
    dim = x.dim if kept else x.dim - sum(d < x.dim for d in dims)
    return Normal(x.mean, torch.zeros_like(x.var), dim)


def _through(layer: Contraction, x: Normal, leaves: Mapping[str, Tensor]) -> Normal:
    """Sum independent inputs; padding is left out of account."""
    mean, second = taps(layer, leaves), taps(layer, leaves).square()
    out, spread = ((w.sum(2) * v.view(layer.groups, 1, -1)).sum(2) for w, v in ((mean, x.mean), (second, x.var)))
    # An output of a transposed convolution sees one tap in so many along each dimension.
    share = prod(layer.spread)
    bias = 0 if layer.bias is None else layer.bias.read(leaves).double().cpu()
    return Normal(out.reshape(-1) / share + bias, spread.reshape(-1) / share, x.dim)


def taps(layer: Contraction, leaves: Mapping[str, Tensor]) -> Tensor:
    """Return the weight of a layer, float64 ``[groups, o / groups, taps, i]``."""
    matrix = layer.matrix(leaves).double().cpu()
    return matrix.unflatten(2, (prod(layer.kernel), -1))


__all__ = ["CLOSED", "SMOOTH", "Normal", "function_of", "moments_of", "normals", "quadrature", "relu", "relu6", "taps"]
