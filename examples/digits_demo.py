"""Train a small residual network on handwritten digits, cut it to half of its FLOPs, and fine-tune it.

    make demo        or        python examples/digits_demo.py

The 1797 digits of 8 x 8 pixels come with scikit-learn: nothing is downloaded. It takes about 20 seconds.

What to look for in the output: right after the cut the model seems to have forgotten everything, but most of that is
batch norm, whose running statistics describe channels that have lost half of their inputs. One pass over the training
digits puts them right; a few epochs of fine-tuning bring the rest back.
"""

from __future__ import annotations

import copy
import time

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon

Split = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a convolution of its own where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class DigitNet(nn.Module):
    """A residual network for images of 8 x 8 pixels, [n, 1, 8, 8] -> [n, 10]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = nn.Sequential(Block(width, width), Block(width, width))
        self.layer2 = nn.Sequential(Block(width, 2 * width, stride=2), Block(2 * width, 2 * width))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


def load() -> tuple[Split, Split, Split]:
    """Return the training, validation and test digits, 60 / 20 / 20 per cent, each digit in the same proportion."""
    pixels, labels = load_digits(return_X_y=True)
    rest, test, rest_y, test_y = train_test_split(pixels, labels, test_size=0.2, stratify=labels, random_state=0)
    train, val, train_y, val_y = train_test_split(rest, rest_y, test_size=0.25, stratify=rest_y, random_state=0)

    def split(x: object, y: object) -> Split:
        return torch.as_tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.as_tensor(y)

    return split(train, train_y), split(val, val_y), split(test, test_y)


@torch.no_grad()
def accuracy(model: nn.Module, data: Split) -> float:
    """Return the share of digits that are named right."""
    model.eval()
    images, labels = data
    return float((model(images).argmax(1) == labels).float().mean())


def fit(model: nn.Module, train: Split, val: Split, epochs: int, rate: float) -> None:
    """Train, and end with the weights that did best on the validation digits."""
    images, labels = train
    batches = -(-len(images) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches)
    best, weights = -1.0, copy.deepcopy(model.state_dict())
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(images)).chunk(batches):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
        found = accuracy(model, val)
        if found >= best:
            best, weights = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)


@torch.no_grad()
def recalibrate(model: nn.Module, images: Tensor) -> None:
    """Take the batch-norm statistics of a model anew, as plain averages; weights stay as they are."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # average over all batches
    model.train()
    for batch in images.split(256):
        model(batch)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def main() -> None:
    start = time.perf_counter()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the tensors are so small that a second thread would mostly wait for the first
    train, val, test = load()
    model = DigitNet()
    print(f"Training on {len(train[0])} digits ...", flush=True)
    fit(model, train, val, epochs=30, rate=4e-3)
    before = accuracy(model, test)

    result = surgeon.prune(model, train[0][:1], flops=0.5)
    small = result.model
    cut = accuracy(small, test)
    recalibrate(small, train[0])
    recalibrated = accuracy(small, test)
    fit(small, train, val, epochs=5, rate=1e-3)
    tuned = accuracy(small, test)

    print(f"\n{result.plan}\n\nProof: {result.proof}\n")
    print(f"Accuracy on {len(test[0])} test digits")
    print(f"  before                        {before:6.1%}")
    print(f"  after the cut                 {cut:6.1%}")
    print(f"  batch norm recalibrated       {recalibrated:6.1%}")
    print(f"  after 5 epochs of fine-tuning {tuned:6.1%}\n")
    print(result.report)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
