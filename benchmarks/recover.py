"""What compensation wins back, one-shot: CIFAR ResNets, accuracy in percent on the test images.

No training and no labels: where images are used, they are 512 of the training images, drawn anew for each seed. Budgets
are shares of the FLOPs as fvcore counts them. "L1" are this project's L1 scores and widths; "measured" are OBS scores
with widths from loss curves measured on the calibration images. Uniform: the same share of every group goes.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from benchmarks.cifar import DATA, accuracy, images, network
from benchmarks.tables import publish
from surgeon.verify import count_flops

CALIBRATION, BATCH = 512, 64
Batches = list[Tensor]


def uniform(model: nn.Module, x: Tensor, budget: float) -> float:
    """Return the ratio that leaves a share of the FLOPs when every group loses as much."""
    low, high = 0.0, 0.9
    graph = surgeon.trace(model, x)
    scores = surgeon.score(graph, "l1")
    for _ in range(12):
        middle = (low + high) / 2
        before, after = surgeon.plan(graph, scores, ratio=middle, scope="local").totals["flops"]
        low, high = (low, middle) if after <= budget * before else (middle, high)
    return high


def options(method: str, model: nn.Module, x: Tensor, budget: float, seed: int) -> dict[str, Any]:
    """Return what ``prune`` is told for a row of the table."""
    criterion, _, compensate = method.partition(" + ")
    compensate = {"": None}.get(compensate, compensate)
    if criterion == "measured":
        return {"flops": budget, "compensate": "auto"}
    scores: Any = "l1"
    if criterion == "random":
        scores = lambda graph, group: surgeon.score(graph, "random", seed=seed)[group.name]  # noqa: E731
    width = {"ratio": uniform(model, x, budget), "scope": "local"} if criterion == "uniform L1" else {"flops": budget}
    return {"criterion": scores, "compensate": compensate, **width}


METHODS = (
    "L1",
    "L1 + bias",
    "L1 + merge",
    "L1 + noise",
    "L1 + norms",
    "L1 + ridge",
    "uniform L1 + ridge",
    "random + ridge",
    "measured + ridge",
)
DRAWN = ("norms", "ridge")


def run(method: str, name: str, budget: float, seeds: int, train: Tensor, judge: Callable[[nn.Module], float]) -> Any:
    model, found, seconds, left = network(name), [], [], 0.0
    for seed in range(seeds if method.endswith(DRAWN) else 1):
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
        batches = list(train[chosen].contiguous(memory_format=torch.channels_last).split(BATCH))
        told = options(method, model, batches[0][:1], budget, seed)
        start = time.perf_counter()
        result = surgeon.prune(model, batches[0][:1], data=batches, **told)
        seconds.append(time.perf_counter() - start)
        found.append(judge(result.model))
        left = count_flops(result.model, batches[0][:1]).total / count_flops(model, batches[0][:1]).total
    return {
        "network": name,
        "budget": budget,
        "method": method,
        "FLOPs left": left,
        "accuracy": f"{mean(found):.2f}",
        "deviation": f"{stdev(found):.2f}" if len(found) > 1 else "",
        "lost": f"{judge(model) - mean(found):.2f}",
        "seeds": len(found),
        "seconds": mean(seconds),
        "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["resnet20", "resnet56"])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10000, help="test images")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    if DATA is None:
        raise SystemExit("../shared/data is not there: nothing to measure on")
    torch.set_num_threads(given.threads)
    (x, y), (train, _) = images("test"), images("train")
    x, y = x[: given.images], y[: given.images]
    known: dict[int, float] = {}

    def judge(model: nn.Module) -> float:
        if id(model) not in known:
            known[id(model)] = accuracy(model, x, y)
        return known[id(model)]

    rows = []
    for name in given.networks:
        for budget in given.budgets:
            for method in given.methods:
                known.clear()
                rows.append(run(method, name, budget, given.seeds, train, judge))
                print(rows[-1], flush=True)
    publish("recover", "Accuracy after compensation, one-shot", rows, [__doc__.partition("\n\n")[2]])


if __name__ == "__main__":
    main()
