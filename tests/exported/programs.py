"""Models whose sizes are literals in their source, and how tests export models."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tests.zoo.weights import randomize


class LiteralAttention(nn.Module):
    """Attention whose heads and widths are written into the forward: no attribute holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.proj = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], -1, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (0.5 * q @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(x.shape[0], -1, 16))


class LiteralViT(nn.Module):
    """A vision transformer that can't be cut as a module, except inside its MLPs."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 17, 16))
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2 * depth))
        self.attention = nn.ModuleList(LiteralAttention() for _ in range(depth))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(depth))
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).view(image.shape[0], 16, 16).transpose(1, 2)
        x = torch.cat([self.token.expand(image.shape[0], 1, 16), x], 1) + self.positions
        for attention, mlp, first, second in zip(self.attention, self.mlps, self.norms[::2], self.norms[1::2]):
            x = x + attention(first(x))
            x = x + mlp(second(x))
        return self.head(x[:, 0])


class Tied(nn.Module):
    """A language model whose output layer is its embedding, one layer of which runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for _ in range(2):
            x = x + self.down(self.up(x).relu())
        return self.head(x)


class Two(nn.Module):
    """Two inputs, one of them by name, and named outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 16), nn.Linear(4, 16)
        self.sum, self.gate = nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, left: Tensor, *, right: Tensor) -> dict[str, Tensor]:
        x = (self.left(left) + self.right(right)).relu()
        return {"sum": self.sum(x), "gate": self.gate(x).sigmoid()}


class Undisturbed(nn.Module):
    """Computes a scale without gradients, in a block that torch exports as a program within the program."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        with torch.no_grad():
            halves = x.view(-1, 2, 4).abs()
            scale = halves.flatten(1).sqrt()
        return self.second(x * scale)


class Counter(nn.Module):
    """Counts its calls in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.second(self.first(x).relu())


def exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, **how: Any) -> Any:
    """Export a model, without the warnings that torch gives about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, args, kwargs, **how)


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """Rewrite a program in core operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return program.run_decompositions()


def reloaded(program: ExportedProgram, path: Any) -> ExportedProgram:
    """Save a program and read it again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, path)
        return torch.export.load(path)


def literal_vit() -> tuple[nn.Module, Tensor]:
    return randomize(LiteralViT()).double().eval(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
