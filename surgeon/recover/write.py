"""Put an offset where a layer can hold one: its bias, the mean of the batch norm behind it, or a new bias."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from surgeon.calibrate import Leaf, Step, Tape
from surgeon.recover.target import Target, reads


@contextmanager
def offered(model: nn.Module, some: bool) -> Iterator[frozenset[str]]:
    """Give every linear and convolutional layer without a bias one of zeros; yield their names.

    Those that are zero in the end are taken away again.
    """
    given = {}
    for name, module in model.named_modules() if some else ():
        if isinstance(module, (nn.Linear, _ConvNd)) and module._parameters.get("bias", module) is None:
            weight = module.weight
            width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            module.bias = nn.Parameter(weight.new_zeros(width), requires_grad=weight.requires_grad)
            given[f"{name}.bias" if name else "bias"] = module
    try:
        yield frozenset(given)
    finally:
        for module in given.values():
            if not module.get_parameter("bias").count_nonzero():
                module.bias = None


def place(target: Target, tape: Tape, new: Collection[str]) -> str:
    """Return the name of what takes an offset to the results of a layer, or nothing.

    That is the bias that it came with, the mean of the batch norm behind it, or a new bias, in this order.
    """
    bias = target.layer.bias
    if bias is not None and bias.leaf not in new:
        return bias.leaf
    if target.norm is not None:
        mean = target.norm.argument(3, "running_mean")
        if len(reads(tape, mean)) == len(target.goals):
            return str(mean.name)
    return bias.leaf if bias is not None else ""


def shift(target: Target, tape: Tape, where: str, offset: Tensor) -> None:
    """Add an offset ``[o]`` to the results of a layer, in place."""
    bias, leaves = target.layer.bias, tape.leaves
    if bias is not None and bias.leaf == where:
        bias.write(leaves, bias.read(leaves).double() + offset.to(leaves[where].device))
    else:
        mean = leaves[where].data
        mean.copy_(mean.double() - offset.to(mean.device))


def affine(step: Step | None, leaves: Mapping[str, Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Return factor and offset per channel ``[o]`` of a batch norm in eval mode, float64."""
    if step is None:
        return torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    mean, var = (leaves[step.argument(p, n).name].double() for p, n in ((3, "running_mean"), (4, "running_var")))
    weight, bias = (step.argument(p, n) for p, n in ((1, "weight"), (2, "bias")))
    factor = (var + step.argument(7, "eps", 1e-5)).rsqrt()
    factor = factor * leaves[weight.name].double() if isinstance(weight, Leaf) else factor
    offset = -mean * factor
    return factor, offset + leaves[bias.name].double() if isinstance(bias, Leaf) else offset
