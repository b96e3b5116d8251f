"""Put an offset where a layer can hold one: its bias, the mean of the batch norm behind it, or a new bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from surgeon.calibrate import Contraction, Leaf, Step, Tape


def can_shift(small: nn.Module, layer: Contraction, norm: Step | None) -> bool:
    """Tell whether the results of a layer can be shifted."""
    return bool(layer.bias or norm is not None or _takes_bias(small.get_submodule(_owner(layer)), layer.weight))


def shift(small: nn.Module, layer: Contraction, norm: Step | None, offset: Tensor, tapes: Sequence[Tape]) -> bool:
    """Add an offset ``[o]`` to the results of a layer; tell whether there was a place for it.

    The tapes of the small model learn of a bias that it did not have before.
    """
    leaves = tapes[0].leaves
    if layer.bias:
        leaves[layer.bias].data.add_(offset.to(leaves[layer.bias]))
    elif norm is not None:
        mean = leaves[norm.argument(3, "running_mean").name]
        mean.data.sub_(offset.to(mean))
    elif can_shift(small, layer, norm):
        _add_bias(small, layer, offset.to(leaves[layer.weight]), tapes)
    else:
        return False
    return True


def _owner(layer: Contraction) -> str:
    return layer.weight.rpartition(".")[0]


def _takes_bias(owner: nn.Module, weight: str) -> bool:
    plain = isinstance(owner, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) and weight.endswith(".weight")
    return plain and owner._parameters.get("bias", owner) is None


def _add_bias(small: nn.Module, layer: Contraction, offset: Tensor, tapes: Sequence[Tape]) -> None:
    bias = nn.Parameter(offset.detach().clone(), requires_grad=tapes[0].leaves[layer.weight].requires_grad)
    small.get_submodule(_owner(layer)).register_parameter("bias", bias)
    name = f"{_owner(layer)}.bias"
    for tape in tapes:
        tape.leaves[name] = bias
        tape.steps[layer.at] = _with_bias(tape.steps[layer.at], Leaf(name))


def _with_bias(step: Step, bias: Leaf) -> Step:
    if len(step.args) > 2:
        return replace(step, args=(*step.args[:2], bias, *step.args[3:]))
    return replace(step, kwargs={**step.kwargs, "bias": bias})


def set_weight(layer: Contraction, matrix: Tensor, tape: Tape) -> None:
    """Write a matrix ``[groups, o / groups, taps * i]`` into the layer's weight."""
    weight = tape.leaves[layer.weight]
    weight.data.copy_(layer.tensor(matrix, weight))
