"""Rows that are repeated where their cells are not: heads folded into the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import surgeon


class FoldedHeads(nn.Module):
    """Attention on ``[batch * heads, t, width]``, as fairseq and ``F.multi_head_attention_forward`` write it."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, dim // heads
        self.query = nn.Parameter(torch.randn(1, 5, dim))
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.head = nn.Linear(dim, 3)

    def fold(self, x: Tensor) -> Tensor:
        """Turn ``[batch, t, dim]`` into ``[batch * heads, t, width]``."""
        batch, length, _ = x.shape
        return x.transpose(0, 1).reshape(length, batch * self.heads, self.width).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        query = self.query.expand(batch, -1, -1)
        q, k, v = self.fold(self.q(query)), self.fold(self.k(x)), self.fold(self.v(x))
        y = (0.5 * q @ k.transpose(1, 2)).softmax(-1) @ v
        y = y.view(batch, self.heads, 5, self.width).transpose(1, 2)
        return self.head(self.out(y.reshape(batch, 5, self.heads * self.width)))


def test_heads_folded_into_the_batch_are_cut() -> None:
    model, x = FoldedHeads().double().eval(), torch.randn(2, 7, 16, dtype=torch.float64)
    result = surgeon.prune(model, x, ratio=0.5, scope="local", heads=True)
    assert isinstance(result.model, FoldedHeads) and (result.model.heads, result.model.width) == (2, 4)
    assert result.proof is not None and result.proof.difference <= 1e-9
