"""Batches of a training loop: what the model is given, and what its output is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.calibrate import inputs
from surgeon.errors import DataError, TrainingError
from surgeon.modules import as_arguments, tensors_in


class Batches:
    """Any iterable of batches, which is read once an epoch; each batch goes to the model's device.

    Raises DataError for what is no iterable, or can be read only once and is needed again.
    """

    def __init__(self, data: Iterable[Any], device: torch.device, passes: int) -> None:
        if isinstance(data, (Tensor, Mapping)) or not isinstance(data, Iterable):
            raise DataError(f"data is {type(data).__name__}; pass an iterable of batches: a DataLoader, or a list")
        if passes > 1 and isinstance(data, Iterator):  # iter() of a DataLoader would draw a random number
            raise DataError(
                f"data is a {type(data).__name__}, which can be read only once, and {passes} passes are needed, with "
                "that for batch norms; pass a DataLoader or a list, or epochs=1 with norms=None"
            )
        self.data, self.device = data, device
        self.length = _length(data)

    def __str__(self) -> str:
        return f"{self.length or 'some'} batches on {self.device}"

    def __iter__(self) -> Iterator[Any]:
        count = 0
        for batch in self.data:
            count += 1
            yield moved(batch, self.device)
        if not count:
            raise DataError("data holds no batch; a generator that was read before is empty")
        self.length = count


def _length(data: Any) -> int:
    """Return the number of batches, 0 where that is not known before they are read."""
    try:
        return len(data)
    except TypeError:
        return 0


def moved(tree: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device."""
    if isinstance(tree, Tensor):
        return tree.to(device, non_blocking=True)
    if isinstance(tree, Mapping):
        return {key: moved(value, device) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(moved(item, device) for item in tree))
    return type(tree)(moved(item, device) for item in tree) if isinstance(tree, (tuple, list)) else tree


def forward(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch: a dict gives keyword arguments, of a tuple or list the first item is the input."""
    args, kwargs = as_arguments(inputs(batch))
    return model(*args, **kwargs)


def task_loss(loss: Callable[..., Tensor] | None, output: Any, batch: Any) -> Tensor:
    """Return the loss of a batch as a scalar: ``loss(output, *targets)``, or the one that the model computed itself.

    Of a dict batch, ``loss(output, batch)``.
    """
    if loss is not None:
        return scalar(loss(output, *(batch[1:] if isinstance(batch, (tuple, list)) else [batch])))
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return scalar(own)
    targets = batch[1:] if isinstance(batch, (tuple, list)) else ()
    if len(targets) != 1 or not isinstance(targets[0], Tensor):
        raise TrainingError(
            f"a batch is {_described(batch)} and the model's output has no .loss: without loss=, batches are pairs "
            "(inputs, target); give loss=, a function (output, *rest of the batch) -> scalar"
        )
    return F.cross_entropy(logits(output)[0], targets[0])


def logits(output: Any) -> tuple[Tensor, int]:
    """Return the logits of an output and the dimension of their classes."""
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(found, Tensor):
        return found, found.dim() - 1
    first = next(iter(tensors_in(output)), None)
    if first is None or not first.is_floating_point() or first.dim() < 2:
        raise TrainingError(
            f"the model's output is a {type(output).__name__} without logits [n, classes, ...]; give loss=, and for "
            "distillation divergence=: functions of the output"
        )
    return first, 1


def scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TrainingError(f"the loss must be a scalar tensor, got {what}; reduce it to its mean")
    return value.reshape(())


def _described(batch: Any) -> str:
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)}"
    return f"a {type(batch).__name__}"
