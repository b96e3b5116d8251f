"""Cut a network to half of its FLOPs, then to eight bits in ONNX Runtime; count what each costs in accuracy.

    python examples/quantize_onnx.py

Needs the extra ``export`` and scikit-learn, whose digits it reads: pip install 'channel-surgeon[export]' scikit-learn.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from sklearn.datasets import load_digits
from torch import Tensor, nn

import surgeon


class Digits(nn.Module):
    """A small convolutional network, [n, 1, 8, 8] -> [n, 10]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(8 * width, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(image)))
        x = nn.functional.max_pool2d(torch.relu(self.norm2(self.conv2(x))), 4)
        return self.head(x.flatten(1))


class Batches(CalibrationDataReader):
    """Batches that ONNX Runtime reads the ranges of activations from."""

    def __init__(self, images: Tensor, size: int = 64) -> None:
        self.left: Iterator[Tensor] = iter(images.split(size))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.left, None)
        return None if batch is None else {"image": batch.numpy()}


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        at = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[at]), labels[at]).backward()
        optimizer.step()
    model.eval()


def accuracy(path: Path, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that a file gets right."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images.numpy()})
    return float((torch.from_numpy(logits).argmax(1) == labels).float().mean())


def quantize(path: Path, images: Tensor) -> Path:
    """Write the file's network with weights and activations of eight bits, ranges from some images."""
    ready, small = path.with_suffix(".ready.onnx"), path.with_suffix(".int8.onnx")
    quant_pre_process(path, ready, skip_symbolic_shape=True)
    quantize_static(
        ready,
        small,
        Batches(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )
    return small


def main(folder: Path) -> None:
    torch.manual_seed(0)
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(images))
    held, used = order[:400], order[400:]
    model = Digits()
    train(model, images[used], labels[used], 300)
    small = surgeon.prune(model, images[:1], flops=0.5, round_to=8).model
    train(small, images[used], labels[used], 150)

    files = {}
    for name, each in (("whole", model), ("small", small)):
        files[name] = surgeon.export(each, folder / f"{name}.onnx", images[:2]).path
    files["small, 8 bits"] = quantize(files["small"], images[used][:256])
    right = {name: accuracy(path, images[held], labels[held]) for name, path in files.items()}
    for name, path in files.items():
        print(f"{name:14} {path.stat().st_size / 1e3:7.1f} kB  {right[name]:.1%} of the digits it has not seen")
    assert right["small, 8 bits"] > right["small"] - 0.02, "eight bits cost more than they should"


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.ERROR)  # the quantizer has advice for models of other kinds
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
