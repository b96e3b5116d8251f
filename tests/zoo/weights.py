"""Weights that hide nothing: no bias of zero, no scale of one, no batch statistics as they were initialised."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and every batch statistic anew, in place, and return the model.

    Weights get a variance of one over the fan-in, so activations keep their size from layer to layer; scales of norms
    and gates lie between 0.5 and 1.5, biases around zero. Batch norms get running means around zero and running
    variances between 0.5 and 1.5. The draws depend only on ``seed``.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            parameter.copy_(_drawn(name, parameter, generator))
        if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.copy_(0.3 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(_uniform(module.running_var, generator))
    return model


def _drawn(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    if "bias" in name or name == "beta":
        return 0.2 * torch.randn(parameter.shape, generator=generator)
    if parameter.dim() < 2 or name == "gamma":
        return _uniform(parameter, generator)
    fan_in = parameter[0].numel()
    return torch.randn(parameter.shape, generator=generator) / fan_in**0.5


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return 0.5 + torch.rand(like.shape, generator=generator)
