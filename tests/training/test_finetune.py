"""Fine-tuning learns, distils what it says, keeps the best weights, and tells what can't work."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import surgeon
from surgeon.errors import DataError, EvaluationError, FileError, PlanMismatch, TrainingError, UnknownLayer
from surgeon.finetune.batch import Batches
from surgeon.finetune.distill import Teacher, soft_loss
from surgeon.finetune.finetune import renorm
from surgeon.finetune.optimize import cosine, made, precision
from tests.nets import Perceptron, Residual, image


def labelled(count: int = 8, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Batches whose label is which of the first four inputs is largest."""
    xs = torch.randn(count, size, 6, generator=torch.Generator().manual_seed(1))
    return [(x, x[:, :4].argmax(1)) for x in xs]


def images(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(4, 3, 6, 6) + 2, torch.randint(5, (4,))) for _ in range(count)]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def accuracy(model: nn.Module) -> float:
    with torch.no_grad():
        return float(torch.cat([model(x).argmax(1) == y for x, y in labelled()]).float().mean())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_it_learns(optimizer: str) -> None:
    model = Perceptron()
    done = surgeon.finetune(model, labelled(), epochs=20, lr=3e-2, optimizer=optimizer)
    assert accuracy(model) > 0.9
    assert done.steps == 160 and [e.number for e in done.history] == list(range(21))
    assert done.history[-1].loss < 0.5 * done.history[1].loss
    assert done.best is None and done.value is None


def test_it_is_the_loop_that_anyone_would_write() -> None:
    model, twin = Perceptron(), None
    twin = copy.deepcopy(model)
    surgeon.finetune(model, labelled(), epochs=3, lr=1e-2, schedule="constant", warmup=0.0, weight_decay=0.1)
    decayed, plain = [p for p in twin.parameters() if p.dim() > 1], [p for p in twin.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], 1e-2, weight_decay=0.1)
    for _ in range(3):
        for x, y in labelled():
            optimizer.zero_grad()
            F.cross_entropy(twin(x), y).backward()
            optimizer.step()
    assert same(state(model), state(twin))


def test_rates_rise_and_fall_and_are_put_back() -> None:
    factor = cosine(0.1)
    assert factor(0.05) == pytest.approx(0.5) and factor(0.1) == 1 and factor(0.55) == pytest.approx(0.5)
    assert factor(1.0) == pytest.approx(0)
    model, seen = Perceptron(), []
    optimizer = torch.optim.SGD(
        [{"params": model.first.parameters(), "lr": 0.1}, {"params": model.last.parameters(), "lr": 0.3}]
    )

    def note() -> None:
        seen.append([group["lr"] for group in optimizer.param_groups])

    surgeon.finetune(model, labelled(4), epochs=2, optimizer=optimizer, schedule=lambda p: p, after_step=note)
    assert [a for a, _ in seen] == pytest.approx([0.1 * (i + 0.5) / 8 for i in range(8)])
    assert [b for _, b in seen] == pytest.approx([0.3 * (i + 0.5) / 8 for i in range(8)])
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.3]


def test_the_best_weights_stay() -> None:
    model, values = Perceptron(), iter([0.1, 0.6, 0.9, 0.9, 0.2])
    kept: list[dict[str, Tensor]] = []

    def validate(model: nn.Module) -> float:
        kept.append(state(model))
        assert not model.training
        return next(values)

    done = surgeon.finetune(model, labelled(), epochs=4, lr=1e-2, validate=validate)
    assert done.best == 3 and done.value == 0.9
    assert [e.value for e in done.history] == [0.1, 0.6, 0.9, 0.9, 0.2]
    assert same(state(model), kept[3]) and not same(kept[3], kept[4])


def test_training_that_harms_leaves_the_model_as_it_was() -> None:
    model = Perceptron()
    before = state(model)
    count = iter(range(10))
    done = surgeon.finetune(model, labelled(), epochs=2, lr=1e-2, validate=lambda _: -next(count))
    assert done.best == 0 and same(state(model), before)


def test_flags_hooks_and_gradients_of_the_teacher_are_left_alone() -> None:
    model, x = Residual(), image()
    result = surgeon.prune(model, x, ratio=0.4)
    small = result.model
    small.train()
    small.bn1.eval()
    before = state(model)
    surgeon.finetune(small, images(), epochs=1, teacher=model, features=1.0)
    assert small.training and not small.bn1.training and model.training
    assert same(state(model), before)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for net in (model, small) for m in net.modules())


