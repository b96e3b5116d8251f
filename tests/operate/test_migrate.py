"""Training goes on after a cut: as the masked original would have gone on, with the state that it had."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import surgeon
from surgeon.dispatch import intercept
from surgeon.errors import MigrateError, PlanMismatch
from surgeon.operate.select import mask, select
from surgeon.verify.reference import Statistics, masked_state
from tests.nets import Perceptron, Residual, image


class Attention(nn.Module):
    """An embedding of patches and one transformer block, with its own scale, so that no weight is multiplied."""

    def __init__(self, dim: int = 8, heads: int = 2, width: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.embed = nn.Linear(6, dim)
        self.norm = nn.LayerNorm(dim)
        # A bias of keys has no gradient but rounding, and optimizers that go by signs would follow that.
        self.qkv = nn.Linear(dim, 3 * heads * width, bias=False)
        self.proj = nn.Linear(heads * width, dim)
        self.up = nn.Linear(dim, 12)
        self.down = nn.Linear(12, dim)
        self.head = nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        weights = (0.5 * q @ k.transpose(-2, -1)).softmax(-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(b, t, self.heads * self.width))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


class Scaled(nn.Module):
    """Attention whose scale is a root of the width: a cut multiplies the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 3 * 2 * 8)
        self.proj = nn.Linear(2 * 8, 6)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, 2, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))


def tokens(batch: int = 3) -> Tensor:
    return torch.randn(batch, 5, 6)


OPTIMIZERS: dict[str, Callable[[Iterable[Any]], optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.01),
    "momentum": lambda p: optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: optim.Adam(p, lr=1e-3),
    "adam_foreach": lambda p: optim.Adam(p, lr=1e-3, foreach=True, amsgrad=True),
    "adam_fused": lambda p: optim.Adam(p, lr=1e-3, fused=True),
    "amsgrad": lambda p: optim.AdamW(p, lr=1e-3, amsgrad=True, weight_decay=0.1),
    "adagrad": lambda p: optim.Adagrad(p, lr=1e-3, initial_accumulator_value=0.1),
    "adadelta": lambda p: optim.Adadelta(p, lr=0.1),
    "adamax": lambda p: optim.Adamax(p, lr=1e-3),
    "asgd": lambda p: optim.ASGD(p, lr=1e-3, t0=0),
    "nadam": lambda p: optim.NAdam(p, lr=1e-3),
    "radam": lambda p: optim.RAdam(p, lr=1e-3),
    "rmsprop": lambda p: optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "rprop": lambda p: optim.Rprop(p, lr=1e-4),
}


def step(model: nn.Module, optimizer: optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def train(model: nn.Module, optimizer: optim.Optimizer, inputs: Callable[[], Tensor], steps: int) -> None:
    for _ in range(steps):
        step(model, optimizer, inputs())


class MaskedTraining:
    """The original with removed positions at zero, where they stay: their gradients and their state are zero."""

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, plan: surgeon.Plan) -> None:
        self.model, self.optimizer, self.plan = model, optimizer, plan
        self.masks = {p: mask(p, plan.cuts[n]) for n, p in model.named_parameters() if n in plan.cuts}
        self.blank()

    @torch.no_grad()
    def blank(self) -> None:
        for name, value in masked_state(self.model.state_dict(), self.plan).items():
            self.model.state_dict()[name].copy_(value)
        for p, keep in self.masks.items():
            for value in self.optimizer.state[p].values():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    value.mul_(keep)

    def step(self, x: Tensor) -> None:
        self.optimizer.zero_grad()
        with intercept(Statistics(self.plan)):
            y = self.model(x)
        y.square().mean().backward()
        for p, keep in self.masks.items():
            p.grad.mul_(keep)
        self.optimizer.step()
        self.blank()


def half(model: nn.Module, x: Tensor, **options: Any) -> surgeon.Plan:
    graph = surgeon.trace(model, x)
    return surgeon.plan(graph, surgeon.score(graph), ratio=0.5, scope="local", **options)


