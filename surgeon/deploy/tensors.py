"""The tensors of a module by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from surgeon.modules import records, tensors_in

LAYOUTS = {"channels_last": (4, torch.channels_last), "channels_last_3d": (5, torch.channels_last_3d)}

# Layers that compensation gives a bias.
TAKE_BIAS = (nn.Linear, _ConvNd)


def transient_names(model: nn.Module) -> set[str]:
    """Return the buffers that a state dict does not hold."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }


def added_bias(model: nn.Module, name: str) -> bool:
    """Tell whether a tensor is a bias of a layer that takes one, as compensation may add."""
    owner, _, leaf = name.rpartition(".")
    layer = dict(model.named_modules(remove_duplicate=False)).get(owner)
    return leaf == "bias" and isinstance(layer, TAKE_BIAS) and "bias" in layer._parameters


def layout_of(tensor: Tensor) -> str:
    """Return the name of a layout other than row-major order, or nothing."""
    if tensor.is_contiguous():
        return ""
    fits = (
        name
        for name, (rank, kind) in LAYOUTS.items()
        if tensor.dim() == rank and tensor.is_contiguous(memory_format=kind)
    )
    return next(fits, "")


def laid_out(tensor: Tensor, layout: str | None) -> Tensor:
    """Return a tensor in a layout by name."""
    if not layout or layout not in LAYOUTS or tensor.dim() != LAYOUTS[layout][0]:
        return tensor
    return tensor.contiguous(memory_format=LAYOUTS[layout][1])


def holders(model: nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield each place that holds a parameter or buffer: full name, registry, key."""
    for path, module in model.named_modules():
        for registry in (module._parameters, module._buffers):
            for key, tensor in registry.items():
                if tensor is not None:
                    yield f"{path}.{key}" if path else key, registry, key


def unregistered(model: nn.Module) -> Iterator[Tensor]:
    """Yield tensors that modules hold as plain attributes, in lists, or in objects of their own."""
    registries = ("_parameters", "_buffers", "_modules")
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in registries:
                yield from tensors_in(value)
        for _, held in records(module):
            yield from tensors_in(list(held.values()))
