"""Statistics over survivors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from surgeon.verify.reference import moments


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_moments_of_rows_with_and_without_survivors(dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, 3.0, 100.0], [5.0, 6.0, 7.0]], dtype=dtype)
    keep = torch.tensor([[True, True, False], [False, False, False]])
    mean, variance = moments(x, keep, [1])
    assert mean.flatten().tolist() == [2.0, 0.0]
    assert variance.flatten().tolist() == [1.0, 0.0]


class GroupDeviation(nn.Module):
    """Divides by the standard deviation of each group of channels, in single precision, as EvoNorm-S0 does."""

    def __init__(self, groups: int = 3, width: int = 24) -> None:
        super().__init__()
        self.groups = groups
        self.stem = nn.Conv2d(3, width, 1)
        self.scale = nn.Parameter(torch.rand(width))
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        rows = x.reshape(b, self.groups, c // self.groups, h, w)
        deviation = rows.float().var(dim=(2, 3, 4), unbiased=False, keepdim=True).add(1e-5).sqrt().to(x.dtype)
        x = x * self.scale.view(1, -1, 1, 1) / deviation.expand(rows.shape).reshape(b, c, h, w)
        return self.head(x)


@pytest.mark.parametrize("heads", [False, True])
def test_groups_are_cut_under_a_statistic_in_single_precision(heads: bool) -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    result = surgeon.prune(GroupDeviation().double(), x, ratio=0.5, scope="local", heads=heads)
    assert result.proof is not None
    assert result.model.stem.out_channels < 24


class Shares(nn.Module):
    """Each group of channels is divided by the sum over all its pixels, so a group that is cut is divided by zero."""

    def __init__(self, groups: int = 4, width: int = 8) -> None:
        super().__init__()
        self.groups = groups
        self.stem = nn.Conv2d(3, width, 1)
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).unflatten(1, (self.groups, -1))
        x = x / x.sum(dim=(2, 3, 4), keepdim=True)
        return self.head(x.flatten(1, 2))


def test_groups_are_cut_under_a_quotient() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    model = Shares().double()
    graph = surgeon.trace(model, x)
    plan = surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.5, scope="local", heads=True)
    small = surgeon.operate(model, plan)
    assert small.groups == 2
    surgeon.verify(model, small, plan, x)


# What zeros, or a default of the op, would get wrong where positions are cut.
STATISTICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "one over": lambda x, p: x * (1.0 / p),
    "reciprocal": lambda x, p: x * p.reciprocal(),
    "reciprocal in place": lambda x, p: x * (p * 1).reciprocal_(),
    "root": lambda x, p: x * p.square().rsqrt(),
    "negative power": lambda x, p: x * p**-3,
    "log_softmax": lambda x, p: F.log_softmax(x, -1),
    "largest of integers": lambda x, p: x * (9 * x - 40).long().amax(1, keepdim=True),
    "largest of flags": lambda x, p: x * (1 + (x > 9).amax(1, keepdim=True)),
    "smallest norm": lambda x, p: x * torch.linalg.vector_norm(x, float("-inf"), 1, keepdim=True),
    "biased": lambda x, p: x * x.var(False),
}


class Between(nn.Module):
    """Two layers with a function of activations and of a parameter between them."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 2)
        self.weight = nn.Parameter(torch.rand(8) + 0.5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x), self.weight))


@pytest.mark.parametrize("name", STATISTICS)
def test_what_is_cut_has_no_say(name: str) -> None:
    torch.manual_seed(0)
    result = surgeon.prune(Between(STATISTICS[name]).double(), torch.randn(3, 5, dtype=torch.float64), ratio=0.5)
    assert result.model.first.out_features == 4


def test_groups_are_cut_under_a_maximum() -> None:
    class Maxout(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).unflatten(1, (-1, 2)).amax(2))

    result = surgeon.prune(Maxout().double(), torch.randn(3, 5, dtype=torch.float64), ratio=0.5)
    assert result.model.first.out_features == 4 and result.model.last.in_features == 2
