"""The whole pipeline on published networks and hand-written ones: each cut proved against the masked original."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import surgeon
from surgeon.modules import tensors_in
from surgeon.verify.count import Count
from tests.schema import assert_follows_the_schema
from tests.zoo import MODELS, build, call
from tests.zoo.networks import NETWORKS, network

UNCOUNTED = (Count(float("nan")), Count(float("nan")))
SETTINGS = [(ratio, scope) for scope in ("local", "global") for ratio in (0.3, 0.5, 0.8)]
HEAVY = {"inception_v3", "densenet201", "wide_resnet50"}


def prove_all(model: nn.Module, inputs: Any) -> None:
    graph = surgeon.trace(model, inputs)
    smaller = {}
    for seed, (ratio, scope) in enumerate(SETTINGS):
        scores = surgeon.score(graph, "random", seed=seed)
        plan = surgeon.plan(graph, scores, ratio=ratio, scope=scope)
        small = surgeon.operate(model, plan)
        proof = surgeon.verify(model, small, plan, inputs, counts=UNCOUNTED)
        assert sum(g.removed for g in plan.groups) > 0
        assert proof.difference <= 1e-9 or proof.dtype != "float64"
        assert_follows_the_schema(plan)
        smaller[ratio, scope] = small, plan
    train_a_step(small, inputs)
    small, plan = smaller[0.3, "local"]
    counted = surgeon.verify(model, small, plan, inputs)
    # fvcore reads einsum's cost off a text rounded to four digits
    assert counted.flops[2:] == pytest.approx(counted.flops[:2], rel=1e-3 if uses_einsum(graph) else 0)
    again = surgeon.prune(small, inputs, ratio=0.5, scope="local")
    assert again.proof is not None
    assert again.report.after.params < again.report.before.params


def uses_einsum(graph: Any) -> bool:
    return any(node.name == "einsum" for node in graph.nodes)


def train_a_step(model: nn.Module, inputs: Any) -> None:
    model = copy.deepcopy(model).train()
    two = double_batch(inputs) if isinstance(inputs, torch.Tensor) else inputs
    loss = sum(t.abs().mean() for t in tensors_in(call(model, two)) if t.is_floating_point())
    loss.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def double_batch(x: torch.Tensor) -> torch.Tensor:
    """Batch norm in training mode wants more than one value per channel."""
    return torch.cat([x, -x]) if x.shape[0] == 1 else x


@pytest.mark.parametrize("name", [n if n not in HEAVY else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS])
def test_published_network(name: str) -> None:
    prove_all(*network(name))


@pytest.mark.parametrize("name", list(MODELS))
def test_hand_written_network(name: str) -> None:
    prove_all(*build(name))
