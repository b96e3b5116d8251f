"""What the other commands say, to readers and to machines."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgeon as api
from surgeon.plan import Plan
from tests.cli.conftest import Surgeon

NET = ("nets:Net", "--input", "1x3x6x6")


@pytest.fixture
def small(surgeon: Surgeon) -> Path:
    """Return the folder of a cut net."""
    done = surgeon("prune", *NET, "--ratio", "0.5", "--scope", "local", "--no-onnx", "--out", "small")
    assert done.exit_code == 0, done.stderr
    return Path("small")


def document(surgeon: Surgeon, *words: object) -> Any:
    done = surgeon(*words, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def refused(surgeon: Surgeon, *words: object, status: int = 1) -> str:
    """Return why a command refused; it says so as a document and on standard error."""
    done = surgeon(*words, "--json")
    assert done.exit_code == status, (done.stdout, done.stderr)
    told = json.loads(done.stdout)
    assert told["message"] in done.stderr
    return f"{told['error']}: {told['message']}"


# -- inspect -----------------------------------------------------------------------------------------


def test_inspect_lists_groups_pins_and_layers(surgeon: Surgeon) -> None:
    told = document(surgeon, "inspect", *NET)
    groups = {group["name"]: group for group in told["groups"]}
    assert [(name, group["units"]) for name, group in groups.items()][:2] == [("first", 8), ("second", 12)]
    assert {"parameter": "second.weight", "dims": [1]} in groups["first"]["members"]
    assert groups["first"]["pinned"] is None and "output" in groups["head"]["pinned"]
    assert [layer["name"] for layer in told["layers"]] == ["first", "second", "head"]
    assert told["layers"][0]["flops"] == 8 * 3 * 9 * 36 and told["params"] == 3 * 8 * 9 + 8 + 8 * 12 * 9 + 12 + 65
    text = surgeon("inspect", *NET).stdout
    assert "Groups that may be cut" in text and "Groups that stay" in text and "the model's output" in text


def test_inspect_keeps_what_is_asked(surgeon: Surgeon) -> None:
    told = document(surgeon, "inspect", *NET, "--keep", "first")
    assert {g["name"]: g["pinned"] for g in told["groups"]}["first"] == "kept as asked (first)"


def test_inspect_explains_a_layer(surgeon: Surgeon) -> None:
    told = document(surgeon, "inspect", *NET, "--explain", "first")
    assert "cut together with second.weight dim 1" in told["explanation"]
    assert told["explanation"] in surgeon("inspect", *NET, "--explain", "first").stdout
    assert "UnknownLayer" in refused(surgeon, "inspect", *NET, "--explain", "frist")


def test_inputs_by_name_and_type(surgeon: Surgeon) -> None:
    named = ("--input", "scale=1x1", "--input", "ids=2x7:int64:30")
    assert document(surgeon, "inspect", "nets:Tokens", *named)["groups"][0]["units"] == 6
    ordered = ("--input", "2x7:int64", "--input", "1x1")
    assert document(surgeon, "inspect", "nets:Tokens", *ordered)["groups"][0]["units"] == 6
    assert "TraceError" in refused(surgeon, "inspect", "nets:Tokens", "--input", "2x7", "--input", "1x1")


# -- verify and report -------------------------------------------------------------------------------


def test_verify_proves_a_cut(surgeon: Surgeon, small: Path) -> None:
    told = document(surgeon, "verify", *NET, small)
    assert told["difference"] <= told["tolerance"] and told["params"][0] == told["params"][1]
    for where in (small / "model.safetensors", small):
        done = surgeon("verify", *NET, where, "--plan", small / "plan.json")
        assert done.exit_code == 0 and "masked original = small model" in done.stdout


def test_a_wrong_cut_has_a_status_of_its_own(surgeon: Surgeon, small: Path) -> None:
    assert refused(surgeon, "verify", *NET, small, "--seed", "1", status=3).startswith("VerificationError: ")


def test_verify_needs_the_same_architecture(surgeon: Surgeon, small: Path) -> None:
    assert "PlanMismatch" in refused(surgeon, "verify", *NET, small, "--arg", "width=9")


def test_report_counts_both(surgeon: Surgeon, small: Path) -> None:
    told, plan = document(surgeon, "report", *NET, small), Plan.load(small / "plan.json")
    assert (told["before"]["flops"], told["after"]["flops"]) == plan.totals["flops"]
    assert told["compression_ratio"] == plan.totals["params"][0] / plan.totals["params"][1]
    assert [layer["name"] for layer in told["layers"]] == ["first", "second", "head"]
    assert "8→4 3 3x3" in surgeon("report", *NET, small).stdout
    assert told["latency"] is None and told["groups"][0]["units"][0] == 8


def test_report_measures_and_shows_all(surgeon: Surgeon, small: Path) -> None:
    done = surgeon("report", *NET, small, "--latency", "--all")
    assert done.exit_code == 0 and re.search(r"latency, measured +\S+ ms +\S+ ms", done.stdout)
    assert "Latency: p50 of" in done.stdout


def test_report_writes_a_page(surgeon: Surgeon, small: Path) -> None:
    surgeon("report", *NET, small, "--html", "report.html")
    text = Path("report.html").read_text(encoding="utf-8")
    assert "<title>Net: surgery report</title>" in text and '"name":"second"' in text
    assert "exists" in refused(surgeon, "report", *NET, small, "--html", "report.html")
    surgeon("report", *NET, small, "--html", "report.html", "--force")


@pytest.mark.parametrize("command", ["verify", "report", "bench"])
def test_a_small_model_that_is_not_there(surgeon: Surgeon, command: str) -> None:
    assert "nowhere" in refused(surgeon, command, *NET, "nowhere")


def test_a_module_is_no_cut_of_a_program(surgeon: Surgeon, small: Path) -> None:
    net = importlib.import_module("nets").Net().eval()
    torch.export.save(torch.export.export(net, (torch.zeros(1, 3, 6, 6),)), "net.pt2")
    assert "holds no model.pt2" in refused(surgeon, "verify", "net.pt2", small)


# -- export and bench --------------------------------------------------------------------------------


def test_export_writes_the_small_model(surgeon: Surgeon, small: Path) -> None:
    told = document(surgeon, "export", *NET, small, "--out", "small.pt2")
    assert told["format"] == "torch.export" and told["difference"] <= 1e-4
    assert told["bytes"] == Path("small.pt2").stat().st_size
    x = torch.randn(3, 3, 6, 6)
    model = api.load(importlib.import_module("nets").Net, small).eval()
    torch.testing.assert_close(torch.export.load("small.pt2").module()(x), model(x))
    assert "exists; --force replaces it" in refused(surgeon, "export", *NET, small, "--out", "small.pt2")
    assert surgeon("export", *NET, "--static", "--out", "small.pt2", "--force").exit_code == 0
    program = torch.export.load("small.pt2")
    assert program.module()(x[:1]).shape == (1, 5) and program.state_dict["first.weight"].shape[0] == 8


def test_export_refuses_what_it_can_not_write(surgeon: Surgeon) -> None:
    assert "ends in none of" in refused(surgeon, "export", *NET, "--out", "small.bin")
    assert "no folder" in refused(surgeon, "export", *NET, "--out", "nowhere/small.pt2")


def test_bench_runs_all_in_turn(surgeon: Surgeon, small: Path) -> None:
    words = (*NET, small, small / "model.safetensors", "--runs", "3", "--seconds", "0.2")
    told = document(surgeon, "bench", *words)
    assert told["models"] == ["nets:Net", "small", "small/model.safetensors"] and told["ratios"][0] == 1
    assert len(told["seconds"]) == len(told["ratios"]) == len(told["spread"]) == 3 and min(told["seconds"]) > 0
    lines = surgeon("bench", *words).stdout.splitlines()
    assert any(line.startswith("small: ") and line.endswith("x as fast") for line in lines)
    assert "--backend" in refused(surgeon, "bench", *words, "--backend", "abacus", status=2)


# -- apply -------------------------------------------------------------------------------------------


def weights(seed: int) -> dict[str, torch.Tensor]:
    sys.path.insert(0, str(Path.cwd()))
    torch.manual_seed(seed)
    state: dict[str, torch.Tensor] = importlib.import_module("nets").Net().state_dict()
    return state


def test_apply_cuts_another_checkpoint(surgeon: Surgeon, small: Path) -> None:
    save_file(weights(7), "other.safetensors")
    words = (small / "plan.json", "nets:Net", "--weights", "other.safetensors", "--out", "cut.safetensors")
    told = document(surgeon, "apply", *words)
    assert told["bytes"] == Path("cut.safetensors").stat().st_size
    done = surgeon("verify", *NET, "cut.safetensors", "--weights", "other.safetensors")
    assert done.exit_code == 0, done.stderr
    assert surgeon("verify", *NET, "cut.safetensors").exit_code == 3
    assert "exists; --force replaces it" in refused(surgeon, "apply", *words)
    assert surgeon("apply", *words, "--force").exit_code == 0


def test_apply_cuts_files_to_files(surgeon: Surgeon, small: Path) -> None:
    state = weights(7)
    first = {name: state[name] for name in list(state)[:3]}
    save_file(first, "model-1.safetensors")
    save_file({name: state[name] for name in state if name not in first}, "model-2.safetensors")
    done = surgeon("apply", small / "plan.json", "nets:Net", "--weights", "model-*.safetensors", "--out", "shards")
    assert done.exit_code == 0 and "nets:Net is not needed" in done.stderr and "making a net" not in done.stdout
    told = document(surgeon, "apply", small / "plan.json", "--weights", "model-*.safetensors", "--out", "again")
    assert told["tensors"] == 6 and told["bytes"]["after"] < told["bytes"]["before"] and told["resumed"] == 0
    found = load_file(Path("again", *told["files"]))
    net = importlib.import_module("nets").Net()
    net.load_state_dict(state)
    expected = api.operate(net, Plan.load(small / "plan.json")).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_apply_refuses(surgeon: Surgeon, small: Path) -> None:
    plan = small / "plan.json"
    assert "give a MODEL" in refused(surgeon, "apply", plan, "--out", "cut.safetensors", status=2)
    assert "ends in .safetensors" in refused(surgeon, "apply", plan, "nets:Net", "--out", "cut.bin", status=2)
    assert "small is a folder" in refused(surgeon, "apply", plan, "nets:Net", "--out", "small")
    assert "no folder" in refused(surgeon, "apply", plan, "nets:Net", "--out", "nowhere/cut.safetensors")
    assert "PlanMismatch" in refused(surgeon, "apply", plan, "nets:Net.wide", "--out", "cut.safetensors")
    assert "FileError" in refused(surgeon, "apply", plan, "--weights", "no-*.safetensors", "--out", "shards")
    assert "FileError" in refused(surgeon, "apply", "no.json", "nets:Net", "--out", "cut.safetensors")
    Path("bad.json").write_text('{"format": "surgeon-plan"}')
    assert "PlanMismatch" in refused(surgeon, "apply", "bad.json", "nets:Net", "--out", "cut.safetensors")
    assert not Path("cut.safetensors").exists() and not Path("cut.bin").exists()


# -- plan --------------------------------------------------------------------------------------------


def test_plan_show(surgeon: Surgeon, small: Path) -> None:
    assert document(surgeon, "plan", "show", small / "plan.json") == json.loads((small / "plan.json").read_text())
    assert "first: 8 -> 4" in surgeon("plan", "show", small / "plan.json").stdout
    assert "FileError" in refused(surgeon, "plan", "show", "nowhere.json")


def test_plan_diff(surgeon: Surgeon, small: Path) -> None:
    done = surgeon("prune", *NET, "--ratio", "0.25", "--scope", "local", "--no-onnx", "--out", "mild")
    assert done.exit_code == 0, done.stderr
    plans = (small / "plan.json", "mild/plan.json")
    assert document(surgeon, "plan", "diff", plans[0], plans[0]) == {"same": True, "changes": []}
    told = document(surgeon, "plan", "diff", *plans)
    changed = {change["name"]: change for change in told["changes"] if change["part"] == "groups"}
    assert not told["same"] and changed["first"]["ours"]["removed"] == 4 and changed["first"]["theirs"]["removed"] == 2
    assert "first: 8 -> 4 | 8 -> 6" in surgeon("plan", "diff", *plans).stdout
