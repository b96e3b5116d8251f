"""How long a cut takes, next to torch-pruning 1.6.1, in one run, alternating, medians of five.

Ours: trace + score + plan + operate. Theirs: ``BasePruner`` build + step. Both cut in place, on a deep copy made
outside the clock, and remove half of every group by L1 norm at 224x224. What they leave behind is run once in eval
and once in training mode: a model that then fails was not pruned.
"""

from __future__ import annotations

import argparse
import copy
import gc
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import timm
import torch
import torch_pruning
import torchvision.models as tv
from torch import nn

import surgeon
from benchmarks.tables import publish
from surgeon.labels.run import run

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg16_bn": tv.vgg16_bn,
    "alexnet": tv.alexnet,
    "resnet18": tv.resnet18,
    "resnet50": tv.resnet50,
    "resnext50": tv.resnext50_32x4d,
    "wide_resnet50": tv.wide_resnet50_2,
    "densenet121": tv.densenet121,
    "densenet201": tv.densenet201,
    "mobilenet_v2": tv.mobilenet_v2,
    "mobilenet_v3": tv.mobilenet_v3_large,
    "efficientnet_b0": tv.efficientnet_b0,
    "regnet_y_400mf": tv.regnet_y_400mf,
    "squeezenet": tv.squeezenet1_0,
    "googlenet": lambda: tv.googlenet(init_weights=False),
    "inception_v3": lambda: tv.inception_v3(init_weights=False),
    "shufflenet_v2": tv.shufflenet_v2_x1_0,
    "convnext_tiny": tv.convnext_tiny,
    "mnasnet": tv.mnasnet1_0,
    "xception": lambda: timm.create_model("legacy_xception"),
    "res2net": lambda: timm.create_model("res2net50_14w_8s"),
}


def clock(work: Callable[[], Any]) -> float:
    gc.collect()  # each side pays for its own garbage only
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ours(model: nn.Module, x: torch.Tensor) -> None:
    graph = surgeon.trace(model, x)
    plan = surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.5, scope="local")
    surgeon.operate(model, plan, inplace=True)


def theirs(model: nn.Module, x: torch.Tensor) -> None:
    heads = [m for m in model.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) == 1000]
    importance = torch_pruning.importance.MagnitudeImportance(p=1)
    torch_pruning.pruner.BasePruner(model, x, importance=importance, pruning_ratio=0.5, ignored_layers=heads).step()


def breaks(model: nn.Module, x: torch.Tensor) -> str:
    """Say how a cut model fails, if it does."""
    for mode in (False, True):
        try:
            with torch.no_grad():
                model.train(mode)(torch.cat([x, x]))
        except Exception as problem:
            return f"breaks {'training' if mode else 'inference'}: {type(problem).__name__}"
    return ""


def attempt(model: nn.Module, x: torch.Tensor, times: list[float]) -> str:
    """Time the peer and say what became of the model."""
    try:
        times.append(clock(lambda: theirs(model, x)))
    except Exception as problem:
        return f"fails: {type(problem).__name__}"
    return breaks(model, x) or "runs"


def measure(name: str, rounds: int) -> dict[str, Any]:
    side = 299 if name == "inception_v3" else 224
    model, x = NETWORKS[name]().eval(), torch.randn(1, 3, side, side)
    times: dict[str, list[float]] = {"forward": [], "trace and labels": [], "surgeon": [], "torch-pruning": []}
    calls, outcome = run(model, x).calls, ""
    for _ in range(rounds):
        with torch.no_grad():
            times["forward"].append(clock(lambda: model(x)))
        times["trace and labels"].append(clock(lambda: run(model, x)))
        mine, other = copy.deepcopy(model), copy.deepcopy(model)
        times["surgeon"].append(clock(lambda: ours(mine, x)))  # noqa: B023 - run at once
        if not outcome.startswith("fails"):
            outcome = attempt(other, x, times["torch-pruning"])
        if breaks(mine, x):
            raise RuntimeError(f"surgeon's {name} {breaks(mine, x)}")
    middle = {key: median(values) if values else float("nan") for key, values in times.items()}
    speed_up = middle["torch-pruning"] / middle["surgeon"]
    over = middle["trace and labels"] - middle["forward"]
    return {
        "network": name,
        "calls": calls,
        **middle,
        "labels over forward": over,
        "speed-up": speed_up,
        "torch-pruning's": outcome,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in options.networks:
        rows.append(measure(name, options.rounds))
        print(name, rows[-1]["speed-up"], flush=True)
    publish("compile_time", "Compile time in seconds, medians", rows, [__doc__.partition("\n\n")[2]])


if __name__ == "__main__":
    main()
