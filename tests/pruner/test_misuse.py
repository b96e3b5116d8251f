"""What does not belong together is told before anything changes, with what to do instead."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import surgeon
from surgeon import schedule
from surgeon.errors import (
    BudgetError,
    DataError,
    InfeasibleBudget,
    NothingPrunable,
    PrunerError,
    ScoreError,
    SurgeonError,
    UnknownLayer,
)
from tests.pruner.loops import batches, network, pruner, sample, train

HALF = schedule.one_shot(flops=0.5, at=2)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def test_an_optimizer_of_another_model() -> None:
    model, other = network(), network()
    with pytest.raises(PrunerError, match="none of which belong to the Residual"):
        pruner(model, HALF, sgd(other))
    both = torch.optim.SGD([*model.parameters(), *nn.Linear(2, 2).parameters()], 0.1)
    with pytest.raises(PrunerError, match="one of its own for parameters of other modules"):
        pruner(model, HALF, both)
    with pytest.raises(PrunerError, match="optimizer=None says"):
        pruner(model, HALF, "adam")


def test_an_optimizer_that_leaves_weights_out_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    pruner(model, HALF, torch.optim.SGD(model.head.parameters(), 0.1))
    assert "no optimizer trains stem.weight and" in caplog.text
    caplog.clear()
    pruner(model, HALF, sgd(model))
    pruner(model, HALF, None)
    assert caplog.text == ""


def test_wrapped_models() -> None:
    model = network()
    with pytest.raises(PrunerError, match=r"give it model\._orig_mod"):
        pruner(torch.compile(model, backend="eager"), HALF, sgd(model))
    with pytest.raises(PrunerError, match=r"give it model\.module"):
        pruner(nn.DataParallel(model), HALF, sgd(model))
    with pytest.raises(PrunerError, match=r"no torch\.nn\.Module that trains"):
        pruner(torch.export.export(model.eval(), (sample(),)), HALF, None)
    with pytest.raises(SurgeonError, match="scripted"):
        with pytest.warns(DeprecationWarning):
            scripted = torch.jit.script(model)
        pruner(scripted, HALF, None)
    with pytest.raises(PrunerError, match="no DistributedDataParallel"):
        surgeon.pruner.rewrap(model)


@pytest.mark.parametrize(
    "plan, options, why",
    [
        (schedule.one_shot(flops=0.001), {}, "leave at least 0.0"),
        (schedule.gradual(params=30, steps=10, every=5), {}, "params=0.0.* of the original: floors"),
        (schedule.one_shot(ratio=0.95), {}, "let at most 0.85 of the units go"),
        (schedule.one_shot(ratio=0.6), {"floor": 0.5}, "let at most 0.5 of the units go"),
        (schedule.one_shot(flops=0.5), {"groups": {"stem": 0.1, "conv1": 0.1}}, "leave at least"),
        (schedule.one_shot(memory=0.1), {}, "memory=0.1"),
    ],
)
def test_more_than_can_be_reached(plan: Any, options: Any, why: str) -> None:
    model = network()
    with pytest.raises(InfeasibleBudget, match=why):
        pruner(model, plan, sgd(model), **options)


def test_what_is_reachable_is_reached() -> None:
    """The number that the error names works as a budget, and a little less does not."""
    model = network()
    with pytest.raises(InfeasibleBudget) as caught:
        pruner(model, schedule.one_shot(flops=0.001), sgd(model))
    least = float(str(caught.value).partition("at least ")[2].partition(";")[0])
    model = network()
    optimizer = sgd(model)
    found = pruner(model, schedule.iterative(flops=least * 1.001, times=3, every=1), optimizer)
    with pytest.raises(InfeasibleBudget):
        pruner(model, schedule.one_shot(flops=least * 0.99), optimizer)
    train(model, optimizer, 3, lambda step: found.step())
    assert found.shares()["flops"] <= least * 1.001


def test_options() -> None:
    model = network()
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (0.5, {}, PrunerError, "no schedule; write surgeon.schedule.gradual"),
        (HALF, {"criterion": "l0"}, ScoreError, "unknown criterion"),
        (HALF, {"criterion": 3}, ScoreError, "neither a name nor a callable"),
        (HALF, {"criterion": "wanda"}, ScoreError, "give data="),
        (HALF, {"criterion": "grasp"}, ScoreError, "give data="),
        (HALF, {"criterion": "taylor", "data": []}, ScoreError, "together"),
        (HALF, {"criterion": "l1", "data": []}, ScoreError, "takes no data"),
        (HALF, {"criterion": "l1", "loss": print}, ScoreError, "takes no loss"),
        (HALF, {"criterion": "wanda", "data": iter([])}, DataError, "not a generator"),
        (HALF, {"criterion": "synflow"}, ScoreError, "before training"),
        (HALF, {"gradients": 0}, PrunerError, "at least 1"),
        (HALF, {"keep": ("steem",)}, UnknownLayer, "stem"),
        (HALF, {"groups": {"stem": (0.2, 0.5)}}, BudgetError, "at least 20%"),
        (HALF, {"floor": 2.0}, BudgetError, "floor"),
        (HALF, {"round_to": 0}, BudgetError, "round_to"),
        (HALF, {"scope": "all"}, BudgetError, "scope"),
        (HALF, {"heads": "all"}, BudgetError, "heads"),
        (HALF, {"ema": model}, PrunerError, "the model itself"),
        (HALF, {"ema": network(width=6)}, PrunerError, "has stem.weight of shape"),
        (HALF, {"ema": {}}, PrunerError, "none of the model's names"),
        (HALF, {"ema": {"module.stem.weight": torch.zeros(8, 3, 3, 3)}}, PrunerError, "prefixes"),
        (HALF, {"ema": 0.99}, PrunerError, "no AveragedModel"),
    ]
    for plan, options, error, why in cases:
        with pytest.raises(error, match=why):
            pruner(model, plan, sgd(model), **options)


def pruner_of(model: nn.Module, plan: Any) -> surgeon.Pruner:
    return surgeon.Pruner(model, torch.randn(1, 3, 4), plan, optimizer=sgd(model))


def test_a_model_without_multiply_adds() -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.RNN(4, 8, batch_first=True), nn.RNN(8, 3, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x)[0])[0]

    model = Stacked()
    assert pruner_of(model, schedule.one_shot(params=0.6)).shares()["flops"] == 1.0
    with pytest.raises(NothingPrunable, match="use params="):
        pruner_of(model, HALF)


def test_a_model_that_was_changed() -> None:
    model = network()
    optimizer = sgd(model)
    found = pruner(model, HALF, optimizer)
    train(model, optimizer, 1, lambda step: found.step())
    model.head = nn.Linear(8, 5)
    with pytest.raises(PrunerError, match=r"head\.weight was replaced"):
        train(model, optimizer, 1, lambda step: found.step())
    model = network()
    optimizer = sgd(model)
    found = pruner(model, HALF, optimizer)
    plan = surgeon.prune(model, sample(), flops=0.8).plan
    surgeon.operate(model, plan, inplace=True)
    optimizer = sgd(model)
    with pytest.raises(PrunerError, match="changed under the pruner"):
        train(model, optimizer, 1, lambda step: found.step())


def test_another_optimizer_after_a_cut() -> None:
    """Parameters in the optimizer are those of the model at every cut, or nothing is cut."""
    model = network()
    optimizer = sgd(model)
    found = pruner(model, schedule.iterative(flops=0.4, times=2, every=2), optimizer)
    train(model, optimizer, 3, lambda step: found.step())
    optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.zeros(3))
    shapes = [p.shape for p in model.parameters()]
    with pytest.raises(PrunerError, match="no longer holds parameters of the model"):
        for x, y in batches(1):
            nn.functional.cross_entropy(model(x), y).backward()
            found.step()
    assert [p.shape for p in model.parameters()] == shapes and len(found.history) == 1


def test_a_copy_is_trained() -> None:
    model = network()
    found = pruner(model, HALF, sgd(model))
    twin = copy.deepcopy(model)
    with pytest.raises(PrunerError, match="the very model that trains, not a copy"):
        train(twin, sgd(twin), 2, lambda step: found.step())
    assert found.taken == 1


def test_called_twice_in_a_step() -> None:
    model = network()
    optimizer = sgd(model)
    found = pruner(model, HALF, optimizer)
    with pytest.raises(PrunerError, match="called once per training step"):
        train(model, optimizer, 1, lambda step: (found.step(), found.step()))
    assert found.taken == 1
    # After a cut as well.
    optimizer.zero_grad()
    with pytest.raises(PrunerError, match="called once per training step"):
        train(model, optimizer, 1, lambda step: (found.step(), found.step()))
    assert len(found.history) == 1 and found.taken == 2


def test_steps_that_a_scaler_skips_are_steps() -> None:
    """Weights stay as they were where gradients overflowed; that is not the same as calling twice."""
    model = network()
    optimizer = sgd(model)
    found = pruner(model, HALF, optimizer)
    for set_to_none in (True, False):
        for x, y in batches(2):
            nn.functional.cross_entropy(model(x), y).backward()
            found.step()
            optimizer.zero_grad(set_to_none=set_to_none)
    assert found.taken == 4 and len(found.history) == 1


@pytest.mark.parametrize("set_to_none", [True, False])
def test_no_gradients_where_the_criterion_needs_them(set_to_none: bool) -> None:
    model = network()
    optimizer = sgd(model)
    found = pruner(model, HALF, optimizer, criterion="taylor")
    shapes = [p.shape for p in model.parameters()]
    what = "there are none" if set_to_none else "all are zero"
    with pytest.raises(PrunerError, match=rf"{what}: call pruner\.step\(\) after .* before optimizer\.zero_grad"):
        for x, y in batches(2):
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
            found.step()
    assert [p.shape for p in model.parameters()] == shapes and found.taken == 0


def test_gradients_that_are_not_finite_are_left_out() -> None:
    model = network()
    optimizer = sgd(model)
    found = pruner(model, schedule.one_shot(flops=0.5, at=3), optimizer, criterion="taylor")
    for step, (x, y) in enumerate(batches(3), 1):
        nn.functional.cross_entropy(model(x), y).backward()
        if step == 2:
            model.stem.weight.grad[0] = float("inf")
        else:
            optimizer.step()
        cut = found.step()
        assert found.gradients is not None and (step == 3 or found.gradients.count == 1)
        optimizer.zero_grad()
    assert cut is not None
    model = network()
    found = pruner(model, schedule.one_shot(flops=0.5), sgd(model), criterion="taylor")
    for x, y in batches(1):
        nn.functional.cross_entropy(model(x), y).backward()
        model.stem.weight.grad[0] = float("nan")
        with pytest.raises(PrunerError, match="no step before this cut had finite gradients"):
            found.step()


def test_weights_that_are_not_numbers() -> None:
    model = network()
    optimizer = sgd(model)
    found = pruner(model, schedule.one_shot(flops=0.5), optimizer)
    shapes = [p.shape for p in model.parameters()]
    with pytest.raises(ScoreError, match="NaN or infinite"):
        for x, y in batches(1):
            (nn.functional.cross_entropy(model(x), y) * float("nan")).backward()
            optimizer.step()
            found.step()
    assert [p.shape for p in model.parameters()] == shapes
