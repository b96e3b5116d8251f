"""Optimizers, rates and mixed precision of a training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from surgeon.errors import TrainingError

# Progress of training from 0 to 1 -> factor of the learning rate.
Schedule = Callable[[float], float]


def cosine(warmup: float) -> Schedule:
    """Return a linear rise over the first share of training, and half a cosine down to zero.

    Loshchilov and Hutter, 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", without restarts.
    """

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))

    return factor


def scheduled(schedule: str | Schedule, warmup: float) -> Schedule:
    """Return a schedule by name; raises TrainingError for an unknown one."""
    if not 0 <= warmup < 1:
        raise TrainingError(f"warmup={warmup!r} is a share of the training and must be at least 0 and less than 1")
    if callable(schedule):
        return schedule
    if schedule == "cosine":
        return cosine(warmup)
    if schedule == "constant":
        return lambda progress: min(1.0, progress / warmup) if warmup else 1.0
    raise TrainingError(f"schedule={schedule!r}: choose 'cosine', 'constant', or a function of progress from 0 to 1")


def made(
    optimizer: str | Optimizer | Callable[..., Optimizer], model: nn.Module, lr: float | None, weight_decay: float
) -> Optimizer:
    """Return an optimizer over the parameters that train; vectors (biases, norms) get no weight decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise TrainingError("no parameter of the model requires gradients; set requires_grad on those that train")
    if isinstance(optimizer, Optimizer):
        return _owned(optimizer, trained)
    if callable(optimizer):
        built = optimizer(trained)
        if not isinstance(built, Optimizer):
            raise TrainingError(
                f"optimizer= returned {type(built).__name__}; a factory takes parameters and returns an Optimizer"
            )
        return _owned(built, trained)
    if optimizer not in ("adamw", "sgd"):
        raise TrainingError(f"optimizer={optimizer!r}: choose 'adamw' or 'sgd', or pass an optimizer or a factory")
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = 1e-3 if lr is None else lr
    return AdamW(groups, lr=rate) if optimizer == "adamw" else SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def _owned(optimizer: Optimizer, trained: Iterable[nn.Parameter]) -> Optimizer:
    """Refuse an optimizer that holds none of the parameters, as after a cut that it was not migrated by."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lacking = sum(id(p) not in held for p in trained)
    if lacking == len(list(trained)):
        raise TrainingError(
            "the optimizer holds no parameter of this model; after a cut, call surgeon.migrate(optimizer, plan), or "
            "make a new one from model.parameters()"
        )
    return optimizer


class Rates:
    """Learning rates of all groups: what they are set to, times a factor; as they were when training is over."""

    def __init__(self, optimizer: Optimizer, lr: float | None, schedule: Schedule) -> None:
        self.optimizer, self.schedule = optimizer, schedule
        self.own = [group["lr"] for group in optimizer.param_groups]
        self.base = [rate if lr is None else lr for rate in self.own]

    def __str__(self) -> str:
        return f"rates {self.base}"

    def set(self, progress: float) -> float:
        """Set the rates for a progress from 0 to 1, and return that of the first group."""
        factor = self.schedule(progress)
        for group, base in zip(self.optimizer.param_groups, self.base):
            _put(group, base * factor)
        return float(self.optimizer.param_groups[0]["lr"])

    def restore(self) -> None:
        """Set the rates that the optimizer came with."""
        for group, rate in zip(self.optimizer.param_groups, self.own):
            _put(group, rate)


def _put(group: dict[str, Any], rate: Any) -> None:
    """Set a rate; one that is a tensor, as ``capturable`` optimizers have, keeps its place."""
    if isinstance(group["lr"], Tensor):
        group["lr"] = torch.as_tensor(rate, dtype=group["lr"].dtype, device=group["lr"].device)
    else:
        group["lr"] = float(rate)


class Stepper:
    """Backward pass and optimizer step, in mixed precision where asked.

    amp : None for bfloat16 where a GPU has it, float16 with scaled gradients where it has not, and full precision on a
        CPU; True, False or a dtype
    """

    def __init__(
        self, optimizer: Optimizer, device: torch.device, amp: bool | torch.dtype | None, clip: float | None
    ) -> None:
        self.optimizer, self.device, self.clip = optimizer, device, clip
        self.dtype = precision(device, amp)
        self.scaler = torch.amp.GradScaler(device.type) if self.dtype == torch.float16 else None

    def __str__(self) -> str:
        return f"steps of {type(self.optimizer).__name__} in {self.dtype or 'full precision'}"

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def step(self, loss: Tensor) -> None:
        """Take one step down a loss."""
        self.optimizer.zero_grad()
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clip is not None:
            nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], self.clip)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()


def precision(device: torch.device, amp: bool | torch.dtype | None) -> torch.dtype | None:
    """Return the dtype of autocast on a device; None for full precision."""
    if isinstance(amp, torch.dtype):
        return amp
    if amp is False or (amp is None and device.type != "cuda"):
        return None
    if device.type != "cuda" or torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float16
