"""Distillation from the original: by its logits, and by its features where the small model has the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.errors import PlanMismatch, TrainingError, UnknownLayer
from surgeon.finetune.batch import logits, scalar
from surgeon.modules import bare
from surgeon.operate.lineage import plan_between
from surgeon.plan.plan import Plan

# Layers that read features, and the dimension of their channels from the end.
READERS = {nn.Linear: -1, nn.Conv1d: -2, nn.Conv2d: -3, nn.Conv3d: -4}


def soft_loss(output: Any, target: Any, temperature: float) -> Tensor:
    """Return ``T^2 KL(softmax(t / T) || softmax(s / T))``, the mean over all but the classes.

    Hinton et al., 2015, "Distilling the Knowledge in a Neural Network". Gradients of soft targets fall as ``1 / T^2``,
    which the factor makes up for.
    """
    (student, dim), (teacher, _) = logits(output), logits(target)
    if student.shape != teacher.shape:
        raise TrainingError(
            f"logits are {list(student.shape)} and the teacher's {list(teacher.shape)}; the teacher has to know the "
            "same classes, or give divergence=, a function (output, teacher's output) -> scalar"
        )
    log_q = F.log_softmax(student.float() / temperature, dim)
    log_p = F.log_softmax(teacher.float() / temperature, dim)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim).mean()


@dataclass(frozen=True, eq=False)
class Hint:
    """Where a layer of both models reads the same feature: of the teacher's channels, those in ``keep``, or all."""

    layer: str
    dim: int
    keep: Tensor | None

    def __str__(self) -> str:
        return f"{self.layer}: {'all' if self.keep is None else len(self.keep)} channels"

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the squared distance as a share of the teacher's square."""
        if self.keep is not None:
            teacher = teacher.index_select(self.dim, self.keep.to(teacher.device))
        teacher = teacher.float()
        return (student.float() - teacher).square().mean() / teacher.square().mean().clamp(min=1e-12)


class Teacher:
    """The original, in eval mode and without gradients, and the features that both models read.

    Features are compared where a layer reads them: the plan knows which of the layer's inputs stayed, so the teacher's
    are those, and no projection has to be learned (cf. Romero et al., 2015, "FitNets").
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        *,
        temperature: float,
        divergence: Callable[[Any, Any], Tensor] | None,
        layers: Sequence[str] | None,
        plan: Plan | None,
    ) -> None:
        self.model, self.teacher = bare(model), bare(teacher)
        self.temperature, self.divergence, self.layers = temperature, divergence, layers
        self.plan = plan if plan is not None else plan_between(self.teacher, self.model)
        self.hints: list[Hint] | None = None
        self.noting = False
        self.read: dict[str, list[Tensor]] = {}
        self.taught: dict[str, list[Tensor]] = {}

    def __str__(self) -> str:
        return f"teacher {type(self.teacher).__name__} with {len(self.hints or ())} features"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note what layers read in ``run``, for as long as training lasts."""
        with ExitStack() as stack:
            for model, found in ((self.model, self.read), (self.teacher, self.taught)):
                for name, module in _readers(model):
                    hook = module.register_forward_pre_hook(self._noting(name, found))
                    stack.callback(hook.remove)
            yield

    def _noting(self, name: str, found: dict[str, list[Tensor]]) -> Callable[..., None]:
        def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
            wanted = self.hints is None or any(hint.layer == name for hint in self.hints)
            if self.noting and wanted and args and isinstance(args[0], Tensor):
                found.setdefault(name, []).append(args[0])

        return note

    def forget(self) -> None:
        """Let go of the features of the last step."""
        self.read.clear()
        self.taught.clear()

    def run(self, forward: Callable[[nn.Module], Any], model: nn.Module) -> tuple[Any, Any]:
        """Return the outputs of the model and of the teacher."""
        self.noting = True
        try:
            output = forward(model)
            with torch.no_grad():
                return output, forward(self.teacher)
        finally:
            self.noting = False

    def soft(self, output: Any, target: Any) -> Tensor:
        """Return the distance of outputs."""
        if self.divergence is not None:
            return scalar(self.divergence(output, target))
        return soft_loss(output, target, self.temperature)

    def features(self) -> Tensor:
        """Return the mean distance of the features of this step, chosen at the first."""
        if self.hints is None:
            self.hints = self._chosen()
        distances = [
            hint.distance(student, teacher)
            for hint in self.hints
            for student, teacher in zip(self.read[hint.layer], self.taught[hint.layer])
        ]
        return torch.stack(distances).mean()

    def _chosen(self) -> list[Hint]:
        """Return the named layers, or the last layer that reads each feature that depends on weights."""
        if self.layers is not None:
            return [self._hint(name) for name in _named(list(self.read), self.layers)]
        last: dict[Any, Hint] = {}
        for name, student in self.read.items():
            if student[0].requires_grad and name in self.taught:
                hint = self._hint(name)
                kept = None if hint.keep is None else tuple(hint.keep.tolist())
                last[self.taught[name][0].shape[hint.dim], kept] = hint
        if not last:
            raise TrainingError(
                "features: no layer of the model reads a feature that depends on weights; distil from logits alone "
                "(features=0)"
            )
        return list(last.values())

    def _hint(self, name: str) -> Hint:
        if name not in self.taught:
            raise TrainingError(f"features: the teacher does not run a layer {name!r}, which the model does")
        module = self.model.get_submodule(name)
        dim = next(dim for kind, dim in READERS.items() if isinstance(module, kind))
        student, teacher = self.read[name][0], self.taught[name][0]
        keep = _kept(self.plan, f"{name}.weight") if self.plan is not None else None
        expected = list(teacher.shape)
        if keep is not None and self._of_plan(name):
            expected[dim] = len(keep)
        if list(student.shape) == expected:
            return Hint(name, dim, keep)
        if self.plan is None:
            raise TrainingError(
                f"features: {name} reads {list(student.shape)}, in the teacher {list(teacher.shape)}, and it is not "
                "known what stayed; give plan=, the plan that made the model from the teacher"
            )
        raise PlanMismatch(
            f"features: {name} reads {list(student.shape)}, in the teacher {list(teacher.shape)}, which the plan does "
            "not make of it; give plan=, the plan from this teacher to this model (several cuts: first.then(second))"
        )

    def _of_plan(self, name: str) -> bool:
        """Tell whether the plan was made for the teacher's layer."""
        shape = tuple(self.teacher.get_submodule(name).get_parameter("weight").shape)
        return self.plan is None or tuple(self.plan.fingerprint.get(f"{name}.weight", shape)) == shape


def _readers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield layers that read all channels of their input; those of grouped convolutions each read a part."""
    for name, module in model.named_modules():
        kind = next((kind for kind in READERS if isinstance(module, kind)), None)
        if kind is not None and getattr(module, "groups", 1) == 1:
            yield name, module


def _kept(plan: Plan, weight: str) -> Tensor | None:
    """Return which inputs of a layer stay; None for all."""
    cut = plan.cuts.get(plan.tied.get(weight, weight))
    chosen = [s.keep for s in cut.selections if s.dims == (1,)] if cut is not None else []
    return torch.from_numpy(reduce(np.intersect1d, chosen)) if chosen else None


def _named(known: Sequence[str], patterns: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        matched = [name for name in known if fnmatchcase(name, pattern)]
        if not matched:
            raise UnknownLayer(pattern, known)
        found.update(dict.fromkeys(matched))
    return list(found)
