"""Prune a small residual network while it learns handwritten digits, with each kind of schedule.

    python examples/prune_while_training.py

Every run trains for the same number of steps, with the same batches, and ends at 0.3 of the original's FLOPs. The 1797
digits of 8 x 8 pixels come with scikit-learn: nothing is downloaded. It takes less than a minute.
"""

from __future__ import annotations

import time

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon import schedule

EPOCHS, BATCH = 14, 64
Split = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def network() -> nn.Module:
    """Return a residual network for images of 8 x 8 pixels, [n, 1, 8, 8] -> [n, 10]."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
    return nn.Sequential(
        stem, nn.MaxPool2d(2), Block(24), Block(24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)
    )


def load() -> tuple[Split, Split]:
    """Return the training and the test digits."""
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels, labels, test_size=0.3, stratify=labels, random_state=0)
    train, test, train_y, test_y = (torch.as_tensor(part) for part in parts)
    return (train.float().view(-1, 1, 8, 8) / 16, train_y), (test.float().view(-1, 1, 8, 8) / 16, test_y)


@torch.no_grad()
def accuracy(model: nn.Module, data: Split) -> float:
    """Return the share of digits that are named right."""
    images, labels = data
    return float((model.eval()(images).argmax(1) == labels).float().mean())


def fit(data: Split, plan: schedule.Schedule | None, **options: object) -> tuple[nn.Module, surgeon.Pruner | None]:
    """Train from scratch, and prune on the way where there is a schedule."""
    model = network().train()
    images, labels = data
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    pruner = None
    if plan is not None:
        pruner = surgeon.Pruner(model, images[:1], plan, optimizer=optimizer, **options)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for batch in order[: len(images) // BATCH * BATCH].split(BATCH):
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            if pruner is not None:
                pruner.step()
            optimizer.zero_grad()
            rate.step()
    return model, pruner


def main() -> None:
    train, test = load()
    epoch = len(train[0]) // BATCH
    span = 8 * epoch
    target = {"flops": 0.3}
    runs: dict[str, tuple[schedule.Schedule | None, dict[str, object]]] = {
        "not pruned": (None, {}),
        "one-shot": (schedule.one_shot(at=span // 2, **target), {}),
        "iterative": (schedule.iterative(times=4, every=2 * epoch, **target), {}),
        "gradual": (schedule.gradual(steps=span, every=epoch // 2, **target), {}),
        "gradual, taylor": (schedule.gradual(steps=span, every=epoch // 2, **target), {"criterion": "taylor"}),
        "gradual, soft": (schedule.gradual(steps=span, every=epoch // 2, **target), {"soft": True}),
        "exponential": (schedule.exponential(steps=span, every=epoch // 2, **target), {}),
        "custom": (schedule.custom(lambda p: {"flops": 1 - 0.7 * p**0.5}, steps=span, every=epoch // 2), {}),
    }
    print(f"{'schedule':16} {'cuts':>4} {'FLOPs':>6} {'parameters':>10} {'test accuracy':>13} {'seconds':>7}")
    for name, (plan, options) in runs.items():
        start = time.perf_counter()
        model, pruner = fit(train, plan, **options)
        left = {"flops": 1.0, "params": 1.0} if pruner is None else pruner.shares()
        cuts = 0 if pruner is None else len(pruner.history)
        seconds = time.perf_counter() - start
        row = f"{name:16} {cuts:4} {left['flops']:6.1%} {left['params']:10.1%}"
        print(f"{row} {accuracy(model, test):13.1%} {seconds:7.1f}", flush=True)


if __name__ == "__main__":
    main()
