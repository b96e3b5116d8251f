"""The plan as a file: canonical, readable, described by its schema, and safe to read from anyone."""

from __future__ import annotations

import contextlib
import copy
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import surgeon
from surgeon.errors import FileError, PlanMismatch, SurgeonError
from surgeon.plan.document import OPTIONAL, REQUIRED
from surgeon.plan.records import Edit, Selection
from surgeon.plan.runs import decode, encode, parse, runs_of
from tests.nets import Residual, image
from tests.schema import SCHEMA, VALIDATOR, assert_follows_the_schema
from tests.zoo import MODELS, build

indices = st.sets(st.integers(0, 40)).map(lambda s: np.array(sorted(s), dtype=np.int64))


def planned(name: str, seed: int = 0, **options: Any) -> surgeon.Plan:
    model, inputs = build(name)
    graph = surgeon.trace(model, inputs)
    return surgeon.plan(graph, surgeon.score(graph, "random", seed=seed), **{"ratio": 0.5, "scope": "local", **options})


def small_plan() -> surgeon.Plan:
    torch.manual_seed(0)
    return surgeon.prune(Residual(), image(), ratio=0.5, scope="local", check=False).plan


@pytest.fixture(scope="module")
def valid() -> dict[str, Any]:
    return json.loads(small_plan().to_json())


# -- what is written ---------------------------------------------------------------------------------


def test_the_schema_is_a_schema() -> None:
    VALIDATOR.check_schema(SCHEMA)
    assert set(SCHEMA["properties"]) == {*REQUIRED, *OPTIONAL} and set(SCHEMA["required"]) == set(REQUIRED)


@pytest.mark.parametrize("name", [*list(MODELS)[::4], "vit" if "vit" in MODELS else list(MODELS)[1]])
def test_plans_follow_the_schema_and_are_canonical(name: str) -> None:
    plan = planned(name)
    assert_follows_the_schema(plan)
    compact = plan.to_json(compact=True)
    again = surgeon.Plan.from_json(compact)
    assert again == plan and not plan.diff(again) and again.to_json() == plan.to_json()
    assert "\n" not in compact and json.loads(compact) == json.loads(plan.to_json())


def test_the_order_of_names_does_not_show() -> None:
    plan = small_plan()
    fields = {**vars(plan)}
    for part in ("cuts", "fingerprint", "pins", "cost", "totals", "settings"):
        fields[part] = dict(reversed(list(fields[part].items())))
    assert surgeon.Plan(**fields).to_json() == plan.to_json()


def test_a_tensor_is_a_line() -> None:
    plan = small_plan()
    lines = plan.to_json().splitlines()
    for name in plan.cuts:
        (line,) = [line for line in lines if line.startswith(f'  "{name}": {{"shape"')]
        assert json.loads("{" + line.rstrip(",") + "}")[name]["shape"] == list(plan.cuts[name].shape)
    layers = [line for line in lines if line.strip().startswith('"layer')]
    assert layers == []


def test_names_are_in_natural_order() -> None:
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(12)])
    text = surgeon.prune(model, torch.randn(1, 8), ratio=0.5, check=False).plan.to_json()
    names = list(json.loads(text)["fingerprint"])
    assert names.index("2.weight") < names.index("10.weight")


def test_settings_of_any_kind_are_written_and_equal_when_read() -> None:
    groups = {"conv1": (np.float64(0.25), 1)}
    graph = surgeon.trace(Residual(), image())
    plan = surgeon.plan(graph, surgeon.score(graph), ratio=0.5, groups=groups)
    assert plan.settings["groups"] == {"conv1": [0.25, 1]}
    assert surgeon.Plan.from_json(plan.to_json()) == plan


def test_the_criterion_is_written() -> None:
    graph = surgeon.trace(Residual(), image())
    assert surgeon.plan(graph, surgeon.score(graph, "l2"), ratio=0.5).settings["criterion"] == "l2"
    assert surgeon.plan(graph, dict(surgeon.score(graph, "l2")), ratio=0.5).settings["criterion"] == "given"

    def mine(graph: Any, group: Any) -> torch.Tensor:
        return torch.ones(len(group.units))

    assert "mine" in surgeon.plan(graph, surgeon.score(graph, mine), ratio=0.5).settings["criterion"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.up, self.out = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 7, bias=False)
        self.out.weight = self.emb.weight
        self.register_buffer("gain", torch.ones(8), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.up(self.emb(tokens)) * self.gain)