def differences(small: nn.Module, model: nn.Module, plan: surgeon.Plan) -> Iterator[float]:
    for name, p in small.named_parameters():
        whole = model.get_parameter(name).detach()
        kept = select(whole, plan.cuts[name]) if name in plan.cuts else whole
        yield float((p.detach() - kept).abs().max())


CASES = {"residual": (Residual, lambda: image()), "attention": (Attention, tokens)}


def ten_steps(
    make: Callable[[], nn.Module], inputs: Callable[[], Tensor], kind: str, dtype: torch.dtype, inplace: bool
) -> float:
    model = make().to(dtype).train()
    optimizer = OPTIMIZERS[kind](model.parameters())

    def given() -> Tensor:
        return inputs().to(dtype)

    train(model, optimizer, given, 5)
    plan = half(model, given())
    whole = copy.deepcopy(model)
    reference = OPTIMIZERS[kind](whole.parameters())
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    masked = MaskedTraining(whole, reference, plan)
    small = surgeon.operate(model, plan, inplace=inplace)
    assert surgeon.migrate(optimizer, plan) is optimizer
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in small.parameters()}
    start = [p.detach().clone() for p in small.parameters()]
    for _ in range(10):
        x = given()
        step(small, optimizer, x)
        masked.step(x)
    assert all(not torch.equal(a, b) for a, b in zip(start, small.parameters()) if a.numel() > 1)
    return max(differences(small, whole, plan))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("kind", ["adam", "amsgrad"])
def test_ten_adam_steps_are_those_of_the_masked_original(kind: str, case: str, dtype: torch.dtype) -> None:
    make, inputs = CASES[case]
    assert ten_steps(make, inputs, kind, dtype, inplace=True) <= 1e-6


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_every_optimizer_goes_on_as_the_masked_original(kind: str, case: str) -> None:
    make, inputs = CASES[case]
    assert ten_steps(make, inputs, kind, torch.float64, inplace=False) <= 1e-10


def test_the_test_would_notice_lost_state() -> None:
    """Without the moments, or with those of other positions, ten steps end elsewhere."""
    model = Residual().double()
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    train(model, optimizer, lambda: image().double(), 5)
    plan = half(model, image().double())
    whole, kept = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    reference = optim.Adam(whole.parameters(), lr=1e-3)
    reference.load_state_dict(kept)
    masked = MaskedTraining(whole, reference, plan)
    small = surgeon.operate(model, plan)
    forgetful = optim.Adam(small.parameters(), lr=1e-3)
    for _ in range(10):
        x = image().double()
        step(small, forgetful, x)
        masked.step(x)
    assert max(differences(small, whole, plan)) > 1e-4


# -- whose parameters ----------------------------------------------------------------------------------


def trained(kind: str = "adam", model: nn.Module | None = None) -> tuple[nn.Module, optim.Optimizer, surgeon.Plan]:
    model = model or Residual()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, image, 2)
    return model, optimizer, half(model, image())


