"""How long the HTML report takes: to attach to ``prune``, to write, and to open in headless Chromium.

A page is open when the load event is over and the dependency graph is drawn. Each is opened in a fresh context, medians
of five after one that warms the browser up.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision.models as tv
from playwright.sync_api import sync_playwright
from torch import nn

import surgeon
from benchmarks.tables import publish
from surgeon.dissect import dissect

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": tv.resnet50,
    "densenet201": tv.densenet201,
    "vit_b_16": tv.vit_b_16,
}


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def open_page(browser: Any, path: Path) -> float:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    start = time.perf_counter()
    page.goto(path.as_uri())
    page.wait_for_selector("#graph-canvas[data-ready]")
    taken = time.perf_counter() - start
    context.close()
    return taken


def measure(browser: Any, name: str, folder: Path, runs: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model, x = NETWORKS[name](), torch.randn(1, 3, 224, 224)
    start = time.perf_counter()
    result = surgeon.prune(model, x, flops=0.5)
    pruned = time.perf_counter() - start
    graph = surgeon.trace(model, x)
    scores = surgeon.score(graph, "l1")
    attached = median(seconds(lambda: dissect(graph, scores, result.plan)) for _ in range(runs))
    path = folder / f"{name}.html"
    written = median(seconds(lambda: result.report.to_html(path)) for _ in range(runs))
    open_page(browser, path)
    opened = median(open_page(browser, path) for _ in range(runs))
    return {
        "network": name,
        "calls": sum(result.report.anatomy.ops.values()),
        "layers": len(result.report.anatomy.layers),
        "prune": pruned,
        "of which anatomy": attached,
        "write": written,
        "megabytes": path.stat().st_size / 1e6,
        "open": opened,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        rows = [measure(browser, name, Path(folder), given.runs) for name in given.networks]
        browser.close()
    publish("page", "The HTML report: seconds, medians", rows, [__doc__.partition("\n\n")[2]])


if __name__ == "__main__":
    main()
