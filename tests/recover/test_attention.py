"""Attention: what is given to fused projections, and columns of queries and keys that match logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from surgeon.recover import Recovery
from tests.recover.test_exact import difference

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.softmax(-1) @ v


class Block(nn.Module):
    """Attention over a stream of six, with keys of one head for two heads of queries if ``shared``."""

    def __init__(self, attend: Attend, one: bool, shared: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.attend, self.heads, self.keys, self.one = attend, 2, 1 if shared else 2, one
        self.embed, self.head = nn.Linear(5, 6), nn.Linear(8, 3)
        if one:
            self.qkv = nn.Linear(6, 24, bias=bias)
        else:
            self.q, self.v = nn.Linear(6, 8, bias=bias), nn.Linear(6, 8, bias=bias)
            self.k = nn.Linear(6, 4 * self.keys, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, t, _ = x.shape
        if self.one:
            q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in (self.q(x), self.v(x)))
            k = self.k(x).view(b, t, self.keys, -1).transpose(1, 2)
            k = k.repeat_interleave(self.heads // self.keys, 1)
        return self.head(self.attend(q, k, v).transpose(1, 2).reshape(b, t, -1))


CASES: dict[str, dict[str, Any]] = {
    "fused": {"attend": fused, "one": True},
    "fused, no bias": {"attend": fused, "one": True, "bias": False},
    "written out": {"attend": written_out, "one": False},
    "shared keys": {"attend": fused, "one": False, "shared": True},
}


def tokens(samples: int = 24) -> Tensor:
    return torch.randn(samples, 7, 5, dtype=torch.float64)


def narrowed(
    model: nn.Module, x: Tensor, ratio: float, groups: Callable[[set[str]], bool]
) -> tuple[nn.Module, Recovery]:
    """Cut the groups whose members are asked for, and compensate."""
    graph = surgeon.trace(model, x)
    chosen = {g.name for g in graph.free if groups({str(m) for m in g.members})}
    assert chosen
    plan = surgeon.plan(
        graph,
        surgeon.score(graph, "l1"),
        ratio=ratio,
        scope="local",
        losses={g.name: (range(g.size + 1), range(g.size + 1)) for g in graph.free},
        groups={g.name: 0.0 for g in graph.free if g.name not in chosen},
    )
    small = surgeon.operate(model, plan)
    assert difference(model, small, x) > 1e-4
    return small, surgeon.recover(model, small, plan, list(x.split(12)))


def dependent(layer: nn.Linear, rank: int = 2, width: int = 4) -> None:
    """Make the columns of each head depend on as many of them as ``rank``."""
    mix = torch.randn(width, rank, dtype=layer.weight.dtype)
    for value in layer.parameters():
        for head in value.data.view(-1, width, *value.shape[1:]):
            head.copy_(torch.tensordot(mix, head[:rank], 1))


def narrow_heads(model: Block) -> Block:
    for layer in (model.qkv,) if model.one else (model.q, model.k, model.v):
        dependent(layer)
    return model


@pytest.mark.parametrize("name", CASES)
def test_dependent_columns_of_heads_are_not_missed(name: str) -> None:
    model = narrow_heads(Block(**CASES[name]).double().eval())
    small, recovery = narrowed(model, tokens(), 0.5, lambda members: "embed.weight dim 0" not in members)
    assert difference(model, small, tokens(5)) < 1e-6, recovery.layers
    matched = recovery.layers[0]
    assert "logits" in matched.note and matched.taken and matched.after < 1e-9 < matched.before


@pytest.mark.parametrize("name", CASES)
def test_a_stream_that_is_cut_too(name: str) -> None:
    """Columns of heads are mixed in the original first, and what is left of the stream is fitted to the mixture."""
    model = narrow_heads(Block(**CASES[name]).double().eval())
    dependent(model.embed, rank=3, width=6)
    small, recovery = narrowed(model, tokens(), 0.5, lambda members: True)
    assert difference(model, small, tokens(5)) < 1e-6, recovery.layers
    assert all(layer.taken or layer.before < 1e-12 for layer in recovery.layers)


@pytest.mark.parametrize("name", CASES)
def test_logits_come_as_close_as_singular_vectors_allow(name: str) -> None:
    model = Block(**CASES[name]).double().eval()
    x = tokens(200)
    small, recovery = narrowed(model, x, 0.5, lambda members: "embed.weight dim 0" not in members)
    matched = recovery.layers[0]
    assert matched.after < 0.7 * matched.before
    plain = surgeon.prune(model, x, ratio=0.5, check=False).model
    assert difference(model, small, tokens(50)) < difference(model, plain, tokens(50))


class Norms(Block):
    """Queries are normalised before they meet keys, so their columns can't be mixed."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (y.view(*x.shape[:2], 2, -1).transpose(1, 2) for y in (self.q(x), self.k(x), self.v(x)))
        return self.head(fused(q / q.norm(dim=-1, keepdim=True), k, v).transpose(1, 2).flatten(2))


def test_what_comes_between_is_not_passed_over() -> None:
    model = Norms(fused, one=False).double().eval()
    _, recovery = narrowed(model, tokens(), 0.5, lambda members: "embed.weight dim 0" not in members)
    assert not any("logits" in layer.note for layer in recovery.layers)


class Multihead(nn.Module):
    """``nn.MultiheadAttention`` over a stream of eight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(5, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)
        nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def test_packed_projections() -> None:
    """The packed weight loses inputs and columns of queries, keys and values, and is fitted as one."""
    model = Multihead().double().eval()
    dependent(model.embed, rank=4, width=8)
    for value in (model.attention.in_proj_weight, model.attention.in_proj_bias):
        heads = value.data.view(6, 4, -1)
        heads[:, 2:] = torch.stack([heads[:, 0] + 2 * heads[:, 1], heads[:, 1] - heads[:, 0]], 1)
    small, recovery = narrowed(model, tokens(), 0.5, lambda members: "embed.weight dim 0" in members)
    assert small.attention.in_proj_weight.shape == (12, 4)
    assert difference(model, small, tokens(5)) < 1e-6, recovery.layers
