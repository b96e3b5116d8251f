"""The recorder: what it tells, and that it leaves no trace on the model or on torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from surgeon.errors import TraceError
from surgeon.trace import Attribute, Call, Tracked, Width, record


class Notes:
    """A listener that writes everything down; every dimension is live."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def call(self, call: Call) -> None:
        self.calls.append(call)

    def knows(self, name: str) -> bool:
        return False

    def leave(self, call: Call) -> None:
        pass

    def sizes(self, tensor: Tensor) -> Sequence[int]:
        return [Tracked(s, Width((id(tensor), d), s)) for d, s in enumerate(tensor.shape)]

    @property
    def names(self) -> list[str]:
        return [call.name for call in self.calls]


class Block(nn.Module):
    """Keeps state of every kind: sizes, buffers, a cache, random numbers, training-mode branches."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.width, self.sizes, self.note = width, (width, 2), ["kept", 3]
        self.linear = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout()
        self.aux = nn.Linear(width, 2)
        self.register_buffer("seen", torch.zeros(()))
        self.fails = False

    def forward(self, x: Tensor) -> Any:
        h = self.drop(self.norm(self.linear(x)))
        self.cache = h
        self.count = self.width
        self.seen = self.seen + 1
        h = h + torch.rand_like(h)
        if self.fails:
            h.view(-1, 5, self.sizes[0], 7)
        return (h, self.aux(h)) if self.training else h


def state(model: nn.Module) -> dict[str, Any]:
    """Return everything that a forward could change."""
    found: dict[str, Any] = {"random": torch.random.get_rng_state().tolist()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            found[f"{path}.{name}"] = (type(value), id(value) if not isinstance(value, (int, tuple)) else value)
        for kind in ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"):
            found[f"{path}.{kind}"] = {k: id(v) for k, v in getattr(module, kind).items()}
        found[f"{path}.items"] = [type(v) for value in vars(module).values() if isinstance(value, tuple) for v in value]
    found |= {name: value.tolist() for name, value in model.state_dict().items()}
    found["torch"] = (
        len(torch_module._global_forward_hooks),
        len(torch_module._global_forward_pre_hooks),
        F.has_torch_function_unary,
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
    )
    return found


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool, training: bool) -> None:
    model = nn.Sequential(Block(), nn.Identity() if fails else nn.Flatten(0))
    model.train()
    model[0].norm.eval()
    model[0].fails = fails
    hook = model[0].linear.register_forward_hook(lambda module, args, result: result + 1)
    before = state(model)
    if fails:
        with pytest.raises(TraceError):
            record(model, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), Notes(), training=training)
    else:
        record(model[0], torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), Notes(), training=training)
    assert state(model) == before
    hook.remove()


def test_buffers_written_in_place_are_put_back() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            self.steps.add_(1)
            return x + self.steps

    model = Counter()
    record(model, torch.ones(2), Notes())
    assert model.steps.tolist() == [0, 0]


def test_an_error_of_the_listener_is_no_reason_to_leave_a_trace() -> None:
    class Broken(Notes):
        def call(self, call: Call) -> None:
            raise RuntimeError("no")

    model = Block()
    before = state(model)
    with pytest.raises(TraceError, match="no"):
        record(model, torch.zeros(1, 4), Broken())
    assert state(model) == before


def test_a_failing_forward_is_named_with_its_line() -> None:
    model = nn.Sequential(Block(), nn.Identity())
    model[0].fails = True
    with pytest.raises(TraceError) as caught:
        record(model, torch.zeros(3, 4), Notes())
    text = str(caught.value)
    assert "h.view(-1, 5, self.sizes[0], 7)" in text
    assert "test_recorder.py:" in text
    assert "at 0," in text
    assert "(3, 4)" in text
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("inputs", [{"y": torch.zeros(2, 4)}, (), (torch.zeros(2, 5),)])
def test_wrong_inputs_are_a_trace_error(inputs: Any) -> None:
    with pytest.raises(TraceError, match=r"check that model\(\*example_inputs\) runs"):
        record(nn.Linear(4, 2), inputs, Notes())


def test_calls_arrive_in_order_with_module_and_line() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    notes = Notes()
    output, _, count = record(model, torch.zeros(2, 4), notes, start=10)
    assert notes.names == ["linear", "relu", "linear"]
    assert [call.module for call in notes.calls] == ["0", "1.0", "1.1"]
    assert [call.index for call in notes.calls] == [10, 11, 12]
    assert count == 3
    assert notes.calls[-1].result is output
    assert notes.calls[0].args[1] is model[0].weight
    assert str(notes.calls[0]).startswith("linear in 0 (")


def test_a_module_used_twice_keeps_its_name() -> None:
    shared = nn.Linear(3, 3)
    notes = Notes()
    record(nn.Sequential(shared, nn.ReLU(), shared), torch.zeros(1, 3), notes)
    assert [call.module for call in notes.calls] == ["0", "1", "0"]


def test_python_functions_of_torch_open_up() -> None:
    class Resize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.softsign(F.interpolate(x, scale_factor=2))

    notes = Notes()
    record(Resize(), torch.zeros(1, 2, 3, 3), notes)
    assert [name for name in notes.names if name != "dim"] == ["upsample_nearest2d", "abs", "add", "div"]


def test_sizes_are_tracked() -> None:
    seen: list[Any] = []

    class Sizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.pair, self.flag, self.mixed = 3, (1, 2), True, [4, "x"]

        def forward(self, x: Tensor) -> Tensor:
            n, _ = x.shape
            seen.extend([n, x.size(1), x.shape[-1], x.numel(), self.width, self.pair[1], self.flag, self.mixed[0]])
            return x.view(x.size(0), self.width, -1)

    notes = Notes()
    record(Sizes(), torch.zeros(2, 6), notes)
    assert [int(s) for s in seen] == [2, 6, 6, 12, 3, 2, True, 4]
    assert [type(s) for s in seen] == [Tracked] * 6 + [bool, Tracked]
    assert seen[4].expression == Attribute("", "width")
    assert seen[5].expression == Attribute("", "pair", 1)
    assert seen[7].expression == Attribute("", "mixed", 0)
    (view,) = notes.calls
    assert [type(s) for s in view.args[1:]] == [Tracked, Tracked, int]


def test_comparisons_of_sizes_are_in_the_ledger() -> None:
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 4

        def forward(self, x: Tensor) -> Tensor:
            return x if x.shape[1] == self.width else x * self.width**0.5

    for width, escapes in ((4, 0), (5, 1)):
        _, entries, _ = record(Shortcut(), torch.zeros(1, width), Notes())
        (noted,) = entries.comparisons
        assert (noted.relation, noted.outcome) == ("==", width == 4)
        assert Attribute("", "width") in (noted.left, noted.right)
        assert "x.shape[1] == self.width" in noted.source
        assert len(entries.escaped()) == escapes


def test_branches_of_training_mode_run_on_demand() -> None:
    model = Block()
    quiet, loud = Notes(), Notes()
    record(model, torch.zeros(3, 4), quiet)
    record(model, torch.zeros(3, 4), loud, training=True)
    assert quiet.names.count("linear") == 1
    assert loud.names.count("linear") == 2
    # layers with a state of their own stay in eval mode
    norm = next(call for call in loud.calls if call.name == "batch_norm")
    assert norm.argument(5, "training") is False


def test_forward_runs_without_gradients() -> None:
    output, _, _ = record(nn.Linear(4, 2), {"input": torch.zeros(1, 4)}, Notes())
    assert not output.requires_grad