def test_a_seed_fixes_everything_and_the_random_state_is_restored() -> None:
    data = DataLoader(TensorDataset(torch.randn(32, 6), torch.randint(4, (32,))), batch_size=8, shuffle=True)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        model = nn.Sequential(Perceptron(), nn.Dropout(0.5))
        torch.rand(len(found))  # another state of the generator
        before = torch.random.get_rng_state()
        surgeon.finetune(model, data, epochs=2, seed=5)
        assert torch.equal(torch.random.get_rng_state(), before)
        found.append(state(model))
    assert same(*found)
    torch.manual_seed(3)
    model = nn.Sequential(Perceptron(), nn.Dropout(0.5))
    surgeon.finetune(model, data, epochs=2, seed=6)
    assert not same(found[0], state(model))


# -- distillation ------------------------------------------------------------------------------------


def test_the_distance_of_logits_is_hintons() -> None:
    student, teacher = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    p, q = torch.softmax(teacher / 3, 1), torch.softmax(student / 3, 1)
    by_hand = sum(p[i, c] * (p[i, c].log() - q[i, c].log()) for i in range(5) for c in range(4)) / 5
    by_hand = by_hand.detach()
    assert float(soft_loss(student, teacher, 3.0).detach()) == pytest.approx(float(9 * by_hand), rel=1e-5)
    # For large temperatures and centred logits, the gradient is that of half a squared distance over the classes.
    student = (student - student.mean(1, keepdim=True)).detach().requires_grad_()
    teacher = teacher - teacher.mean(1, keepdim=True)
    (slope,) = torch.autograd.grad(soft_loss(student, teacher, 1000.0), student)
    assert torch.allclose(slope, (student - teacher) / 4 / 5, atol=1e-4)


def test_dense_outputs_have_classes_along_dimension_one() -> None:
    student, teacher = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    rows = [t.permute(0, 2, 3, 1).reshape(-1, 4) for t in (student, teacher)]
    assert torch.allclose(soft_loss(student, teacher, 2.0), soft_loss(*rows, 2.0))


def test_the_parts_add_up() -> None:
    torch.manual_seed(0)
    teacher, model = Perceptron(), Perceptron()
    done = surgeon.finetune(
        model, labelled(1), epochs=1, teacher=teacher, distill=0.3, features=2.0, penalty=lambda: torch.tensor(0.25)
    )
    epoch = done.history[1]
    assert epoch.loss == pytest.approx(0.7 * epoch.task + 0.3 * epoch.soft + 2.0 * epoch.features + 0.25)


def test_a_student_without_labels_becomes_its_teacher() -> None:
    teacher, x = Perceptron(hidden=12), torch.randn(64, 6)
    small = surgeon.prune(teacher, x[:1], ratio=0.25).model
    unlabelled = [(part,) for part in x.split(16)]
    before = soft_loss(small(x), teacher(x), 1.0)
    done = surgeon.finetune(small, unlabelled, epochs=40, lr=2e-2, teacher=teacher, distill=1.0, temperature=2.0)
    assert soft_loss(small(x), teacher(x), 1.0) < 0.2 * before
    assert done.history[-1].task is None


def test_features_are_compared_at_the_channels_that_stayed() -> None:
    """Against the features of the small model when it was cut from what the teacher is: where they read the same."""
    model, x = Residual(), image()
    plan = surgeon.plan(surgeon.trace(model, x), surgeon.score(surgeon.trace(model, x)), ratio=0.4, scope="local")
    small = surgeon.operate(model, plan)
    with torch.no_grad():
        for p in small.parameters():
            p.add_(0.1 * torch.randn_like(p))
    for net in (model, small):
        net.eval()
    guide = Teacher(small, model, temperature=1.0, divergence=None, layers=None, plan=None)
    with guide.listening():
        guide.run(lambda net: net(x), small)
        found = guide.features()
    # By hand: the input of conv1 and head is the stream, that of conv2 what is inside of the block.
    stream = plan.cuts["head.weight"].selections[0].keep
    inner = plan.cuts["conv2.weight"].selections
    inner = next(s.keep for s in inner if s.dims == (1,))

    def read(net: nn.Module) -> tuple[Tensor, Tensor]:
        y = net.stem(x)
        inside = torch.relu(net.bn1(net.conv1(y)))
        return inside, (y + net.conv2(inside)).mean((2, 3))

    pairs = [(a, b[:, keep]) for a, b, keep in zip(read(small), read(model), (inner, stream))]
    by_hand = sum((a - b).square().sum() / b.square().sum() for a, b in pairs) / 2
    assert sorted(hint.layer for hint in guide.hints) == ["conv2", "head"]
    assert float(found.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)