def test_ties_and_transient_buffers_are_written() -> None:
    plan = surgeon.prune(Tied(), torch.arange(7)[None], ratio=0.5).plan
    assert plan.tied == {"out.weight": "emb.weight"} and plan.transient == ("gain",)
    assert surgeon.Plan.from_json(plan.to_json()) == plan


def test_saving_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, path = small_plan(), tmp_path / "a.plan.json"
    plan.save(path)
    assert surgeon.Plan.load(path) == plan and path.read_text() == plan.to_json()
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(FileError, match="No space left on device; free some space"):
        planned(next(iter(MODELS))).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.plan.json"]


def test_no_file_is_an_error_of_surgeon(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        surgeon.Plan.load(tmp_path / "missing.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(PlanMismatch):
        surgeon.Plan.load(tmp_path / "binary")


# -- runs --------------------------------------------------------------------------------------------


@given(indices, indices)
def test_runs_are_sets(a: np.ndarray, b: np.ndarray) -> None:
    runs, other = runs_of(a), runs_of(b)
    assert np.array_equal(runs.indices(), a) and len(runs) == len(a)
    assert np.array_equal(decode(encode(a), 41), a) and str(parse(encode(a), 41)) == encode(a)
    assert np.array_equal(runs.without(other).indices(), np.setdiff1d(a, b))


@pytest.mark.parametrize("text", ["0-1,2", "1-1", "01", "+1", "\u0661", "1,", ",1", "0--1", "3,2", "1 ", "0-41"])
def test_a_set_has_one_spelling(text: str) -> None:
    with pytest.raises(PlanMismatch):
        parse(text, 41)


def test_selections_are_equal_as_sets() -> None:
    kept = np.array([0, 1, 4])
    assert Selection((0,), 9, kept) == Selection((0,), 9, parse("0-1,4", 9))
    assert Selection((0,), 9, kept) != Selection((0,), 9, parse("0-1,5", 9))
    assert Selection((0,), 9, kept) != Selection((0,), 8, kept)


# -- what is refused ---------------------------------------------------------------------------------


def changed(valid: dict[str, Any], change: Any) -> str:
    data = copy.deepcopy(valid)
    change(data)
    return json.dumps(data)


BAD = {
    "version": lambda d: d.update(version=2),
    "version as text": lambda d: d.update(version="1"),
    "version as bool": lambda d: d.update(version=True),
    "no version": lambda d: d.pop("version"),
    "format": lambda d: d.update(format="other"),
    "unknown key": lambda d: d.update(extra=1),
    "missing part": lambda d: d.pop("masked"),
    "list for an object": lambda d: d.update(cuts=[]),
    "object for a list": lambda d: d.update(groups={}),
    "null": lambda d: d.update(fingerprint=None),
    "cut of no tensor": lambda d: d["cuts"].update(other=d["cuts"]["conv1.weight"]),
    "cut of another shape": lambda d: d["fingerprint"].update({"conv1.weight": [12, 8, 3, 4]}),
    "negative size": lambda d: d["fingerprint"].update({"stem.bias": [-8]}),
    "size as float": lambda d: d["fingerprint"].update({"stem.bias": [8.0]}),
    "size as bool": lambda d: d["fingerprint"].update({"stem.bias": [True]}),
    "size beyond 64 bits": lambda d: d["fingerprint"].update(x=[2**40, 2**40]),
    "new shape that the positions don't fill": lambda d: d["cuts"]["conv1.weight"].update(new_shape=[5, 4, 3, 3]),
    "new shape of another rank": lambda d: d["cuts"]["conv1.weight"].update(new_shape=[6, 4, 9]),
    "new shape of nothing": lambda d: d["cuts"]["conv1.weight"].update(new_shape=[0, 4, 3, 3]),
    "solid dimension cut": lambda d: d["cuts"]["conv1.weight"].update(new_shape=[6, 4, 2, 3]),
    "dims repeated": lambda d: d["cuts"]["conv1.weight"]["keep"][0].update(dims=[0, 0]),
    "dims out of order": lambda d: d["cuts"]["conv1.weight"]["keep"][0].update(dims=[1, 0], of=96),
    "dims beyond": lambda d: d["cuts"]["conv1.weight"]["keep"][0].update(dims=[4]),
    "no dims": lambda d: d["cuts"]["conv1.weight"]["keep"][0].update(dims=[]),
    "indices as list": lambda d: d["cuts"]["conv1.weight"]["keep"][0].update(keep=[0, 1]),
    "indices repeated": lambda d: d["cuts"]["conv1.weight"]["keep"][0].update(keep="0-4,4"),
    "indices unsorted": lambda d: d["cuts"]["conv1.weight"]["keep"][0].update(keep="5,0-4"),
    "indices negative": lambda d: d["cuts"]["conv1.weight"]["keep"][0].update(keep="-1-4"),
    "indices huge": lambda d: d["cuts"]["conv1.weight"]["keep"][0].update(keep=f"0-{10**18}"),
    "indices beyond": lambda d: d["cuts"]["conv1.weight"]["keep"][0].update(keep="7-12"),
    "attribute as float": lambda d: d["attributes"][0].update(new=4.0),
    "attribute as bool": lambda d: d["attributes"][0].update(new=True),
    "attribute with dunder": lambda d: d["attributes"][0].update(name="__class__"),
    "attribute of a dunder": lambda d: d["attributes"][0].update(name="config.__dict__"),
    "attribute without name": lambda d: d["attributes"][0].update(name=""),
    "attribute with empty part": lambda d: d["attributes"][0].update(name="config..heads"),
    "attribute twice": lambda d: d["attributes"].append(d["attributes"][0]),
    "attribute with more": lambda d: d["attributes"][0].update(call="os.system"),
    "negative index": lambda d: d["attributes"][0].update(index=-1),
    "more units gone than there were": lambda d: d["groups"][0].update(removed=99),
    "totals without flops": lambda d: d["totals"].pop("flops"),
    "totals of one": lambda d: d["totals"].update(flops=[1.0]),
    "negative totals": lambda d: d["totals"].update(flops=[1.0, -1.0]),
    "loss as text": lambda d: d.update(loss="0.1"),
    "pins without reason": lambda d: d["pins"].update(conv1=3),
    "scale of an uncut tensor": lambda d: d["scales"].append(
        {"parameter": "head.bias", "dim": 0, "of": 5, "positions": "0", "factor": 2.0}
    ),
    "scale by nothing": lambda d: d["scales"].append(
        {"parameter": "conv1.weight", "dim": 0, "of": 12, "positions": "0", "factor": 0.0}
    ),
    "scale beyond": lambda d: d["scales"].append(
        {"parameter": "conv1.weight", "dim": 9, "of": 12, "positions": "0", "factor": 2.0}
    ),
    "masked call as text": lambda d: d["masked"].append(
        {"call": "1", "op": "mean", "position": 0, "dims": [1], "sizes": [8], "keep": "0"}
    ),
    "masked sizes of other dimensions": lambda d: d["masked"].append(
        {"call": 1, "op": "mean", "position": 0, "dims": [1], "sizes": [2, 4], "keep": "0"}
    ),
    "tie to nothing": lambda d: d.update(tied={"a": "b"}),
    "transient that is not there": lambda d: d.update(transient=["a"]),
    "transient twice": lambda d: d.update(transient=["bn1.bias", "bn1.bias"]),
    "settings that nest": lambda d: d["settings"].update(a=json.loads("[" * 60 + "]" * 60)),
    "settings of huge numbers": lambda d: d["settings"].update(a=10**30),
    "half a character": lambda d: d["pins"].update({"\ud800": "a"}),
}


@pytest.mark.parametrize("what", list(BAD))
def test_malformed_plans_are_refused(valid: dict[str, Any], what: str) -> None:
    with pytest.raises(PlanMismatch):
        surgeon.Plan.from_json(changed(valid, BAD[what]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"surgeon-plan"',
        "{",
        "[" * 100_000,
        '{"a":' * 50_000,
        '{"format": "surgeon-plan", "format": "surgeon-plan"}',
        "1" * 10_000,
        b"\x80\x04\x95",
    ],
)
def test_what_is_no_plan_is_refused(text: str | bytes) -> None:
    with pytest.raises(PlanMismatch):
        surgeon.Plan.from_json(text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_number_is_refused(valid: dict[str, Any], number: str) -> None:
    text = changed(valid, lambda d: d.update(loss="here")).replace('"here"', number)
    with pytest.raises(PlanMismatch):
        surgeon.Plan.from_json(text)


def test_duplicate_keys_are_named(valid: dict[str, Any]) -> None:
    text = json.dumps(valid).replace('"cuts": {', '"cuts": {"head.weight": 1, ', 1)
    with pytest.raises(PlanMismatch, match=r"'head\.weight' occurs twice"):
        surgeon.Plan.from_json(text)


def test_tiny_files_of_huge_tensors_allocate_nothing(valid: dict[str, Any]) -> None:
    size = 2**50

    def enlarge(data: dict[str, Any]) -> None:
        keep = [{"dims": [0], "of": size, "keep": f"1-{size - 1}"}]
        data["cuts"] = {"x": {"shape": [size], "new_shape": [size - 1], "keep": keep}}
        data["fingerprint"] = {"x": [size]}
        data["scales"] = [{"parameter": "x", "dim": 0, "of": size, "positions": f"0-{size - 2}", "factor": 2.0}]

    text = changed(valid, enlarge)
    tracemalloc.start()
    plan = surgeon.Plan.from_json(text)
    assert surgeon.Plan.from_json(plan.to_json()) == plan
    assert "x" in str(plan.diff(small_plan())) and plan.summary()
    with pytest.raises(PlanMismatch):
        surgeon.operate(Residual(), plan)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [p for key, item in items for p in leaves(item, (*path, key))]


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.sampled_from(["0-3", "0,2", "-1", "conv1.weight", "__init__", "0-99999999999", [], {}, [0], [1, 1], {"a": 1}]),
)


@settings(max_examples=300)
@given(st.data())
def test_a_changed_plan_is_refused_or_follows_the_schema(valid: dict[str, Any], data: st.DataObject) -> None:
    """Nothing but PlanMismatch comes out, nothing is read that the schema forbids, and no model is changed."""
    mutated = copy.deepcopy(valid)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([p for p in leaves(mutated) if p]))
        owner = mutated
        for key in path[:-1]:
            owner = owner[key]
        action = data.draw(st.sampled_from(["replace", "delete", "copy"]))
        if action == "replace" or (action == "copy" and isinstance(owner, dict)):
            owner[path[-1]] = data.draw(JUNK)
        elif action == "delete":
            del owner[path[-1]]
        else:
            owner.append(owner[path[-1]])
    try:
        plan = surgeon.Plan.from_json(json.dumps(mutated))
    except PlanMismatch:
        return
    VALIDATOR.validate(mutated)
    assert surgeon.Plan.from_json(plan.to_json()) == plan
    str(plan), plan.summary(), str(plan.diff(small_plan()))
    model = Residual()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shown = str(model)
    with contextlib.suppress(SurgeonError):
        surgeon.operate(model, plan)
    assert str(model) == shown and all(torch.equal(before[k], v) for k, v in model.state_dict().items())


# -- edits touch integers that are there, and nothing else -------------------------------------------


class Guarded(Residual):
    called = False

    @property
    def trap(self) -> Any:
        type(self).called = True
        return self


@pytest.mark.parametrize(
    "edit",
    [
        {"name": "training"},  # a bool, which equals 1
        {"name": "missing"},
        {"name": "_parameters"},
        {"name": "forward"},
        {"name": "trap.called"},
        {"name": "label", "index": 0},
        {"owner": "nowhere"},
        {"name": "pair", "index": 5},
        {"name": "pair"},
        {"name": "scale"},
    ],
)
def test_edits_of_odd_attributes_are_refused(edit: dict[str, Any]) -> None:
    model = Guarded()
    model.label, model.pair, model.scale = "text", (1, 2), 1.0
    plan = small_plan()
    odd = Edit(**{"owner": "", "name": "x", "index": None, "old": 1, "new": 0, **edit})
    with pytest.raises(PlanMismatch, match="another architecture"):
        surgeon.operate(model, surgeon.Plan(**{**vars(plan), "edits": (*plan.edits, odd)}), inplace=True)
    assert not Guarded.called and model.training and model.stem.out_channels == 8


def test_edits_of_items_are_made() -> None:
    model = Guarded()
    model.pair = (1, 2)
    plan = small_plan()
    small = surgeon.operate(model, surgeon.Plan(**{**vars(plan), "edits": (Edit("", "pair", 1, 2, 7),)}))
    assert small.pair == (1, 7) and model.pair == (1, 2)
