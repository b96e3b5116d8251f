"""Exported files compute what the model computes, or are not written."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.deploy import formats
from surgeon.deploy.shapes import dynamic_shapes, inputs_of
from surgeon.errors import ExportError
from tests.nets import Perceptron, Residual, image
from tests.test_imports import imported, sources

SUFFIXES = [".onnx", ".pt2", ".ts"]


def needs(suffix: str) -> None:
    if suffix == ".onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)


def small(model: nn.Module | None = None, x: Any = None) -> nn.Module:
    result = surgeon.prune(model or Residual(), image() if x is None else x, ratio=0.5, scope="local").model
    assert isinstance(result, nn.Module)
    return result


def run_onnx(path: Path, *tensors: Tensor) -> list[Tensor]:
    """Run a file as somebody without surgeon would."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    fed = {given.name: tensor.numpy() for given, tensor in zip(session.get_inputs(), tensors)}
    return [torch.from_numpy(value) for value in session.run(None, fed)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_take_any_batch_and_compute_the_same(suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    model, path = small(), tmp_path / f"small{suffix}"
    done = surgeon.export(model, path, image())
    assert done.path == path and done.difference <= 1e-4 and done.checked == ("the example", "random, batch 3")
    assert path.name in str(done) and [file.name for file in tmp_path.iterdir()] == [path.name]
    for batch in (1, 5):
        x = torch.randn(batch, 3, 6, 6)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", DeprecationWarning)
            if suffix == ".onnx":
                (y,) = run_onnx(path, x)
            elif suffix == ".pt2":
                y = torch.export.load(path).module()(x)
            else:
                y = torch.jit.load(str(path))(x)
            torch.testing.assert_close(y, model.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_model_is_left_as_it_was(suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    model = small().train()
    model.bn1.eval()
    model.head.register_forward_hook(lambda module, given, result: None)
    state, attributes = copy.deepcopy(model.state_dict()), {n: set(vars(m)) for n, m in model.named_modules()}
    modes, hooks = [m.training for m in model.modules()], len(model.head._forward_hooks)
    x, grads, random = image(), [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    surgeon.export(model, tmp_path / f"small{suffix}", x)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert attributes == {n: set(vars(m)) for n, m in model.named_modules()}
    assert modes == [m.training for m in model.modules()] and hooks == len(model.head._forward_hooks)
    assert grads == [p.requires_grad for p in model.parameters()] and torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_single_example_is_no_constant(suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    done = surgeon.export(small(), tmp_path / f"small{suffix}", torch.randn(1, 3, 6, 6))
    assert done.checked[-1] == "random, batch 3"


class Several(nn.Module):
    """Two inputs, one without a batch, and named outputs of several types."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(9, 8), nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, ids: Tensor, weight: Tensor, extra: Tensor | None = None) -> dict[str, Tensor]:
        x = self.down(torch.relu(self.up(self.table(ids)))) * weight
        return {"logits": x if extra is None else x + extra, "best": x.argmax(-1)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_named_inputs_and_several_outputs(suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    x = {"ids": torch.randint(9, (2, 5)), "weight": torch.rand(4)}
    done = surgeon.export(small(Several(), x), tmp_path / f"small{suffix}", x)
    assert done.difference <= 1e-4 and done.checked[-1] == "random, batch 3"


def test_dimensions_by_name(tmp_path: Path) -> None:
    needs(".onnx")
    import onnx

    model, path = small(), tmp_path / "small.onnx"
    surgeon.export(model, path, torch.randn(2, 3, 6, 8), dynamic={"x": {0: "n", 2: "rows", 3: "columns"}})
    dims = onnx.load(str(path)).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["n", 3, "rows", "columns"]
    x = torch.randn(1, 3, 9, 5)
    torch.testing.assert_close(run_onnx(path, x)[0], model.eval()(x).detach(), rtol=1e-4, atol=1e-5)
    fixed = surgeon.export(model, path, torch.randn(2, 3, 6, 8), dynamic=False)
    dims = onnx.load(str(path)).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims] == [2, 3, 6, 8] and fixed.checked[-1] == "random"


def test_the_batch_is_that_of_the_first_tensor() -> None:
    given = inputs_of(Several(), {"ids": torch.zeros(2, 5).long(), "weight": torch.rand(4)})
    found = dynamic_shapes(given, True)
    assert found is not None and found["weight"] is None and list(found["ids"]) == [0]
    with pytest.raises(ExportError, match="name tensors and dimensions of these"):
        dynamic_shapes(given, {"ids": {2: "n"}})
    with pytest.raises(ExportError, match="name tensors and dimensions of these"):
        dynamic_shapes(given, {"tokens": {0: "n"}})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_differs_is_not_left_behind(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(suffix)
    model, path = small(), tmp_path / f"small{suffix}"
    path.write_text("what was here before")
    kind = formats.FORMATS[suffix]

    def wrong(model: Any, inputs: Any, shapes: Any, to: Path) -> None:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.head.bias += torch.tensor([0.0, 0.0, 0.0, 0.0, 0.01])
        kind.write(other, inputs, shapes, to)

    monkeypatch.setitem(formats.FORMATS, suffix, formats.Format(kind.name, wrong, kind.read))
    with pytest.raises(ExportError, match=r"output 0, \[2, 5\].*differs by .* on the example inputs"):
        surgeon.export(model, path, image())
    assert path.read_text() == "what was here before" and len(list(tmp_path.iterdir())) == 1
    assert surgeon.export(model, path, image(), tolerance=1.0).difference > 1e-4


class OfItsBatch(nn.Module):
    """Right on the batch of the example, and wrong elsewhere once it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x))) * float(x.shape[0])


def test_a_batch_that_was_traced_as_a_constant_is_found(tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    with pytest.raises(ExportError, match="random, batch 3"):
        surgeon.export(OfItsBatch(), tmp_path / "small.ts", x)
    surgeon.export(OfItsBatch(), tmp_path / "small.ts", x, dynamic=False)


class Choosy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x if float(x.sum()) > 0 else -x)


def test_what_torch_cannot_export_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"torch can't write Choosy as torch\.export"):
        surgeon.export(Choosy(), tmp_path / "small.pt2", torch.randn(2, 6))
    assert not list(tmp_path.iterdir())


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    with pytest.raises(ExportError, match=r"\.onnx, \.pt2"):
        surgeon.export(Perceptron(), tmp_path / "small.h5", x)
    with pytest.raises(ExportError, match="no folder"):
        surgeon.export(Perceptron(), tmp_path / "missing" / "small.pt2", x)
    with pytest.raises(ExportError, match="hold no tensor"):
        surgeon.export(Perceptron(), tmp_path / "small.pt2", ())
    with pytest.raises(ExportError, match=r"don't fit Perceptron\.forward"):
        surgeon.export(Perceptron(), tmp_path / "small.pt2", {"y": x})


@pytest.mark.parametrize(("suffix", "advice"), [(".onnx", "channel-surgeon[export]"), (".pte", "executorch")])
def test_missing_packages_are_named(suffix: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(formats, "import_module", missing)
    with pytest.raises(ExportError) as caught:
        surgeon.export(Perceptron(), tmp_path / f"small{suffix}", torch.randn(2, 6))
    assert f"pip install {advice}" in str(caught.value).replace("'", "") and not list(tmp_path.iterdir())


def test_optional_packages_are_imported_late() -> None:
    named = {module.partition(".")[0] for path in sources() for module, _ in imported(path)}
    assert "torch" in named and not named & {"onnx", "onnxruntime", "onnxscript", "executorch"}


def test_large_weights_go_into_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(".onnx")
    monkeypatch.setattr(formats, "EXTERNAL", 0)
    model, x = Perceptron(64, 512), torch.randn(2, 64)
    surgeon.export(model, tmp_path / "small.onnx", x)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["small.onnx", "small.onnx.data"]
    torch.testing.assert_close(run_onnx(tmp_path / "small.onnx", x)[0], model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_exported_programs(suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    x = image()
    whole = torch.export.export(Residual().eval(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    cut = surgeon.prune(whole, x, ratio=0.5).model
    done = surgeon.export(cut, tmp_path / f"small{suffix}", x)
    assert done.checked[-1] == "random, batch 3"
    fixed = surgeon.prune(torch.export.export(Residual().eval(), (x,)), x, ratio=0.5).model
    assert surgeon.export(fixed, tmp_path / f"small{suffix}", x).checked[-1] == "random"
    with pytest.raises(ExportError, match="can't be traced"):
        surgeon.export(cut, tmp_path / "small.ts", x)


def test_half_precision(tmp_path: Path) -> None:
    model, x = small().half(), image().half()
    assert surgeon.export(model, tmp_path / "small.pt2", x).difference <= 2e-2


def slow(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


# All of them are in benchmarks/export.py.
NETWORKS = ["resnet18", *slow("mobilenet_v3_small", "shufflenet_v2_x0_5")]
TRANSFORMERS = ["vit", *slow("bert", "llama")]


@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    needs(".onnx")
    from tests.zoo.networks import network

    model, x = network(name, torch.float32)
    assert surgeon.export(small(model, x), tmp_path / "small.onnx", x).difference <= 1e-4


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    needs(".onnx")
    from tests.zoo import hugging_face

    model, x = hugging_face.entries()[name]()
    assert surgeon.export(small(model, x), tmp_path / "small.onnx", x).difference <= 1e-4
