"""Small models as files: what is saved comes back, identical; what does not fit is refused with a reason."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import surgeon
from surgeon.deploy.load import _on_meta
from surgeon.errors import FileError, PlanMismatch, UnsupportedModel
from surgeon.modules import named_tensors, tensors_in
from tests.nets import Residual, image
from tests.zoo import MODELS, build, call


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        return list(tensors_in(call(model, inputs)))


def cut(model: nn.Module, inputs: Any, **options: Any) -> tuple[nn.Module, surgeon.Plan]:
    graph = surgeon.trace(model, inputs)
    scores = surgeon.score(graph, "random", seed=1)
    plan = surgeon.plan(graph, scores, **{"ratio": 0.5, "scope": "local", **options})
    return surgeon.operate(model, plan), plan


def assert_same(small: nn.Module, again: nn.Module, inputs: Any) -> None:
    mine, other = named_tensors(small), named_tensors(again)
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, other[name]) and tensor.dtype == other[name].dtype, name
        assert isinstance(tensor, nn.Parameter) == isinstance(other[name], nn.Parameter)
    ties = [[[n for n, t in found.items() if t is tensor] for tensor in found.values()] for found in (mine, other)]
    assert ties[0] == ties[1]
    expected, found = outputs(small, inputs), outputs(again, inputs)
    assert len(expected) == len(found) and all(torch.equal(a, b) for a, b in zip(expected, found))


def trip(small: nn.Module, plan: surgeon.Plan, source: Any, folder: Path) -> nn.Module:
    surgeon.save(small, plan, folder / "small.safetensors")
    return surgeon.load(source, folder / "small.safetensors")


# -- round trips -------------------------------------------------------------------------------------


class Unlike(nn.Module):
    """All kinds of tensors: tied, transient, integer, without dimensions, half, frozen, parametrized."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.up, self.down = nn.Embedding(7, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.out = nn.Linear(8, 7, bias=False)
        self.out.weight = self.emb.weight
        self.norm = nn.BatchNorm1d(8)
        self.gain = nn.Parameter(torch.tensor(1.5), requires_grad=False)
        self.register_buffer("table", torch.arange(8).float(), persistent=False)
        self.register_buffer("order", torch.arange(3))
        self.register_buffer("wide", torch.ones(1).expand(8))
        nn.utils.parametrizations.weight_norm(self.up)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens) * self.table + self.wide
        x = x + self.gain * self.down(torch.relu(self.up(x)))
        return self.out(self.norm(x.transpose(1, 2)).transpose(1, 2))


TOKENS = torch.arange(6)[None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_all_kinds(tmp_path: Path, dtype: torch.dtype) -> None:
    small, plan = cut(Unlike().eval(), TOKENS)
    small = small.to(dtype)
    again = trip(small, plan, lambda: Unlike().eval(), tmp_path)
    assert_same(small, again, TOKENS)
    assert again.emb.weight is again.out.weight and again.order.dtype == torch.int64
    assert not again.gain.requires_grad and again.up.parametrizations.weight.original1.requires_grad
    assert plan.cuts["table"].new_shape == (4,) and not again.table.is_meta


@pytest.mark.parametrize("name", ["resnet20_pad", "resnext", "crnn", "conv_lstm"])
def test_other_models_and_copies_of_them(tmp_path: Path, name: str) -> None:
    model, inputs = build(name)
    small, plan = cut(model, inputs)
    before = copy.deepcopy(model.state_dict())
    assert_same(small, trip(small, plan, lambda: MODELS[name]()[0].eval(), tmp_path), inputs)
    assert_same(small, surgeon.load(model, tmp_path / "small.safetensors"), inputs)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_modes_are_those_of_the_factory(tmp_path: Path) -> None:
    small, plan = cut(Residual().eval(), image())

    def factory() -> nn.Module:
        model = Residual()
        model.bn1.eval()
        model.stem.requires_grad_(False)
        return model

    again = trip(small, plan, factory, tmp_path)
    assert again.training and not again.bn1.training
    assert not again.stem.weight.requires_grad and again.head.weight.requires_grad
    again(image()).sum().backward()
    assert again.conv1.weight.grad is not None and again.stem.weight.grad is None


def test_layouts_are_kept(tmp_path: Path) -> None:
    small, plan = cut(Residual().eval(), image())
    small = small.to(memory_format=torch.channels_last)
    again = trip(small, plan, lambda: Residual().eval(), tmp_path)
    assert again.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert_same(small, again, image())


@pytest.mark.parametrize("method", ["ridge", "noise"])
def test_biases_that_compensation_added(tmp_path: Path, method: str) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x)))

    torch.manual_seed(0)
    x = torch.randn(64, 6)
    result = surgeon.prune(Plain().eval(), x[:2], ratio=0.5, data=[x], compensate=method)
    again = trip(result.model, result.plan, lambda: Plain().eval(), tmp_path)
    assert_same(result.model, again, x)
    assert again.last.bias is not None and again.last.bias.requires_grad
    with pytest.raises(FileError, match=r"last\.bias"):

        class Other(Plain):
            def __init__(self) -> None:
                super().__init__()
                self.last = nn.Linear(16, 4, bias=False)
                del self.last._parameters["bias"]

        surgeon.load(Other, tmp_path / "small.safetensors")


