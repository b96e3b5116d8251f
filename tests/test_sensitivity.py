"""Sensitivities are those of real cuts, wherever and in whatever order they are measured."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import surgeon
from surgeon import errors
from surgeon.sensitivity import Curve, Sensitivity
from surgeon.sensitivity.journal import Point
from surgeon.sensitivity.measure import Packed, Task, measured
from tests.nets import Perceptron, Residual, image

INPUTS = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))


def negated_norm(model: nn.Module) -> float:
    """Top-level, so that other processes can run it."""
    with torch.no_grad():
        return -float(model(INPUTS).double().norm())


class Closeness:
    """How little a model's outputs differ from those of the original; counts how often it is asked."""

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        flags = [module.training for module in model.modules()]
        self.inputs, self.calls = inputs, 0
        with torch.no_grad():
            self.target = model.eval()(inputs)
        for module, flag in zip(model.modules(), flags):
            module.training = flag

    def __call__(self, model: nn.Module) -> float:
        self.calls += 1
        with torch.no_grad():
            return -float((model(self.inputs) - self.target).abs().double().mean())


class Branches(nn.Module):
    """Three hidden layers side by side: what they add counts nothing, something, or a hundred times as much."""

    def __init__(self) -> None:
        super().__init__()
        self.useless, self.mild, self.crucial = (nn.Linear(6, 8) for _ in range(3))
        self.useless_out, self.mild_out, self.crucial_out = (nn.Linear(8, 4) for _ in range(3))
        with torch.no_grad():
            self.useless_out.weight.zero_()
            self.crucial_out.weight.mul_(100)

    def forward(self, x: Tensor) -> Tensor:
        found = self.useless_out(torch.relu(self.useless(x))) + self.mild_out(torch.relu(self.mild(x)))
        return found + self.crucial_out(torch.relu(self.crucial(x)))


def test_planted_groups() -> None:
    model = Branches()
    found = surgeon.sensitivity(model, INPUTS, evaluate=Closeness(model, INPUTS))
    assert found.base == 0
    assert [curve.group for curve in found.curves] == ["useless", "mild", "crucial"]
    assert (found.drop("useless") == 0).all()
    assert (found.drop("mild") > 1e-3).all()
    assert (found.drop("crucial") > 10 * found.drop("mild")).all()
    rows = [line.split("│")[1].strip() for line in str(found).splitlines() if line.startswith("│")]
    assert rows == ["crucial", "mild", "useless"]


def test_values_are_those_of_the_model_without_its_weakest_units() -> None:
    model = Perceptron()
    evaluate = Closeness(model, INPUTS)
    found = surgeon.sensitivity(model, INPUTS, evaluate=evaluate, ratios=(0.5, 0.01, 0.3, 0.99))
    assert found.ratios == (0.01, 0.3, 0.5, 0.99)
    curve = found["first"]
    assert (curve.size, curve.removed) == (10, (1, 3, 5, 9))
    first, last = model.first, model.last
    norms = first.weight.abs().sum(1) + first.bias.abs() + last.weight.abs().sum(0)
    for removed, value in zip(curve.removed, curve.value):
        masked = Perceptron()
        masked.load_state_dict(model.state_dict())
        masked.last.weight.data[:, norms.argsort()[:removed]] = 0
        assert value == pytest.approx(evaluate(masked), rel=1e-5)


def test_each_cut_is_evaluated_once() -> None:
    model = Perceptron(hidden=3)
    evaluate = Closeness(model, INPUTS)
    found = surgeon.sensitivity(model, INPUTS, evaluate=evaluate, ratios=(0.1, 0.2, 0.4, 0.6, 0.9))
    assert found["first"].removed == (1, 1, 1, 1, 2)
    assert len(set(found["first"].value[:4])) == 1
    assert evaluate.calls == 3


def test_a_share_that_is_a_whole_number_of_units() -> None:
    assert 0.29 * 100 < 29
    found = surgeon.sensitivity(Perceptron(hidden=100), INPUTS, evaluate=negated_norm, ratios=(0.29,))
    assert found["first"].removed == (29,)


