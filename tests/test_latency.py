"""Latency: on a device whose clock is computed from shapes, so that every number has a right answer."""

from __future__ import annotations

import copy
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode

import surgeon
from surgeon.dispatch import op_name
from surgeon.errors import BudgetError, InfeasibleBudget, NothingPrunable, SurgeonError, UnsupportedModel
from surgeon.latency import Cache, calibrate, latency_cost, measure, within_latency
from surgeon.latency import backends as backends_module
from surgeon.latency.cache import default_path, environment
from surgeon.latency.grid import SHARES, grid
from surgeon.latency.model import fit
from surgeon.latency.within import Round, Timed, counts_under, share_of
from surgeon.modules import tensors_in
from surgeon.plan.cost import Cost, params
from tests.nets import Perceptron, Residual, image

Law = Callable[[str, list[Tensor], list[Tensor]], float]


def posynomial(name: str, given: list[Tensor], made: list[Tensor]) -> float:
    """A microsecond per call, so much per element, and so much per multiply-add."""
    seconds = 1e-6 + 2e-9 * sum(map(Tensor.numel, given)) + 3e-9 * sum(map(Tensor.numel, made))
    if name == "conv2d":
        seconds += 1e-9 * made[0].shape[0] * math.prod(made[0].shape[2:]) * given[1].numel()
    if name == "linear":
        seconds += 1e-9 * given[0].numel() * given[1].shape[0]
    return seconds


def staircase(name: str, given: list[Tensor], made: list[Tensor]) -> float:
    """Channels cost as much as the next multiple of four."""
    if name != "conv2d":
        return 1e-7
    out, inside, *taps = given[1].shape
    return 1e-9 * math.ceil(out / 4) * 4 * math.ceil(inside / 4) * 4 * math.prod(taps) * made[0].shape[-1] ** 2


class Device(TorchFunctionMode):
    """A clock that torch calls move by a law, and modules by an overhead that no call shows."""

    def __init__(self, law: Law, overhead: float = 0.0, noise: float = 0.0, drift: float = 0.0) -> None:
        super().__init__()
        self.law, self.overhead, self.noise, self.drift = law, overhead, noise, drift
        self.now, self.reads = 0.0, 0
        self.draw = np.random.default_rng(0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = list(tensors_in(result))
        if made and op_name(func) not in ("size", "shape"):
            self.pass_by(self.law(op_name(func), list(tensors_in([args, kwargs])), made))
        return result

    def pass_by(self, seconds: float) -> None:
        self.now += seconds * (1 + self.drift * self.now) * (1 + self.noise * self.draw.exponential())

    def clock(self) -> float:
        self.reads += 1
        return self.now

    @contextmanager
    def running(self) -> Iterator[Device]:
        def after(module: nn.Module, args: Any, result: Any) -> None:
            self.pass_by(self.overhead)

        hook = torch_module.register_module_forward_hook(after)
        try:
            with self:
                yield self
        finally:
            hook.remove()

    def latency(self, model: nn.Module, x: Tensor) -> float:
        """One forward pass, without noise."""
        noise, self.noise = self.noise, 0.0
        start = self.now
        with torch.no_grad():
            model.eval()(x)
        self.noise = noise
        return self.now - start


class Attention(nn.Module):
    """Queries, keys and values in one, two heads, as in timm."""

    def __init__(self, dim: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.width = heads, dim // heads
        self.qkv, self.proj, self.head = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(self.proj(x.transpose(1, 2).reshape(b, t, self.heads * self.width)))


def halving(graph: Any, least: float = 0.05) -> Callable[[Cost, float], surgeon.Plan]:
    """Return a solver: the same share of every group goes, the least that is enough."""
    scores = surgeon.score(graph, "l1")
    plans = [surgeon.plan(graph, scores, ratio=0.0)]
    for ratio in np.arange(0.02, 0.96, 0.02):
        with suppress(NothingPrunable):
            plans.append(surgeon.plan(graph, scores, ratio=ratio, scope="local", floor=least))
    counts = [counts_under(graph, plan) for plan in plans]

    def solve(cost: Cost, limit: float) -> surgeon.Plan:
        for plan, left in zip(plans, counts):
            if cost.total(left) <= limit:
                return plan
        raise InfeasibleBudget("too little remains")

    return solve


# -- the model of latency ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "x"),
    [(Residual(16, 24), image(12)), (Perceptron(8, 64), torch.randn(4, 8)), (Attention(), torch.randn(2, 5, 16))],
    ids=["residual", "perceptron", "attention"],
)
def test_finds_the_law_of_the_device(model: nn.Module, x: Tensor) -> None:
    graph = surgeon.trace(model, x)
    plan = surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.4, scope="local")  # widths that were not measured
    with Device(posynomial).running() as device:
        cost = latency_cost(graph, x, cache=Cache(None), round_to=1, clock=device.clock)
        small = surgeon.operate(model, plan)
        for network, counts in ((model, graph.initial), (small, counts_under(graph, plan))):
            assert cost.total(counts) == pytest.approx(device.latency(network, x), rel=0.03)
    assert (cost.coefficient >= 0).all()
    assert {graph.nodes[i].name for i in cost.owner[cost.terms(graph.initial) > 0]} >= {"linear"}