def test_groups_schedulers_and_names_stay() -> None:
    model = Residual()
    head, rest = list(model.head.named_parameters()), [n for n in model.named_parameters() if "head" not in n[0]]
    optimizer = optim.AdamW([{"params": rest, "lr": 0.1}, {"params": head, "weight_decay": 0.0}])
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    groups = list(optimizer.param_groups)
    plan = half(model, image())
    surgeon.operate(model, plan, inplace=True)
    surgeon.migrate(optimizer, plan)
    assert all(a is b for a, b in zip(groups, optimizer.param_groups))
    assert optimizer.param_groups[1]["params"][0] is model.head.weight
    assert optimizer.param_groups[1]["weight_decay"] == 0.0
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in rest]
    before = model.conv1.weight.detach().clone()
    scaler.scale(model(image()).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    scheduler.step()
    assert not torch.equal(before, model.conv1.weight) and optimizer.param_groups[0]["lr"] == 0.05


def test_frozen_parameters_and_those_without_state() -> None:
    model = Residual()
    model.stem.requires_grad_(False)
    optimizer = optim.Adam(p for p in model.parameters() if p.requires_grad)
    plan = half(model, image())
    small = surgeon.operate(model, plan)
    surgeon.migrate(optimizer, plan)
    assert not optimizer.state
    held = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert held == {id(p) for p in small.parameters() if p.requires_grad}
    train(small, optimizer, image, 1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.out = nn.Linear(8, 7, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.out(x + self.down(torch.relu(self.up(x))))


def test_tied_parameters() -> None:
    model, ids = Tied(), torch.arange(7)[None]
    optimizer = optim.Adam(model.parameters())
    step(model, optimizer, ids)
    moments = optimizer.state[model.table.weight]["exp_avg"]
    plan = half(model, ids)
    surgeon.operate(model, plan, inplace=True)
    surgeon.migrate(optimizer, plan)
    assert torch.equal(optimizer.state[model.out.weight]["exp_avg"], select(moments, plan.cuts["table.weight"]))
    assert len(optimizer.state) == len(list(model.parameters()))
    step(model, optimizer, ids)


def test_two_cuts_one_after_the_other() -> None:
    model, optimizer, first = trained()
    name = "conv1.weight"
    moments = optimizer.state[model.conv1.weight]["exp_avg"]
    surgeon.operate(model, first, inplace=True)
    second = half(model, image())
    surgeon.operate(model, second, inplace=True)
    surgeon.migrate(optimizer, first)
    surgeon.migrate(optimizer, second)
    expected = select(select(moments, first.cuts[name]), second.cuts[name])
    assert torch.equal(optimizer.state[model.conv1.weight]["exp_avg"], expected)
    step(model, optimizer, image())


def test_a_saved_plan_is_the_plan() -> None:
    model, optimizer, plan = trained()
    surgeon.operate(model, surgeon.Plan.from_json(plan.to_json()), inplace=True)
    surgeon.migrate(optimizer, plan)
    assert {id(p) for p in optimizer.state} == {id(p) for p in model.parameters()}


def test_a_second_time_changes_nothing() -> None:
    model, optimizer, plan = trained()
    surgeon.operate(model, plan, inplace=True)
    surgeon.migrate(optimizer, plan)
    state = copy.deepcopy(optimizer.state_dict())
    surgeon.migrate(optimizer, plan, small=model)
    assert str(state) == str(optimizer.state_dict())


def test_models_of_another_process() -> None:
    """A checkpoint: original and optimizer are made and loaded, the small model too."""
    model, optimizer, plan = trained()
    small = copy.deepcopy(surgeon.operate(model, plan))
    resumed = Residual()
    again = optim.Adam(resumed.parameters())
    again.load_state_dict(optimizer.state_dict())
    with pytest.raises(MigrateError, match="model=, small="):
        surgeon.migrate(again, plan)
    surgeon.migrate(again, plan, model=resumed, small=small)
    expected = select(optimizer.state[model.conv1.weight]["exp_avg_sq"], plan.cuts["conv1.weight"])
    assert torch.equal(again.state[small.conv1.weight]["exp_avg_sq"], expected)


def test_two_copies_are_told_apart_or_refused() -> None:
    model, optimizer, plan = trained()
    first, second = surgeon.operate(model, plan), surgeon.operate(model, plan)
    with pytest.raises(MigrateError, match="2 models were cut by this plan"):
        surgeon.migrate(optimizer, plan)
    surgeon.migrate(optimizer, plan, small=second)
    assert optimizer.param_groups[0]["params"][0] is second.stem.weight is not first.stem.weight


def test_copies_that_are_gone_do_not_count() -> None:
    model, optimizer, plan = trained()
    surgeon.operate(model, plan)
    small = surgeon.operate(model, plan)
    surgeon.migrate(optimizer, plan)
    assert optimizer.param_groups[0]["params"][0] is small.stem.weight


def test_the_result_of_prune() -> None:
    model, optimizer, _ = trained()
    result = surgeon.prune(model, image(), ratio=0.5)
    surgeon.migrate(optimizer, result.plan)
    assert {id(p) for p in optimizer.state} == {id(p) for p in result.model.parameters()}


@pytest.mark.parametrize("inplace", [True, False])
def test_strangers_are_refused(inplace: bool) -> None:
    model, optimizer, plan = trained()
    stranger = optim.Adam([*model.parameters(), nn.Parameter(torch.zeros(3))])
    other = optim.Adam(Residual().parameters())
    before = [id(p) for p in stranger.param_groups[0]["params"]]
    small = surgeon.operate(model, plan, inplace=inplace)
    for wrong in (stranger, other):
        with pytest.raises(MigrateError):
            surgeon.migrate(wrong, plan, small=small)
    assert before == [id(p) for p in stranger.param_groups[0]["params"]]
    with pytest.raises(MigrateError, match="as small="):
        surgeon.migrate(optimizer, plan, model=model)


def test_other_plans_and_architectures_are_refused() -> None:
    model, optimizer, plan = trained()
    other = half(Residual(width=16), image())
    small = surgeon.operate(model, plan)
    with pytest.raises(MigrateError):
        surgeon.migrate(optimizer, other)
    with pytest.raises(PlanMismatch, match="in the plan"):
        surgeon.migrate(optimizer, other, model=model, small=small)
    with pytest.raises(PlanMismatch, match="after the plan"):
        surgeon.migrate(optimizer, plan, model=model, small=model)
    with pytest.raises(PlanMismatch, match="has no parameter"):
        surgeon.migrate(optimizer, plan, model=model, small=Perceptron())
    assert optimizer.param_groups[0]["params"][0] is model.stem.weight


def test_new_biases_join_the_group_of_their_weight() -> None:
    for make in (optim.Adam, optim.Adagrad):
        model = Residual()
        optimizer = make([{"params": model.head.parameters()}, {"params": model.conv1.parameters(), "lr": 0.5}])
        plan = half(model, image())
        small = surgeon.operate(model, plan)
        small.conv1.register_parameter("bias", nn.Parameter(torch.zeros(small.conv1.out_channels)))
        surgeon.migrate(optimizer, plan)
        assert optimizer.param_groups[1]["params"][1] is small.conv1.bias
        train(small, optimizer, image, 1)
        assert bool(small.conv1.bias.any())


# -- state ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "keys"), [("adam", ("exp_avg", "exp_avg_sq")), ("rmsprop", ("square_avg", "grad_avg"))]
)
def test_state_of_multiplied_weights_is_that_of_their_gradients(kind: str, keys: tuple[str, ...]) -> None:
    """Gathered by the masked original at rest, and cut: what the small model gathers at rest."""
    model = Scaled().double()
    x = torch.randn(2, 5, 6).double()
    plan = half(model, x)
    assert plan.scales
    state = masked_state(dict(model.named_parameters()), plan)
    model.load_state_dict(state)
    small = surgeon.operate(model, plan)
    moving, own = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](small.parameters())
    for optimizer in (moving, own):
        optimizer.param_groups[0]["lr"] = 0.0
    for _ in range(3):
        x = torch.randn(2, 5, 6).double()
        step(model, moving, x)
        step(small, own, x)
    surgeon.migrate(moving, plan)
    for p in small.parameters():
        for key in keys:
            torch.testing.assert_close(moving.state[p][key], own.state[p][key], rtol=1e-9, atol=1e-15)


def test_other_optimizers_have_to_be_told() -> None:
    class Mine(optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1})

        @torch.no_grad()
        def step(self) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                self.state[p].setdefault("last", torch.zeros_like(p)).copy_(p.grad)

    model = Residual()
    optimizer = Mine(model.parameters())
    step(model, optimizer, image())
    last = optimizer.state[model.conv1.weight]["last"]
    plan = half(model, image())
    small = surgeon.operate(model, plan)
    with pytest.raises(MigrateError, match=r"state=\{'last': 1\}"):
        surgeon.migrate(optimizer, plan)
    surgeon.migrate(optimizer, plan, state={"last": 1})
    assert torch.equal(optimizer.state[small.conv1.weight]["last"], select(last, plan.cuts["conv1.weight"]))