def test_features_come_closer() -> None:
    model, x = Residual(), image()
    result = surgeon.prune(model, x, ratio=0.4)
    done = surgeon.finetune(
        result.model,
        images() * 10,
        epochs=6,
        lr=1e-2,
        teacher=model,
        distill=0.0,
        features=5.0,
        loss=lambda o, _: 0 * o.sum(),
    )
    assert done.history[-1].features < 0.5 * done.history[1].features
    assert done.history[-1].soft is None


def test_a_cut_in_two_steps_needs_the_plan_of_both() -> None:
    original, x = Residual(), image()
    model = copy.deepcopy(original)
    plans = []
    for _ in range(2):
        graph = surgeon.trace(model, x)
        plans.append(surgeon.plan(graph, surgeon.score(graph), ratio=0.25, scope="local"))
        surgeon.operate(model, plans[-1], inplace=True)
    tune = partial(surgeon.finetune, model, images(), epochs=1, teacher=original, features=1.0)
    with pytest.raises(TrainingError, match=r"give plan="):
        tune()
    with pytest.raises(PlanMismatch, match=r"first\.then\(second\)"):
        tune(plan=plans[1])
    assert tune(plan=plans[0].then(plans[1])).history[1].features > 0


def test_layers_can_be_named() -> None:
    model, x = Residual(), image()
    small = surgeon.prune(model, x, ratio=0.4).model
    tune = partial(surgeon.finetune, small, images(), epochs=1, teacher=model, features=1.0)
    assert tune(layers=["conv*"]).history[1].features != tune(layers=["head"]).history[1].features
    with pytest.raises(UnknownLayer, match="head"):
        tune(layers=["haed"])


def test_models_that_give_their_own_loss_and_logits() -> None:
    class Own(nn.Module):
        def __init__(self, hidden: int = 10) -> None:
            super().__init__()
            self.net = Perceptron(hidden=hidden)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"logits": logits, "loss": F.cross_entropy(logits, labels)}

    batches = [{"x": x, "labels": y} for x, y in labelled()]
    model = Own()
    done = surgeon.finetune(model, batches, epochs=15, lr=3e-2, teacher=Own(12), distill=0.1)
    assert done.history[-1].task < 0.6 * done.history[1].task
    given = surgeon.finetune(model, batches, epochs=1, loss=lambda out, batch: out["logits"].sum() * 0 + len(batch))
    assert given.history[1].task == 2


# -- statistics --------------------------------------------------------------------------------------


def test_statistics_are_plain_averages() -> None:
    model, data = Residual(), images(5)
    assert renorm(model, data)
    with torch.no_grad():
        means = torch.stack([model.conv1(model.stem(x)).mean((0, 2, 3)) for x, _ in data])
    assert torch.allclose(model.bn1.running_mean, means.mean(0), atol=1e-6)
    assert model.bn1.momentum == 0.1 and model.bn1.training
    assert not renorm(Perceptron(), labelled())


def test_statistics_before_and_after() -> None:
    """What the first validation sees are new statistics; those taken after training stay unless they are worse."""
    data, seen = images(), []

    def validate(model: nn.Module) -> float:
        seen.append(model.bn1.running_mean.clone())
        return float(len(seen))

    start, model = Residual(), None
    for norms, moved in (("before", True), (None, False)):
        seen.clear()
        model = copy.deepcopy(start)
        surgeon.finetune(model, data, epochs=1, norms=norms, validate=validate)
        assert torch.equal(seen[0], start.bn1.running_mean) != moved
    model, seen = copy.deepcopy(start), []
    assert surgeon.finetune(model, data, epochs=1, norms="after", validate=validate).renormed
    twin = copy.deepcopy(model)
    renorm(twin, data)
    assert torch.allclose(model.bn1.running_mean, twin.bn1.running_mean)
    model, values = copy.deepcopy(start), iter([0.0, 1.0, 0.5])
    assert not surgeon.finetune(model, data, epochs=1, norms="after", validate=lambda _: next(values)).renormed


