"""What ``surgeon.prune`` does, one stage at a time: trace, explain, score, plan, operate, verify, compare.

python examples/stages.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import surgeon


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


class ResidualNet(nn.Module):
    """A stem, two blocks and a classifier, [n, 3, h, w] -> [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.block1 = Block(32, 64)
        self.block2 = Block(32, 64)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.stem(x)))
        return self.head(x.mean((2, 3)))


def title(text: str) -> None:
    print(f"\n== {text}")


def main() -> None:
    torch.manual_seed(0)
    model = ResidualNet()
    x = torch.randn(1, 3, 32, 32)

    title("trace: run the model once and find what has to be cut together")
    graph = surgeon.trace(model, x, keep={"out": "stem"})
    print(graph)
    for group in graph.groups:
        print(f"  {group.name}: {group.size} units, {group.pinned or 'free'}")

    title("explain: why a layer can or can't be cut")
    print(graph.explain("block1.conv1"))
    print(graph.explain("head"))

    title("layers: the same as a networkx graph")
    for upstream, layer in graph.layers.edges:
        print(f"  {upstream} -> {layer}")

    title("score: how important each unit is")
    scores = surgeon.score(graph, "l2")
    for name, values in scores.items():
        print(f"  {name}: {len(values)} units, from {values.min():.3f} to {values.max():.3f}")

    title("plan: what goes; nothing is cut yet")
    plan = surgeon.plan(graph, scores, flops=0.5, round_to=4)
    print(plan)
    for group_cut in plan.groups:
        print(f"  {group_cut}")
    for edit in plan.edits:
        print(f"  {edit}")

    title("operate: a smaller copy")
    small = surgeon.operate(model, plan)
    print(small.block1)

    title("verify: the original with the removed weights masked computes the same")
    print(surgeon.verify(model, small, plan, x))

    title("compare: before and after")
    print(surgeon.compare(model, small, x))


if __name__ == "__main__":
    main()
