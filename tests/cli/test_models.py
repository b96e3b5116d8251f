"""References lead to models, or say why they don't; weights are never unpickled or downloaded."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import save_file
from torch import nn

from surgeon.cli import models
from surgeon.cli.models import build, parse_arguments, resolve
from surgeon.cli.weights import load_weights
from surgeon.errors import FileError, ModelNotFound
from tests.cli.conftest import Surgeon


def test_values_are_literals_or_texts() -> None:
    texts = [
        "width=8",
        "rate=0.5",
        "name=large",
        "sizes=(1, 2)",
        "flag=True",
        "text='8'",
        "code=__import__('os')",
        "e=",
    ]
    assert parse_arguments(texts) == {
        "width": 8,
        "rate": 0.5,
        "name": "large",
        "sizes": (1, 2),
        "flag": True,
        "text": "8",
        "code": "__import__('os')",
        "e": "",
    }


@pytest.mark.parametrize("texts", [["width"], ["=8"], ["a b=8"], ["width=8", "width=9"]])
def test_malformed_arguments(texts: list[str]) -> None:
    with pytest.raises(typer.BadParameter, match="write key=value"):
        parse_arguments(texts)


@pytest.mark.parametrize(
    ("text", "arguments", "width"),
    [("nets:Net", [], 8), ("nets:Net", ["width=4"], 4), ("nets:Net.wide", [], 16), ("nets:made", [], 8)],
)
def test_modules_of_the_current_folder(folder: Path, text: str, arguments: list[str], width: int) -> None:
    assert build(resolve(text, arguments)).first.out_channels == width
    assert sys.path[0] == os.getcwd()


def test_weights_follow_the_seed_and_leave_the_random_state(folder: Path) -> None:
    reference, before = resolve("nets:Net"), torch.get_rng_state()
    one, same, other = (build(reference, seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("nets", "is no model reference; write package.module:factory"),
        (":Net", "is no model reference"),
        ("nets:", "is no model reference"),
        ("nest:Net", "did you mean 'nets'?"),
        ("nets.inner:Net", "failed: ModuleNotFoundError|no module 'nets.inner'"),
        ("nets:Nett", "nets has no 'Nett'; did you mean 'Net'"),
        ("nets:Net.narrow", "nets has no 'Net.narrow'"),
        ("nets:number", "is a int; name a function or class"),
        ("nets:fails", r"ZeroDivisionError: no width, at .*nets.py:\d+"),
        ("nets:gives_a_list", "gave a list, no torch.nn.Module"),
        ("broken:Net", r"importing 'broken' failed: NameError: .* at .*broken.py:1"),
        ("needy:Net", r"importing 'needy' failed: ModuleNotFoundError: .*'not_there'.* at .*needy.py:1"),
        ("torchvision:resnet5", "torchvision has no model 'resnet5'; did you mean 'resnet50'"),
        ("timm:hf-hub:timm/resnet50", "timm has no model"),
        ("hf:bert-base-uncased", "no folder with a config.json; models are read from local folders only"),
    ],
)
def test_references_that_lead_nowhere(folder: Path, text: str, part: str) -> None:
    (folder / "broken.py").write_text("undefined_name\n")
    (folder / "needy.py").write_text("import not_there\n")
    with pytest.raises(ModelNotFound, match=part):
        build(resolve(text))


@pytest.mark.parametrize(
    ("text", "argument", "part"),
    [
        ("nets:Net", "depth=3", "unexpected keyword argument 'depth'"),
        ("nets:made", "width=3", "takes no arguments"),
        ("net.pt2", "width=3", "takes none"),
        ("torchvision:resnet18", "weights=DEFAULT", "nothing is downloaded"),
        ("timm:resnet18", "pretrained=True", "nothing is downloaded"),
        ("timm:resnet18", "checkpoint_path=a.pth", "nothing is downloaded"),
    ],
)
def test_arguments_that_can_not_be_given(folder: Path, text: str, argument: str, part: str) -> None:
    with pytest.raises(typer.BadParameter, match=part):
        resolve(text, [argument])


def test_torchvision_and_timm(folder: Path) -> None:
    reference = resolve("torchvision:squeezenet1_1", ["num_classes=7"])
    model = build(reference)
    assert model.num_classes == 7 and reference.inputs is not None
    assert reference.inputs(model, 0)[0].shape == (1, 3, 224, 224)
    reference = resolve("timm:test_resnet", ["num_classes=7"])
    model = build(reference)
    assert model.num_classes == 7 and reference.inputs is not None
    assert reference.inputs(model, 0)[0].shape == (1, 3, 160, 160)


def test_backbones_are_not_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def builder(weights: object = 1, weights_backbone: object = 1, **options: object) -> nn.Module:
        seen.update(options, weights=weights, weights_backbone=weights_backbone)
        return nn.Linear(2, 2)

    monkeypatch.setattr(models._required("torchvision").models, "get_model_builder", lambda name: builder)
    build(resolve("torchvision:fcn_resnet50", ["num_classes=2"]))
    assert seen == {"weights": None, "weights_backbone": None, "num_classes": 2}


def test_a_library_that_is_missing(surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    done = surgeon("inspect", "timm:resnet18", "--json")
    assert done.exit_code == 1 and "pip install timm" in json.loads(done.stdout)["message"]


def test_a_model_without_known_inputs(surgeon: Surgeon) -> None:
    done = surgeon("inspect", "nets:Net", "--json")
    assert done.exit_code == 2 and "nets:Net does not tell what it takes; write --input" in done.stderr


# -- weights -----------------------------------------------------------------------------------------


class Small(nn.Module):
    """A linear layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 3)
        self.b = self.a


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
@pytest.mark.parametrize("inside", ["", "state_dict", "model"])
def test_weights_of_files(tmp_path: Path, name: str, inside: str) -> None:
    given, model, path = nn.Linear(2, 3), nn.Linear(2, 3), tmp_path / name
    state = dict(given.state_dict())
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({inside: state, "epoch": 3} if inside else state, path)
    load_weights(model, path)
    assert torch.equal(model.weight, given.weight) and torch.equal(model.bias, given.bias)


