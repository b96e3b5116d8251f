"""Scores from gradients of a loss, over calibration data or before training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from surgeon.calibrate import batches, fitting, gathered, inputs
from surgeon.errors import DataError, ScoreError
from surgeon.modules import as_arguments, entering, evaluating, tensors_in, untouched
from surgeon.progress import length, tracked

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph

    Loss = Callable[..., Tensor]
    Scores = dict[str, Tensor]


def taylor(graph: DependencyGraph, data: Iterable[Any], loss: Loss) -> Scores:
    """Absolute first-order change of the loss without a unit, ``|sum of w g|``, averaged over batches.

    Molchanov et al., 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", with weights in
    place of activations.
    """
    return _averaged(graph, data, loss, lambda w, g: w * g, torch.abs)


def taylor_squared(graph: DependencyGraph, data: Iterable[Any], loss: Loss) -> Scores:
    """Squared first-order change of the loss without a unit, averaged over batches.

    Molchanov et al., 2019, "Importance Estimation for Neural Network Pruning", equation 8 over the weights of a unit.
    """
    return _averaged(graph, data, loss, lambda w, g: w * g, torch.square)


def fisher(graph: DependencyGraph, data: Iterable[Any], loss: Loss) -> Scores:
    """Second-order change of the loss with the diagonal of the Fisher information: ``sum of w^2 g^2 / 2``.

    LeCun et al., 1990, "Optimal Brain Damage", with squared gradients of batches for the second derivatives.
    """
    return _averaged(graph, data, loss, lambda w, g: 0.5 * (w * g).square(), lambda sums: sums)


def gradient(graph: DependencyGraph, data: Iterable[Any], loss: Loss) -> Scores:
    """Size of the gradient, ``sum of |g|``, averaged over batches."""
    return _averaged(graph, data, loss, lambda w, g: g.abs(), lambda sums: sums)


def snip(graph: DependencyGraph, data: Iterable[Any], loss: Loss) -> Scores:
    """Sensitivity of the loss to a connection, ``sum of |w g|`` with the gradient over all data, before training.

    Lee et al., 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity".
    """
    total: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    count = 0
    for weights, value, _ in _losses(graph, data, loss):
        for name, slope in zip(weights, torch.autograd.grad(value, list(weights.values()), allow_unused=True)):
            total[name] = total.get(name, 0) + (torch.zeros_like(weights[name]) if slope is None else slope).double()
        count += 1
    names = list(total)
    sums = gathered([*(total[name] for name in names), torch.tensor(float(count))])
    return graph.per_unit({name: (weights[name].detach() * s / sums[-1]).abs() for name, s in zip(names, sums)})


def grasp(graph: DependencyGraph, data: Iterable[Any], loss: Loss) -> Scores:
    """Loss of gradient flow without a unit, ``sum of w (H g)``, before training.

    Wang et al., 2020, "Picking Winning Tickets Before Training by Preserving Gradient Flow", with the sign such that
    what carries the gradient stays.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        for weights, value, _ in _losses(graph, data, loss):
            leaves = list(weights.values())
            slopes = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
            flow = sum((s.square().sum() for s in slopes if s is not None), torch.zeros(()).to(value)) / 2
            curved = torch.autograd.grad(flow, leaves, allow_unused=True)
            product = {n: w.detach() * c for (n, w), c in zip(weights.items(), curved) if c is not None}
            sums = _added(sums, graph.per_unit(product))
            count += 1
    return _mean(sums, count)


def synflow(graph: DependencyGraph, example_inputs: Any) -> Scores:
    """Synaptic flow, ``sum of w dR/dw`` for R the sum of outputs with all weights positive and inputs of one: no data.

    Tanaka et al., 2020, "Pruning neural networks without any data by iteratively conserving synaptic flow".
    """
    ones = _ones(example_inputs)
    positive = {name: p.detach().double().abs() for name, p in graph.model.named_parameters()}
    weights = {name: p.requires_grad_() for name, p in positive.items()}
    buffers = {n: b.double() if b.is_floating_point() else b for n, b in graph.model.named_buffers()}
    with _still(graph):
        args, kwargs = as_arguments(ones)
        outputs = functional_call(graph.model, {**weights, **buffers}, args, kwargs)
        total = sum((t.sum() for t in tensors_in(outputs) if t.requires_grad), torch.zeros(()).double())
        slopes = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    return graph.per_unit({n: w.detach() * s for (n, w), s in zip(weights.items(), slopes) if s is not None})


def _averaged(
    graph: DependencyGraph,
    data: Iterable[Any],
    loss: Loss,
    each: Callable[[Tensor, Tensor], Tensor],
    then: Callable[[Tensor], Tensor],
) -> Scores:
    """Sum a function of weight and gradient over each unit, apply another to the sum, and average over batches."""
    sums: dict[str, Tensor] = {}
    count = 0
    for weights, value, _ in _losses(graph, data, loss):
        slopes = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        found = {n: each(w.detach(), s) for (n, w), s in zip(weights.items(), slopes) if s is not None}
        sums = _added(sums, {name: then(total) for name, total in graph.per_unit(found).items()})
        count += 1
    return _mean(sums, count)


def _losses(graph: DependencyGraph, data: Iterable[Any], loss: Loss) -> Iterator[tuple[dict[str, Tensor], Tensor, Any]]:
    """Yield weights that take gradients, the loss of a batch, and the batch; the model itself is left alone."""
    if loss is None:
        raise ScoreError("this criterion needs a loss: loss(output, *rest of the batch) -> a scalar")
    weights = {name: p.detach().requires_grad_() for name, p in graph.model.named_parameters() if p.is_floating_point()}
    for batch in tracked(batches(data), "scoring", length(data)):
        with _still(graph), torch.enable_grad():
            args, kwargs = as_arguments(inputs(batch))
            with fitting(inputs(batch)):
                output = functional_call(graph.model, weights, args, kwargs)
            value = loss(output, *(batch[1:] if isinstance(batch, (tuple, list)) else ()))
            yield weights, _scalar(value), batch


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ScoreError(f"the loss must be a scalar tensor, got {what}; reduce it to its mean")
    if not bool(torch.isfinite(value)):
        raise DataError(f"the loss is {float(value.detach())}; check data, labels and weights")
    if not value.requires_grad:
        raise ScoreError("the loss does not depend on the weights: it is detached, or made without gradients")
    return value


class _still:
    """The model in eval mode, restored afterwards."""

    def __init__(self, graph: DependencyGraph) -> None:
        self.contexts = [untouched(graph.model), evaluating(graph.model), entering(graph.method, graph.model)]

    def __enter__(self) -> None:
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self.contexts):
            context.__exit__(*error)


def _ones(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return torch.ones_like(tree, dtype=torch.float64) if tree.is_floating_point() else tree
    if isinstance(tree, dict):
        return {key: _ones(item) for key, item in tree.items()}
    return type(tree)(map(_ones, tree)) if isinstance(tree, (tuple, list)) else tree


def _added(sums: Scores, new: Scores) -> Scores:
    return {name: sums[name] + value if name in sums else value for name, value in new.items()}


def _mean(sums: Scores, count: int) -> Scores:
    totals = gathered([*sums.values(), torch.tensor(float(count))])
    return {name: total / totals[-1] for name, total in zip(sums, totals)}