def test_exported_programs_too() -> None:
    x = torch.randn(4, 8)
    graph = surgeon.trace(torch.export.export(Perceptron(8, 64).eval(), (x,)), x)
    with Device(posynomial).running() as device:
        cost = latency_cost(graph, x, cache=Cache(None), round_to=1, clock=device.clock)
        assert cost.total(graph.initial) == pytest.approx(device.latency(graph.model, x), rel=0.03)


def test_finds_the_stairs_where_round_to_steps() -> None:
    model, x = Residual(16, 24), image(12)
    graph = surgeon.trace(model, x)
    plan = surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.5, scope="local", round_to=4)
    with Device(staircase).running() as device:
        cost = latency_cost(graph, x, cache=Cache(None), round_to=4, clock=device.clock)
        small = surgeon.operate(model, plan)
        assert cost.total(counts_under(graph, plan)) == pytest.approx(device.latency(small, x), rel=0.05)


def test_a_call_that_was_interrupted_says_nothing() -> None:
    model, x, store = Residual(16, 24), image(12), Cache(None)
    graph = surgeon.trace(model, x)
    with Device(posynomial).running() as device:
        latency_cost(graph, x, cache=store, round_to=1, clock=device.clock)
        truth = device.latency(model, x)
    (times,) = store.entries.values()
    conv = next(key for key in times if key.startswith('["conv2d", [[2, 16, 12, 12], [24, 16, 3, 3]]'))
    cost = fit(graph, grid(graph, round_to=1), {**times, conv: 10 * times[conv]})
    assert cost.total(graph.initial) == pytest.approx(truth, rel=0.03)


def test_arithmetic_and_the_rest_are_scaled_apart() -> None:
    cost = Cost(np.array([2.0, 1.0]), np.array([[1], [1]]), np.array([0]), np.array([-1]), np.array([0, 1]))
    counts = [np.array([width]) for width in (100, 60, 20)]
    truth = [3 * 2.0 * c[0] + 3 * 1.0 * c[0] + 12 for c in counts]
    found = calibrate(cost, counts, truth, np.array([0, 1]))
    assert [found.total(c) for c in counts] == pytest.approx(truth, rel=0.01)
    assert found.total(np.array([0])) == pytest.approx(12, rel=0.1)
    assert (found.coefficient >= 0).all() and set(found.owner) == {0, 1}


@given(st.floats(0.2, 5.0), st.floats(0.0, 0.5), st.lists(st.integers(1, 64), min_size=2, max_size=5, unique=True))
def test_calibration_is_exact_where_the_whole_is_a_multiple_and_an_overhead(
    factor: float, overhead: float, widths: list[int]
) -> None:
    cost = Cost(np.array([1.0]), np.array([[1, 1]]), np.array([0]), np.array([-1]), np.array([0]))
    counts = [np.array([width]) for width in sorted(widths, reverse=True)]
    whole = [factor * (c[0] ** 2 + overhead * counts[0][0] ** 2) for c in counts]
    found = calibrate(cost, counts, whole, weights=[100.0] * len(counts))
    assert [found.total(c) for c in counts] == pytest.approx(whole, rel=0.02)


def test_alike_ops_share_their_measurements() -> None:
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)))
    graph = surgeon.trace(model, torch.randn(1, 16))
    points = grid(graph, round_to=1)
    assert len(points) == 2 * len(SHARES) and sum(point.even for point in points) == len(SHARES)
    assert all((point.counts[graph.initial == 16] % 4 == 0).all() for point in points)
    store = Cache(None)
    with Device(posynomial).running() as device:
        latency_cost(graph, torch.randn(1, 16), cache=store, round_to=1, clock=device.clock)
    measured = [key for entries in store.entries.values() for key in entries if "linear" in key]
    assert len(measured) <= 16  # of six layers at eight points


