"""The inputs of an export: which of their dimensions stay free, and others to try the file on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from surgeon.errors import ExportError
from surgeon.modules import as_arguments, tensors_in

# What ``dynamic`` may be: the batch, nothing, or argument -> {dimension: its name}.
Dynamic = bool | Mapping[str, Mapping[int, str]]

# The batch of the inputs that a file with a free batch is tried on; no size that models use for anything else.
OTHER_BATCH = 3


@dataclass(frozen=True, eq=False)
class Inputs:
    """Arguments of a forward pass, and what its dimensions are called.

    named   arguments by name, as the signature binds them
    batch   size of the batch; None where no dimension is known to be one
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: dict[str, Any]
    batch: int | None

    def __str__(self) -> str:
        return ", ".join(f"{name} {shapes(value)}" for name, value in self.named.items())

    def changed(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the same arguments with every tensor changed."""
        args, kwargs = mapped(self.args, change), mapped(self.kwargs, change)
        first = next(iter(tensors_in([args, kwargs])), None)
        batch = None if self.batch is None or first is None else first.shape[0]
        return Inputs(args, kwargs, mapped(self.named, change), batch)

    def is_batched(self, tensor: Tensor) -> bool:
        return tensor.dim() > 0 and self.batch is not None and tensor.shape[0] == self.batch


def inputs_of(model: nn.Module | ExportedProgram, example_inputs: Any) -> Inputs:
    """Read example inputs; the batch is the first dimension of the first tensor."""
    args, kwargs = as_arguments(example_inputs)
    first = next(iter(tensors_in([args, kwargs])), None)
    if first is None:
        raise ExportError("the example inputs hold no tensor; give what the model is called with")
    named = dict(kwargs)
    if isinstance(model, nn.Module):
        try:
            named = dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise ExportError(f"the example inputs don't fit {type(model).__name__}.forward: {error}") from error
    return Inputs(args, kwargs, named, first.shape[0] if first.dim() else None)


def mapped(tree: Any, change: Callable[[Tensor], Any], other: Callable[[Any], Any] = lambda leaf: leaf) -> Any:
    """Return a tree of tuples, lists and dicts with its tensors changed, and its other leaves by ``other``."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: mapped(value, change, other) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
        return type(tree)(mapped(value, change, other) for value in tree)
    return other(tree)


def shapes(tree: Any) -> Any:
    return mapped(tree, lambda t: list(t.shape), lambda leaf: leaf)


def dynamic_shapes(inputs: Inputs, dynamic: Dynamic) -> dict[str, Any] | None:
    """Return the free dimensions as ``torch.export`` takes them, by argument.

    Raises ExportError for arguments and dimensions that there are not.
    """
    if dynamic is False:
        return None
    known: dict[str, Any] = {}

    def dim(name: str) -> Any:
        return known.setdefault(name, Dim(name))

    if dynamic is True:
        return {
            name: mapped(value, lambda t: {0: dim("batch")} if inputs.is_batched(t) else None, lambda leaf: None)
            for name, value in inputs.named.items()
        }
    for name, dims in dynamic.items():
        value = inputs.named.get(name)
        if not isinstance(value, Tensor) or any(not 0 <= d < value.dim() for d in dims):
            raise ExportError(f"dynamic={dict(dynamic)}: the inputs are {inputs}; name tensors and dimensions of these")
    return {
        name: {d: dim(n) for d, n in dynamic[name].items()}
        if name in dynamic
        else mapped(value, lambda t: None, lambda leaf: None)
        for name, value in inputs.named.items()
    }


def doubled(inputs: Inputs) -> Inputs:
    """Return inputs with a batch of two where it is one: an export takes a size of one for a constant."""
    if inputs.batch != 1:
        return inputs
    return inputs.changed(lambda t: torch.cat([t, t]) if inputs.is_batched(t) else t)


def others(inputs: Inputs, free: bool) -> Iterator[tuple[str, Inputs]]:
    """Yield inputs like the example, the most different ones first: models may refuse some.

    Random values have the mean and deviation, or the range, of the example's. No global random state is used.
    """
    batch = OTHER_BATCH + (inputs.batch == OTHER_BATCH)
    if free and inputs.batch:
        yield f"random, batch {batch}", inputs.changed(lambda t: _random(_resized(t, inputs, batch)))
        yield f"the example repeated, batch {batch}", inputs.changed(lambda t: _resized(t, inputs, batch))
    yield "random", inputs.changed(_random)


def _resized(tensor: Tensor, inputs: Inputs, batch: int) -> Tensor:
    if not inputs.is_batched(tensor):
        return tensor
    return tensor[torch.arange(batch, device=tensor.device) % tensor.shape[0]]


def _random(tensor: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if tensor.is_floating_point():
        spread, mean = torch.std_mean(tensor.double(), correction=0)
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * spread.cpu() + mean.cpu()
        return values.to(tensor)
    if tensor.is_complex() or not tensor.numel():
        return tensor
    low, high = int(tensor.min()), int(tensor.max())
    return torch.randint(low, high + 1, tensor.shape, generator=generator).to(tensor)
