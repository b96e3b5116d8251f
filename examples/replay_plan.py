"""Review a plan, compare it with another, and apply it to other checkpoints without tracing anything again.

    python examples/replay_plan.py

A plan is a JSON file: it can be read before anything is cut, discussed, kept under version control, and replayed, on
the moving average of the weights or on an early checkpoint to rewind to. And a small model can be kept as its plan and
a plain state dict, with nothing pickled.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import surgeon


class Net(nn.Module):
    """Two convolutions in a row and a classifier, [n, 3, h, w] -> [n, 10]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, stride=2)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv2(self.conv1(x).relu()).relu().mean((2, 3)))


def train(model: nn.Module, average: nn.Module, steps: int = 20) -> None:
    """Take a few steps on noise, and keep a moving average of the weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(32, 3, 16, 16)), torch.randint(10, (32,))).backward()
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(average.parameters(), model.parameters()):
                old.lerp_(new, 0.1)


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 16, 16)
    model = Net()
    average = copy.deepcopy(model)
    train(model, average)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.plan.json")
        result = surgeon.prune(model, x, flops=0.5)
        result.plan.save(path)
        torch.save(result.model.state_dict(), Path(folder, "small.pt"))
        print(f"saved {path.name}, {path.stat().st_size} bytes")

        # Review: what goes, what that costs, what stays and why.
        plan = surgeon.Plan.load(path)
        print(f"\n{plan.summary()}")
        other = surgeon.prune(model, x, flops=0.5, criterion="l2").plan
        print(f"\nchosen by L2 norms instead of L1:\n{plan.diff(other)}")

        # Replay: on the moving average of the weights, which was trained along.
        small = surgeon.operate(average, plan)
        print(f"\nthe moving average, cut alike: {small.conv1}")
        print(surgeon.verify(average, small, plan, x))

        # A small model on disk is its plan and its state dict. To have it back, cut a new model and load the weights.
        again = surgeon.operate(Net(), plan)
        again.load_state_dict(torch.load(Path(folder, "small.pt"), weights_only=True))
        assert torch.equal(again(x), result.model(x))
        print("\nthe small model, rebuilt from its plan and state dict, gives the same outputs")

    try:
        surgeon.operate(Net(width=48), plan)
    except surgeon.SurgeonError as error:
        print(f"\na plan fits one architecture: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
