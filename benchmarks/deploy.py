"""Latency of ResNet-50 cut to half of its FLOPs, in ONNX Runtime on the CPU, beside the original.

All models run in turn in one process, in an order that is reversed every other round; "speed-up" is the median over
the rounds of the original's time by the small model's in the same round, with half the width of its 95% interval.
Weights are random, which does not matter for latency: what goes is chosen by the budget, with widths that are multiples
of ``round_to``. The files are those of ``surgeon.export``, checked against the model. Where other processes keep the
cores busy, ``--clock cpu`` measures the time that this process ran, which is the latency on one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision.models as tv
from torch import nn

import surgeon
from benchmarks.tables import publish
from surgeon.latency import measure

# Name of a row -> how the plan is made.
PLANS: dict[str, dict[str, Any]] = {
    "half the FLOPs": {"flops": 0.5},
    "half the FLOPs, round_to=8": {"flops": 0.5, "round_to": 8},
    "half the FLOPs, round_to=16": {"flops": 0.5, "round_to": 16},
    "half the FLOPs, round_to=32": {"flops": 0.5, "round_to": 32},
}


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def cut(model: nn.Module, x: torch.Tensor, options: dict[str, Any]) -> tuple[nn.Module, surgeon.Plan]:
    graph = surgeon.trace(model, x)
    plan = surgeon.plan(graph, surgeon.score(graph, "l1"), **options)
    assert isinstance(plan, surgeon.Plan)
    return surgeon.operate(model, plan), plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=224, help="of the image, in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120.0, help="for the measurement, about")
    parser.add_argument("--runs", type=int, default=25, help="rounds at least")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--name", default="deploy", help="of the files in benchmarks/results")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, x = tv.resnet50().eval(), torch.randn(options.batch, 3, options.side, options.side)
    made = {name: cut(model, x, how) for name, how in PLANS.items()}
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        for small, _ in made.values():
            differences.append(surgeon.export(small, Path(folder) / "small.onnx", x).difference)
    models = [model, *(small for small, _ in made.values())]
    settings = {"runs": options.runs, "seconds": options.seconds, "clock": CLOCKS[options.clock]}
    found = measure(*models, example_inputs=x, backend="onnxruntime", precision=0.01, **settings)
    rows: list[dict[str, Any]] = [
        {"model": "ResNet-50", "FLOPs": "100%", "parameters": "100%", "ms": 1e3 * found.seconds[0], "speed-up": "1"}
    ]
    for i, (name, (_, plan)) in enumerate(made.items(), start=1):
        ratio, half = found.ratios[i], found.spread[i]
        rows.append(
            {
                "model": name,
                "FLOPs": f"{plan.totals['flops'][1] / plan.totals['flops'][0]:.1%}",
                "parameters": f"{plan.totals['params'][1] / plan.totals['params'][0]:.1%}",
                "ms": 1e3 * found.seconds[i],
                "speed-up": f"{1 / ratio:.2f} ± {half / ratio**2:.2f}",
            }
        )
    notes = [
        " ".join(__doc__.partition("\n\n")[2].split()),
        f"Batch {options.batch}, {options.side} pixels, {found.runs} rounds, {found.threads} threads, {options.clock} "
        f"clock; the files are within {max(differences):.1e} of the models.",
    ]
    publish(options.name, "ResNet-50 at half of its FLOPs in ONNX Runtime", rows, notes)


if __name__ == "__main__":
    main()
