"""The pruner's regularizer follows its cuts, presses on what the next one takes, and resumes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import surgeon
from surgeon.errors import PrunerError, TrainingError
from tests.pruner.loops import batches, network, pruner, train


def pruning(model: nn.Module, regularizer: Any, **options: Any) -> tuple[surgeon.Pruner, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    schedule = surgeon.schedule.iterative(flops=0.5, times=2, every=6)
    return pruner(model, schedule, optimizer, regularizer=regularizer, **options), optimizer


def trained(made: surgeon.Pruner, optimizer: Any, count: int, skip: int = 0) -> None:
    for step, (x, y) in enumerate(batches(count), 1):
        if step <= skip:
            continue
        loss = nn.functional.cross_entropy(made.model(x), y) + made.regularization()
        loss.backward()
        optimizer.step()
        made.step()
        optimizer.zero_grad()


def test_it_is_the_penalty_of_a_new_trace_after_every_cut() -> None:
    made, optimizer = pruning(network(), {"kind": "group_lasso", "strength": 1e-3})
    for steps, cuts in ((3, 0), (7, 1), (13, 2)):
        trained(made, optimizer, steps, skip=made.taken)
        assert len(made.history) == cuts
        fresh = surgeon.Regularizer(surgeon.trace(made.model, made.example_inputs), "group_lasso", 1e-3)
        assert torch.allclose(made.regularization(), fresh())


def test_as_a_term_or_as_gradients() -> None:
    made, _ = pruning(network(), "hoyer_square")
    model, twin = made.model, copy.deepcopy(made.model)
    other, _ = pruning(twin, "hoyer_square")
    (x, y) = next(batches(1))
    (nn.functional.cross_entropy(model(x), y) + made.regularization()).backward()
    nn.functional.cross_entropy(twin(x), y).backward()
    other.regularize()
    for p, q in zip(model.parameters(), twin.parameters()):
        assert torch.allclose(p.grad, q.grad, atol=1e-7)


def test_growing_drives_out_what_the_next_cut_takes() -> None:
    """What it presses on shrinks, is what is cut, and then the next are chosen."""
    made, optimizer = pruning(network(), {"kind": "growing", "strength": 2.0, "every": 1, "ceiling": 10.0})
    before = made.regularization().detach()
    assert float(before) > 0
    first = made.pressure.regularizer
    pressed = {name: first.targets[at].bool() for name, at in first.sums.groups.items()}
    sizes = first.norms()
    trained(made, optimizer, 5)
    assert made.pressure.regularizer.factor == 10
    for name, chosen in pressed.items():
        if bool(chosen.any()):
            assert bool((first.norms()[name][chosen] < 0.5 * sizes[name][chosen]).all())
    assert any(bool(chosen.any()) for chosen in pressed.values())
    trained(made, optimizer, 6, skip=5)
    removed = {g.name: g.removed for g in made.history[0].plan.groups}
    assert removed == {name: int(chosen.sum()) for name, chosen in pressed.items()}
    made.regularization()
    assert made.pressure.regularizer.factor == 2
    trained(made, optimizer, 13, skip=6)
    assert float(made.regularization().detach()) == 0  # the schedule is over


@pytest.mark.parametrize("kind", ["group_lasso", "growing"])
@pytest.mark.parametrize("half", [4, 8])
def test_it_resumes(kind: str, half: int) -> None:
    whole, optimizer = pruning(network(), {"kind": kind, "strength": 0.01, "every": 2})
    trained(whole, optimizer, 14)
    first, optimizer = pruning(network(), {"kind": kind, "strength": 0.01, "every": 2})
    trained(first, optimizer, half)
    states = copy.deepcopy((first.state_dict(), first.model.state_dict()))
    again, optimizer = pruning(network(3), {"kind": kind, "strength": 0.01, "every": 2})
    again.load_state_dict(states[0])
    again.model.load_state_dict(states[1])
    trained(again, optimizer, 14, skip=half)
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.model.state_dict().items())


def test_mistakes_are_told() -> None:
    model = network()
    made, _ = pruning(model, None)
    with pytest.raises(PrunerError, match='regularizer="group_lasso"'):
        made.regularization()
    with pytest.raises(PrunerError, match=r"see surgeon\.Regularizer"):
        pruning(model, {"kind": "group_lasso", "strenght": 1})
    with pytest.raises(TrainingError, match="unknown regularizer 'lasso'"):
        pruning(model, "lasso")
    other, _ = pruning(network(), "group_lasso")
    train(made.model, torch.optim.SGD(made.model.parameters(), lr=0.1), 2)
    with pytest.raises(PrunerError, match="without a regularizer"):
        other.load_state_dict(made.state_dict())


def test_an_optimizer_can_come_later() -> None:
    model = network()
    schedule = surgeon.schedule.one_shot(flops=0.5, at=2)
    made = pruner(model, schedule, None)
    optimizer = torch.optim.AdamW(model.parameters())
    made.attach(optimizer)
    train(model, optimizer, 4, lambda _: made.step())
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}
    with pytest.raises(PrunerError):
        made.attach(torch.optim.SGD(network().parameters(), lr=0.1))


def test_many_small_cuts_end_at_the_widths_of_one() -> None:
    """Without training in between, scores are the same: so are the widths, and not the widest layer's alone."""
    schedules = (
        surgeon.schedule.one_shot(flops=0.35),
        surgeon.schedule.iterative(flops=0.35, times=5, every=1),
        surgeon.schedule.gradual(flops=0.35, steps=24, every=1),
    )
    widths = []
    for schedule in schedules:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for given, width in ((3, 8), (8, 16), (16, 48)):
            layers += [nn.Conv2d(given, width, 3, padding=1), nn.ReLU()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 5))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
        made = pruner(model, schedule, optimizer, check=False)
        train(model, optimizer, schedule.end, lambda _, made=made: made.step())
        widths.append([m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)])
    assert widths[0] == widths[1] == widths[2]