def test_tied_weights_may_be_given_once(tmp_path: Path) -> None:
    given, model = Small(), Small()
    save_file({"a.weight": given.a.weight.detach(), "a.bias": given.a.bias.detach()}, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.b.weight, given.a.weight)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("made-by-a-pickle",)


def test_nothing_is_unpickled(folder: Path) -> None:
    torch.save({"weight": Hostile()}, "w.pt")
    Path("raw.pt").write_bytes(pickle.dumps(Hostile()))
    for name in ("w.pt", "raw.pt"):
        with pytest.raises(FileError, match="can't be read as weights only"):
            load_weights(nn.Linear(2, 3), Path(name))
    assert not Path("made-by-a-pickle").exists()


@pytest.mark.parametrize(
    ("state", "part"),
    [
        ({"weight": torch.zeros(3, 2)}, "it has no tensor 'bias'"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(3), "x": torch.zeros(1)}, "too many, 'x'"),
        ({"weight": torch.zeros(4, 2), "bias": torch.zeros(3)}, "size mismatch for weight"),
        ({"module.weight": torch.zeros(3, 2), "module.bias": torch.zeros(3)}, "all names begin with 'module.'"),
        ({"epoch": 3}, "holds no state dict"),
        ([torch.zeros(3, 2)], "holds no state dict"),
    ],
)
def test_weights_of_another_model(tmp_path: Path, state: object, part: str) -> None:
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(FileError, match=part):
        load_weights(nn.Linear(2, 3), tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "nowhere.pt"])
def test_damaged_and_missing_files(tmp_path: Path, name: str) -> None:
    if not name.startswith("nowhere"):
        (tmp_path / name).write_bytes(b"\x08\x00")
    with pytest.raises(FileError, match=name):
        load_weights(nn.Linear(2, 3), tmp_path / name)


def test_programs_have_their_weights(surgeon: Surgeon, folder: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 3), (torch.zeros(1, 2),)), "net.pt2")
    save_file({"weight": torch.zeros(3, 2)}, "w.safetensors")
    done = surgeon("inspect", "net.pt2", "--weights", "w.safetensors", "--json")
    assert done.exit_code == 2 and "has its weights in it" in json.loads(done.stdout)["message"]
    done = surgeon("inspect", "nowhere.pt2", "--json")
    assert done.exit_code == 1 and json.loads(done.stdout)["error"] == "UnsupportedModel"
