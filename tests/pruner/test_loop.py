"""A training loop with a pruner in it: what is cut, what follows, and what is left alone."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import surgeon
from surgeon import schedule
from surgeon.operate.select import select
from surgeon.plan import cost
from surgeon.pruner import Cut
from surgeon.pruner.masks import Masks
from tests.pruner.loops import batches, network, pruner, sample, train
from tests.zoo import build, call
from tests.zoo.test_models import tensors

SCHEDULES = [
    schedule.one_shot(flops=0.4, at=4),
    schedule.iterative(params=0.4, times=3, every=3),
    schedule.gradual(flops=0.3, params=0.5, steps=10, every=2, start=1),
    schedule.exponential(memory=0.7, steps=9, every=3),
    schedule.iterative(ratio=0.5, times=4, every=2),
    schedule.custom(lambda progress: {"flops": 1 - 0.5 * progress**2}, steps=9, every=3),
]


@pytest.mark.parametrize("plan", SCHEDULES, ids=lambda plan: plan.kind)
def test_budgets_are_kept_at_every_cut_and_reached_in_the_end(plan: Any) -> None:
    model = network(width=16, inner=24)
    whole = surgeon.trace(model, sample())
    before = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    found = pruner(model, plan, optimizer)
    states: dict[int, Any] = {}

    def after(step: int) -> None:
        original = copy.deepcopy(model)
        cut = found.step()
        if cut is None:
            return
        assert plan.due(step) and cut.step == step and cut is found.history[-1]
        for name, share in plan.at(step).items():
            left = cut.left[name]
            assert left >= share - 2 / 40 if name == "ratio" else left <= share
        states[step] = surgeon.verify(original, model, cut.plan, sample())
        assert str(cut.removed) in str(cut)

    train(model, optimizer, 12, after)
    assert found.done and found.taken == 12 and states.keys() <= set(plan.cuts)
    assert len(states) > 1 or plan.kind == "one_shot"
    # What it says is left is what a new look at the model finds.
    fresh = surgeon.trace(model, sample())
    for name, count in (("flops", cost.flops), ("params", cost.params), ("memory", cost.memory)):
        assert found.shares()[name] == count(fresh).total(fresh.initial) / count(whole).total(whole.initial)
    # One plan from the original does all of it.
    assert found.plan is not None
    at_once = surgeon.operate(before, found.plan)
    assert {n: p.shape for n, p in at_once.state_dict().items()} == {n: p.shape for n, p in model.state_dict().items()}
    assert {id(p) for p in model.parameters()} == {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert {id(p) for p in optimizer.state} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("kind", ["l1", "taylor", "soft"])
def test_a_schedule_that_cuts_nothing_changes_nothing(kind: str) -> None:
    """50 steps are bit for bit those of the loop alone, dropout and all random states included."""
    runs = []
    for prune in (False, True):
        model = nn.Sequential(network(width=8, inner=12), nn.Dropout(0.3))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        random.seed(0), np.random.seed(0), torch.manual_seed(1)
        nothing = schedule.gradual(flops=1.0, steps=50, every=5)
        options: dict[str, Any] = {"soft": True} if kind == "soft" else {"criterion": kind}
        found = pruner(model, nothing, optimizer, **options) if prune else None
        train(model, optimizer, 50, lambda step, found=found: found.step() if found else None)
        states = (torch.get_rng_state(), np.random.get_state()[1], random.getstate())
        runs.append((model.state_dict(), optimizer.state_dict()["state"], states))
        assert found is None or (found.history == [] and found.plan is None and found.taken == 50)
    (ours, mine, one), (theirs, other, two) = runs
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(torch.equal(mine[i][key], other[i][key]) for i in mine for key in mine[i])
    assert torch.equal(one[0], two[0]) and np.array_equal(one[1], two[1]) and one[2] == two[2]


def test_a_cut_leaves_modes_gradients_and_random_states_alone() -> None:
    model = network().train()
    model.bn1.eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = pruner(model, schedule.one_shot(flops=0.5), optimizer)
    (x, y), *_ = batches(1)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    slopes = {name: p.grad.clone() for name, p in model.named_parameters()}
    drawn = torch.get_rng_state()
    cut = found.step()
    assert cut is not None and cut.plan is not None
    assert torch.equal(drawn, torch.get_rng_state())
    assert model.training and not model.bn1.training
    for name, p in model.named_parameters():
        kept = select(slopes[name], cut.plan.cuts[name]) if name in cut.plan.cuts else slopes[name]
        assert torch.equal(p.grad, kept)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True, foreach=True),
        lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
        lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.5),
    ],
    ids=["sgd", "adam", "adamw", "rmsprop"],
)
def test_training_goes_on_as_the_masked_original_would(make: Any) -> None:
    """After a cut, ten steps equal those of the original whose removed weights are held at zero."""
    torch.set_default_dtype(torch.float64)
    try:
        model = network(width=8, inner=12)
        model.bn1 = nn.Identity()  # means over a batch are the same in both
        optimizer = make(model.parameters())
        found = pruner(model, schedule.one_shot(flops=0.5, at=5), optimizer)
        twin, mirror = None, None
        for step, (x, y) in enumerate(batches(15), 1):
            x = x.double()
            for each, own in ((model, optimizer), (twin, mirror)):
                if each is not None:
                    nn.functional.cross_entropy(each(x), y).backward()
                    own.step()
            if step == 5:
                twin = copy.deepcopy(model)
                mirror = make(twin.parameters())
                mirror.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            cut = found.step()
            if cut is not None:
                held = Masks()
                held.set(twin, cut.plan, {})
            if twin is not None:
                held.apply(twin, [mirror])
                mirror.zero_grad()
            optimizer.zero_grad()
        x = torch.randn(4, 3, 6, 6)
        assert torch.allclose(model(x), twin(x), rtol=0, atol=1e-9)
    finally:
        torch.set_default_dtype(torch.float32)


def test_averages_and_schedulers_follow() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=12)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    copied, stored = copy.deepcopy(model), {name: v.clone() for name, v in model.state_dict().items()}
    rates = []
    found = pruner(model, schedule.iterative(flops=0.4, times=2, every=4), optimizer, ema=[average, copied, stored])

    def after(step: int) -> None:
        found.step()
        rate.step()
        average.update_parameters(model)
        rates.append(optimizer.param_groups[0]["lr"])

    train(model, optimizer, 11, after)
    assert len(found.history) == 2 and len(set(rates)) == 11
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in average.module.state_dict().items()} == shapes
    assert {name: value.shape for name, value in copied.state_dict().items()} == shapes
    assert {name: value.shape for name, value in stored.items()} == shapes
    assert average.module(sample()).shape == (1, 5)


def test_several_optimizers() -> None:
    model = network()
    body = torch.optim.SGD([p for n, p in model.named_parameters() if "head" not in n], 0.05, momentum=0.9)
    head = torch.optim.Adam(model.head.parameters(), 1e-2)
    found = pruner(model, schedule.iterative(flops=0.4, times=2, every=2), [body, head])
    for x, y in batches(5):
        nn.functional.cross_entropy(model(x), y).backward()
        for optimizer in (body, head):
            optimizer.step()
        found.step()
        model.zero_grad()
    held = [id(p) for optimizer in (body, head) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters()) and len(found.history) == 2
    assert head.state[model.head.weight]["exp_avg"].shape == model.head.weight.shape
    assert int(head.state[model.head.weight]["step"]) == 5


def unit_masks(graph: Any, unit: int) -> dict[str, torch.Tensor]:
    """Return which weights a unit takes along, by parameter."""
    gone = graph.dead_classes([unit])
    found: dict[str, torch.Tensor] = {}
    for place in graph.places:
        if place.parameter in graph.parameters:
            shape = graph.tensor(place.parameter).shape
            here = torch.from_numpy(gone[place.classes]).view(
                [s if d in place.dims else 1 for d, s in enumerate(shape)]
            )
            found[place.parameter] = found.get(place.parameter, torch.zeros(shape, dtype=torch.bool)) | here
    return found


EACH = {
    "taylor": (lambda w, g: w * g, abs),
    "taylor_squared": (lambda w, g: w * g, lambda total: total**2),
    "fisher": (lambda w, g: 0.5 * (w * g) ** 2, lambda total: total),
    "gradient": (lambda w, g: g.abs(), lambda total: total),
}


@pytest.mark.parametrize("criterion", EACH)
def test_gradients_of_the_loop_are_the_mean_over_the_last_steps(criterion: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    found = pruner(model, schedule.one_shot(flops=0.5, at=9), optimizer, criterion=criterion, gradients=4)
    graph, (each, then) = found.graph, EACH[criterion]
    sums = {group.name: torch.zeros(len(group.units), dtype=torch.float64) for group in graph.free}

    def after(step: int) -> None:
        if step in (6, 7, 8, 9):
            values = {n: each(p.detach().double(), p.grad.double()) for n, p in model.named_parameters()}
            for group in graph.free:
                for i, unit in enumerate(group.units):
                    total = sum(float(values[name][gone].sum()) for name, gone in unit_masks(graph, unit).items())
                    sums[group.name][i] += then(total) / 4
        expected = surgeon.plan(graph, sums, flops=0.5) if step == 9 else None
        cut = found.step()
        assert (cut is None) == (step != 9)
        if cut is not None:
            assert cut.plan is not None and expected is not None and cut.plan.cuts == expected.cuts
            assert cut.plan.settings["criterion"] == criterion

    train(model, optimizer, 10, after)
    assert len(found.history) == 1


def test_a_callable_sees_the_graph_as_it_is() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    sizes: list[int] = []

    def criterion(graph: Any, group: Any) -> Any:
        sizes.append(len(group.units))
        assert graph.tensor("conv1.weight").shape == model.conv1.weight.shape
        return torch.arange(len(group.units), 0, -1)

    found = pruner(model, schedule.iterative(flops=0.4, times=2, every=2), optimizer, criterion=criterion)
    train(model, optimizer, 4, lambda step: found.step())
    assert len(found.history) == 2 and sizes[2:] < sizes[:2]


def test_data_criteria_score_at_the_cut() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    data = list(batches(2, seed=3))
    one = schedule.one_shot(flops=0.5, at=2)
    loss = nn.functional.cross_entropy
    for options in ({"criterion": "wanda", "data": data}, {"criterion": "taylor", "data": data, "loss": loss}):
        found = pruner(model, one, optimizer, **options)
        train(model, optimizer, 2, lambda step, found=found: found.step())
        assert len(found.history) == 1
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)


def test_limits_are_of_the_original() -> None:
    """Floors, limits, multiples and kept layers hold for all cuts together."""
    model = network(width=16, inner=24)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    found = pruner(
        model,
        schedule.iterative(flops=0.3, times=6, every=1),
        optimizer,
        floor=0.25,
        groups={"stem": 0.25},
        round_to=3,
    )
    train(model, optimizer, 7, lambda step: found.step())
    assert model.stem.out_channels in (12, 15, 16) and model.conv1.out_channels % 3 == 0
    assert 6 <= model.conv1.out_channels < 24
    local = network(width=16, inner=24)
    optimizer = torch.optim.SGD(local.parameters(), 0.05)
    found = pruner(local, schedule.iterative(ratio=0.5, times=5, every=1), optimizer, scope="local", floor=0.0)
    widths = []
    train(
        local,
        optimizer,
        5,
        lambda step: (found.step(), widths.append((local.stem.out_channels, local.conv1.out_channels))),
    )
    assert widths[-1] == (8, 12)
    assert widths == [(16 - int(0.1 * k * 16 + 1e-9), 24 - int(0.1 * k * 24 + 1e-9)) for k in range(1, 6)]


def test_cutting_by_hand() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    found = pruner(model, schedule.one_shot(flops=0.9, at=100), optimizer)
    train(model, optimizer, 2, lambda step: found.step())
    assert not found.due() and found.history == []
    cut = found.cut(flops=0.5)
    assert isinstance(cut, Cut) and cut.step == 2 and found.shares()["flops"] <= 0.5
    assert found.cut(flops=0.6) is None
    train(model, optimizer, 2, lambda step: found.step())
    with pytest.raises(surgeon.errors.InfeasibleBudget, match="leave at least"):
        found.cut(flops=1e-4)


@pytest.mark.parametrize("name", ["resnext", "vit", "densenet", "dcgan", "crnn"])
def test_other_networks_train_on(name: str) -> None:
    model, inputs = build(name)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    plan = schedule.iterative(params=0.6, times=3, every=1)
    found = surgeon.Pruner(model, inputs, plan, optimizer=optimizer, criterion="taylor", floor=0.05)
    before = copy.deepcopy(model)
    for _ in range(4):
        sum(output.square().mean() for output in tensors(call(model, inputs))).backward()
        optimizer.step()
        cut = found.step()
        assert cut is None or (cut.proof is not None and cut.proof.difference <= cut.proof.tolerance)
        optimizer.zero_grad()
    assert found.shares()["params"] <= 0.6 and found.plan is not None
    small = surgeon.operate(before, found.plan)
    surgeon.verify(before, small, found.plan, inputs)


def test_training_through_torch_compile_goes_on() -> None:
    model = network(width=8, inner=12)
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    found = pruner(model, schedule.iterative(flops=0.4, times=2, every=2), optimizer)
    train(compiled, optimizer, 6, lambda step: found.step())
    assert len(found.history) == 2 and model.stem.out_channels < 8
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(compiled.eval()(x), model.eval()(x))
    torch.compiler.reset()


def test_wrong_proofs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    found = pruner(model, schedule.one_shot(flops=0.5, at=2), optimizer, criterion="taylor")

    def wrong(*args: Any, **options: Any) -> Any:
        raise surgeon.errors.VerificationError("the small model differs")

    monkeypatch.setattr("surgeon.pruner.pruner.verify", wrong)
    train(model, optimizer, 1, lambda step: found.step())
    before, held = copy.deepcopy(model.state_dict()), [id(p) for p in model.parameters()]
    (x, y), *_ = batches(1)
    nn.functional.cross_entropy(model(x), y).backward()
    with pytest.raises(surgeon.errors.VerificationError):
        found.step()
    assert [id(p) for p in model.parameters()] == held and found.taken == 1 and found.plan is None
    assert all(
        torch.equal(value, before[name])
        for name, value in model.state_dict().items()
        if "running" not in name and "num_" not in name
    )
    # The gradients of a step count once, though it is tried twice.
    monkeypatch.undo()
    assert found.gradients is not None and found.gradients.count == 2
    assert found.step() is not None and found.gradients.count == 0


def test_optimizers_that_cannot_follow_change_nothing() -> None:
    class Odd(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["sketch"] = torch.zeros(3)
            return super().step(closure)

    model = network()
    optimizer = Odd(model.parameters(), 0.05)
    found = pruner(model, schedule.one_shot(flops=0.5, at=1), optimizer)
    shapes = [p.shape for p in model.parameters()]
    with pytest.raises(surgeon.errors.MigrateError, match="sketch"):
        train(model, optimizer, 1, lambda step: found.step())
    assert [p.shape for p in model.parameters()] == shapes and found.history == []
    with pytest.raises(surgeon.errors.MigrateError, match="LBFGS"):
        pruner(model, schedule.one_shot(flops=0.5), torch.optim.LBFGS(model.parameters()))
