"""Two tiny networks that most tests need."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Stem, one residual block, head: a stream of ``width`` channels and ``inner`` channels inside the block."""

    def __init__(self, width: int = 8, inner: int = 12, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(torch.relu(self.bn1(self.conv1(x))))
        return self.head(x.mean((2, 3)))


class Perceptron(nn.Module):
    """Linear, ReLU, Linear."""

    def __init__(self, width: int = 6, hidden: int = 10, classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.last = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


def image(side: int = 6) -> Tensor:
    return torch.randn(2, 3, side, side)