def test_lbfgs_is_refused_with_a_reason() -> None:
    model = Residual()
    optimizer = optim.LBFGS(model.parameters())
    plan = half(model, image())
    surgeon.operate(model, plan, inplace=True)
    with pytest.raises(MigrateError, match="make a new LBFGS"):
        surgeon.migrate(optimizer, plan)


@pytest.mark.skipif(not hasattr(optim, "Adafactor"), reason="this torch has no Adafactor")
def test_adafactor_keeps_its_estimate_of_second_moments() -> None:
    model = Residual()
    optimizer = optim.Adafactor(model.parameters())
    train(model, optimizer, image, 2)
    plan = half(model, image())
    small = surgeon.operate(model, plan)

    def estimate(p: nn.Parameter) -> Tensor:
        state = optimizer.state[p]
        if "variance" in state:
            return state["variance"]
        return state["row_var"] * state["col_var"] / state["row_var"].mean(-2, keepdim=True)

    before = {name: estimate(p) for name, p in model.named_parameters()}
    surgeon.migrate(optimizer, plan)
    for name, p in small.named_parameters():
        expected = select(before[name], plan.cuts[name]) if name in plan.cuts else before[name]
        torch.testing.assert_close(estimate(p), expected)
    train(small, optimizer, image, 1)


