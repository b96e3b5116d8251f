"""Calibration data as users hand it in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import DataError, SurgeonError
from surgeon.modules import tensors_in


def batches(data: Iterable[Any] | Tensor) -> Iterator[Any]:
    """Yield the batches of a loader, list or generator, checked to be finite; a single tensor is one batch.

    Raises DataError for data that is no iterable, holds nothing, or is not finite.
    """
    if isinstance(data, Tensor):
        data = [data]
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise DataError(f"data is {type(data).__name__}; pass batches: a DataLoader, a list or a generator")
    count = -1
    for count, batch in enumerate(data):
        _check(inputs(batch), count)
        yield batch
    if count < 0:
        raise DataError("data holds no batch; a generator that was read before is empty")


def inputs(batch: Any) -> Any:
    """Return what the model is given: the batch itself, or the first item where it is a tuple or list.

    That item is a tensor, a tuple of positional arguments, or a dict of keyword arguments, as ``example_inputs``.
    """
    if not isinstance(batch, (tuple, list)):
        return batch
    if not batch:
        raise DataError("a batch is empty")
    return batch[0]


def calibration(data: Iterable[Any] | Tensor, samples: int) -> list[Any]:
    """Return the inputs of the first batches, until there are ``samples`` samples."""
    found: list[Any] = []
    seen = 0
    for batch in batches(data):
        found.append(inputs(batch))
        seen += size(found[-1])
        if seen >= samples:
            break
    if seen < 2:
        raise DataError("one sample is too few: some are held out to judge what the others gave")
    return found


@contextmanager
def fitting(given: Any) -> Iterator[None]:
    """Say which inputs a model fails on.

    Raises DataError in place of whatever the model raised.
    """
    try:
        yield
    except SurgeonError:
        raise
    except Exception as error:
        shapes = ", ".join(str(list(t.shape)) for t in tensors_in(given))
        raise DataError(
            f"the model fails on a batch with tensors of shapes {shapes}: {type(error).__name__}: {error}; "
            "batches need the form of example_inputs, in any number of samples"
        ) from error


def size(given: Any) -> int:
    """Return the number of samples of some inputs: the first dimension of the first tensor that has one."""
    return next((t.shape[0] for t in tensors_in(given) if t.dim()), 1)


def _check(given: Any, count: int) -> None:
    tensors = tensors_in(given)
    if not tensors:
        raise DataError(f"batch {count} holds no tensor")
    for tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"batch {count} is not finite: it holds NaN or infinity")
