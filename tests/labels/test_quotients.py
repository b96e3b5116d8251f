"""Head widths that are computed from another width: ``c // heads`` with ``c`` read off the input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgeon


class Attention(nn.Module):
    """q and k from one layer, v from another, all viewed as heads of ``c // heads`` columns, as in ConViT."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qk = nn.Linear(dim, 2 * dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k = self.qk(x).reshape(b, n, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        v = self.v(x).reshape(b, n, self.heads, c // self.heads).permute(0, 2, 1, 3)
        weights = (0.3 * q @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class Blocks(nn.Module):
    def __init__(self, dim: int = 12, heads: int = 3, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(5, dim)
        self.blocks = nn.ModuleList(Attention(dim, heads) for _ in range(depth))
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize("heads", [1, 3])
def test_heads_lose_columns_with_the_stream_that_they_are_measured_by(heads: int) -> None:
    model = Blocks(heads=heads).double()
    result = surgeon.prune(model, torch.randn(2, 6, 5, dtype=torch.float64), ratio=0.5, scope="local")
    assert result.model.embed.out_features == 6
    for block in result.model.blocks:
        assert block.heads == heads
        assert block.qk.weight.shape == (12, 6)
        assert block.v.weight.shape == (6, 6)