def test_a_forward_pass_that_changes_is_refused() -> None:
    class Fickle(Perceptron):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x if self.calls == 1 else -x)

    model, x = Fickle(), torch.randn(1, 6)
    graph = surgeon.trace(model, x)
    model.calls = 1
    with pytest.raises(SurgeonError, match="another path"):
        latency_cost(graph, x, cache=Cache(None))


# -- the cache ---------------------------------------------------------------------------------------


def test_a_second_call_measures_nothing(tmp_path: Path) -> None:
    model, x, path = Residual(), image(), tmp_path / "deep" / "latency.json"
    with Device(posynomial).running() as device:
        first = latency_cost(surgeon.trace(model, x), x, cache=path, clock=device.clock)
        reads = device.reads
        graph = surgeon.trace(copy.deepcopy(model), x)
        second = latency_cost(graph, x, cache=path, clock=device.clock)
        assert device.reads == reads > 0
        assert second.total(graph.initial) == first.total(graph.initial)
        latency_cost(graph, torch.cat([x, x]), cache=path, clock=device.clock)
        assert device.reads > reads  # another batch
    assert [entry.name for entry in path.parent.iterdir()] == ["latency.json"]


def test_keys_tell_what_latency_depends_on() -> None:
    model, x = Residual(), image()
    keys = {environment(model, x, backend) for backend in ("eager", "compile", "onnxruntime")}
    keys |= {environment(copy.deepcopy(model).double(), x.double(), "eager")}
    keys |= {environment(model, x[:1], "eager")}
    keys |= {environment(copy.deepcopy(model).to(memory_format=torch.channels_last), x, "eager")}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        keys |= {environment(model, x, "eager")}
    finally:
        torch.set_num_threads(threads)
    assert len(keys) == 7
    assert all(torch.__version__ in key for key in keys)


def test_caches_written_at_once_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    one, other = Cache(path), Cache(path)
    one.put("here", {"a": 1.0})
    other.put("here", {"b": 2.0})
    other.put("there", {"a": 3.0})
    last = Cache(path)
    assert [last.get("here", "a"), last.get("here", "b"), last.get("there", "a")] == [1.0, 2.0, 3.0]
    assert last.get("nowhere", "a") is None
    assert str(last) == f"3 measurements in {path}"


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "latency.json")
    cache.put("here", {"a": 1.0})
    with pytest.raises(TypeError):
        cache.put("here", {"b": object()})
    assert Cache(cache.path).get("here", "a") == 1.0
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    path.write_text("[1, 2")
    with pytest.raises(SurgeonError, match="delete it"):
        Cache(path)
    path.write_text(json.dumps({"version": 0, "entries": {"here": {"a": 1.0}}}))
    assert Cache(path).get("here", "a") is None  # of an older version


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path))
    assert default_path() == tmp_path / "latency.json"
    monkeypatch.delenv("SURGEON_CACHE")
    assert default_path().parent.name == "surgeon"


# -- measuring ---------------------------------------------------------------------------------------


def test_drift_does_not_reach_ratios() -> None:
    model, small, x = Perceptron(8, 200), Perceptron(8, 20), torch.randn(64, 8)
    with Device(posynomial).running() as still:
        truth = still.latency(small, x) / still.latency(model, x)
    with Device(posynomial, noise=0.1, drift=300.0).running() as device:
        found = measure(model, small, example_inputs=x, clock=device.clock)
    assert found.ratios[0] == 1 and found.ratios[1] == pytest.approx(truth, rel=0.05)
    assert found.runs >= 15 and found.threads == torch.get_num_threads()
    assert "p50" in str(found) and "eager" in str(found)


def test_a_pause_now_and_then_does_not_reach_ratios() -> None:
    model, small, x = Perceptron(8, 200), Perceptron(8, 20), torch.randn(64, 8)
    calls = count()

    def paused(name: str, given: list[Tensor], made: list[Tensor]) -> float:
        """Every 31st call takes long; the first such one is in the first round that counts."""
        return posynomial(name, given, made) + (next(calls) % 31 == 13)

    with Device(posynomial).running() as device:
        truth = device.latency(small, x) / device.latency(model, x)
    with Device(paused).running() as device:
        found = measure(model, small, example_inputs=x, clock=device.clock, seconds=1e9)
    assert found.ratios[1] == pytest.approx(truth, rel=0.01)


def test_noise_asks_for_more_runs_up_to_a_time() -> None:
    model, x = Perceptron(), torch.randn(1, 6)
    runs = []
    for noise, seconds in ((0.0, 1.0), (1.0, 1.0), (1.0, 1e-6)):
        with Device(posynomial, noise=noise).running() as device:
            runs.append(measure(model, model, example_inputs=x, seconds=seconds, clock=device.clock).runs)
    assert runs[0] == 15 and runs[1] > 15 and runs[2] == 7


