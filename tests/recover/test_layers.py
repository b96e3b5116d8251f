"""Layers of every kind are refitted; where what is cut follows from what stays, nothing changes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from surgeon.recover import Recovery
from tests.recover.test_exact import cut, difference


class Wrapped(nn.Module):
    """Layers, and a forward that uses them."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def twins(model: nn.Module, target: int = 1, source: int = 4, layer: str = "first") -> None:
    """Make one filter of a layer the twin of another."""
    owner = model.get_submodule(layer)
    for value in owner.parameters():
        value.data[target] = value.data[source]


def recovered(
    model: nn.Module, x: Tensor, channels: tuple[int, ...] = (1,), layer: str = "first"
) -> tuple[nn.Module, Recovery]:
    """Cut channels, check that this changes outputs, and compensate."""
    model.double().eval()
    small, plan = cut(model, x, channels, layer)
    assert difference(model, small, x) > 1e-4
    state = copy.deepcopy(model.state_dict())
    recovery = surgeon.recover(model, small, plan, [x])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    return small, recovery


def conv(*sizes: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(*sizes, **options)  # type: ignore[arg-type]


def images(many: int = 12, side: int = 6) -> Tensor:
    return torch.randn(many, 3, side, side, dtype=torch.float64)


def vectors(many: int = 60) -> Tensor:
    return torch.randn(many, 5, dtype=torch.float64)


SPATIAL = {
    "transposed": (
        lambda m, x: m.last(m.up(torch.relu(m.first(x)))),
        {"up": nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1), "last": conv(4, 2, 1)},
    ),
    "transposed, groups": (
        lambda m, x: m.last(m.up(torch.relu(m.first(x)))),
        {"up": nn.ConvTranspose2d(6, 4, 2, stride=2, output_padding=1, groups=2, bias=False), "last": conv(4, 2, 1)},
    ),
    "two sums": (
        lambda m, x: m.last(m.a(torch.relu(m.first(x))) + m.b(x) + m.c(x)),
        {"a": conv(6, 4, 1), "b": conv(3, 4, 1), "c": conv(3, 4, 1), "last": conv(4, 2, 1)},
    ),
    "sums in place": (
        lambda m, x: m.last(F.relu(m.a(F.relu(m.first(x), inplace=True)).add_(m.b(x)), inplace=True)),
        {"a": conv(6, 4, 1, bias=False), "b": conv(3, 4, 1), "last": conv(4, 2, 1)},
    ),
    "gate": (
        lambda m, x: m.last((y := torch.relu(m.first(x))) * torch.sigmoid(m.gate(y.mean((2, 3), keepdim=True)))),
        {"gate": conv(6, 6, 1), "last": conv(6, 2, 1)},
    ),
    "norm behind a sum": (
        lambda m, x: m.last(m.norm(m.a(torch.relu(m.first(x))) + m.b(x))),
        {"a": conv(6, 4, 1), "b": conv(3, 4, 1), "norm": nn.BatchNorm2d(4), "last": conv(4, 2, 1)},
    ),
    "channels last": (
        lambda m, x: m.last(m.a(torch.relu(m.first(x.contiguous(memory_format=torch.channels_last))))),
        {"a": conv(6, 4, 3), "last": conv(4, 2, 1)},
    ),
    "reads of parts": (
        lambda m, x: m.last(torch.relu(m.first(x)).permute(0, 2, 3, 1)[:, ::2]),
        {"last": nn.Linear(6, 2)},
    ),
    "called for several maps": (
        lambda m, x: m.last(m.head(y := torch.relu(m.first(x))).mean((2, 3)) + m.head(F.avg_pool2d(y, 2)).mean((2, 3))),
        {"head": conv(6, 4, 3, padding=1, bias=False), "last": nn.Linear(4, 2)},
    ),
    "one norm for several layers": (
        lambda m, x: m.last(m.norm(m.a(y := torch.relu(m.first(x)))) + m.norm(m.b(y))),
        {
            "a": conv(6, 4, 1, bias=False),
            "b": conv(6, 4, 1, bias=False),
            "norm": nn.BatchNorm2d(4),
            "last": conv(4, 2, 1),
        },
    ),
    "called with several norms": (
        lambda m, x: m.last(m.n1(m.a(y := torch.relu(m.first(x)))) + m.n2(m.a(y * 2))),
        {"a": conv(6, 4, 1, bias=False), "n1": nn.BatchNorm2d(4), "n2": nn.BatchNorm2d(4), "last": conv(4, 2, 1)},
    ),
}


