"""ONNX files of small models against the models: published networks and transformers, each cut in half.

Every file is run in ONNX Runtime on the example and on random inputs of another batch; "difference" is the largest
one of an output, relative to its largest value, and at most 1e-4. "batch" says whether the batch of the file is free.
Where it can't be, the reason is torch's, and the file has the example's shapes. What torch can't export of the original
either is listed as such.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import surgeon
from benchmarks.tables import publish
from tests.zoo import hugging_face
from tests.zoo.networks import NETWORKS, network

Make = Callable[[], tuple[nn.Module, Any]]


def models() -> dict[str, Make]:
    published = {name: partial(network, name, torch.float32) for name in NETWORKS}
    return {**published, **hugging_face.entries()}


def attempt(make: Make, folder: Path) -> dict[str, Any]:
    """Cut a model in half, export it, and say how close the file came."""
    torch.manual_seed(0)
    model, x = make()
    small = surgeon.prune(model, x, ratio=0.5, scope="local", check=False).model
    reasons = []
    for dynamic in (True, False):
        try:
            done = surgeon.export(small, folder / "small.onnx", x, dynamic=dynamic)
        except surgeon.SurgeonError as error:
            reasons.append(str(error))
            continue
        return {"batch": "free" if dynamic else "fixed", "difference": done.difference, "inputs": done.checked[-1]}
    return {"batch": "-", "difference": "-", "inputs": _blame(model, x, folder, reasons[-1])}


def _blame(model: nn.Module, x: Any, folder: Path, reason: str) -> str:
    """Say whether the original can be exported where the small model can't."""
    try:
        surgeon.export(model, folder / "whole.onnx", x, dynamic=False)
    except surgeon.SurgeonError as error:
        return f"torch can't export the original: {error}"
    return f"FAILED: {reason}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="globs of names")
    parser.add_argument("--name", default="export", help="of the files in benchmarks/results")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, make in models().items():
            if options.only and not any(fnmatch.fnmatch(name, pattern) for pattern in options.only):
                continue
            start = time.perf_counter()
            row = {"model": name, **attempt(make, Path(folder))}
            print(row, f"{time.perf_counter() - start:.0f} s", flush=True)
            rows.append(row)
            gc.collect()
    good = [row for row in rows if row["difference"] != "-"]
    notes = [__doc__.partition("\n\n")[2].strip().replace("\n", " "), f"{len(good)} of {len(rows)} models."]
    publish(options.name, "ONNX files of small models", rows, notes)


if __name__ == "__main__":
    main()
