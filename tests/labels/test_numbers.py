"""A width that the model computes with, as a number, can't change: the layers that it belongs to stay."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon


class Correlation(nn.Module):
    """Products of two feature maps at all pairs of pixels, scaled by a function of their width."""

    def __init__(self, scaled: Callable[[Tensor, int], Tensor], attribute: bool) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 1)
        self.right = nn.Conv2d(3, 8, 1)
        self.mix = nn.Conv2d(16, 6, 1)
        self.head = nn.Conv2d(6, 3, 1)
        self.scaled, self.attribute = scaled, attribute

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.left(x), self.right(x)
        width = self.left.out_channels if self.attribute else a.shape[1]
        pairs = a.flatten(2).transpose(1, 2) @ b.flatten(2)
        return self.head(self.mix(self.scaled(pairs.unflatten(2, x.shape[2:]), width)))


def written(x: Tensor, c: int) -> Tensor:
    x = x.clone()
    x[0, 0] = c
    return x


ROW = torch.linspace(1, 2, 20, dtype=torch.float64).square()

# 1.0 / c and math.log(c) read the integer without asking it; the proof finds them
NUMBERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "div": lambda x, c: x / c,
    "rdiv": lambda x, c: c / (x * x + 1),
    "add": lambda x, c: x + c,
    "alpha": lambda x, c: torch.add(x, x, alpha=c),
    "half": lambda x, c: x * (c * 0.5),
    "negative": lambda x, c: x * -c,
    "shift": lambda x, c: x * (c >> 1),
    "divmod": lambda x, c: x * divmod(c, 2)[0],
    "round": lambda x, c: x * round(c),
    "sqrt": lambda x, c: x / math.sqrt(c),
    "pow": lambda x, c: x * c**-0.5,
    "exponent": lambda x, c: x.abs().pow(c),
    "tensor": lambda x, c: x / torch.sqrt(torch.tensor(c)),
    "list": lambda x, c: x / torch.tensor([c]),
    "as_tensor": lambda x, c: x / torch.as_tensor(c),
    "full": lambda x, c: x / torch.full((1,), c),
    "fill_value": lambda x, c: x / torch.full((1,), fill_value=c),
    "new_full": lambda x, c: x / x.new_full((1,), c),
    "full_like": lambda x, c: x / torch.full_like(x, c),
    "fill": lambda x, c: x / torch.empty_like(x).fill_(c),
    "arange": lambda x, c: x * torch.arange(c).to(x.dtype).mean(),
    "linspace": lambda x, c: x * torch.linspace(0, c, 3).to(x.dtype).mean(),
    "where": lambda x, c: torch.where(x > 0, x, c),
    "setitem": written,
    # sizes of what has nothing to do with the width
    "index": lambda x, c: x * ROW[c],
    "select": lambda x, c: x * ROW.select(0, c),
    "slice start": lambda x, c: x * ROW[c:].mean(),
    "slice stop": lambda x, c: x * ROW[:c].mean(),
    "slice to the end": lambda x, c: x * ROW[:8][:c].mean(),
    "slice step": lambda x, c: x * ROW[::c].mean(),
    "narrow": lambda x, c: x * ROW.narrow(0, c, 2).mean(),
    "topk": lambda x, c: x * ROW.topk(c).values.mean(),
    "chunk": lambda x, c: x * ROW.chunk(c)[0].mean(),
    "roll": lambda x, c: x * ROW.roll(c)[0],
    "repeat_interleave": lambda x, c: x * ROW[:3].repeat_interleave(c)[9],
    "pool": lambda x, c: x * F.adaptive_max_pool1d(ROW[None], c).mean(),
    "interpolate": lambda x, c: x * F.interpolate(ROW[None, None], size=c, mode="linear").square().mean(),
    "fft": lambda x, c: x * torch.fft.rfft(ROW, n=c).abs().mean(),
    "pad": lambda x, c: x * F.pad(ROW, (0, c)).mean(),
    "no padding": lambda x, c: x * F.pad(ROW, (0, 8 - c)).mean(),
}


@pytest.mark.parametrize("attribute", [False, True])
@pytest.mark.parametrize("name", NUMBERS)
def test_the_width_stays_and_the_rest_is_cut(name: str, attribute: bool) -> None:
    model = Correlation(NUMBERS[name], attribute).double()
    result = surgeon.prune(model, torch.randn(1, 3, 4, 4, dtype=torch.float64), ratio=0.5)
    assert result.model.left.out_channels == 8
    assert result.model.mix.out_channels == 3
    assert "left" in result.plan.pins


def test_an_integer_that_no_cut_changes_pins_nothing() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = 4
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x * self.factor) / torch.tensor(self.factor)

    result = surgeon.prune(Scaled(), torch.randn(2, 4), ratio=0.5)
    assert result.model.layers[0].out_features == 4


def test_bounds_counted_from_the_end_follow_the_cut() -> None:
    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 6
            self.first, self.second = nn.Linear(4, 6), nn.Linear(4, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat([self.first(x), self.second(x)], 1)
            return self.head(both[:, : -self.width] + both[:, -self.width :])

    result = surgeon.prune(Tail(), torch.randn(2, 4), ratio=0.5)
    assert result.model.width == 3
