"""What a cut in the middle of training costs, as a share of an epoch: CIFAR ResNet-20 on 20,000 images.

One epoch with a gradual schedule, for each setting. A cut is timed from the call of ``pruner.step()`` to its return:
scores, plan, proof, surgery, optimizer and graph. The epoch is the same run's own: the time of all its batches,
forward, backward and optimizer, without the cuts, so that a machine that is slow is slow for both. Processor time is
beside wall-clock time. Batches get cheaper as the model shrinks; "of a full-size epoch" takes those before the first
cut for all. "other steps" are the calls of ``pruner.step()`` at which nothing is cut.

    python -m benchmarks.cut_step [--images 20000] [--cuts 5]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from benchmarks.cifar import DATA, ResNet, images, network
from benchmarks.tables import publish

SETTINGS: dict[str, dict[str, Any]] = {
    "l1": {"criterion": "l1"},
    "l1, not proved": {"criterion": "l1", "check": False},
    "taylor over 8 steps": {"criterion": "taylor"},
}
Clock = tuple[float, float]


def now() -> Clock:
    """Return wall-clock and processor time in seconds."""
    return time.perf_counter(), time.process_time()


def since(start: Clock) -> Clock:
    wall, processor = now()
    return wall - start[0], processor - start[1]


def summed(times: list[Clock]) -> Clock:
    return sum(wall for wall, _ in times), sum(processor for _, processor in times)


def epoch(x: Tensor, y: Tensor, batch: int, cuts: int, options: dict[str, Any]) -> dict[str, Any]:
    """Train for an epoch with cuts in it, and return what took how long."""
    torch.manual_seed(0)
    model = network("resnet20") if DATA is not None else ResNet(3)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    steps = len(x) // batch
    every = steps // (cuts + 1)
    schedule = surgeon.schedule.gradual(flops=0.5, steps=every * cuts, every=every)
    start = now()
    pruner = surgeon.Pruner(model, x[:1], schedule, optimizer=optimizer, **options)
    made = since(start)
    training: list[Clock] = []
    cutting: list[Clock] = []
    looking: list[Clock] = []
    for a, b in zip(x.split(batch)[:steps], y.split(batch)):
        start = now()
        nn.functional.cross_entropy(model(a), b).backward()
        optimizer.step()
        training.append(since(start))
        start = now()
        cut = pruner.step()
        (cutting if cut else looking).append(since(start))
        optimizer.zero_grad()
    whole, cut_time, rest = summed(training), summed(cutting), summed(looking)
    full = summed(training[: every - 1])[0] / (every - 1) * steps
    count = len(cutting)
    return {
        "cuts": count,
        "FLOPs left": round(pruner.shares()["flops"], 3),
        "epoch s": round(whole[0], 1),
        "a cut s": round(cut_time[0] / count, 2),
        "a cut %": round(100 * cut_time[0] / count / whole[0], 2),
        "slowest %": round(100 * max(wall for wall, _ in cutting) / whole[0], 2),
        "processor %": round(100 * cut_time[1] / count / whole[1], 2),
        "of full-size %": round(100 * cut_time[0] / count / full, 2),
        "other steps %": round(100 * rest[0] / whole[0], 2),
        "constructor s": round(made[0], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--cuts", type=int, default=5)
    asked = parser.parse_args()
    if DATA is not None:
        x, y = images("train")
    else:
        x, y = torch.randn(asked.images, 3, 32, 32), torch.randint(0, 10, (asked.images,))
    x, y = x[: asked.images], y[: asked.images]
    rows = [{"criterion": name, **epoch(x, y, asked.batch, asked.cuts, options)} for name, options in SETTINGS.items()]
    notes = [
        f"ResNet-20, {len(x)} images an epoch in batches of {asked.batch}, {rows[0].pop('cuts')} cuts to half of the "
        "FLOPs on a gradual schedule. Percentages are of the same run's epoch: the time of its batches without cuts.",
    ]
    for row in rows[1:]:
        del row["cuts"]
    publish("cut_step", "What a cut costs in the middle of training", rows, notes)


if __name__ == "__main__":
    main()
