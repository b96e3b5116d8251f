"""Soft pruning: masked units are zeros, the masked model is the cut model, and units may come back."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch

import surgeon
from surgeon import schedule
from surgeon.operate.select import mask
from surgeon.pruner.masks import Masks
from tests.pruner.loops import network, pruner, train
from tests.zoo import build, call
from tests.zoo.test_models import tensors


@pytest.mark.parametrize(
    "name", ["resnet20_conv", "densenet", "resnext", "selective_kernel", "dcgan", "unet2d", "espcn"]
)
@pytest.mark.parametrize("training", [False, True])
def test_masked_equals_cut(name: str, training: bool) -> None:
    """Where no statistic runs over cut positions, to 1e-9 in float64, in eval mode and in training mode."""
    model, inputs = build(name)
    graph = surgeon.trace(model, inputs)
    made = surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.4)
    assert not made.masked
    small = surgeon.operate(model, made)
    masks = Masks()
    masks.set(model, made, {})
    for each in (model, small):
        each.train(training)
    with torch.no_grad():
        pairs = zip(tensors(call(model, inputs)), tensors(call(small, inputs)), strict=True)
        worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    assert worst <= 1e-9
    # Cut from the masked model, it is the same: what goes is zero.
    again = surgeon.operate(model.eval(), made)
    expected = small.eval().state_dict()
    if not training:
        assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())


def test_statistics_over_masked_units_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """A group norm counts masked units as zeros: the function changes at the cut, and the log says so."""
    model, inputs = build("diffusion_unet")
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    plan = schedule.iterative(params=0.6, times=3, every=1)
    found = surgeon.Pruner(model, inputs, plan, optimizer=optimizer, soft=True)
    with caplog.at_level(logging.INFO, "surgeon.pruner"):
        for _ in range(3):
            sum(output.square().mean() for output in tensors(call(model, inputs))).backward()
            optimizer.step()
            found.step()
            optimizer.zero_grad()
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1 and "group_norm" in told[0]
    assert len(found.history) == 1 and found.shares()["params"] <= 0.6


def test_a_model_that_divides_by_masked_weights_is_refused() -> None:
    """Weight norm divides a filter by its length, which is zero where it is masked."""
    model, inputs = build("weight_norm")
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    plan = schedule.iterative(params=0.6, times=3, every=1)
    found = surgeon.Pruner(model, inputs, plan, optimizer=optimizer, soft=True)
    before = copy.deepcopy(model.state_dict())
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    with pytest.raises(
        surgeon.errors.PrunerError, match=r"gives NaN or infinity with units at zero, where .*weight_norm"
    ):
        found.step()
    assert found.masks.plan is None and found.taken == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_masked_units_stay_zero_and_are_cut_in_the_end() -> None:
    model = network(width=16, inner=24)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    found = pruner(model, schedule.gradual(flops=0.4, steps=8, every=2), optimizer, soft=True)
    shapes = {name: value.shape for name, value in model.state_dict().items()}

    def after(step: int) -> None:
        cut = found.step()
        assert (cut is not None) == (step == 8)
        if step < 2 or step >= 8:
            return
        assert {name: value.shape for name, value in model.state_dict().items()} == shapes
        plan = found.masks.plan
        assert (
            plan is not None
            and plan.totals["flops"][1] <= found.schedule.at(step // 2 * 2)["flops"] * plan.totals["flops"][0]
        )
        assert found.plan is None and found.history == []
        for name, kept in plan.cuts.items():
            gone = ~mask(model.state_dict()[name], kept)
            assert gone.any() and not model.state_dict()[name][gone].any(), name
        for p, name in ((p, n) for n, p in model.named_parameters() if n in plan.cuts):
            gone = ~mask(p, plan.cuts[name])
            assert not optimizer.state[p]["exp_avg"][gone].any()
            assert optimizer.state[p]["exp_avg"][~gone].any()

    train(model, optimizer, 10, after)
    assert found.shares()["flops"] <= 0.4 and len(found.history) == 1 and found.masks.plan is None
    assert model.conv1.out_channels < 24 and found.history[0].step == 8


def test_units_come_back_with_the_weights_that_they_had() -> None:
    model = network(width=8, inner=12)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    order = torch.arange(1.0, 13)
    weak: dict[str, Any] = {"order": order}

    def criterion(graph: Any, group: Any) -> torch.Tensor:
        size = len(group.units)
        return weak["order"][:size] if size == 12 else torch.full((size,), 1e6)

    found = pruner(
        model,
        schedule.custom(lambda p: {"params": 0.9 if p < 1 else 0.8}, steps=3, every=1),
        optimizer,
        criterion=criterion,
        groups={"stem": 0.0},
        soft=True,
    )
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, 1, lambda step: found.step())
    group = next(g for g in found.graph.free if g.name == "conv1")
    masked = (model.conv1.weight == 0).all(dim=(1, 2, 3))
    assert masked.sum() >= 1 and torch.equal(
        masked[: int(masked.sum())], torch.ones(int(masked.sum()), dtype=torch.bool)
    )
    # The others fall below the score that the masked ones were masked with, and change places with them.
    weak["order"] = order - 11.5
    train(model, optimizer, 1, lambda step: found.step())
    now = (model.conv1.weight == 0).all(dim=(1, 2, 3))
    assert now.sum() == masked.sum() and not (now & masked).any()
    for name in ("conv1.weight", "bn1.weight", "bn1.bias"):
        assert torch.equal(model.state_dict()[name][masked], before[name][masked])
    assert torch.equal(model.conv2.weight[:, masked], before["conv2.weight"][:, masked])
    assert group.size == 12 and found.plan is None


def test_cutting_what_is_masked() -> None:
    model = network(width=16, inner=24)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    found = pruner(model, schedule.gradual(flops=0.3, steps=30, every=3), optimizer, soft=True)
    train(model, optimizer, 5, lambda step: found.step())
    masked, outputs = found.masks.plan, model.eval()(torch.ones(1, 3, 6, 6))
    model.train()
    cut = found.cut()
    assert cut is not None and cut.plan is masked and found.masks.plan is None
    assert torch.allclose(model.eval()(torch.ones(1, 3, 6, 6)), outputs, atol=1e-6)
    model.train()
    train(model, optimizer, 25, lambda step: found.step())
    assert len(found.history) == 2 and found.shares()["flops"] <= 0.3


def test_a_failed_cut_leaves_the_masks_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(width=16, inner=24)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    found = pruner(model, schedule.gradual(flops=0.3, steps=6, every=3), optimizer, soft=True)
    train(model, optimizer, 5, lambda step: found.step())
    masked, weights = found.masks.plan, copy.deepcopy(model.state_dict())

    def wrong(*args: Any, **options: Any) -> Any:
        raise surgeon.errors.VerificationError("differs")

    monkeypatch.setattr("surgeon.pruner.pruner.verify", wrong)
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    with pytest.raises(surgeon.errors.VerificationError):
        found.step()
    assert found.masks.plan is masked
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
