"""The table of all models, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo import (
    attention,
    blocks,
    dense,
    detection,
    generators,
    grouped,
    interfaces,
    iterative,
    points,
    residual,
    sequence,
)
from tests.zoo.weights import randomize

# Makes a model and its example inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
Entry = Callable[[], tuple[nn.Module, Any]]

_FILES = (
    residual,
    blocks,
    grouped,
    dense,
    generators,
    detection,
    attention,
    sequence,
    points,
    iterative,
    interfaces,
)


def _merged() -> dict[str, Entry]:
    table: dict[str, Entry] = {}
    for file in _FILES:
        twice = table.keys() & file.MODELS.keys()
        if twice:
            raise ValueError(f"{file.__name__} names models that are there already: {sorted(twice)}")
        table.update(file.MODELS)
    return table


MODELS: dict[str, Entry] = _merged()


def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[nn.Module, Any]:
    """Make a model in eval mode with random weights, and its example inputs, always the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, inputs = MODELS[name]()
    return randomize(model, seed).to(dtype).eval(), _cast(inputs, dtype)


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model with its example inputs."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    if isinstance(inputs, Mapping):
        return {name: _cast(item, dtype) for name, item in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(_cast(item, dtype) for item in inputs)
    return inputs.to(dtype) if isinstance(inputs, Tensor) and inputs.is_floating_point() else inputs


def entries() -> dict[str, Entry]:
    """Return the models as a collection."""
    return dict(MODELS)
