"""Latency asked for, predicted and measured: ``latency=0.6`` on three networks.

Latency is p50 of the original and the result, run in turn; numbers are shares of the original's. "predicted" is what
the model of latency said of the chosen plan before it was measured, "first" what it said of the first plan, and what
that one took. "check" is one more measurement at the end by the wall clock, which no choice depended on. "search" is
what the search took, in seconds; the first run of a network fills the cache, the others find it filled.

Where other processes keep the cores busy, ``--clock cpu`` searches by the time that this process ran, which they don't
take part in; that is only the latency where the model runs on one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision.models as tv
from torch import nn

import surgeon
from benchmarks.tables import publish
from surgeon.graph import DependencyGraph
from surgeon.latency import measure, within_latency
from surgeon.plan import plan as make_plan
from surgeon.plan.allocate import Budget
from surgeon.plan.cost import Cost

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": tv.resnet50,
    "mobilenet_v2": tv.mobilenet_v2,
    "vit_s": lambda: timm.create_model("vit_small_patch16_224"),
}

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def solver(graph: DependencyGraph, round_to: int, floor: float) -> Callable[[Cost, float], surgeon.Plan]:
    """Return a function from a cost and a bound on it to a plan, by L1 norm."""
    scores = surgeon.score(graph, "l1")

    def solve(cost: Cost, seconds: float) -> surgeon.Plan:
        bound = Budget("latency", cost, seconds, f"{1e3 * seconds:.4g} ms")
        return make_plan(graph, scores, bounds=[bound], round_to=round_to, floor=floor)

    return solve


def attempt(name: str, batch: int, options: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Cut one network to the latency asked for, and measure the result once more."""
    torch.manual_seed(0)
    model, x = NETWORKS[name]().eval(), torch.randn(batch, 3, options.side, options.side)
    start = time.perf_counter()
    graph = surgeon.trace(model, x)
    solve = solver(graph, options.round_to, floor=0.1)
    settings = {"backend": options.backend, "round_to": options.round_to, "seconds": options.seconds}
    settings["clock"] = CLOCKS[options.clock]
    timed = within_latency(model, x, graph, options.latency, solve, cache=cache, **settings)
    took = time.perf_counter() - start
    small = surgeon.operate(model, timed.plan)
    check = measure(model, small, example_inputs=x, backend=options.backend, seconds=options.seconds)
    print(f"{name}, batch {batch}\n{timed}\ncheck: {check}", flush=True)
    chosen, first = timed.rounds[timed.chosen], timed.rounds[0]
    return {
        "network": name,
        "batch": batch,
        "first": f"{first.predicted:.3f} / {first.measured:.3f}",
        "predicted": chosen.predicted,
        "measured": chosen.measured,
        "check": f"{check.ratios[1]:.3f} ± {check.spread[1]:.3f}",
        "rounds": len(timed.rounds),
        "ms": f"{1e3 * check.seconds[0]:.3g} -> {1e3 * check.seconds[1]:.3g}",
        "search": took,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--runs", type=int, default=3, help="how often each network is cut from scratch")
    parser.add_argument("--latency", type=float, default=0.6)
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--side", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--seconds", type=float, default=20.0, help="for one measurement, about")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what the search goes by")
    parser.add_argument("--name", default="latency", help="of the files in benchmarks/results")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            for batch in options.batch:
                for run in range(1, options.runs + 1):
                    row = attempt(name, batch, options, Path(folder) / "latency.json")
                    rows.append({"network": row.pop("network"), "batch": row.pop("batch"), "run": run, **row})
                    title = f"Latency asked to be at most {options.latency}, {options.backend}, {options.clock} clock"
                    publish(options.name, title, rows, [__doc__.partition("\n\n")[2].strip()])


if __name__ == "__main__":
    main()
