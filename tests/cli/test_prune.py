"""``surgeon prune`` writes what the API makes, all of it or nothing."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import surgeon as api
from surgeon.cli import prune as module
from surgeon.errors import BudgetError, ExportError
from surgeon.plan import Plan
from tests.cli.conftest import Surgeon

ALL = ["model.onnx", "model.safetensors", "plan.json", "report.html", "report.json", "report.txt"]
NET = ("prune", "nets:Net", "--input", "1x3x6x6")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")


def net(seed: int = 0, **arguments: int) -> nn.Module:
    """Return what the command line makes of ``nets:Net``."""
    sys.path.insert(0, str(Path.cwd()))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = importlib.import_module("nets").Net(**arguments)
    return model


def test_the_folder_holds_the_cut(surgeon: Surgeon, folder: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = surgeon(*NET, "--flops", "0.5", "--out", "small")
    assert done.exit_code == 0, done.stderr
    assert names(folder / "small") == ALL and names(folder) == ["nets.py", "small"]
    assert "theoretical speed-up" in done.stdout and "masked original = small model" in done.stdout
    told = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    assert "making a net\nPlan(" in told and (folder / "small/report.txt").read_text("utf-8") in told
    plan, original, x = Plan.load("small/plan.json"), net(), torch.randn(2, 3, 6, 6)
    small = api.load(net, "small/model.safetensors")
    expected = api.operate(original, plan)(x)
    torch.testing.assert_close(small(x), expected, rtol=0, atol=0)
    session = onnxruntime.InferenceSession("small/model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_the_plan_is_that_of_the_api(surgeon: Surgeon, folder: Path) -> None:
    options = ("--params", "0.6", "--round-to", "2", "--floor", "0.3", "--group", "second=0.25", "--keep", "out:head")
    options += (
        "--keep",
        "in:first",
    )
    done = surgeon(*NET, *options, "--arg", "width=12", "--criterion", "l2", "--no-onnx", "--out", "small")
    assert done.exit_code == 0, done.stderr
    limits = {"params": 0.6, "round_to": 2, "floor": 0.3, "groups": {"second": 0.25}}
    result = api.prune(
        net(width=12), torch.zeros(1, 3, 6, 6), criterion="l2", keep={"out": ["head"], "in": ["first"]}, **limits
    )
    plan = Plan.load("small/plan.json")
    assert plan.to_json() == result.plan.to_json()
    assert plan.groups[0].removed % 2 == 0 and plan.groups[1].removed <= 3


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (("--flops", "30K"), {"flops": "30K"}),
        (("--memory", "0.9"), {"memory": 0.9}),
        (("--ratio", "0.5", "--scope", "local"), {"ratio": 0.5, "scope": "local"}),
        (("--flops", "0.5", "--round-to", "auto", "--uniform"), {"round_to": 8, "uniform": True}),
        (("--flops", "0.5", "--heads", "both"), {"heads": "both"}),
        (("--flops", "0.5", "--heads", "rows"), {"heads": True}),
        (("--flops", "0.5", "--group", "first=0.5:0.75"), {"groups": {"first": [0.5, 0.75]}}),
        (("--flops", "0.5", "--criterion", "random", "--seed", "5"), {"criterion": "random"}),
    ],
)
def test_options_reach_the_plan(surgeon: Surgeon, words: tuple[str, ...], settings: dict[str, object]) -> None:
    done = surgeon(*NET, *words, "--no-onnx", "--out", "small", "--arg", "width=32")
    assert done.exit_code == 0, done.stderr
    found = json.loads(Path("small/plan.json").read_text())["settings"]
    assert {name: found[name] for name in settings} == settings


def test_random_scores_follow_the_seed(surgeon: Surgeon) -> None:
    texts = []
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        words = ("--ratio", "0.5", "--criterion", "random", "--seed", seed, "--no-onnx", "--out", out)
        assert surgeon(*NET, *words).exit_code == 0
        texts.append(Path(out, "plan.json").read_text())
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(("asked", "given"), [("0.6", 0.6), ("8ms", "8ms")])
def test_latency_is_asked_for(surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch, asked: str, given: object) -> None:
    seen: dict[str, object] = {}

    def planned(*args: object, **options: object) -> None:
        seen.update(options)
        raise BudgetError("seen enough")

    monkeypatch.setattr(module, "make_plan", planned)
    words = ("--latency", asked, "--latency-backend", "onnxruntime", "--no-onnx", "--out", "small")
    done = surgeon(*NET, *words)
    assert done.exit_code == 1 and "seen enough" in done.stderr
    assert (seen["latency"], seen["latency_backend"]) == (given, "onnxruntime")


def test_a_document_is_all_there_is_on_standard_output(surgeon: Surgeon) -> None:
    done = surgeon(*NET, "--flops", "0.5", "--out", "small", "--no-onnx", "--json")
    assert done.exit_code == 0 and "making a net" in done.stderr
    told, written = json.loads(done.stdout), json.loads(Path("small/report.json").read_text())
    plan = Plan.load("small/plan.json")
    assert told["out"] == "small" and told["files"] == [name for name in ALL if name != "model.onnx"]
    assert told["totals"]["flops"]["after"] == plan.totals["flops"][1] <= 0.5 * told["totals"]["flops"]["before"]
    assert told["units"]["removed"] == sum(group.removed for group in plan.groups) > 0
    assert told["proof"]["difference"] <= told["proof"]["tolerance"] and told["onnx"] is None
    assert {key: told[key] for key in written} == written
    assert written["report"]["after"]["params"] == plan.totals["params"][1]


# -- folders -----------------------------------------------------------------------------------------


def test_a_folder_with_files_is_refused_before_anything_runs(surgeon: Surgeon, folder: Path) -> None:
    (folder / "small").mkdir()
    (folder / "small/notes.txt").write_text("mine")
    done = surgeon(*NET, "--flops", "0.5", "--out", "small")
    assert done.exit_code == 1 and "holds notes.txt already" in done.stderr and "--force" in done.stderr
    assert "making a net" not in done.stdout and names(folder / "small") == ["notes.txt"]


def test_force_replaces_what_prune_wrote_and_nothing_else(surgeon: Surgeon, folder: Path) -> None:
    small = folder / "small"
    small.mkdir()
    for name in ("notes.txt", "model.onnx", "plan.json", "model.pt2"):
        (small / name).write_text("old")
    done = surgeon(*NET, "--flops", "0.5", "--no-onnx", "--out", small, "--force")
    assert done.exit_code == 0, done.stderr
    assert names(small) == ["model.safetensors", "notes.txt", "plan.json", "report.html", "report.json", "report.txt"]
    assert (small / "notes.txt").read_text() == "old" and Plan.load(small / "plan.json").cuts


def test_what_is_being_pruned_is_not_replaced(surgeon: Surgeon, folder: Path) -> None:
    (folder / "small").mkdir()
    save_file(net().state_dict(), "small/model.safetensors")
    before = (folder / "small/model.safetensors").read_bytes()
    words = ("--weights", "small/model.safetensors", "--flops", "0.5", "--no-onnx", "--out", "small", "--force")
    done = surgeon(*NET, *words)
    assert done.exit_code == 1 and "which is being pruned" in done.stderr
    assert (folder / "small/model.safetensors").read_bytes() == before and names(folder / "small") == [
        "model.safetensors"
    ]


def test_an_out_that_is_a_file_is_refused(surgeon: Surgeon) -> None:
    done = surgeon(*NET, "--flops", "0.5", "--out", "nets.py", "--force")
    assert done.exit_code == 1 and "nets.py is a file" in done.stderr


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("--flops", "0.0001"), "InfeasibleBudget"),
        (("--flops", "many"), "BudgetError"),
        (("--ratio", "1.5"), "BudgetError"),
        (("--ratio", "0.5", "--flops", "0.5"), "BudgetError"),
        (("--flops", "0.5", "--round-to", "often"), "BudgetError"),
        (("--flops", "0.5", "--keep", "heat"), "UnknownLayer"),
        (("--flops", "0.5", "--keep", "*"), "NothingPrunable"),
        (("--flops", "0.5", "--criterion", "taylor"), "ScoreError"),
        (("--flops", "0.5", "--method", "encode"), "TraceError"),
    ],
)
def test_refusals_leave_nothing(surgeon: Surgeon, folder: Path, words: tuple[str, ...], kind: str) -> None:
    done = surgeon(*NET, *words, "--no-onnx", "--out", "small", "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["error"] == kind and f"error: {told['message']}" in done.stderr and "Traceback" not in done.stderr
    assert names(folder) == ["nets.py"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "say how much: --flops"),
        (("--flops", "0.5", "--group", "first"), "write 'layer1.*=0.3'"),
        (("--flops", "0.5", "--group", "first=a"), "write 'layer1.*=0.3'"),
        (("--flops", "0.5", "--heads", "all"), "--heads"),
        (("--flops", "0.5", "--scope", "some"), "--scope"),
        (("--flops", "0.5", "--device", "abacus"), "--device"),
    ],
)
def test_wrong_usage(surgeon: Surgeon, words: tuple[str, ...], part: str) -> None:
    done = surgeon(*NET, *words, "--no-onnx", "--out", "small", "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 2 and told["error"] == "UsageError" and part in told["message"]
    assert not Path("small").exists()


def test_the_rest_is_written_where_the_onnx_file_fails(
    surgeon: Surgeon, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise ExportError("no operator for it")

    monkeypatch.setattr(module, "export", refuse)
    monkeypatch.setattr(module, "required", lambda *args: None)
    done = surgeon(*NET, "--flops", "0.5", "--out", "small", "--json")
    assert (
        done.exit_code == 1 and "no operator for it; everything else is in small" in json.loads(done.stdout)["message"]
    )
    assert names(folder / "small") == [name for name in ALL if name != "model.onnx"]


def test_missing_packages_are_told_before_anything_runs(
    surgeon: Surgeon, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ONNX", ("an ONNX file", "'channel-surgeon[export]'"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = surgeon(*NET, "--flops", "0.5", "--out", "small")
    assert done.exit_code == 1 and "pip install 'channel-surgeon[export]'" in done.stderr
    assert "making a net" not in done.stdout and not Path("small").exists()


# -- other models ------------------------------------------------------------------------------------


def test_exported_programs(surgeon: Surgeon, folder: Path) -> None:
    x = torch.randn(2, 3, 6, 6)
    surgeon("inspect", *NET[1:])  # imports nets
    torch.export.save(torch.export.export(net().eval(), (x,)), "net.pt2")
    done = surgeon("prune", "net.pt2", "--flops", "0.5", "--no-onnx", "--out", "small", "--json")
    assert done.exit_code == 0, done.stderr
    assert "inputs: 2x3x6x6:float32" in done.stderr
    assert names(folder / "small") == ["model.pt2", "plan.json", "report.html", "report.json", "report.txt"]
    assert torch.export.load("small/model.pt2").module()(x).shape == (2, 5)
    assert surgeon("verify", "net.pt2", "small").exit_code == 0
    done = surgeon("apply", "small/plan.json", "net.pt2", "--out", "again.pt2")
    assert done.exit_code == 0, done.stderr
    assert surgeon("verify", "net.pt2", "again.pt2", "--plan", "small/plan.json").exit_code == 0
    done = surgeon("verify", "net.pt2", "again.pt2")
    assert done.exit_code == 1 and "--plan" in done.stderr


def test_folders_of_transformers(surgeon: Surgeon, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=3,
    )
    transformers.BertForSequenceClassification(config).save_pretrained("bert")
    words = "--ratio 0.5 --scope local --heads rows --uniform --no-onnx --out small --json"
    done = surgeon("prune", "hf:bert", *words.split())
    assert done.exit_code == 0, done.stderr
    files = json.loads(done.stdout)["files"]
    assert {"config.json", "model.safetensors", "plan.json"} <= set(files)
    done = surgeon("verify", "hf:bert", "small", "--input", "input_ids=2x8:int64:20")
    assert done.exit_code == 0, done.stderr
    (hidden,) = (
        g
        for g in json.loads(surgeon("inspect", "hf:small", "--json").stdout)["groups"]
        if g["name"].endswith("intermediate.dense")
    )
    assert hidden["units"] == 12
    assert transformers.BertForSequenceClassification.from_pretrained("small").config.intermediate_size == 12
    done = surgeon("prune", "hf:bert", "--ratio", "0.5", "--no-onnx", "--out", "bert", "--force")
    assert done.exit_code == 1 and "which is being pruned" in done.stderr
