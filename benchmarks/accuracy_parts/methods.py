"""Ways to cut a network to a share of its FLOPs: this project's, torch-pruning's, and controls."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from benchmarks.accuracy_parts.subjects import Split, Subject
from benchmarks.accuracy_parts.training import BATCH
from surgeon.score import curves

CALIBRATION = 512
# How often an interval of ratios is halved.
HALVINGS = 14
# Beyond this ratio, torch-pruning 1.6.1 skips groups that would lose all their channels, and FLOPs rise again.
LARGEST = 0.9

WITH_LABELS = ("taylor", "taylor_squared", "fisher", "gradient", "snip", "grasp")
WITH_IMAGES = ("activation", "apoz", "variance", "wanda", "obs")
FREE_OF_DATA = ("bias", "merge", "noise")
WITHOUT = ("l1", "l2", "linf", "lamp", "fpgm", "bn_scale", "synflow", "random")


@dataclass(frozen=True)
class Method:
    """What is cut, how widths are chosen, and what is done about it."""

    name: str
    criterion: str = "l1"
    widths: str = "importance"  # or "uniform" or "curves"; for torch-pruning "local" or "global"
    compensate: str | None = None
    theirs: bool = False

    @property
    def draws(self) -> bool:
        """Whether the cut depends on a seed."""
        drawn = self.criterion in (*WITH_LABELS, *WITH_IMAGES, "random", "Taylor")
        return drawn or self.compensate in ("ridge", "norms") or self.widths == "curves"

    def __str__(self) -> str:
        return self.name


def _methods() -> Iterator[Method]:
    for criterion in ("L1", "Taylor"):
        for scope in ("local", "global"):
            yield Method(f"torch-pruning {criterion}, {scope}", criterion, scope, theirs=True)
    yield Method("random", "random")
    yield Method("uniform", "l1", "uniform")
    for criterion in (*WITHOUT, *WITH_IMAGES, *WITH_LABELS):
        if criterion != "random":
            yield Method(criterion, criterion)
    yield Method("obs, curves", "obs", "curves")
    for compensation in ("bias", "merge", "norms", "noise", "ridge"):
        yield Method(f"l1 + {compensation}", compensate=compensation)
    yield Method("random + ridge", "random", compensate="ridge")
    yield Method("uniform + ridge", "l1", "uniform", "ridge")
    yield Method("obs + ridge", "obs", compensate="ridge")
    yield Method("obs, curves + ridge", "obs", "curves", "ridge")


METHODS = {method.name: method for method in _methods()}
# What ``surgeon.prune(..., data=batches)`` does.
FULL = "obs, curves + ridge"


class Bench:
    """One network, and what several of its cuts have in common: the trace, and scores and curves of the last seed."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.graph = surgeon.trace(subject.model, subject.x, keep=subject.kept)
        self._known: dict[Any, tuple[Any, float]] = {}

    def cut(self, method: Method, budget: float, seed: int) -> tuple[nn.Module, float]:
        """Return the cut network and the seconds of CPU time that it took, scores and curves included.

        Parameters
        ----------
        budget : largest share of the FLOPs that may stay; of 1.0, nothing is cut
        seed : of the calibration images, and of random scores
        """
        images, labels = self.subject.drawn(seed, CALIBRATION)
        if method.theirs:
            start = time.process_time()
            return theirs(self.subject, method, budget, (images, labels)), time.process_time() - start
        batches = list(zip(images.split(BATCH), labels.split(BATCH)))
        scores, spent = self._once(("score", method.criterion, seed), lambda: self._scores(method, batches, seed))
        how: dict[str, Any] = {"flops": budget}
        if method.widths == "uniform":
            how["groups"] = self._uniform(scores, budget)
        if method.widths == "curves":
            how["losses"], more = self._once(("curves", seed), lambda: curves(self.graph, scores, batches))
            spent += more
        start = time.process_time()
        plan = surgeon.plan(self.graph, scores, **how)
        small = surgeon.operate(self.subject.model, plan)
        if method.compensate:
            told = {"method": method.compensate, "example_inputs": self.subject.x}
            given = None if method.compensate in FREE_OF_DATA else batches
            surgeon.recover(self.subject.model, small, plan, given, **told)
        return small, spent + time.process_time() - start

    def _scores(self, method: Method, batches: list[Split], seed: int) -> Any:
        name, options = method.criterion, {}
        if name in WITH_LABELS:
            options = {"data": batches, "loss": F.cross_entropy}
        elif name in WITH_IMAGES:
            options = {"data": batches}
        elif name == "random":
            options = {"seed": seed}
        elif name == "synflow":
            options = {"example_inputs": self.subject.x}
        return surgeon.score(self.graph, name, **options)

    def _once(self, key: Any, make: Callable[[], Any]) -> tuple[Any, float]:
        """Make something the first time it is asked for, and remember what it took; other seeds are forgotten."""
        self._known = {k: v for k, v in self._known.items() if k[-1] == key[-1]}
        if key not in self._known:
            start = time.process_time()
            made = make()
            self._known[key] = made, time.process_time() - start
        return self._known[key]

    def _uniform(self, scores: Any, budget: float) -> dict[str, tuple[float, float]]:
        """Return the least and the largest share that may go of each group: two neighbouring cuts by one ratio.

        Narrow groups lose their next channel all at once, which can be a tenth of the FLOPs; between the two cuts,
        importance decides which groups do.
        """
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            before, after = surgeon.plan(self.graph, scores, ratio=middle, scope="local").totals["flops"]
            low, high = (low, middle) if after <= budget * before else (middle, high)
        less, more = (surgeon.plan(self.graph, scores, ratio=r, scope="local").groups for r in (low, high))
        return {a.name: (a.removed / a.size, b.removed / b.size) for a, b in zip(less, more)}


