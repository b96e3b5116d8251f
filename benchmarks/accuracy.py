"""Accuracy against FLOPs: what a cut loses by each criterion, and what each compensation wins back.

Every network is cut to the same shares of its FLOPs, as fvcore counts them, by every method, and judged as cut, with
batch-norm statistics taken anew, and after one epoch of fine-tuning. Rows are kept in ``results/accuracy.jsonl`` as
they come, so a run that was stopped goes on where it was; ``--again`` starts anew.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.accuracy_parts.methods import CALIBRATION, FULL, METHODS, Bench, Method
from benchmarks.accuracy_parts.page import WHOLE, Row, aggregated, page, plot
from benchmarks.accuracy_parts.subjects import SUBJECTS, Subject
from benchmarks.accuracy_parts.training import fit, normed, reestimated
from benchmarks.cifar import DATA, accuracy
from benchmarks.tables import RESULTS, environment, publish

KEPT = RESULTS / "accuracy.jsonl"
PAGE = Path(__file__).parent.parent / "docs" / "accuracy.md"

BUDGETS = (0.9, 0.7, 0.5, 0.35, 0.2)
HEADLINES = ("torch-pruning L1*", "l1", "l1 + merge", "l1 + noise", FULL)
TUNED = ("torch-pruning L1, global", "torch-pruning Taylor, global", "random", "l1", FULL)


@dataclass(frozen=True)
class Extent:
    """How much is measured on a network, where the command line says nothing else."""

    budgets: tuple[float, ...] = BUDGETS  # none: what stays when half of every group goes
    methods: tuple[str, ...] = ("*",)
    seeds: int = 3  # of methods that draw; of the others one
    once: tuple[str, ...] = ()  # methods that get one seed although they draw
    images: int = 10000  # to test on, at most
    all_images: tuple[str, ...] = ()  # methods that are judged on all test images nevertheless
    tuned: tuple[str, ...] = ("*",)  # methods that are also tuned for an epoch, with the first seed


EXTENTS = {
    "resnet20": Extent(
        once=("random + ridge", "uniform + ridge", "obs + ridge"),
        images=2000,
        all_images=("l1", "l1 + merge", FULL),
        tuned=TUNED,
    ),
    "resnet56": Extent((0.7, 0.5), HEADLINES, seeds=1, images=2000, all_images=(FULL,), tuned=()),
    "digits": Extent(tuned=TUNED),
    "vit": Extent(()),
    "mlp": Extent(()),
}


@dataclass(frozen=True)
class Task:
    """One row: a cut, and how it is judged."""

    method: Method
    budget: float
    seed: int
    images: int
    tuned: bool


def tasks(extent: Extent, budgets: Sequence[float], many: int) -> Iterator[Task]:
    """Yield what is to be measured, the first seed of everything before the next; ``many`` test images are there."""
    for seed in range(extent.seeds):
        if seed == 0:
            tuned = bool(extent.tuned)
            yield Task(Method(WHOLE), 1.0, 0, many, tuned)
        for budget in budgets:
            for method in METHODS.values():
                once = not method.draws or among(method, extent.once)
                if among(method, extent.methods) and not (once and seed):
                    images = many if among(method, extent.all_images) else min(many, extent.images)
                    yield Task(method, budget, seed, images, among(method, extent.tuned) and not seed)


def among(method: Method, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(method.name, pattern) for pattern in patterns)


def measure(bench: Bench, task: Task, base: float) -> Row:
    """Cut once, and judge the result as it is, with new statistics, and after an epoch of fine-tuning."""
    subject = bench.subject
    small, seconds = bench.cut(task.method, task.budget, task.seed)
    judge = partial(accuracy, x=subject.test[0][: task.images], y=subject.test[1][: task.images])
    images, _ = subject.drawn(task.seed, CALIBRATION)
    row = {
        "network": subject.name,
        "budget": task.budget,
        "method": task.method.name,
        "seed": task.seed,
        "images": task.images,
        "FLOPs left": subject.share(small),
        "base": base,
        "one-shot": judge(small),
        "norms": judge(reestimated(small, images)) if normed(small) else None,
        "CPU seconds": seconds,
    }
    return {**row, "tuned": judge(_tuned(small, subject))} if task.tuned else row


def _tuned(small: nn.Module, subject: Subject) -> nn.Module:
    small = copy.deepcopy(small)
    fit(small, *subject.train, **subject.tuning)
    return small


def key(row: Row) -> tuple[Any, ...]:
    return row["network"], row["budget"], row["method"], row["seed"]


def kept(path: Path = KEPT) -> dict[tuple[Any, ...], Row]:
    """Read the rows that were kept, the last of each kind."""
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {key(row): row for row in rows}


def run(subject: Subject, extent: Extent, done: dict[tuple[Any, ...], Row], path: Path = KEPT) -> list[Row]:
    """Measure what is missing, append it to the journal, and return it."""
    bench, bases, found = Bench(subject), {}, []
    budgets = extent.budgets or (subject.half(),)
    for task in tasks(extent, budgets, len(subject.test[1])):
        old = done.get((subject.name, task.budget, task.method.name, task.seed))
        if old and old["images"] >= task.images and ("tuned" in old or not task.tuned):
            continue
        if task.images not in bases:
            bases[task.images] = accuracy(subject.model, subject.test[0][: task.images], subject.test[1][: task.images])
        found.append(measure(bench, task, bases[task.images]))
        with path.open("a") as file:
            file.write(json.dumps(found[-1]) + "\n")
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in found[-1].items()}, flush=True)
    return found


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    RESULTS.mkdir(exist_ok=True)
    if options.again:
        KEPT.unlink(missing_ok=True)
    for name in () if options.page else options.networks:
        if DATA is None and name.startswith("resnet"):
            print(f"{name}: ../shared/data is not there")
            continue
        run(SUBJECTS[name](), _extent(EXTENTS[name], options), kept())
    rows = aggregated(kept().values(), list(SUBJECTS), [WHOLE, *METHODS])
    if rows:
        publish("accuracy", "Accuracy against FLOPs", rows, [__doc__.partition("\n\n")[0]])
        where = f"{environment()}, {_processor()}, {time.strftime('%Y-%m-%d')}"
        plot(rows, PAGE.with_name("accuracy.svg"))
        PAGE.write_text(page(rows, where))


def _extent(extent: Extent, options: argparse.Namespace) -> Extent:
    """Return an extent with what the command line says in place of the defaults."""
    names = ("budgets", "methods", "seeds", "images", "tuned")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if "images" in given:
        given["all_images"] = ()
    return Extent(**{**vars(extent), **given})


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(SUBJECTS), help=", ".join(SUBJECTS))
    parser.add_argument("--budgets", type=float, nargs="+", help="largest shares of the FLOPs that may stay")
    parser.add_argument("--methods", nargs="+", help="names or globs, of: " + "; ".join(METHODS))
    parser.add_argument("--seeds", type=int, help="of methods that draw images or scores")
    parser.add_argument("--images", type=int, help="to test on")
    parser.add_argument("--tuned", nargs="*", help="names or globs of methods that are also tuned for an epoch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="forget the rows that were kept")
    parser.add_argument(
        "--page", action="store_true", help="only write tables, page and plot from the rows that were kept"
    )
    options = parser.parse_args()
    unknown = [name for name in options.networks if name not in SUBJECTS]
    if unknown:
        parser.error(f"there is no network {unknown[0]!r}; choose of {', '.join(SUBJECTS)}")
    return options


if __name__ == "__main__":
    main()