class Reader(nn.Module):
    """Looks at the values of a tensor while it is built, and keeps one that is no buffer."""

    def __init__(self, look: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.scales = [torch.linspace(0, 1, 3)]
        self.rate = torch.linspace(0, 1, 3)[1].item() if look else 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * self.rate) + self.scales[0][1]


@pytest.mark.parametrize("look", [True, False])
def test_models_that_need_values_are_built_with_them(tmp_path: Path, look: bool) -> None:
    x = torch.randn(2, 4)
    small, plan = cut(Reader(look).eval(), x)
    assert _on_meta(lambda: Reader(look), set(small.state_dict())) is None
    assert_same(small, trip(small, plan, lambda: Reader(look).eval(), tmp_path), x)


def test_what_is_registered_needs_no_memory_and_no_random_numbers(tmp_path: Path) -> None:
    small, plan = cut(Residual().eval(), image())
    made: list[nn.Module] = []

    def factory() -> nn.Module:
        made.append(Residual().eval())
        return made[-1]

    state = torch.random.get_rng_state()
    again = trip(small, plan, factory, tmp_path)
    assert len(made) == 1 and torch.equal(torch.random.get_rng_state(), state)
    assert not any(tensor.is_meta for tensor in named_tensors(again).values())


def test_a_factory_may_return_a_model_that_is_in_use(tmp_path: Path) -> None:
    model = Residual().eval()
    small, plan = cut(model, image())
    before = {name: (tensor, tensor.clone()) for name, tensor in named_tensors(model).items()}
    assert_same(small, trip(small, plan, lambda: model, tmp_path), image())
    after = named_tensors(model)
    assert all(after[name] is tensor and torch.equal(tensor, values) for name, (tensor, values) in before.items())


def test_files_have_the_permissions_of_any_other(tmp_path: Path) -> None:
    small, plan = cut(Residual().eval(), image())
    path = tmp_path / "small.safetensors"
    surgeon.save(small, plan, path)
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    path.chmod(0o640)
    surgeon.save(small, plan, path)
    assert path.stat().st_mode & 0o777 == 0o640


def test_the_file_is_a_plain_safetensors_file(tmp_path: Path) -> None:
    small, plan = cut(Unlike().eval(), TOKENS)
    saved = surgeon.save(small, plan, tmp_path / "small.safetensors")
    assert str(saved) == str(tmp_path / "small.safetensors")
    with safetensors.safe_open(saved.path, framework="pt") as file:
        assert surgeon.Plan.from_json(file.metadata()["surgeon.plan"]) == plan
        facts = json.loads(file.metadata()["surgeon"])
    assert facts["tied"] == {"out.weight": "emb.weight"} and facts["transient"] == ["table"]
    tensors = safetensors.torch.load_file(saved.path)
    assert "out.weight" not in tensors and torch.equal(tensors["table"], small.table)
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]


def test_untied_factories_are_tied_as_the_file_says(tmp_path: Path) -> None:
    class Apart(Unlike):
        def __init__(self) -> None:
            super().__init__()
            self.out.weight = nn.Parameter(self.out.weight.detach().clone())

    small, plan = cut(Unlike().eval(), TOKENS)
    surgeon.save(small, plan, tmp_path / "small.safetensors")
    with pytest.raises(PlanMismatch, match=r"out\.weight is tied to emb\.weight in the plan"):
        surgeon.load(Apart, tmp_path / "small.safetensors")


