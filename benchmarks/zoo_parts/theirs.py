"""Cut one model with torch-pruning 1.6.1 as its README shows, and say what became of it.

Weights are all different, so the survivors of a cut can be found by value, and the original with everything else set
to zero says what the small model should compute, except where norms or softmax run over the width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

import surgeon
from benchmarks.zoo_parts.subject import Subject, told, trains
from surgeon.modules import tensors_in

Row = dict[str, Any]


def theirs(subject: Subject) -> Row:
    """Return the peer's part of a row."""
    distinct(subject.model)
    before = sum(p.numel() for p in subject.model.parameters())
    small = copy.deepcopy(subject.model)
    try:
        _prune(small, subject)
    except Exception as error:
        return {"outcome": "fails", "reason": f"{type(error).__name__}: {told(error)}"}
    row: Row = {"params": before, "params_after": sum(p.numel() for p in small.parameters())}
    if row["params"] == row["params_after"]:
        return row | {"outcome": "nothing cut", "reason": ""}
    try:
        found = list(tensors_in(subject.run(small.eval())))
    except Exception as error:
        return row | {"outcome": "breaks inference", "reason": f"{type(error).__name__}: {told(error)}"}
    problem = trains(small, subject) if subject.trains else ""
    if problem:
        return row | {"outcome": "breaks training", "reason": problem}
    return row | _judged(subject, small, found)


def _prune(model: nn.Module, subject: Subject) -> None:
    pruner = torch_pruning.pruner.BasePruner(
        model,
        subject.inputs,
        importance=torch_pruning.importance.MagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=list(_heads(model, subject)),
    )
    pruner.step()


def _heads(model: nn.Module, subject: Subject) -> Iterator[nn.Module]:
    """Yield the layers that are as wide as an output is: the classifier."""
    outputs = [t for t in tensors_in(subject.run()) if t.dim() > 1]
    widths = {t.shape[1] for t in outputs} | {t.shape[-1] for t in outputs if t.dim() == 3}
    for module in model.modules():
        if getattr(module, "out_features", getattr(module, "out_channels", None)) in widths:
            yield module


@torch.no_grad()
def distinct(model: nn.Module) -> None:
    """Make all weights of a tensor different, in place."""
    generator = torch.Generator().manual_seed(1)
    for tensor in _state(model).values():
        if tensor.is_floating_point():
            tensor += 1e-3 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)


def _judged(subject: Subject, small: nn.Module, found: list[Tensor]) -> Row:
    """Compare with the masked original; a difference counts where zeros disturb no statistic."""
    if subject.dtype != torch.float64:
        return {"outcome": "runs", "reason": "no float64"}
    masked = copy.deepcopy(subject.model)
    if not mask(masked, small):
        return {"outcome": "runs", "reason": "weights can't be found again in the original"}
    difference = apart(list(tensors_in(subject.run(masked))), found)
    if difference <= 1e-9:
        return {"outcome": "equal", "reason": "", "difference": difference}
    if takes_statistics(subject):
        return {"outcome": "runs", "reason": "statistics over the width: zeros don't tell"}
    return {"outcome": "differs", "reason": f"by {difference:.1e} of the output", "difference": difference}


@torch.no_grad()
def mask(model: nn.Module, small: nn.Module) -> bool:
    """Set to zero, in place, what a smaller model no longer has; say whether all that it has was found."""
    whole, left = _state(model), _state(small)
    for name, tensor in whole.items():
        if not tensor.is_floating_point() or name not in left or left[name].shape == tensor.shape:
            continue
        survives = torch.isin(tensor, left[name])
        if int(survives.sum()) != left[name].numel():
            return False
        tensor *= survives
    return all(name in whole for name in left)


def apart(expected: list[Tensor], found: list[Tensor]) -> float:
    """Return the largest difference of two lists of outputs, relative to the largest output."""
    if [t.shape for t in expected] != [t.shape for t in found]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(expected, found) if a.numel()]
    return max((float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs), default=0.0)


def takes_statistics(subject: Subject) -> bool:
    """Tell whether the model takes means, norms or softmax over a width; where nobody knows, assume it."""
    try:
        return any(True for _ in surgeon.trace(subject.model, subject.inputs).reductions())
    except Exception:
        return True


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
