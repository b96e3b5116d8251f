"""Integers in a configuration that layers hold: they follow the cut like attributes of the layers themselves."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import surgeon


@dataclass(frozen=True)
class Config:
    heads: int
    width: int
    drop: float = 0.0
    shape: tuple[int, int] = (4, 6)


class Heads(nn.Module):
    def __init__(self, config: object) -> None:
        super().__init__()
        self.config = config
        self.enter, self.leave = nn.Linear(10, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x).view(x.shape[0], self.config.heads, self.config.width)
        return self.leave(y.tanh().flatten(1))


class Shaped(Heads):
    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.enter(x).view(x.shape[0], *self.config.shape).tanh().flatten(1))


X = torch.randn(5, 10)


@pytest.mark.parametrize("kind", [Config, SimpleNamespace])
def test_a_config_of_one_layer_follows_the_cut(kind: type) -> None:
    config = kind(heads=4, width=6)
    model = Heads(config).eval()
    result = surgeon.prune(model, X, ratio=0.5)
    assert model.config is config and vars(config)["width"] == 6 and type(config.width) is int
    assert result.model.config.width == 3 and result.model.config.heads == 4
    assert "config.width" in {edit.name for edit in result.plan.edits}
    again = surgeon.operate(copy.deepcopy(model), surgeon.Plan.from_json(result.plan.to_json()))
    torch.testing.assert_close(again(X), result.model(X))


def test_items_of_a_tuple_in_a_config() -> None:
    result = surgeon.prune(Shaped(Config(4, 6)).eval(), X, ratio=0.5)
    assert result.model.config.shape == (4, 3)


def test_layers_that_share_a_config_are_cut_alike() -> None:
    config = SimpleNamespace(heads=4, width=6)
    model = nn.Sequential(Heads(config), Heads(config)).eval()
    result = surgeon.prune(model, X, ratio=0.5, groups={"1.*": 0.2})
    first, second = result.model
    assert first.config is second.config
    assert first.enter.out_features == second.enter.out_features == 4 * first.config.width
    assert config.width == 6


def test_in_place_another_model_keeps_the_config_that_both_hold() -> None:
    config = SimpleNamespace(heads=4, width=6)
    model, other = nn.Sequential(Heads(config), Heads(config)).eval(), Heads(config).eval()
    model.outer = SimpleNamespace(inner=config)
    before, graph = other(X), surgeon.trace(model, X)
    plan = surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.5)
    small = surgeon.operate(model, plan)
    assert surgeon.operate(model, plan, inplace=True) is model
    assert model[0].config is model[1].config is model.outer.inner is not config
    assert model[0].config.width == small[0].config.width < 6
    torch.testing.assert_close(model(X), small(X))
    assert config.width == 6 and other.config is config
    torch.testing.assert_close(other(X), before)
