"""Cut a network, write it as ONNX with a free batch, and run the file with ONNX Runtime alone.

    python examples/deploy_onnx.py [FOLDER]

Needs the extra ``export``: pip install 'channel-surgeon[export]'. The plan is kept beside the file, for review.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import surgeon


class Block(nn.Module):
    """Two convolutions around a shortcut, [n, c, h, w] -> [n, c, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class Net(nn.Module):
    """A stem, three blocks and a classifier, [n, 3, h, w] -> [n, 10]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(3)])
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.stem(image))).mean((2, 3)))


def milliseconds(sessions: list[onnxruntime.InferenceSession], image: np.ndarray, rounds: int = 15) -> list[float]:
    """Run files in turn, and return the median time of each."""
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds):
        for session, mine in zip(sessions, times):
            start = time.perf_counter()
            session.run(None, {"image": image})
            mine.append(1e3 * (time.perf_counter() - start))
    return [median(mine) for mine in times]


def main(folder: Path) -> None:
    torch.manual_seed(0)
    model, example = Net(), torch.randn(1, 3, 32, 32)
    result = surgeon.prune(model, example, flops=0.5, round_to=8)
    print(result.plan)
    result.plan.save(folder / "small.plan.json")
    files = [
        surgeon.export(each, folder / f"{name}.onnx", example)
        for name, each in (("whole", model), ("small", result.model))
    ]
    for file in files:
        print(file)
    sessions = [onnxruntime.InferenceSession(file.path, providers=["CPUExecutionProvider"]) for file in files]
    for batch in (1, 4):
        image = np.random.default_rng(0).standard_normal((batch, 3, 32, 32), np.float32)
        whole, small = milliseconds(sessions, image)
        print(f"batch {batch}: {whole:.2f} ms before, {small:.2f} ms after")
    (logits,) = sessions[1].run(None, {"image": image})
    assert logits.shape == (4, 10)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