class Choosy(Perceptron):
    """A perceptron that does something else when it has a single hidden unit."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x if x.shape[1] == 1 else torch.relu(x))


def test_what_has_to_stay_stays() -> None:
    found = surgeon.sensitivity(Choosy(), INPUTS, evaluate=negated_norm, ratios=(0.5, 0.99))
    assert found["first"].removed == (5, 8)


def test_the_original_is_untouched() -> None:
    model, x = Residual(), image()
    model.bn1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    seen = []

    def evaluate(small: nn.Module) -> float:
        seen.append((small is model, any(module.training for module in small.modules())))
        small.train()
        small(x)
        for parameter in small.parameters():
            parameter.data.zero_()
        return 0.5

    surgeon.sensitivity(model, x, evaluate=evaluate, ratios=(0.5,))
    assert seen == [(False, False)] * 3
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_rows_lose_equally_many() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Flatten(), nn.Linear(8 * 36, 2)).eval()
    found = surgeon.sensitivity(model, image(), evaluate=Closeness(model, image()), ratios=(0.25, 0.5))
    assert all(curve.size == 4 and curve.removed == (1, 2) for curve in found.curves if curve.size > 2)
    assert sum(curve.size == 4 for curve in found.curves) == 2


def test_exported_programs() -> None:
    model = Perceptron().eval()
    found = surgeon.sensitivity(model, INPUTS, evaluate=Closeness(model, INPUTS), ratios=(0.5,))
    close = Closeness(model, INPUTS)
    program = torch.export.export(model, (INPUTS,))
    again = surgeon.sensitivity(program, INPUTS, evaluate=lambda small: close(small.module()), ratios=(0.5,))
    assert again.base == 0
    np.testing.assert_allclose(again.drop("first"), found.drop("first"), rtol=1e-6)


def test_keep_criterion_and_method() -> None:
    class Encoder(Residual):
        def encode(self, x: Tensor) -> Tensor:
            return self.conv2(torch.relu(self.bn1(self.conv1(self.stem(x)))))

    found = surgeon.sensitivity(
        Encoder(),
        image(),
        evaluate=lambda small: small.conv1.out_channels,
        criterion="l2",
        keep="stem",
        method="encode",
        ratios=(0.5,),
    )
    assert found.settings == {"criterion": "l2", "method": "encode"}
    assert found.base == 12
    assert [(curve.group, curve.value) for curve in found.curves] == [("conv1", (6.0,))]


# -- executors -------------------------------------------------------------------------------------------


def test_threads_that_finish_out_of_order() -> None:
    model, x = Residual(), image()
    close = Closeness(model, x)
    alone = surgeon.sensitivity(model, x, evaluate=close)
    other_done, order = threading.Event(), []

    def evaluate(small: nn.Module) -> float:
        whole = small.conv1.out_channels == 12 and small.stem.out_channels == 8
        if whole:
            assert other_done.wait(60)
        value = close(small)
        order.append(whole)
        other_done.set()
        return value

    with ThreadPoolExecutor(2) as executor:
        assert surgeon.sensitivity(model, x, evaluate=evaluate, executor=executor) == alone
    assert order.index(True) > 0


def test_processes() -> None:
    model = Perceptron()
    alone = surgeon.sensitivity(model, INPUTS, evaluate=negated_norm)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        assert surgeon.sensitivity(model, INPUTS, evaluate=negated_norm, executor=executor) == alone
        with pytest.raises(errors.EvaluationError, match=r"evaluation of the original \(.*top of a module"):
            surgeon.sensitivity(model, INPUTS, evaluate=lambda small: 1.0, executor=executor)
        with pytest.raises(errors.EvaluationError, match=r"evaluate failed on .*: TypeError: .*len\(\)"):
            surgeon.sensitivity(model, INPUTS, evaluate=len, executor=executor)
    assert not any(tensor.is_shared() for tensor in model.state_dict().values())
    assert len({curve.value for curve in alone.curves}) == len(alone.curves)


def test_so_many_in_flight() -> None:
    model = Perceptron()
    graph = surgeon.trace(model, INPUTS)
    plan = surgeon.plan(graph, surgeon.score(graph), ratio=0.5)
    waiting: list[int] = []
    drawn, yielded = 0, 0

    def tasks() -> Iterator[Task]:
        nonlocal drawn
        for k in range(12):
            drawn += 1
            waiting.append(drawn - yielded)
            yield Task(Point("first", k), Packed(model), plan, negated_norm, "a cut")

    with ThreadPoolExecutor(1) as executor:
        for _ in measured(tasks(), executor, 3):
            yielded += 1
    assert yielded == 12
    assert max(waiting) == 3


def test_a_failure_cancels_what_waits() -> None:
    futures: list[Future[Any]] = []

    class Stuck(Executor):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            futures.append(Future())
            if len(futures) == 4:
                futures[1].set_exception(RuntimeError("the machine is gone"))
            return futures[-1]

    with pytest.raises(errors.EvaluationError, match=r"group 'stem' at ratio 0.1 .*RuntimeError: the machine is gone"):
        surgeon.sensitivity(Residual(), image(), evaluate=lambda small: 1.0, executor=Stuck(), in_flight=4)
    assert [future.cancelled() for future in futures] == [True, False, True, True]


# -- resuming --------------------------------------------------------------------------------------------


def test_resume_from_any_kill(tmp_path: Path) -> None:
    model, x, path = Residual(), image(), tmp_path / "values.jsonl"
    evaluate = Closeness(model, x)
    whole = surgeon.sensitivity(model, x, evaluate=evaluate, resume=path)
    content, total = path.read_bytes(), evaluate.calls
    assert total == 11
    assert content.count(b"\n") == 1 + total
    for kept in range(0, len(content) + 1, 41):
        path.write_bytes(content[:kept])
        evaluate.calls = 0
        assert surgeon.sensitivity(model, x, evaluate=evaluate, resume=path) == whole
        assert evaluate.calls == total - max(0, content[:kept].count(b"\n") - 1)
        assert path.read_bytes() == content
    evaluate.calls = 0
    assert surgeon.sensitivity(model, x, evaluate=evaluate, resume=path) == whole
    assert evaluate.calls == 0


def test_other_ratios_add_to_the_file(tmp_path: Path) -> None:
    model, path = Perceptron(), tmp_path / "values.jsonl"
    evaluate = Closeness(model, INPUTS)
    surgeon.sensitivity(model, INPUTS, evaluate=evaluate, ratios=(0.2, 0.5), resume=path)
    assert evaluate.calls == 3
    both = surgeon.sensitivity(model, INPUTS, evaluate=evaluate, ratios=(0.5, 0.7), resume=path)
    assert evaluate.calls == 4
    assert both == surgeon.sensitivity(model, INPUTS, evaluate=evaluate, ratios=(0.5, 0.7))


def test_values_before_a_failure_are_kept(tmp_path: Path) -> None:
    model, path = Perceptron(), tmp_path / "values.jsonl"
    calls = []

    def evaluate(small: Perceptron) -> float:
        calls.append(small.first.out_features)
        if small.first.out_features == 5 and calls.count(5) == 1:
            raise OSError("out of luck")
        return float(small.first.out_features)

    with pytest.raises(errors.EvaluationError, match=r"group 'first' at ratio 0.5 \(5 of 10.*OSError: out of luck"):
        surgeon.sensitivity(model, INPUTS, evaluate=evaluate, resume=path)
    found = surgeon.sensitivity(model, INPUTS, evaluate=evaluate, resume=path)
    assert calls == [10, 9, 8, 5, 5, 3, 1]
    assert found["first"].value == (9, 8, 5, 3, 1)


def other_evaluate(model: nn.Module) -> float:
    return 2.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: {"model": Perceptron(hidden=9)}, "another architecture"),
        (lambda model: {"model": model.double(), "example_inputs": INPUTS.double()}, "another architecture"),
        (lambda model: model.last.bias.add_(1), "other weights"),
        (lambda model: {"evaluate": other_evaluate}, "another evaluate"),
        (lambda model: {"criterion": "l2"}, "another criterion"),
        (lambda model: {"criterion": lambda graph, group: torch.arange(10)}, "another criterion"),
    ],
)
def test_files_of_other_runs_are_refused(tmp_path: Path, change: Callable[[Any], Any], reason: str) -> None:
    path, model = tmp_path / "values.jsonl", Perceptron()
    arguments = {"model": model, "example_inputs": INPUTS, "evaluate": negated_norm, "resume": path}
    surgeon.sensitivity(**arguments)
    before = path.read_bytes()
    with torch.no_grad():
        changed = change(model)
    arguments.update(changed if isinstance(changed, dict) else {})
    with pytest.raises(errors.SensitivityError, match=reason):
        surgeon.sensitivity(**arguments)
    assert path.read_bytes() == before


def test_another_order_of_removal_is_refused(tmp_path: Path) -> None:
    path, model, flips = tmp_path / "values.jsonl", Perceptron(), [-1, 1]

    def criterion(graph: Any, group: Any) -> Tensor:
        return flips.pop() * torch.arange(10)

    def measure() -> Sensitivity:
        return surgeon.sensitivity(model, INPUTS, evaluate=negated_norm, criterion=criterion, resume=path)

    measure()
    with pytest.raises(errors.SensitivityError, match="units in another order of importance"):
        measure()


@pytest.mark.parametrize(
    "content",
    [b"dear diary", b"dear diary\n", b"{}\n", b"[1]\n", b'{"format": "surgeon-sensitivity-journal", "version": 2}\n'],
)
def test_files_of_another_kind_are_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "values.jsonl"
    path.write_bytes(content)
    with pytest.raises(errors.SensitivityError, match=r"values.jsonl"):
        surgeon.sensitivity(Perceptron(), INPUTS, evaluate=negated_norm, resume=path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"group": "first"}', '{"group": "", "removed": 0, "value": NaN}', '{"removed": {}}']
)
def test_damaged_lines_are_named(tmp_path: Path, line: str) -> None:
    model, path = Perceptron(), tmp_path / "values.jsonl"
    surgeon.sensitivity(model, INPUTS, evaluate=negated_norm, resume=path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    with pytest.raises(errors.SensitivityError, match="line 3"):
        surgeon.sensitivity(model, INPUTS, evaluate=negated_norm, resume=path)


# -- what evaluate returns -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.array([1.0]), torch.ones(()), torch.ones(1, 1)])
def test_numbers_of_all_kinds(value: Any) -> None:
    if isinstance(value, Tensor):
        value.requires_grad_()
    assert surgeon.sensitivity(Perceptron(), INPUTS, evaluate=lambda small: value, ratios=(0.5,)).base == 1.0


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "a NoneType for the original"),
        (True, "a bool"),
        ("0.9", "a str"),
        ((0.9, 0.8), "a tuple"),
        (torch.ones(2, 3), r"a Tensor of shape \[2, 3\]"),
        (np.ones(2), r"a ndarray of shape \[2\]"),
        (1j, "a complex"),
        (float("nan"), "nan for the original"),
        (torch.tensor(float("nan")), "nan for the original"),
        (float("-inf"), "-inf for the original"),
    ],
)
def test_what_is_no_finite_number_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(errors.EvaluationError, match=f"evaluate returned {reason}.*higher is better"):
        surgeon.sensitivity(Perceptron(), INPUTS, evaluate=lambda small: value)


def test_exceptions_are_wrapped_once() -> None:
    def evaluate(small: Perceptron) -> float:
        return 1 / (small.first.out_features - 8)

    with pytest.raises(errors.EvaluationError, match=r"group 'first' at ratio 0.25 \(2 of 10 units") as caught:
        surgeon.sensitivity(Perceptron(), INPUTS, evaluate=evaluate)
    assert type(caught.value.__cause__) is ZeroDivisionError
    with pytest.raises(errors.EvaluationError, match="must be a function of the model, not float"):
        surgeon.sensitivity(Perceptron(), INPUTS, evaluate=0.9)  # type: ignore[arg-type]


@pytest.mark.parametrize("ratios", [(), (0,), (1.0,), (0.5, -0.1), (float("nan"),), (True,), ("half",)])
def test_ratios_out_of_range(ratios: Any) -> None:
    with pytest.raises(errors.BudgetError, match="ratio"):
        surgeon.sensitivity(Perceptron(), INPUTS, evaluate=negated_norm, ratios=ratios)


def test_nothing_in_flight() -> None:
    with pytest.raises(errors.BudgetError, match="in_flight=0"):
        surgeon.sensitivity(Perceptron(), INPUTS, evaluate=negated_norm, in_flight=0)


# -- the record ------------------------------------------------------------------------------------------

FOUND = Sensitivity(
    0.9, (0.2, 0.4, 0.6), (Curve("a", 5, (1, 2, 3), (0.85, 0.87, 0.5)), Curve("b", 3, (1, 1, 2), (0.95, 0.95, 0.9)))
)


def test_losses_by_hand() -> None:
    losses = FOUND.losses()
    assert [steps.tolist() for steps, _ in losses.values()] == [[0, 1, 2, 3], [0, 1, 2]]
    np.testing.assert_allclose(losses["a"][1], [0, 0.05, 0.05, 0.4], atol=1e-12)
    assert losses["b"][1].tolist() == [0, 0, 0]
    np.testing.assert_allclose(FOUND.drop("b"), [-0.05, -0.05, 0], atol=1e-12)


@st.composite
def records(draw: st.DrawFn) -> Sensitivity:
    size, count = draw(st.integers(3, 40)), draw(st.integers(1, 6))
    removed = sorted(draw(st.lists(st.integers(1, size - 1), min_size=count, max_size=count)))
    worth = {steps: draw(st.floats(-10, 10)) for steps in removed}
    curve = Curve("g", size, tuple(removed), tuple(worth[steps] for steps in removed))
    return Sensitivity(draw(st.floats(-10, 10)), tuple((k + 1) / (count + 1) for k in range(count)), (curve,))


@given(records())
def test_losses_are_the_least_monotone_curve_above_the_drops(found: Sensitivity) -> None:
    steps, loss = found.losses()["g"]
    assert steps[0] == loss[0] == 0
    assert (np.diff(steps) > 0).all()
    drop = dict(zip(found["g"].removed, found.drop("g")))
    assert set(drop) == set(steps[1:].tolist())
    for k in range(1, len(steps)):
        assert loss[k] == max(0.0, *(drop[int(s)] for s in steps[1 : k + 1]))


@given(records())
def test_json_round_trip(found: Sensitivity) -> None:
    assert Sensitivity.from_json(found.to_json()) == found
    assert Sensitivity.from_json(found.to_json()).to_json() == found.to_json()


def test_saved_and_loaded(tmp_path: Path) -> None:
    FOUND.save(tmp_path / "found.json")
    assert Sensitivity.load(tmp_path / "found.json") == FOUND


@pytest.mark.parametrize(
    "change",
    [
        {"format": "surgeon-plan"},
        {"version": 2},
        {"base": float("nan")},
        {"base": None},
        {"ratios": [0.5]},
        {"curves": [{"group": "a", "size": 3, "removed": [1, 2, 3], "value": [1, 1, 1]}]},
        {"curves": [{"group": "a", "size": 5, "removed": [1, 2], "value": [1, 1, 1]}]},
        {"curves": [{"group": "a"}]},
    ],
)
def test_damaged_records_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(errors.SensitivityError):
        Sensitivity.from_json(json.dumps({**json.loads(FOUND.to_json()), **change}))
    with pytest.raises(errors.SensitivityError):
        Sensitivity.from_json("[]")


def test_as_the_losses_of_a_plan() -> None:
    """By weights, the crucial branch and the useless one are alike; by what was measured, the useless one goes."""
    model = Branches()
    graph = surgeon.trace(model, INPUTS)
    scores = {group.name: torch.ones(8) for group in graph.free}
    found = surgeon.sensitivity(model, INPUTS, evaluate=Closeness(model, INPUTS))
    plan = surgeon.plan(graph, scores, ratio=7 / 24, losses=found)
    assert {cut.name: cut.removed for cut in plan.groups} == {"useless": 7, "mild": 0, "crucial": 0}
    result = surgeon.prune(model, INPUTS, evaluate=Closeness(model, INPUTS), max_drop=0, losses=found)
    assert {cut.name: cut.removed for cut in result.plan.groups} == {"useless": 7, "mild": 0, "crucial": 0}


def test_unknown_group_names_the_nearest() -> None:
    model = Residual()
    found = surgeon.sensitivity(model, image(), evaluate=lambda small: 1.0, ratios=(0.5,))
    with pytest.raises(errors.UnknownLayer, match="did you mean 'conv1'"):
        found.drop("conv2")


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = FOUND.plot(tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes()[:4] == b"\x89PNG"
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["a", "b"]
    np.testing.assert_allclose(lines[0].get_xydata(), [[0, 0], [0.2, 0.05], [0.4, 0.03], [0.6, 0.4]], atol=1e-9)


def test_plots_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(errors.SensitivityError, match=r"channel-surgeon\[plot\]"):
        FOUND.plot()


def test_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(**options: Any) -> str:
        surgeon.sensitivity(Perceptron(), INPUTS, evaluate=negated_norm, **options)
        captured = capsys.readouterr()
        assert not captured.out
        return captured.err

    assert not shown(progress=True)  # far less than two seconds
    monkeypatch.setattr(sys.modules["surgeon.progress"], "PATIENCE", 0.0)
    assert not shown()
    assert not shown(progress=False)
    assert "6/6" in shown(progress=True)
