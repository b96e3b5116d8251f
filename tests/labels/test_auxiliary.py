"""Branches that only run in training mode stay in step with what they read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.labels import auxiliary


class Headed(nn.Module):
    """Two stages joined by a concatenation, with a head in between that only training runs."""

    def __init__(self, fragile: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.body = nn.Conv2d(10, 12, 3, padding=1)
        self.head, self.aux, self.early = nn.Linear(12, 5), nn.Linear(10, 5), nn.Linear(8, 5)
        self.fragile = fragile

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        first = self.stem(x).relu()
        joined = self.norm(torch.cat([self.left(first), self.right(first)], 1))
        if self.fragile and not first.any():
            raise ValueError("all zero")
        out: Tensor = self.head(self.body(joined).mean((2, 3)))
        if not self.training:
            return out
        return out, self.aux(joined.mean((2, 3))), self.early(first.mean((2, 3)))


def seen(model: nn.Module, x: Tensor) -> list[str]:
    return [str(group) for group in surgeon.trace(model, x).groups]


@pytest.mark.parametrize("fragile", [False, True])
def test_heads_of_training_follow(fragile: bool) -> None:
    """Also where the second pass has to compute, for a layer given as zeros makes the model fail."""
    model, x = Headed(fragile).eval(), torch.randn(2, 3, 6, 6)
    graph = surgeon.trace(model, x)
    small = surgeon.operate(model, surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.5, scope="local"))
    assert small.aux.in_features == small.norm.num_features == 5
    assert small.early.in_features == small.stem.out_channels == 4
    assert (small.aux.out_features, small.early.out_features) == (5, 5)
    assert [tuple(t.shape) for t in small.train()(x)] == [(2, 5)] * 3


class Watching(nn.Module):
    """Looks at what passes, in one call, and hands it on."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.mean()
        return x


class Watched(nn.Module):
    """What is handed on broadcasts, so that a mean in its place would pass unseen."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.watch, self.body = nn.Conv2d(3, 8, 3), Watching(), nn.Conv2d(8, 4, 3)
        self.gain, self.aux = nn.Parameter(torch.ones(8, 1, 1)), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.watch(self.stem(x))
        return self.aux(x * self.gain) if self.training else self.body(x)


class Summed(nn.Module):
    """One call of its own in eval; in training, a layer that no registry knows is given the same."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.unknown = nn.Identity(), [nn.ReLU()]

    def forward(self, x: Tensor) -> Tensor:
        return self.unknown[0](x) if self.training else self.same(x.sum(1, keepdim=True))


class Unnamed(Watched):
    def __init__(self) -> None:
        super().__init__()
        self.watch, self.body = Summed(), nn.Conv2d(1, 4, 3)


@pytest.mark.parametrize("kind", [Watched, Unnamed])
def test_only_what_a_layer_gives_is_recalled(kind: type[nn.Module]) -> None:
    """Not what some call in it gave, nor what its owner's call did."""
    model, x = kind().eval(), torch.randn(2, 3, 8, 8)
    graph = surgeon.trace(model, x)
    stem = next(g for g in graph.groups if any(place.parameter == "stem.weight" for place in g.members))
    assert {"gain", "aux.weight"} <= {place.parameter for place in stem.members}


def test_layers_that_are_recalled_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Headed().eval(), torch.randn(2, 3, 6, 6)
    ran: list[str] = []
    model.body.register_forward_hook(lambda *_: ran.append("body"))
    recalled = seen(model, x)
    assert ran == ["body"] * 2  # a layer with a hook runs each time
    given: list[str] = []
    monkeypatch.setattr(auxiliary.Recall, "__call__", lambda self, path, *_: given.append(path))
    assert seen(model, x) == recalled
    assert {"stem", "left", "right", "norm"} <= set(given)


def test_layers_that_are_recalled_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Headed().eval(), torch.randn(2, 3, 6, 6)
    ran: list[int] = []
    for layer, part in ((model.stem, "_conv_forward"), (model.left, "_conv_forward"), (model.norm, "_check_input_dim")):
        whole = getattr(layer, part)
        monkeypatch.setattr(layer, part, lambda *given, f=whole: ran.append(1) or f(*given))
    surgeon.trace(model, x)
    assert len(ran) == 3
