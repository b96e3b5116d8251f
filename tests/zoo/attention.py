"""Token models: transformers, mixers, gated and tied layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FusedAttention(nn.Module):
    """Self-attention with one linear layer for q, k and v."""

    def __init__(self, dim: int, num_heads: int, causal: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.attn_dim = dim
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(x.transpose(1, 2).reshape(b, n, self.attn_dim))


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and added to its input."""

    def __init__(self, dim: int, num_heads: int, causal: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = FusedAttention(dim, num_heads, causal)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Vision transformer with a class token and learned positions (Dosovitskiy et al. 2021)."""

    def __init__(self, image: int = 16, patch: int = 4, dim: int = 16, heads: int = 4, num_classes: int = 10) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, (image // patch) ** 2 + 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(2))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class TorchEncoder(nn.Module):
    """Torch's own encoder layers, whose attention keeps q, k and v in one bare parameter."""

    def __init__(self, features: int = 6, dim: int = 16, num_classes: int = 5) -> None:
        super().__init__()
        self.inp = nn.Linear(features, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 24, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.cross = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 1, dim))
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(self.inp(x))
        pooled, _ = self.cross(self.query.expand(x.shape[0], -1, -1), x, x, need_weights=False)
        return self.head(pooled.squeeze(1))


class MlpBlock(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class MixerBlock(nn.Module):
    """One MLP across the tokens, one across the channels."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.token_mlp = MlpBlock(tokens, 2 * tokens)
        self.norm2 = nn.LayerNorm(dim)
        self.channel_mlp = MlpBlock(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mlp(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mlp(self.norm2(x))


class MLPMixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021)."""

    def __init__(self, image: int = 12, patch: int = 4, dim: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, patch, patch)
        self.blocks = nn.Sequential(*(MixerBlock((image // patch) ** 2, dim) for _ in range(2)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = self.norm(self.blocks(x))
        return self.head(x.mean(dim=1))


class TiedLM(nn.Module):
    """Language model whose logits are products with the embedding's own table, used as a bare tensor."""

    def __init__(self, vocab: int = 30, dim: int = 16, length: int = 12) -> None:
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.pos = nn.Embedding(length, dim)
        self.register_buffer("positions", torch.arange(length), persistent=False)
        self.block = Block(dim, 2, causal=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids) + self.pos(self.positions[: ids.shape[1]])
        x = self.norm(self.block(x))
        return F.linear(x, self.emb.weight)


class TiedModules(nn.Module):
    """Embedding and output layer hold the same parameter; a convolution over time sits in between."""

    def __init__(self, vocab: int = 30, dim: int = 12) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab, dim)
        self.conv = nn.Conv1d(dim, 16, 3)
        self.proj = nn.Linear(16, dim)
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids)
        h = self.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)
        return self.lm_head(x + self.proj(torch.tanh(h)))


class SwiGLU(nn.Module):
    """Feed-forward layer that is gated by half of its own hidden units."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(x1) * x2)


class GLUNet(nn.Module):
    """Gated linear units over channels and over features (Dauphin et al. 2017; Shazeer 2020)."""

    def __init__(self, dim: int = 12, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(4, 2 * dim, 3, padding=1)
        self.conv2 = nn.Conv1d(dim, 2 * dim, 3, padding=1)
        self.norm = nn.LayerNorm(dim)
        self.ffn = SwiGLU(dim, 20)
        self.glu = nn.GLU()
        self.head = nn.Linear(dim, 2 * num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.conv1(x), dim=1)
        x = (x + F.glu(self.conv2(x), dim=1)) * 0.5**0.5
        x = x.transpose(1, 2)
        x = x + self.ffn(self.norm(x))
        return self.glu(self.head(x.mean(1)))


def _ids(length: int = 9) -> Tensor:
    return torch.randint(0, 30, (2, length))


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "vit": lambda: (ViT(), torch.randn(2, 3, 16, 16)),
    "torch_encoder": lambda: (TorchEncoder(), torch.randn(2, 7, 6)),
    "mlp_mixer": lambda: (MLPMixer(), torch.randn(2, 3, 12, 12)),
    "tied_lm": lambda: (TiedLM(), _ids()),
    "tied_modules": lambda: (TiedModules(), _ids()),
    "glu": lambda: (GLUNet(), torch.randn(2, 4, 20)),
}
