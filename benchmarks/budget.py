"""What a cut loses at equal FLOPs, by how the widths are chosen; and whether a long search finds anything better.

All methods choose from the same legal widths with the same importance (L1 norms, normalised per group; the loss is
that of docs/budgets.md) and keep the same bound on the multiply-adds. "uniform" cuts one share of every group,
"threshold" one share of all units, those of least importance first; both as far as the bound asks. "greedy" takes
single rungs, the cheapest for what they save, and gives back what fits. "search" moves random ladders from surgeon's
answer and from random ones for the given seconds, and keeps what loses less.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import timm
import torch
import torchvision.models as tv
from fvcore.nn import FlopCountAnalysis
from torch import nn

import surgeon
from benchmarks.tables import publish
from surgeon.plan import cost
from surgeon.plan.allocate import Budget, by_ratio_globally, by_ratio_locally
from surgeon.plan.ladders import ladders
from surgeon.plan.problem import Problem
from surgeon.plan.solve import fill, repaired

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg16_bn": tv.vgg16_bn,
    "resnet18": tv.resnet18,
    "resnet50": tv.resnet50,
    "resnext50": tv.resnext50_32x4d,
    "densenet121": tv.densenet121,
    "densenet201": tv.densenet201,
    "mobilenet_v2": tv.mobilenet_v2,
    "efficientnet_b0": tv.efficientnet_b0,
    "regnet_y_400mf": tv.regnet_y_400mf,
    "convnext_tiny": tv.convnext_tiny,
    "inception_v3": lambda: tv.inception_v3(init_weights=False),
    "vit_base": lambda: timm.create_model("vit_base_patch16_224"),
    "swin_tiny": lambda: timm.create_model("swin_tiny_patch4_window7_224"),
}


def bisected(problem: Problem, choose: Callable[[float], list[int]]) -> list[int] | None:
    """Return the mildest choice of a ratio that keeps the budget; None where no ratio does."""
    low, high = 0.0, 1.0
    if not problem.keeps(choose(high)):
        return None
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if problem.keeps(choose(middle)) else (middle, high)
    return choose(high)


def greedy(problem: Problem) -> list[int]:
    return fill(problem, repaired(problem, [0] * len(problem.ladders), stale=0.0))


def searched(problem: Problem, starts: Sequence[list[int]], seconds: float, seed: int = 0) -> float:
    """Return the least loss that random moves of up to three ladders find."""
    random = np.random.default_rng(seed)
    best = min(problem.loss(start) for start in starts)
    ends = [time.perf_counter() + seconds * (i + 1) / len(starts) for i in range(len(starts))]
    for start, end in zip(starts, ends):
        current, loss = list(start), problem.loss(start)
        while time.perf_counter() < end:
            moved = list(current)
            for which in random.integers(0, len(moved), random.integers(1, 4)):
                step = int(random.choice([-8, -4, -2, -1, 1, 2, 4, 8]))
                moved[which] = int(np.clip(moved[which] + step, 0, len(problem.ladders[which].rungs) - 1))
            if problem.loss(moved) < loss and problem.keeps(moved):
                current, loss = moved, problem.loss(moved)
        best = min(best, loss)
    return best


def measure(name: str, share: float, round_to: int, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    side = 299 if name == "inception_v3" else 224
    model, x = NETWORKS[name]().eval(), torch.randn(1, 3, side, side)
    graph = surgeon.trace(model, x)
    scores = surgeon.score(graph, "l1")
    start = time.perf_counter()
    plan = surgeon.plan(graph, scores, flops=share, floor=0.0, round_to=round_to)
    took = time.perf_counter() - start
    found, overlaps = ladders(
        graph, scores, round_to=round_to, floor=0.0, groups={}, heads=False, uniform=False, losses={}
    )
    whole = cost.flops(graph)
    budget = Budget("flops", whole.merged(), share * whole.total(graph.initial), str(share))
    problem = Problem(graph.initial, found, overlaps, [budget])
    removed = {group.name: group.removed for group in plan.groups}
    ours = [int(np.searchsorted(l.rungs, removed[l.name])) for l in found]
    others = {
        "greedy": greedy(problem),
        "threshold": bisected(problem, lambda ratio: by_ratio_globally(found, ratio)),
        "uniform": bisected(problem, lambda ratio: by_ratio_locally(found, ratio)),
    }
    losses = {key: float("nan") if rungs is None else problem.loss(rungs) for key, rungs in others.items()}
    random = np.random.default_rng(1)
    tries = [repaired(problem, [int(random.integers(0, len(l.rungs))) for l in found]) for _ in range(2)]
    small = surgeon.operate(model, plan)
    by_fvcore = [
        FlopCountAnalysis(m, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
        for m in (model, small)
    ]
    return {
        "network": name,
        "FLOPs asked": share,
        "FLOPs by fvcore": by_fvcore[1] / by_fvcore[0],
        "multiple": round_to,
        "groups": len(found),
        "surgeon": plan.loss,
        "gap to bound": plan.gap,
        "seconds": took,
        **losses,
        "search": searched(problem, [ours, *tries], seconds) if seconds else float("nan"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.9, 0.7, 0.5, 0.3, 0.1])
    parser.add_argument("--round-to", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--search", type=float, default=0.0, help="seconds of random search after each")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in options.networks:
        for round_to in options.round_to:
            for share in options.budgets:
                try:
                    rows.append(measure(name, share, round_to, options.search))
                except surgeon.SurgeonError as problem:
                    print(name, round_to, share, str(problem)[:120], flush=True)
                    continue
                print({k: round(v, 5) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    publish("budget", "Importance lost at equal FLOPs", rows, [__doc__.partition("\n\n")[2]])


if __name__ == "__main__":
    main()
