"""A model to be cut, with weights that hide nothing, and the few ways in which it is run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.modules import as_arguments
from tests.zoo.weights import randomize


class ModelFails(Exception):
    """The model itself can't be built or run on this machine."""


@dataclass
class Subject:
    """A model in eval mode, its example inputs, and whether it also runs in training mode."""

    model: nn.Module
    inputs: Any
    dtype: torch.dtype = torch.float64
    trains: bool = True

    def run(self, model: nn.Module | None = None) -> Any:
        """Run the model, or another one on the same inputs, without gradients."""
        args, kwargs = as_arguments(self.inputs)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return (self.model if model is None else model)(*args, **kwargs)


def prepare(make: Callable[[], tuple[nn.Module, Any]]) -> Subject:
    """Build a model and give it random weights, in float64 where it runs in float64.

    Raises ModelFails when it doesn't run as it is.
    """
    torch.manual_seed(0)
    try:
        model, inputs = make()
        randomize(model.eval())
    except Exception as error:
        raise ModelFails(f"{type(error).__name__}: {told(error)}") from error
    subject = _running(model, inputs)
    subject.trains = not trains(subject.model, subject)
    return subject


def _running(model: nn.Module, inputs: Any) -> Subject:
    problem: Exception | None = None
    for dtype in (torch.float64, torch.float32):
        subject = Subject(model.to(dtype), cast(inputs, dtype), dtype)
        try:
            subject.run()
        except Exception as error:
            problem = error
        else:
            return subject
    raise ModelFails(f"{type(problem).__name__}: {told(problem)}") from problem


def trains(model: nn.Module, subject: Subject) -> str:
    """Run a copy of a model in training mode on twice the batch, and say how it fails, if it does."""
    twice = Subject(copy.deepcopy(model).train(), doubled(subject.inputs))
    try:
        twice.run()
    except Exception as error:
        return f"{type(error).__name__}: {told(error)}"
    return ""


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """Return nested inputs with floating-point tensors of the given type."""
    return mapped(tree, lambda t: t.to(dtype) if t.is_floating_point() else t)


def doubled(tree: Any) -> Any:
    """Return nested inputs with every batch twice as large: batch norm in training mode wants more than one value."""
    return mapped(tree, lambda t: torch.cat([t, t]) if t.dim() > 1 else t)


def mapped(tree: Any, work: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to the tensors of nested inputs."""
    if isinstance(tree, Tensor):
        return work(tree)
    if isinstance(tree, Mapping):
        return {name: mapped(item, work) for name, item in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(mapped(item, work) for item in tree)
    return tree


def told(error: BaseException | None) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split())[:600]