def theirs(subject: Subject, method: Method, budget: float, data: Split) -> nn.Module:
    """Cut with torch-pruning: the smallest ratio that keeps the budget.

    Layers that may not be cut, and those as wide as the output, are ignored, as its README shows.
    """
    slopes = gradients(subject.model, data) if method.criterion == "Taylor" else {}
    best, low, high = None, 0.0, LARGEST
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        small = _theirs(subject, method, ratio, slopes)
        if subject.share(small) <= budget:
            best, high = small, ratio
        else:
            low = ratio
    if best is None:
        raise ValueError(f"{method} keeps more than {budget:.0%} of the FLOPs of {subject.name} at every ratio")
    return best


def _theirs(subject: Subject, method: Method, ratio: float, slopes: dict[str, Tensor]) -> nn.Module:
    small = copy.deepcopy(subject.model)
    for name, parameter in small.named_parameters():
        parameter.grad = slopes[name].clone() if slopes else None
    importance = torch_pruning.importance
    layers = [m for m in small.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    free = [small.get_submodule(name) for name in subject.only] or layers[:-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_pruning.pruner.BasePruner(
            small,
            subject.x,
            importance=importance.TaylorImportance() if slopes else importance.MagnitudeImportance(p=1),
            global_pruning=method.widths == "global",
            pruning_ratio=ratio,
            ignored_layers=[m for m in layers if not any(m is f for f in free)],
        ).step()
    return small.eval().requires_grad_()


def gradients(model: nn.Module, data: Split) -> dict[str, Tensor]:
    """Return the gradients of the mean loss over images and labels, by parameter."""
    names, weights = zip(*model.named_parameters())
    total = [torch.zeros_like(w) for w in weights]
    for x, y in zip(data[0].split(BATCH), data[1].split(BATCH)):
        found = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
        total = [t + g * len(x) / len(data[0]) for t, g in zip(total, found)]
    return dict(zip(names, total))