@pytest.mark.parametrize("name", SPATIAL)
def test_convolutions(name: str) -> None:
    forward, layers = SPATIAL[name]
    model = Wrapped(forward, first=conv(3, 6, 3, padding=1), **copy.deepcopy(layers))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                value.data.uniform_(0.5, 1.5)
    channels = (1,) if name != "transposed, groups" else (1, 4)
    twins(model, 1, 2), twins(model, 4, 5)
    if name == "gate":
        twins(model, 1, 2, "gate")
    small, recovery = recovered(model, images(), channels)
    assert difference(model, small, images(5)) < 1e-6, recovery.layers
    assert all(layer.taken or layer.before < 1e-12 for layer in recovery.layers)


def multiplied(m: nn.Module, x: Tensor) -> Tensor:
    return m.last(torch.relu(m.first(x)) @ m.w.weight.T)


FLAT = {
    "weight on the right": (multiplied, {"w": nn.Linear(6, 4, bias=False), "last": nn.Linear(4, 2)}),
    "addmm": (
        lambda m, x: m.last(torch.addmm(m.w.bias, torch.relu(m.first(x)), m.w.weight.t())),
        {"w": nn.Linear(6, 4), "last": nn.Linear(4, 2)},
    ),
    "parts of a weight": (
        lambda m, x: m.last(
            F.linear(torch.relu(m.first(x)), *(p.chunk(2)[0] for p in m.w.parameters()))
            * F.linear(torch.relu(m.first(x)), *(p.chunk(2)[1] for p in m.w.parameters()))
        ),
        {"w": nn.Linear(6, 4), "last": nn.Linear(2, 2)},
    ),
    "in groups of columns": (
        lambda m, x: m.last(
            F.linear(torch.relu(m.first(x)), m.w.weight[:, 2:]) + F.linear(x[:, :2], m.w.weight[:, :2])
        ),
        {"w": nn.Linear(8, 4, bias=False), "last": nn.Linear(4, 2)},
    ),
    "a bias of its own for each call": (
        lambda m, x: m.last(
            F.linear(y := torch.relu(m.first(x)), m.w.weight, m.w.bias) * torch.sigmoid(F.linear(y * 2, m.w.weight))
        ),
        {"w": nn.Linear(6, 4), "last": nn.Linear(4, 2)},
    ),
    "functional, without the bias that it owns": (
        lambda m, x: m.last(F.linear(torch.relu(m.first(x)), m.w.weight) + 0 * x[:, :4]),
        {"w": nn.Linear(6, 4), "last": nn.Linear(4, 2)},
    ),
    "dropout": (
        lambda m, x: m.last(m.drop(m.w(torch.relu(m.first(x)))) + x[:, :4]),
        {"w": nn.Linear(6, 4), "drop": nn.Dropout(0.5), "last": nn.Linear(4, 2)},
    ),
    "norms of layers": (
        lambda m, x: m.last(m.norm(torch.relu(m.w(torch.relu(m.first(x)))))),
        {"w": nn.Linear(6, 4), "norm": nn.LayerNorm(4), "last": nn.Linear(4, 2)},
    ),
    "added to itself": (
        lambda m, x: m.last((y := m.w(torch.relu(m.first(x)))) + y),
        {"w": nn.Linear(6, 4), "last": nn.Linear(4, 2)},
    ),
    "a constant input": (
        lambda m, x: m.last(torch.relu(m.first(x)) * m.w(torch.relu(m.first(torch.ones_like(x[:1]))))),
        {"w": nn.Linear(6, 6), "last": nn.Linear(6, 2)},
    ),
}


@pytest.mark.parametrize("name", FLAT)
def test_linear_layers(name: str) -> None:
    forward, layers = FLAT[name]
    model = Wrapped(forward, first=nn.Linear(5, 6), **copy.deepcopy(layers))
    twins(model)
    if name == "a constant input":
        twins(model, layer="w")
    small, recovery = recovered(model, vectors())
    assert difference(model, small, vectors(9)) < 1e-6, recovery.layers


class Twice(nn.Module):
    """One linear layer called on its own result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.both, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.both(torch.relu(self.both(torch.relu(self.first(x)))))))


def test_a_layer_that_reads_its_own_result() -> None:
    """Its inputs and outputs are cut alike; rows of both calls make one fit."""
    model = Twice()
    for layer in (model.first, model.both):
        twins(model, layer="first" if layer is model.first else "both")
    small, recovery = recovered(model, vectors())
    assert difference(model, small, vectors(9)) < 1e-6
    assert [layer.layer for layer in recovery.layers] == ["both", "last"] and recovery.layers[0].rows == 90
