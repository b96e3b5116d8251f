"""The root of a width that attention divides by: made up for in the query's layer, or the width stays."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from surgeon.errors import PlanMismatch, VerificationError
from tests.zoo.weights import randomize

# How models write the root that attention divides by.
ROOTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "power": lambda q, width: q * q.shape[-1] ** -0.5,
    "root": lambda q, width: q / math.sqrt(width),
    "reciprocal": lambda q, width: q * (1 / math.sqrt(width)),
    "twice": lambda q, width: q * (width**0.5 * 2) ** -1,
    "in place": lambda q, width: q.mul_(width**-0.5),
}


class Attention(nn.Module):
    """Self-attention with 3 heads of 8; ``kind`` says what happens to the query on its way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.heads, self.width = kind, 3, 8
        self.embed = nn.Linear(5, 12)
        self.qkv = nn.Linear(12, 72)
        self.q_norm = nn.LayerNorm(8) if kind == "norm" else nn.Identity()
        self.out = nn.Linear(24, 4)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, t, _ = x.shape
        shape = (b, t, 3, self.heads, self.width)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), k, v

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.split(x)
        if self.kind == "doubled":
            q = q * 2.0
        more = 0.0
        if self.kind == "read twice":
            more = q.exp().sum(dim=(1, 3)).unsqueeze(-1)
        if self.kind == "own key":
            k = q
        if self.kind == "added":
            more = self.width**-0.5
        if self.kind == "reflected":
            more = 1.0 / (3.0 + self.width**-0.5 / x.square().mean((1, 2), keepdim=True).add(1))
        if self.kind == "product":
            more = (torch.ones(1, dtype=x.dtype) * self.width**-0.5).sum()
        if self.kind == "in a list":
            scale = self.width**-0.5
            q, more = q * scale, torch.tensor([scale], dtype=x.dtype)
        if "scores" in self.kind:
            scores = q @ k.transpose(-2, -1)
            y = (scores / self.width**0.5).softmax(-1) @ v
            more = scores.tanh().mean() if self.kind == "scores read twice" else 0.0
        elif self.kind in ROOTS:
            y = (ROOTS[self.kind](q, self.width) @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            scale = {"explicit": 0.3, "in a list": 1.0}.get(self.kind)
            scale = self.width**-0.7 if self.kind == "computed" else scale
            y = F.scaled_dot_product_attention(q, k, v, scale=scale)
        if self.kind == "layer twice":
            q, k, v = self.split(x + 1)
            y = y + q
        return self.out(y.transpose(1, 2).flatten(2)) + more


def cut(kind: str) -> tuple[nn.Module, nn.Module, surgeon.Plan, surgeon.Proof]:
    torch.manual_seed(0)
    model = Attention(kind).double().eval()
    randomize(model)
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    graph = surgeon.trace(model, x)
    plan = surgeon.plan(graph, surgeon.score(graph, "random"), ratio=0.5, scope="local")
    small = surgeon.operate(model, plan)
    return model, small, plan, surgeon.verify(model, small, plan, x)


@pytest.mark.parametrize("kind", ["plain", "norm"])
def test_the_width_shrinks_and_the_query_makes_up_for_it(kind: str) -> None:
    _, small, plan, proof = cut(kind)
    assert proof.difference < 1e-12
    assert small.width == 4
    scaled = {scale.parameter for scale in plan.scales}
    assert scaled == ({"q_norm.weight", "q_norm.bias"} if kind == "norm" else {"qkv.weight", "qkv.bias"})
    assert [scale.factor for scale in plan.scales] == pytest.approx([0.5**0.5] * 2)


@pytest.mark.parametrize("kind", [*ROOTS, "computed", "scores"])
def test_however_the_root_is_written(kind: str) -> None:
    _, small, plan, proof = cut(kind)
    assert proof.difference < 1e-12 and small.width == 4
    assert {scale.parameter for scale in plan.scales} == {"qkv.weight", "qkv.bias"}
    power = 0.7 if kind == "computed" else 0.5
    assert [scale.factor for scale in plan.scales] == pytest.approx([0.5**power] * 2)


@pytest.mark.parametrize("kind", ["added", "scores read twice", "reflected", "product", "in a list"])
def test_other_uses_of_a_width_as_a_number_pin_it(kind: str) -> None:
    _, small, plan, proof = cut(kind)
    assert proof.difference < 1e-12 and small.width == 8 and not plan.scales


def test_only_the_rows_of_the_query_are_scaled() -> None:
    model, small, plan, _ = cut("plain")
    keep = plan.cuts["qkv.bias"].selections[0].keep
    factor = torch.where(torch.from_numpy(keep) < 24, 0.5**0.5, 1.0)
    torch.testing.assert_close(small.qkv.bias, model.qkv.bias[torch.from_numpy(keep)] * factor)


def test_without_the_factor_the_proof_fails() -> None:
    model, small, plan, _ = cut("plain")
    scale = next(s for s in plan.scales if s.parameter == "qkv.weight")
    with torch.no_grad():
        small.qkv.weight[: small.heads * small.width] /= scale.factor
    with pytest.raises(VerificationError):
        surgeon.verify(model, small, plan, torch.randn(2, 6, 5, dtype=torch.float64))


class Mixed(nn.Module):
    """Attention over tokens that can go too; flattened, the query has labels of its own, where it is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.back = nn.Linear(6, 10), nn.Linear(10, 6)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x.mT).mT
        q, k, v = self.q(x), self.k(x), self.v(x)
        y = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) @ v
        again = q.flatten(1).tanh().unflatten(1, (x.shape[1], q.shape[-1]))
        return self.out(self.back((y + again).mT).mT)


def test_the_width_stays_where_the_query_is_read_again_under_new_labels() -> None:
    torch.manual_seed(0)
    model = Mixed().double().eval()
    randomize(model)
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    result = surgeon.prune(model, x, ratio=0.5, criterion="random", scope="local")
    assert result.model.q.out_features == 8 and not result.plan.scales
    assert result.model.tokens.out_features == 5


@pytest.mark.parametrize("kind", ["doubled", "read twice", "own key", "layer twice"])
def test_the_width_stays_where_the_factor_would_reach_something_else(kind: str) -> None:
    _, small, plan, proof = cut(kind)
    assert proof.difference < 1e-12
    assert small.width == 8 and not plan.scales


def test_a_given_scale_needs_no_factor() -> None:
    _, small, plan, proof = cut("explicit")
    assert proof.difference < 1e-12 and small.width == 4 and not plan.scales


def test_gradients_are_those_of_the_scaled_weights() -> None:
    torch.manual_seed(0)
    model = Attention("plain").double().eval()
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    graph = surgeon.trace(model, x)
    plan = surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.5, scope="local")
    model(x).square().sum().backward()
    small = surgeon.operate(model, plan)
    scale = next(s for s in plan.scales if s.parameter == "qkv.bias")
    keep = plan.cuts["qkv.bias"].selections[0].keep
    expected = model.qkv.bias.grad[torch.from_numpy(keep)]
    expected[: small.heads * small.width] /= scale.factor
    torch.testing.assert_close(small.qkv.bias.grad, expected)


def test_the_plan_keeps_its_factors_in_json() -> None:
    _, _, plan, _ = cut("plain")
    again = surgeon.Plan.from_json(plan.to_json())
    assert again.scales == plan.scales and again.to_json() == plan.to_json()
    with pytest.raises(PlanMismatch, match="no 72 positions along dim 7"):
        surgeon.Plan.from_json(plan.to_json().replace('"dim": 0', '"dim": 7'))
