"""Teach surgeon an operator of your own, one that torch can't look into, in one line.

    python examples/custom_op.py

Without a rule, an unknown operator pins what it touches and nothing else. A rule says which dimensions belong together,
and every cut is proved against the masked original: a rule that is wrong is found out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import surgeon


@torch.library.custom_op("example::soft_sign", mutates_args=())
def soft_sign(x: Tensor, slope: Tensor) -> Tensor:
    """A stand-in for a kernel of your own, x [n, c, h, w], slope [c] -> [n, c, h, w]."""
    return slope[:, None, None] * x / (1 + x.abs())


@torch.library.custom_op("example::blend", mutates_args=())
def blend(x: Tensor, amount: Tensor) -> Tensor:
    """Another: it adds the mean of all channels to each, x [n, c, h, w], amount [c] -> [n, c, h, w]."""
    return x + amount[:, None, None] * x.mean(1, keepdim=True)


class Net(nn.Module):
    """Two convolutions with a kernel of one's own behind the first, [n, 3, h, w] -> [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.numbers = nn.Conv2d(3, 32, 3, padding=1), nn.Parameter(torch.rand(32))
        self.conv2, self.head = nn.Conv2d(32, 64, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.kernel(self.conv1(x), self.numbers)
        return self.head(torch.relu(self.conv2(x)).mean((2, 3)))

    def kernel(self, x: Tensor, numbers: Tensor) -> Tensor:
        return soft_sign(x, numbers)


class Blended(Net):
    """The same with the other kernel."""

    def kernel(self, x: Tensor, numbers: Tensor) -> Tensor:
        return blend(x, numbers)


def main() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(1, 3, 16, 16)

    print("Without a rule:")
    print(surgeon.trace(model, x).explain("conv1"))

    surgeon.rule("example::soft_sign", "n c ..., c -> n c ...")
    print("\nWith one:")
    print(surgeon.trace(model, x).explain("conv1"))
    result = surgeon.prune(model, x, ratio=0.5, scope="local")
    print(f"\n{result.model.conv1}, numbers {list(result.model.numbers.shape)}\n{result.proof}")

    # The same line is wrong for an operator that looks at all channels at once: c would have to be written as *.
    surgeon.rule("example::blend", "n c ..., c -> n c ...")
    try:
        surgeon.prune(Blended(), x, ratio=0.5, scope="local")
    except surgeon.SurgeonError as error:
        print(f"\nA rule that is wrong: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
