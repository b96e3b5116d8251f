"""Where what is cut follows from what stays, compensation leaves the outputs as they were."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import surgeon


class Net(nn.Module):
    """Two convolutions with batch norms and a sum, then a linear layer: what is cut is the first's output."""

    def __init__(self, width: int = 6, bias: bool = False, norm: bool = True, groups: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv1 = nn.Conv2d(4, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 4, 3, bias=bias, groups=groups)
        self.bn2 = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.head(torch.relu(y + x[:, :, 1:-1, 1:-1]).mean((2, 3)))


def settled(model: nn.Module) -> nn.Module:
    """Give batch norms weights and statistics of their own."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                value.data.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model.double().eval()


def images(samples: int = 8) -> Tensor:
    return torch.randn(samples, 3, 7, 7, dtype=torch.float64)


def cut(model: nn.Module, x: Tensor, channels: Sequence[int], layer: str = "conv1") -> tuple[nn.Module, surgeon.Plan]:
    """Cut channels of one layer."""
    graph = surgeon.trace(model, x)

    def criterion(graph: object, group: surgeon.graph.Group) -> Tensor:  # type: ignore[name-defined]
        place = next((m for m in group.members if m.parameter == f"{layer}.weight" and m.dims == (0,)), None)
        if place is None:
            return torch.ones(len(group.units))
        dead = [graph.dead_classes([unit])[place.classes].nonzero()[0] for unit in group.units]  # type: ignore[attr-defined]
        return torch.tensor([0.0 if set(d.tolist()) <= set(channels) else 1.0 for d in dead])

    group = max((g for g in graph.free if g.name.partition("#")[0] == layer), key=lambda g: len(g.units))
    share = len(channels) / len(group.units)
    limits = {g.name: 0.0 for g in graph.free if g.name.partition("#")[0] != layer}
    plan = surgeon.plan(graph, surgeon.score(graph, criterion), ratio=share, scope="local", floor=0.0, groups=limits)
    return surgeon.operate(model, plan), plan


def difference(model: nn.Module, small: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - small(x)).abs().max() / model(x).abs().max())


def duplicate(model: Net, target: int = 1, source: int = 4) -> None:
    """Make a channel of conv1, through its norm, the twin of another."""
    for value in (model.conv1.weight, model.bn1.weight, model.bn1.bias, model.bn1.running_mean, model.bn1.running_var):
        value.data[target] = value.data[source]


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("method", ["ridge", "merge", "noise"])
def test_duplicated_channels(method: str, data: bool) -> None:
    """Without data, what is made of weights is checked on noise, or fitted to it."""
    model = Net()
    settled(model)
    duplicate(model)
    x = images()
    small, plan = cut(model, x, [1])
    assert difference(model, small, x) > 1e-3
    given = [x] if data or method == "ridge" else None
    surgeon.recover(model, small, plan, given, method=method, example_inputs=x)
    assert difference(model, small, images(3)) < 1e-6


class InPlace(Net):
    """The same with activations that are written over."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn2(self.conv2(nn.functional.relu(self.bn1(self.conv1(x)), inplace=True)))
        y += x[:, :, 1:-1, 1:-1]
        return self.head(nn.functional.relu_(y).mean((2, 3)))


@pytest.mark.parametrize("method", ["ridge", "merge"])
def test_duplicated_channels_behind_activations_in_place(method: str) -> None:
    model = settled(InPlace())
    duplicate(model)
    x = images()
    small, plan = cut(model, x, [1])
    recovery = surgeon.recover(model, small, plan, None if method == "merge" else [x], method=method, example_inputs=x)
    assert difference(model, small, images(3)) < 1e-6, recovery.layers


@pytest.mark.parametrize("method", ["ridge", "bias", "merge", "noise"])
@pytest.mark.parametrize("norm, bias", [(True, False), (False, True), (False, False)])
def test_constant_channels(method: str, norm: bool, bias: bool) -> None:
    """The offset goes into the mean of a batch norm, into a bias, or into a bias that was not there before."""
    model = settled(Net(norm=norm, bias=bias))
    model.bn1.weight.data[2] = 0.0
    x = images()
    small, plan = cut(model, x, [2])
    assert difference(model, small, x) > 1e-3
    recovery = surgeon.recover(model, small, plan, [x], method=method, example_inputs=x)
    assert difference(model, small, images(3)) < 1e-6
    assert any(layer.taken for layer in recovery.layers)


def test_linearly_dependent_channels() -> None:
    model = settled(nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)))
    model[0].weight.data[0] = 2 * model[0].weight[1] - model[0].weight[3]
    x = torch.randn(40, 5, dtype=torch.float64)
    small, plan = cut(model, x, [0], "0")
    assert difference(model, small, x) > 1e-3
    surgeon.recover(model, small, plan, [x])
    assert difference(model, small, torch.randn(7, 5, dtype=torch.float64)) < 1e-6


def test_fewer_units_than_inputs_lose_nothing() -> None:
    """Six units of five inputs: one follows from the others whichever it is, and so does its offset."""
    model = nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 4)).double()
    x = torch.randn(50, 5, dtype=torch.float64)
    small, plan = cut(model, x, [1, 4, 6], "0")
    surgeon.recover(model, small, plan, [x])
    assert difference(model, small, torch.randn(7, 5, dtype=torch.float64)) < 1e-6


def test_grouped_convolutions() -> None:
    """Each group of filters is refitted to the inputs of its own."""
    model = settled(Net(width=8, groups=2))
    duplicate(model, 0, 2)
    duplicate(model, 5, 7)
    x = images(12)
    small, plan = cut(model, x, [0, 5])
    assert small.conv2.weight.shape[1] == 3
    surgeon.recover(model, small, plan, [x])
    assert difference(model, small, images(3)) < 1e-6


def test_a_shortcut_that_is_cut_too_is_made_up_for_by_the_branch() -> None:
    """The target of the branch is the original's sum less what the shortcut gives by now."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.short = nn.Linear(6, 8), nn.Linear(8, 4)
            self.branch, self.head = nn.Linear(8, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return self.head(torch.tanh(self.short(y) + self.branch(y * 2)))

    model = Sum().double()
    x = torch.randn(60, 6, dtype=torch.float64)
    small, plan = cut(model, x, [1, 3], "inner")
    surgeon.recover(model, small, plan, [x])
    assert difference(model, small, torch.randn(9, 6, dtype=torch.float64)) < 1e-6