# -- refusals ----------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    small, plan = cut(Residual().eval(), image())
    surgeon.save(small, plan, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def rewritten(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> Path:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    tensors = safetensors.torch.load_file(path)
    change(tensors, metadata)
    safetensors.torch.save_file(tensors, path, metadata or None)
    return path


CHANGES = {
    "no plan": (lambda t, m: m.clear(), "holds no plan"),
    "another format": (lambda t, m: m.update(surgeon='{"format": "x", "version": 1}'), "reads surgeon-weights"),
    "malformed metadata": (lambda t, m: m.update(surgeon='{"format": "surgeon-weights", "version": 1}'), "malformed"),
    "metadata of odd types": (
        lambda t, m: m.update(surgeon=m["surgeon"].replace('"tied": {}', '"tied": {"a": 1}')),
        "malformed",
    ),
    "missing tensor": (lambda t, m: t.__delitem__("conv1.weight"), r"no tensor for 'conv1\.weight'"),
    "another tensor": (lambda t, m: t.update(other=torch.ones(1)), "'other', which the model has not"),
    "another shape": (lambda t, m: t.update({"stem.bias": torch.ones(5)}), r"stem\.bias is \[5\] in the file, \[4\]"),
    "another type": (lambda t, m: t.update({"stem.bias": torch.ones(4).int()}), r"stem\.bias is torch\.int32"),
    "integers as floats": (
        lambda t, m: t.update({"bn1.num_batches_tracked": torch.tensor(0.0)}),
        r"num_batches_tracked is torch\.float32 in the file",
    ),
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_files_that_do_not_fit_are_refused(saved: Path, what: str) -> None:
    change, message = CHANGES[what]
    with pytest.raises(FileError, match=message):
        surgeon.load(Residual, rewritten(saved, change))


def test_damaged_files_are_refused(saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    for length in (0, 4, 100, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(FileError, match="truncated"):
            surgeon.load(Residual, saved)
    saved.write_bytes(content + b"0")
    with pytest.raises(FileError, match="longer than it should be"):
        surgeon.load(Residual, saved)
    saved.write_bytes(struct.pack("<Q", 10**15) + content[8:])
    with pytest.raises(FileError, match="no safetensors file"):
        surgeon.load(Residual, saved)
    with pytest.raises(FileError, match="No such file"):
        surgeon.load(Residual, tmp_path / "missing")


def test_pickles_are_no_files_of_surgeon(tmp_path: Path) -> None:
    torch.save(Residual().state_dict(), tmp_path / "state.pt")
    with pytest.raises(FileError, match="no safetensors file"):
        surgeon.load(Residual, tmp_path / "state.pt")


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        (lambda: Residual(width=16), PlanMismatch, "another architecture"),
        (lambda: nn.Linear(3, 3), PlanMismatch, "no tensor"),
        (lambda: nn.ModuleDict({"net": Residual()}), PlanMismatch, "begin with 'net.'"),
        (lambda: 1 / 0, UnsupportedModel, "ZeroDivisionError"),
        (lambda: "model", UnsupportedModel, "returned str, no torch.nn.Module"),
        ("Residual", UnsupportedModel, "two paths"),
        (None, UnsupportedModel, "expected a function"),
    ],
)
def test_other_factories_are_refused(saved: Path, factory: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        surgeon.load(factory, saved)


def test_only_what_the_plan_makes_is_saved(tmp_path: Path) -> None:
    model = Residual().eval()
    small, plan = cut(model, image())
    with pytest.raises(PlanMismatch, match=r"not what the plan makes: stem\.weight"):
        surgeon.save(model, plan, tmp_path / "a")
    more = copy.deepcopy(small)
    more.extra = nn.Parameter(torch.ones(1))
    with pytest.raises(PlanMismatch, match="extra, which the plan does not know"):
        surgeon.save(more, plan, tmp_path / "a")
    with pytest.raises(UnsupportedModel, match="meta"):
        surgeon.save(copy.deepcopy(small).to("meta"), plan, tmp_path / "a")
    with pytest.raises(UnsupportedModel, match=r"torch\.export\.save"):
        surgeon.save(torch.export.export(small, (image(),)), plan, tmp_path / "a")

    class Stateful(Residual):
        def get_extra_state(self) -> Any:
            return {"a": 1}

    small.__class__ = Stateful
    with pytest.raises(UnsupportedModel, match="state other than tensors"):
        surgeon.save(small, plan, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_plans_beyond_the_header_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, plan = cut(Residual().eval(), image())
    monkeypatch.setattr("surgeon.deploy.weights.LONGEST", 5000)
    with pytest.raises(FileError, match="the header of a safetensors file has 5,000"):
        surgeon.save(small, plan, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_save_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    small, plan = cut(Residual().eval(), image())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("surgeon.files.atomic.synced", full)
    with pytest.raises(FileError, match="free some space"):
        surgeon.save(small, plan, saved)
    assert saved.read_bytes() == before and [p.name for p in saved.parent.iterdir()] == [saved.name]