@pytest.mark.skipif(not hasattr(optim, "Muon"), reason="this torch has no Muon")
def test_muon() -> None:
    model = Perceptron()
    optimizer = optim.Muon([model.first.weight, model.last.weight])
    x = torch.randn(4, 6)
    step(model, optimizer, x)
    kept = optimizer.state[model.first.weight]["momentum_buffer"]
    plan = half(model, x)
    surgeon.operate(model, plan, inplace=True)
    surgeon.migrate(optimizer, plan)
    expected = select(kept, plan.cuts["first.weight"])
    assert torch.equal(optimizer.state[model.first.weight]["momentum_buffer"], expected)
    step(model, optimizer, x)


# -- averages ------------------------------------------------------------------------------------------


def test_averaged_models_go_on() -> None:
    model, optimizer, plan = trained()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        train(model, optimizer, image, 1)
        averaged.update_parameters(model)
    before = copy.deepcopy(averaged.module.state_dict())
    surgeon.operate(model, plan, inplace=True)
    assert surgeon.migrate(averaged, plan) is averaged
    surgeon.migrate(optimizer, plan)
    surgeon.migrate(plain, plan)
    for name, value in averaged.module.state_dict().items():
        assert torch.equal(value, select(before[name], plan.cuts[name]) if name in plan.cuts else before[name])
    assert {name: v.shape for name, v in plain.items()} == {n: v.shape for n, v in model.state_dict().items()}
    train(model, optimizer, image, 1)
    averaged.update_parameters(model)
    averaged(image())


def test_averages_of_tied_weights() -> None:
    """The plan knows which names are one; of a plan without that, the model has to say it."""
    model, ids = Tied(), torch.arange(7)[None]
    plan = half(model, ids)
    averages = {name: value.clone() for name, value in model.state_dict().items()}
    unaware = replace(plan, tied={})
    with pytest.raises(PlanMismatch, match=r"out\.weight.*give model="):
        surgeon.migrate(averages, unaware)
    told = dict(averages)
    surgeon.migrate(told, unaware, model=model)
    surgeon.migrate(averages, plan)
    assert all(torch.equal(told[name], value) for name, value in averages.items())
    assert averages["out.weight"].shape == averages["table.weight"].shape == (7, 4)
    surgeon.operate(model, plan, inplace=True)
    model.load_state_dict(averages)


def test_averages_of_something_else_are_refused() -> None:
    model, _, plan = trained()
    prefixed = {f"module.{name}": value for name, value in model.state_dict().items()}
    with pytest.raises(PlanMismatch, match="prefixes"):
        surgeon.migrate(prefixed, plan)
    with pytest.raises(PlanMismatch, match="in the plan"):
        surgeon.migrate(Residual(width=16).state_dict(), plan)
    with pytest.raises(MigrateError, match="list is no"):
        surgeon.migrate([], plan)  # type: ignore[type-var]
