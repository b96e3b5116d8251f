"""Budgets where groups are rows and columns of one table: what they have in common goes only once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgeon


class Crossed(nn.Module):
    """Softmax over heads ties the columns of all heads, so that heads and columns both may go."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 8, 16
        self.enter, self.leave = nn.Linear(10, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.enter(x).view(x.shape[0], self.heads, self.width).softmax(1).flatten(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 8, 16
        self.qkv, self.out = nn.Linear(12, 384), nn.Linear(128, 12)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, t, self.heads * self.width))


CASES = [(Crossed, torch.randn(3, 10), False), (Attention, torch.randn(2, 5, 12), "both")]


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3, 0.1])
@pytest.mark.parametrize(("kind", "x", "heads"), CASES, ids=["crossed", "nested"])
def test_the_bound_is_kept_and_nearly_reached(
    kind: type[nn.Module], x: Tensor, heads: bool | str, share: float
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    graph = surgeon.trace(model, x)
    plan = surgeon.plan(graph, surgeon.score(graph, "l1"), flops=share, floor=0, heads=heads)
    small = surgeon.operate(model, plan)
    proof = surgeon.verify(model, small, plan, x)
    before, after = plan.totals["flops"]
    assert share - 0.1 < after / before <= share
    assert small.enter.out_features == small.heads * small.width if kind is Crossed else proof.difference < 1e-9


def test_heads_says_what_goes() -> None:
    model, x = Attention().eval(), torch.randn(2, 5, 12)
    graph = surgeon.trace(model, x)
    scores = surgeon.score(graph, "l1")
    left = {}
    for heads in (True, False, "both"):
        small = surgeon.operate(model, surgeon.plan(graph, scores, ratio=0.5, scope="local", heads=heads))
        left[heads] = (small.heads, small.width)
    assert left == {True: (4, 16), False: (8, 8), "both": (4, 8)}
    with pytest.raises(surgeon.SurgeonError, match="heads='some'"):
        surgeon.plan(graph, scores, ratio=0.5, heads="some")