# -- what can't work ---------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_tells_step_and_rate_and_spares_the_weights() -> None:
    model, data = Perceptron(), labelled(4)
    data[2][0][0, 0] = float("nan")
    before: list[dict[str, Tensor]] = []
    with pytest.raises(TrainingError, match=r"step 3 \(epoch 1, lr 0\.02\)"):
        surgeon.finetune(
            model,
            data,
            epochs=1,
            lr=0.02,
            schedule="constant",
            warmup=0.0,
            after_step=lambda: before.append(state(model)),
        )
    assert len(before) == 2 and same(before[-1], state(model))


def test_a_generator_can_be_read_once() -> None:
    with pytest.raises(DataError, match="only once"):
        surgeon.finetune(Perceptron(), (batch for batch in labelled()), epochs=2)
    done = surgeon.finetune(Perceptron(), (batch for batch in labelled()), epochs=1, norms=None)
    assert done.steps == 8
    empty = iter(labelled(0))
    with pytest.raises(DataError, match="no batch"):
        surgeon.finetune(Perceptron(), empty, epochs=1, norms=None)


def test_data_without_a_length() -> None:
    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(labelled(4))

    rates: list[float] = []
    model = Perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loader = DataLoader(Stream(), batch_size=None)
    surgeon.finetune(
        model,
        loader,
        epochs=2,
        optimizer=optimizer,
        schedule=lambda p: p,
        after_step=lambda: rates.append(optimizer.param_groups[0]["lr"]),
    )
    assert rates == pytest.approx([0.25] * 4 + [0.5625, 0.6875, 0.8125, 0.9375])


MISTAKES = [
    ({"epochs": 0}, TrainingError, "epochs=0"),
    ({"epochs": 1.5}, TrainingError, "whole number"),
    ({"lr": -1.0}, TrainingError, "lr=-1.0"),
    ({"lr": float("nan")}, TrainingError, "lr=nan"),
    ({"optimizer": "adam"}, TrainingError, "'adamw' or 'sgd'"),
    ({"optimizer": lambda params: list(params)}, TrainingError, "returned list"),
    ({"schedule": "step"}, TrainingError, "schedule='step'"),
    ({"warmup": 1.0}, TrainingError, "warmup=1.0"),
    ({"norms": "always"}, TrainingError, "norms='always'"),
    ({"features": 1.0}, TrainingError, "needs teacher="),
    ({"teacher": Perceptron(), "distill": 1.5}, TrainingError, "distill=1.5"),
    ({"teacher": Perceptron(), "temperature": 0}, TrainingError, "temperature=0"),
    ({"teacher": Perceptron(classes=3)}, TrainingError, "same classes"),
    ({"teacher": "resnet"}, surgeon.SurgeonError, "not str"),
    ({"teacher": Perceptron().to("meta")}, TrainingError, r"on meta .* teacher\.to\('cpu'\)"),
    ({"loss": lambda output, _: output}, TrainingError, "scalar"),
    ({"validate": 0.5}, EvaluationError, "validate must be a function"),
    ({"validate": lambda _: float("nan")}, EvaluationError, "before training"),
    ({"data": 3}, DataError, "data is int"),
    ({"data": torch.randn(3, 6)}, DataError, "data is Tensor"),
    ({"data": []}, DataError, "no batch"),
    ({"data": [torch.randn(3, 6)]}, TrainingError, "pairs"),
    ({"data": [(torch.randn(3, 6), torch.zeros(3).long(), 1)]}, TrainingError, "a tuple of 3"),
]


