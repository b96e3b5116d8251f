"""One plan for every checkpoint of an architecture, and for no other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import surgeon
from surgeon.errors import PlanMismatch
from surgeon.operate.select import select
from tests.nets import Perceptron, Residual, image


@pytest.fixture
def plan() -> surgeon.Plan:
    made = surgeon.prune(Residual(), image(), ratio=0.5, scope="local", check=False).plan
    return surgeon.Plan.from_json(made.to_json())


def tune(model: nn.Module, average: Any = None) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(image()).square().mean().backward()
        optimizer.step()
        if average is not None:
            average.update_parameters(model)
    return model


def test_checkpoints_of_one_architecture(plan: surgeon.Plan) -> None:
    initial = Residual()
    average = torch.optim.swa_utils.AveragedModel(initial)
    trained = tune(copy.deepcopy(initial), average)
    checkpoints = {
        "initial": initial,
        "trained": trained,
        "average": average.module,
        "tuned": tune(copy.deepcopy(trained)),
        "seed": Residual(),
        "half": Residual().half(),
        "on meta": Residual().to("meta"),
    }
    for name, model in checkpoints.items():
        small = surgeon.operate(model, plan)
        for key, tensor in small.state_dict().items():
            old = model.state_dict()[key]
            assert tensor.dtype == old.dtype and tensor.device == old.device
            expected = select(old, plan.cuts[key]) if key in plan.cuts else old
            assert tensor.shape == expected.shape and (name == "on meta" or torch.equal(tensor, expected))
        if name not in ("half", "on meta"):
            surgeon.verify(model, small, plan, image())


class Shorter(Residual):
    def __init__(self) -> None:
        super().__init__()
        del self.head


class Longer(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(2, 2)


class Declared(Residual):
    """The shapes of the plan's model, and another number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem.out_channels = 9


class Tied(Residual):
    def __init__(self) -> None:
        super().__init__(width=8, inner=12)
        self.conv2.bias = self.stem.bias


OTHERS = {
    "width": (lambda: Residual(width=16), r"conv1\.weight is \[12, 16, 3, 3\] here, \[12, 8, 3, 3\] in the plan"),
    "solid width": (lambda: Residual(classes=6), r"head\.bias is \[6\] here"),
    "missing layer": (Shorter, r"no tensor 'head\.bias'"),
    "other layer": (Longer, r"it does not know 'more\."),
    "other class": (Perceptron, "no tensor"),
    "attribute": (Declared, r"stem\.out_channels is 9, not 8"),
    "ties": (Tied, "are one tensor here, and two in the plan"),
    "wrapper": (lambda: torch.optim.swa_utils.AveragedModel(Residual()), r"names here begin with 'module\.'"),
    "inside": (lambda: nn.ModuleDict({"a": nn.Linear(1, 1)}), "no tensor"),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("what", list(OTHERS))
def test_other_architectures_are_refused_and_left_alone(plan: surgeon.Plan, what: str, inplace: bool) -> None:
    factory, message = OTHERS[what]
    model = factory()
    shown = str(model)
    tensors = {name: (id(tensor), tensor.clone()) for name, tensor in model.named_parameters()}
    with pytest.raises(PlanMismatch, match=message):
        surgeon.operate(model, plan, inplace=inplace)
    assert str(model) == shown
    assert all(id(p) == tensors[name][0] and torch.equal(p, tensors[name][1]) for name, p in model.named_parameters())


def test_weights_that_were_tied_must_be(plan: surgeon.Plan) -> None:
    tied = surgeon.prune(Tied(), image(), ratio=0.5, scope="local").plan
    assert tied.tied == {"conv2.bias": "stem.bias"}
    with pytest.raises(PlanMismatch, match=r"conv2\.bias is tied to stem\.bias in the plan, and not in this model"):
        surgeon.operate(Residual(), tied)
