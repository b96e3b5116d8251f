"""A small, plain training loop for models that were cut."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from surgeon.calibrate import inputs
from surgeon.errors import TrainingError, UnsupportedModel
from surgeon.evaluation import Evaluate, evaluated, require_callable
from surgeon.finetune.batch import Batches, forward, scalar, task_loss
from surgeon.finetune.distill import Teacher
from surgeon.finetune.optimize import Rates, Schedule, Stepper, made, scheduled
from surgeon.finetune.records import Epoch, Finetuned
from surgeon.modules import evaluating, modes_kept
from surgeon.plan.plan import Plan
from surgeon.progress import Work, working
from surgeon.recover.norms import estimate

# Batches that statistics of batch norms are averaged over, at most.
BATCHES = 100


def finetune(
    model: nn.Module,
    data: Iterable[Any],
    *,
    epochs: int,
    lr: float | None = None,
    optimizer: str | Optimizer | Callable[..., Optimizer] = "adamw",
    weight_decay: float = 1e-2,
    schedule: str | Schedule = "cosine",
    warmup: float = 0.05,
    loss: Callable[..., Tensor] | None = None,
    teacher: nn.Module | None = None,
    distill: float = 0.5,
    temperature: float = 4.0,
    features: float = 0.0,
    layers: Sequence[str] | None = None,
    plan: Plan | None = None,
    divergence: Callable[[Any, Any], Tensor] | None = None,
    penalty: Callable[[], Tensor] | None = None,
    validate: Evaluate | None = None,
    norms: str | None = "before",
    amp: bool | torch.dtype | None = None,
    clip: float | None = None,
    after_step: Callable[[], Any] | None = None,
    seed: int | None = None,
    progress: bool | None = None,
) -> Finetuned:
    """Train a model in place, with distillation from its original where one is given.

    What is minimised is ``(1 - distill) * loss + distill * soft + features * hints + penalty``, where the second is
    Hinton's loss on logits and the third a relative squared distance of features.

    Parameters
    ----------
    model : what to train; its train/eval flags are as they were afterwards
    data : batches: a DataLoader, a list, anything that can be iterated once an epoch. Of a tuple or list, the first
        item is given to the model and the rest to the loss; a dict is given as keyword arguments
    epochs : passes over the data
    lr : peak learning rate, 1e-3 if not given; of an optimizer that is passed, its own
    optimizer : "adamw", "sgd" (momentum 0.9), a function of parameters that makes one, or one that holds the model's
    weight_decay : of matrices and filters; biases and norms have none. Optimizers that are passed have their own
    schedule : "cosine" after a linear rise over the share ``warmup``, "constant", or a function from progress, 0 to 1,
        to a factor of the rate
    loss : ``loss(output, *rest of the batch)``, of a dict batch ``loss(output, batch)``; cross-entropy of pairs, or
        the output's own ``.loss``, if not given
    teacher : the original, which is only read
    distill : weight of the logits' distance; 1 trains without labels
    temperature : of the softmax in that distance
    features : weight of the features' distance; features are compared where layers read them, at the channels that
        stayed
    layers : names or globs of the layers whose inputs those are; the last that reads each feature if not given
    plan : what made the model from the teacher; not needed where this process cut it
    divergence : ``divergence(output, teacher's output)`` in place of the distance of logits
    penalty : something to add to the loss of each step, such as a ``surgeon.Regularizer``
    validate : ``validate(model) -> float``, higher is better; called before training and after each epoch, and the best
        weights stay
    norms : take statistics of batch norms anew, over 100 batches at most, "before" training, "after", "both" or None;
        after, those of training stay where ``validate`` likes them better
    amp : mixed precision: None where a GPU has it, True, False or a dtype
    clip : largest norm of the gradient
    after_step : called after each step with gradients still there, such as ``pruner.step``
    seed : of dropout, shuffling and everything that draws from torch; the random state is restored afterwards
    progress : show a bar; on a terminal if not given

    Raises
    ------
    TrainingError when the loss is not finite, with step and rate, before it reaches the weights, or for arguments that
    don't fit together; DataError for data that is empty or can't be read again; EvaluationError when ``validate``
    fails.

    Examples
    --------
    >>> result = surgeon.prune(model, x, flops=0.3)
    >>> surgeon.finetune(result.model, loader, epochs=5, teacher=model, validate=accuracy)
    """
    numbers = {"lr": lr, "distill": distill, "temperature": temperature, "features": features, "clip": clip}
    _check(model, epochs, {**numbers, "weight_decay": weight_decay}, norms)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batches = Batches(data, device, epochs + (norms in ("before", "both")) + (norms in ("after", "both")))
    chosen = made(optimizer, model, lr, weight_decay)
    guide = None
    _check_teacher(teacher, model, device, features)
    if teacher is not None:
        guide = Teacher(model, teacher, temperature=temperature, divergence=divergence, layers=layers, plan=plan)
    if validate is not None:
        require_callable("validate", validate)
    rates = Rates(chosen, lr, scheduled(schedule, warmup))
    stepper = Stepper(chosen, device, amp, clip)
    loop = _Loop(model, batches, rates, stepper, epochs, loss, guide, (distill, features), penalty, after_step)
    with ExitStack() as stack:
        stack.enter_context(modes_kept(model))
        stack.enter_context(_seeded(seed, device))
        stack.callback(rates.restore)
        if guide is not None:
            stack.enter_context(evaluating(guide.teacher))
            stack.enter_context(guide.listening() if features else nullcontext())
        loop.work = stack.enter_context(working("fine-tuning", batches.length * epochs or None, wanted=progress))
        return _run(loop, validate, norms)


@dataclass(eq=False)
class _Loop:
    """One training run: what takes part in a step, and how many were taken."""

    model: nn.Module
    batches: Batches
    rates: Rates
    stepper: Stepper
    epochs: int
    loss: Callable[..., Tensor] | None
    teacher: Teacher | None
    weights: tuple[float, float]  # of the teacher's logits and features
    penalty: Callable[[], Tensor] | None
    after_step: Callable[[], Any] | None
    steps: int = 0
    work: Work = field(default_factory=lambda: Work("fine-tuning"))

    def __str__(self) -> str:
        return f"{self.steps} steps of {self.stepper}"

    def epoch(self, number: int) -> Epoch:
        """Train for one epoch, and return means over its steps."""
        self.model.train()
        begun, rate, count = time.perf_counter(), 0.0, 0
        sums = dict.fromkeys(("loss", "task", "soft", "features"), 0.0)
        for count, batch in enumerate(self.batches, 1):
            # The middle of the step; of the epoch, where it is not known how many steps it has.
            share = (count - 0.5) / max(self.batches.length, count) if self.batches.length else 0.5
            done = (number - 1 + share) / self.epochs
            rate = self.rates.set(done)
            found = self.step(batch, number, rate)
            sums = {name: total + found.get(name, math.nan) for name, total in sums.items()}
            self.work.done = self.steps
            self.work.text = f"fine-tuning, epoch {number} of {self.epochs}, loss {sums['loss'] / count:.4g}"
        means = {name: None if math.isnan(total) else total / count for name, total in sums.items()}
        return Epoch(number, **means, lr=rate, seconds=time.perf_counter() - begun)

    def step(self, batch: Any, epoch: int, rate: float) -> dict[str, float]:
        """Take one step, and return the parts of the loss."""
        with self.stepper.autocast():
            parts = self.parts(batch)
            total = parts["loss"]
        values = dict(zip(parts, torch.stack([part.detach().double().cpu() for part in parts.values()]).tolist()))
        if not math.isfinite(values["loss"]):
            told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            raise TrainingError(
                f"the loss is not finite at step {self.steps + 1} (epoch {epoch}, lr {rate:.3g}): {told}; the weights "
                "are those before this step. Lower lr, lengthen warmup, set clip=1.0, or look for NaN in the data"
            )
        self.stepper.step(total)
        self.steps += 1
        if self.after_step is not None:
            self.after_step()
        return values

    def parts(self, batch: Any) -> dict[str, Tensor]:
        """Return the loss of a batch and what it is the sum of."""
        distill, features = self.weights
        parts, target = {}, None
        if self.teacher is None:
            output = forward(self.model, batch)
        else:
            output, target = self.teacher.run(lambda model: forward(model, batch), self.model)
        if self.teacher is None or distill < 1:
            parts["task"] = task_loss(self.loss, output, batch)
        total = parts.get("task", torch.zeros(()))
        if self.teacher is not None:
            if distill:
                parts["soft"] = self.teacher.soft(output, target)
                total = (1 - distill) * total.to(parts["soft"].device) + distill * parts["soft"]
            if features:
                parts["features"] = self.teacher.features()
                total = total + features * parts["features"]
            self.teacher.forget()
        if self.penalty is not None:
            total = total + scalar(self.penalty()).to(total.device)
        return {"loss": total, **parts}


def _run(loop: _Loop, validate: Evaluate | None, norms: str | None) -> Finetuned:
    """Train, and leave the best weights where there is a validation."""
    model, history, best = loop.model, [Epoch(0)], 0
    if norms in ("before", "both"):
        renorm(model, loop.batches)
    kept: dict[str, Any] = {}
    most = -math.inf
    for number in range(loop.epochs + 1):
        if number:
            history.append(loop.epoch(number))
        if validate is None:
            continue
        what = f"the model after epoch {number}" if number else "the model before training"
        value = evaluated(model, validate, what)
        history[number] = replace(history[number], value=value)
        # What was kept before a cut is of another model.
        if value >= most or _shapes(kept) != _shapes(model.state_dict()):
            best, most, kept = number, value, copy.deepcopy(model.state_dict())
    if validate is not None:
        model.load_state_dict(kept)
    renormed = norms in ("after", "both") and _renormed(loop, validate, most)
    return Finetuned(tuple(history), None if validate is None else best, loop.steps, renormed)


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}


def _renormed(loop: _Loop, validate: Evaluate | None, value: float) -> bool:
    """Take statistics anew, and tell whether they stayed."""
    before = copy.deepcopy(loop.model.state_dict())
    if not renorm(loop.model, loop.batches):
        return False
    if validate is None or evaluated(loop.model, validate, "the model with new statistics") >= value:
        return True
    loop.model.load_state_dict(before)
    return False


@torch.no_grad()
def renorm(model: nn.Module, data: Iterable[Any]) -> bool:
    """Set statistics of batch norms to plain averages over batches; tell whether there are any."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return False
    momenta = [norm.momentum for norm in norms]
    try:
        estimate(model, norms, (inputs(batch) for batch in islice(data, BATCHES)))
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
    return True


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw from a seed, and restore the random state afterwards; without a seed, draw as any loop does."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _check(
    model: Any,
    epochs: Any,
    numbers: Mapping[str, Any],
    norms: Any,
) -> None:
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"finetune trains a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise TrainingError(f"epochs={epochs!r} must be a whole number of at least 1")
    for name, value in numbers.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value < math.inf):
            raise TrainingError(f"{name}={value!r} must be a finite number of at least 0")
    if numbers["distill"] > 1:
        raise TrainingError(f"distill={numbers['distill']!r} is the share of the loss on logits, from 0 to 1")
    if not numbers["temperature"]:
        raise TrainingError("temperature=0 makes no softmax; use 1 to 10")
    if norms not in (None, "before", "after", "both"):
        raise TrainingError(f"norms={norms!r}: choose 'before', 'after', 'both' or None")


def _check_teacher(teacher: Any, model: nn.Module, device: torch.device, features: float) -> None:
    if teacher is None:
        if features:
            raise TrainingError(f"features={features!r} needs teacher=, the original")
        return
    if not isinstance(teacher, nn.Module):
        raise UnsupportedModel(f"teacher must be a torch.nn.Module, not {type(teacher).__name__}")
    shared = {id(p) for p in teacher.parameters()} & {id(p) for p in model.parameters()}
    if teacher is model or shared:
        raise TrainingError(
            "the teacher shares parameters with the model that is trained; keep a copy.deepcopy of the original before "
            "it is cut in place"
        )
    where = next((p.device for p in teacher.parameters()), device)
    if where != device:
        raise TrainingError(
            f"the teacher is on {where} and the model on {device}; move it: teacher.to({str(device)!r})"
        )