@pytest.mark.parametrize(("options", "error", "message"), MISTAKES)
def test_mistakes_are_told(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = Perceptron()
    before = state(model)
    data = options.get("data", labelled())
    with pytest.raises(error, match=message):
        surgeon.finetune(model, data, **{"epochs": 1, **{k: v for k, v in options.items() if k != "data"}})
    assert same(state(model), before) or "scalar" not in message


def test_who_owns_what() -> None:
    model, x = Residual(), image()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = surgeon.prune(model, x, ratio=0.4)
    with pytest.raises(TrainingError, match=r"surgeon\.migrate"):
        surgeon.finetune(result.model, images(), epochs=1, optimizer=optimizer)
    surgeon.migrate(optimizer, result.plan)
    assert surgeon.finetune(result.model, images(), epochs=1, optimizer=optimizer).steps == 3
    with pytest.raises(TrainingError, match="shares parameters"):
        surgeon.finetune(model, images(), epochs=1, teacher=model)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(TrainingError, match="requires gradients"):
        surgeon.finetune(model, images(), epochs=1)


def test_no_mixed_precision_on_a_cpu_unless_asked() -> None:
    cpu = torch.device("cpu")
    assert precision(cpu, None) is None and precision(cpu, False) is None
    assert precision(cpu, True) is torch.bfloat16 and precision(cpu, torch.float16) is torch.float16
    kinds = set()
    model = Perceptron()
    model.last.register_forward_hook(lambda _m, _a, out: kinds.add(out.dtype))
    surgeon.finetune(model, labelled(2), epochs=1)
    assert kinds == {torch.float32}
    surgeon.finetune(model, labelled(2), epochs=1, amp=True)
    assert kinds == {torch.float32, torch.bfloat16}


def test_it_fits_the_guard_of_prune() -> None:
    model, x = Perceptron(hidden=24), torch.randn(1, 6)
    surgeon.finetune(model, labelled(), epochs=10, lr=3e-2)
    tune = partial(surgeon.finetune, data=labelled(), epochs=3, lr=1e-2, teacher=model)
    result = surgeon.prune(model, x, evaluate=accuracy, max_drop=0.05, finetune=tune, resolution=0.2)
    assert accuracy(result.model) >= accuracy(model) - 0.05
    assert result.evaluations is not None and result.evaluations.chosen is not None


def test_batches_go_where_the_model_is() -> None:
    tree = {"x": torch.zeros(2), "more": [torch.zeros(1), "text"]}
    (found,) = Batches([tree], torch.device("meta"), 1)
    assert found["x"].is_meta and found["more"][0].is_meta and found["more"][1] == "text"


def test_vectors_have_no_weight_decay() -> None:
    optimizer = made("adamw", Residual(), 0.1, 0.3)
    for group in optimizer.param_groups:
        assert all((p.dim() > 1) == (group["weight_decay"] == 0.3) for p in group["params"])


# -- rewinding ---------------------------------------------------------------------------------------


def test_a_ticket_has_the_initial_weights_of_what_stays() -> None:
    model, x = Residual(), image()
    initial = state(model)
    surgeon.finetune(model, images(), epochs=3, lr=1e-2)
    plan = surgeon.prune(model, x, ratio=0.4).plan
    trained = state(model)
    ticket = surgeon.rewind(model, plan, initial)
    assert same(state(model), trained)
    for name, value in ticket.state_dict().items():
        expected = initial[name]
        for selection in plan.cuts[name].selections if name in plan.cuts else ():
            expected = expected.index_select(selection.dims[0], torch.from_numpy(selection.keep))
        assert torch.equal(value, expected), name
    assert surgeon.finetune(ticket, images(), epochs=1, schedule=lambda p: 0.75 + 0.25 * p).steps == 3


def test_cuts_in_turn_are_replayed_in_turn(tmp_path: Any) -> None:
    model, x = Residual(), image()
    torch.save(model.state_dict(), tmp_path / "initial.pt")
    from safetensors.torch import save_file

    save_file(model.state_dict(), tmp_path / "initial.safetensors")
    first = surgeon.prune(model, x, ratio=0.25)
    second = surgeon.prune(first.model, x, ratio=0.25)
    plans = [first.plan, second.plan]
    for name in ("initial.pt", "initial.safetensors"):
        ticket = surgeon.rewind(Residual(), plans, tmp_path / name)
        assert same(state(ticket), state(second.model))


def test_checkpoints_that_are_not_the_originals(tmp_path: Any) -> None:
    model, x = Residual(), image()
    result = surgeon.prune(model, x, ratio=0.4)
    with pytest.raises(PlanMismatch, match="weights from before the cut"):
        surgeon.rewind(model, result.plan, result.model.state_dict())
    with pytest.raises(PlanMismatch, match=r"has no 'stem\.weight'"):
        surgeon.rewind(model, result.plan, {})
    with pytest.raises(PlanMismatch, match="no 'extra'"):
        surgeon.rewind(model, result.plan, {**model.state_dict(), "extra": torch.zeros(1)})
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(FileError, match="can't be read"):
        surgeon.rewind(model, result.plan, tmp_path / "broken.pt")