def test_models_are_measured_in_eval_mode_and_left_as_they_were() -> None:
    model = Residual().train()
    before = copy.deepcopy(model.state_dict())
    measure(model, example_inputs=image(), runs=3, seconds=0.0)
    assert model.training and model.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


FAULTS = """
import resource
import torch
from surgeon.latency.measure import steady

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(48 << 18)  # 48 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(faults() for _ in range(5)))
with steady():
    print(min(faults() for _ in range(5)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_stays_while_measuring() -> None:
    """Pages that a process gave back are mapped again one by one, which the system counts."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    usually, steadily = map(int, done.stdout.split())
    assert steadily == 0 < usually


def test_another_method_than_forward() -> None:
    class Encoder(Perceptron):
        def encode(self, x: Tensor) -> Tensor:
            return self.first(x)

    model, x = Encoder(6, 100), torch.randn(1, 6)
    with Device(posynomial).running() as device:
        whole = measure(model, example_inputs=x, clock=device.clock).seconds[0]
        part = measure(model, example_inputs=x, clock=device.clock, method="encode").seconds[0]
    assert part < whole


def test_unknown_backend() -> None:
    with pytest.raises(BudgetError, match="'eager', 'compile', 'onnxruntime'"):
        measure(Perceptron(), example_inputs=torch.randn(1, 6), backend="tensorrt")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(backends_module, "import_module", missing)
    with pytest.raises(SurgeonError, match=r"needs onnxruntime, onnx, onnxscript: pip install 'channel-s"):
        measure(Perceptron(), example_inputs=torch.randn(1, 6), backend="onnxruntime")


def test_a_model_that_a_backend_can_not_run() -> None:
    with pytest.raises(UnsupportedModel, match="eager can't run Perceptron"):
        measure(Perceptron(6), example_inputs=torch.randn(1, 7))


@pytest.mark.slow
def test_onnxruntime_runs_the_model() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    found = measure(Perceptron(), Perceptron(6, 5), example_inputs=torch.randn(2, 6), backend="onnxruntime", runs=3)
    assert min(found.seconds) > 0 and found.backend == "onnxruntime"


@pytest.mark.slow
def test_each_model_is_compiled_on_its_own() -> None:
    """More models of one class than torch.compile keeps variants of one code object."""
    torch.compiler.reset()
    models = [Perceptron(6, width) for width in range(4, 14)]
    x = torch.randn(2, 6)
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        runners = [backends_module.prepare(model.eval(), x, "compile") for model in models]
        for model, run in zip(models, runners):
            torch.testing.assert_close(run(), model(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    model, x = Residual(64, 96).cuda(), torch.randn(8, 3, 32, 32, device="cuda")
    graph = surgeon.trace(model, x)
    timed = within_latency(model, x, graph, 0.95, halving(graph), cache=Cache(None), seconds=5.0)
    assert timed.ratio <= 0.95
    assert torch.cuda.get_device_name() in environment(model, x, "eager")


# -- the loop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("asked", [0.4, 0.6, 0.8])
def test_lands_under_what_was_asked(asked: float, noise: float) -> None:
    """Half of the time is spent where no call shows it."""
    model, x = Residual(32, 48), image(12)
    graph = surgeon.trace(model, x)
    with Device(posynomial, overhead=4e-4, noise=noise).running() as device:
        timed = within_latency(
            model, x, graph, asked, halving(graph), cache=Cache(None), round_to=1, seconds=0.5, clock=device.clock
        )
        small = surgeon.operate(model, timed.plan)
        truth = device.latency(small, x) / device.latency(model, x)
    assert 0.9 * asked <= truth <= asked * (1 + noise / 5)
    assert timed.ratio <= asked and timed.plan is timed.rounds[timed.chosen].plan
    assert len(timed.rounds) <= 4
    assert "chosen" in str(timed) and f"{timed.rounds[0].predicted:.3f}" in str(timed)


def test_corrects_a_model_of_latency_that_is_wrong() -> None:
    """What was cached is of a device without the overhead that this one has."""
    model, x = Residual(32, 48), image(12)
    graph, store = surgeon.trace(model, x), Cache(None)
    with Device(posynomial).running() as device:
        latency_cost(graph, x, cache=store, round_to=1, clock=device.clock)
    with Device(posynomial, overhead=2e-4).running() as device:
        timed = within_latency(
            model, x, graph, 0.6, halving(graph), cache=store, round_to=1, seconds=0.5, clock=device.clock
        )
    first, last = timed.rounds[0], timed.rounds[timed.chosen]
    assert first.measured > 0.6  # it believed the cache
    assert 0.55 < last.measured <= 0.6 and abs(last.predicted - last.measured) < 0.03


def test_what_is_not_reachable_is_an_error_that_says_what_is() -> None:
    model, x = Residual(32, 48), image(12)
    graph = surgeon.trace(model, x)
    with (
        Device(posynomial, overhead=4e-4).running() as device,
        pytest.raises(InfeasibleBudget, match=r"the smallest model that floors.* takes .* ms, 0\.\d+ of it"),
    ):
        within_latency(
            model, x, graph, 0.1, halving(graph, 0.5), cache=Cache(None), round_to=1, seconds=0.5, clock=device.clock
        )


def test_another_budget_out_of_reach_stays_the_error() -> None:
    model, x = Perceptron(), torch.randn(1, 6)
    graph = surgeon.trace(model, x)

    def solve(cost: Cost, limit: float) -> surgeon.Plan:
        raise InfeasibleBudget("params=0.01")

    with Device(posynomial).running() as device, pytest.raises(InfeasibleBudget, match="params"):
        within_latency(model, x, graph, 0.5, solve, cache=Cache(None), clock=device.clock)


def test_a_model_that_never_gets_faster() -> None:
    model, x = Perceptron(6, 64), torch.randn(1, 6)
    graph = surgeon.trace(model, x)
    with Device(lambda *call: 1e-6).running() as device, pytest.raises(InfeasibleBudget, match="of the original's"):
        within_latency(model, x, graph, 0.5, halving(graph), cache=Cache(None), seconds=0.1, clock=device.clock)


@pytest.mark.parametrize("heads", [False, True])
def test_counts_of_a_plan(heads: bool) -> None:
    """As the small model itself has them."""
    model, x = Attention(16, 4), torch.randn(2, 5, 16)
    graph = surgeon.trace(model, x)
    plan = surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.5, scope="local", heads=heads)
    again = surgeon.trace(surgeon.operate(model, plan), x)
    counts = counts_under(graph, plan)
    for before, after in zip(graph.nodes, again.nodes):
        sizes = [[d if isinstance(d, int) else d.of(counts) for d in shape] for shape in before.operands]
        assert sizes == [[d if isinstance(d, int) else d.size for d in shape] for shape in after.operands]


@pytest.mark.parametrize(("asked", "share"), [(0.6, 0.6), (1, 1.0), ("6ms", 0.6), ("600us", 0.06), ("0.005 s", 0.5)])
def test_shares_and_times(asked: float | str, share: float) -> None:
    assert share_of(asked, 0.01) == pytest.approx(share)


@pytest.mark.parametrize("asked", [0, -0.5, 1.5, True, "fast", "12ms", "0ms", "5", None, float("nan")])
def test_what_is_no_bound_on_latency(asked: Any) -> None:
    with pytest.raises(BudgetError, match="10 ms"):
        share_of(asked, 0.01)


def test_plan_bounds_latency_by_a_cost_and_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stopwatch is replaced: a model takes as many seconds as it has parameters."""
    model, x = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(2, 8)
    graph = surgeon.trace(model, x)
    seen: dict[str, Any] = {}

    def within(*given: Any, **options: Any) -> Timed:
        seen.update(options)
        _, inputs, _, asked, solve = given
        assert inputs is x
        cost = params(graph)
        whole = cost.total(graph.initial)
        plan = solve(cost, asked * whole)
        left = plan.totals["params"][1]
        return Timed(asked, (Round(plan, left / whole, left / whole, 0.0, (whole, left)),), 0, "eager")

    monkeypatch.setattr("surgeon.api.within_latency", within)
    plan = surgeon.plan(graph, surgeon.score(graph), latency=0.6, flops=0.9, floor=0.0)
    before, after = plan.totals["latency"]
    assert after <= 0.6 * before and after == plan.totals["params"][1]
    assert plan.settings["latency"] == 0.6 and plan.settings["latency_rounds"][0][1] == after / before
    assert seen == {"backend": "eager", "cache": None, "round_to": 1, "heads": False}
    assert surgeon.Plan.from_json(plan.to_json()) == plan
    small = surgeon.operate(model, plan)
    assert sum(p.numel() for p in small.parameters()) == after


def test_latency_goes_with_no_ratio_and_no_list() -> None:
    graph = surgeon.trace(nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8)), torch.randn(2, 8))
    for options in ({"ratio": 0.5}, {"flops": [0.8, 0.6]}):
        with pytest.raises(BudgetError):
            surgeon.plan(graph, surgeon.score(graph), latency=0.6, **options)
