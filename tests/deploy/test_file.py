"""Checkpoints cut from files to files: what operate makes in memory, a piece at a time, and nothing half-done."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import surgeon
from surgeon.deploy.file import PARTS, PLAN
from surgeon.deploy.journal import Journal
from surgeon.errors import BudgetError, FileError, PlanMismatch, ScoreError
from surgeon.files import checkpoint
from surgeon.files.checkpoint import INDEX, Reader, headers, slices, tensors
from surgeon.files.header import header_bytes, read_header
from surgeon.operate.pieces import Sieve
from surgeon.operate.select import shrunk
from surgeon.plan.plan import Cut, Plan, Scale, Selection
from tests.deploy.test_artefact import Unlike, outputs
from tests.nets import Residual, image
from tests.zoo import MODELS, build

TOKENS = torch.arange(6)[None]


def shards(state: dict[str, Tensor], folder: Path, count: int = 3) -> str:
    """Write a state dict to several files; return the pattern that they match."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        part = {name: state[name].detach().clone() for name in list(state)[k::count]}
        safetensors.torch.save_file(part, folder / f"model-{k}.safetensors")
    return str(folder / "model-*.safetensors")


def planned(model: nn.Module, inputs: Any, **options: Any) -> Plan:
    graph = surgeon.trace(model, inputs)
    return surgeon.plan(graph, surgeon.score(graph), **{"ratio": 0.5, "scope": "local", **options})


def written(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder, as any reader of the layout finds them."""
    index = json.loads((folder / INDEX).read_text())
    assert not list(folder.glob(".*"))
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        part = safetensors.torch.load_file(path)
        assert {name: index["weight_map"][name] for name in part} == dict.fromkeys(part, path.name)
        found.update(part)
    assert found.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in found.values())
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name


# -- what is written ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MODELS)[::5])
@pytest.mark.parametrize("piece", [500, 2**20])
def test_files_hold_what_operate_makes(name: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PIECE", piece)
    model, inputs = build(name)
    plan = planned(model, inputs, heads=piece > 500)
    state = model.state_dict()
    kept = {name: tensor for name, tensor in state.items() if plan.tied.get(name, name) == name}
    source = shards(kept, tmp_path / "source")
    result = surgeon.operate_file(plan, source, tmp_path / "out", shard_size="10KB")
    small = surgeon.operate(model, plan)
    assert_equal(written(tmp_path / "out"), {name: small.state_dict()[name] for name in kept})
    assert result.tensors == len(kept) and result.resumed == 0 and str(result)
    assert Plan.load(tmp_path / "out" / PLAN) == plan


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_folders_are_loaded_into_the_original_class(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Unlike().eval()
    plan = planned(model, TOKENS)
    model = model.to(dtype)
    state = model.state_dict()
    assert "table" not in state and {"out.weight", "emb.weight"} <= state.keys()
    for dropped in ("out.weight", "emb.weight", None):
        folder = tmp_path / str(dropped)
        shards({name: tensor for name, tensor in state.items() if name != dropped}, folder)
        surgeon.operate_file(plan, folder, folder / "out")
        again = surgeon.load(lambda: Unlike().to(dtype).eval(), folder / "out")
        assert again.emb.weight is again.out.weight
        for a, b in zip(outputs(surgeon.operate(model, plan), TOKENS), outputs(again, TOKENS)):
            assert torch.equal(a, b)


def test_an_index_a_folder_a_file_and_a_list_are_read(tmp_path: Path) -> None:
    model = Residual()
    plan = planned(model, image())
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    pattern = shards(state, tmp_path / "a")
    paths = sorted((tmp_path / "a").iterdir())
    names = {name: path.name for path in paths for name in read_header(path).tensors}
    safetensors.torch.save_file(state, tmp_path / "whole.safetensors")
    results = []
    for k, source in enumerate([pattern, tmp_path / "a", paths, tmp_path / "whole.safetensors"]):
        surgeon.operate_file(plan, source, tmp_path / str(k))
        results.append(written(tmp_path / str(k)))
    (tmp_path / "a" / INDEX).write_text(json.dumps({"weight_map": names}))
    for k, source in enumerate([tmp_path / "a", tmp_path / "a" / INDEX], 10):
        surgeon.operate_file(plan, source, tmp_path / str(k))
        results.append(written(tmp_path / str(k)))
    for found in results:
        assert_equal(found, surgeon.operate(model, plan).state_dict())


def test_shards_have_the_size_asked_for(tmp_path: Path) -> None:
    model = Residual(width=32, inner=48)
    plan = planned(model, image())
    source = shards(model.state_dict(), tmp_path / "source")
    result = surgeon.operate_file(plan, source, tmp_path / "out", shard_size="6 KB")
    sizes = [sum(t.size for t in read_header(tmp_path / "out" / name).tensors.values()) for name in result.shards]
    largest = max(t.numel() * 4 for t in written(tmp_path / "out").values())
    assert len(sizes) > 2 and all(size <= max(6000, largest) for size in sizes)
    assert result.shards[0] == f"model-00001-of-{len(sizes):05}.safetensors"


@pytest.mark.parametrize("size", ["0", "-1", "many", 0, True, 1.5, "1 XB", None])
def test_malformed_shard_sizes_are_refused(size: Any, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="shard_size"):
        surgeon.operate_file(planned(Residual(), image()), "x", tmp_path, shard_size=size)


# -- a piece at a time -------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), max_size=4), st.integers(1, 64), st.sampled_from([1, 2, 8]))
def test_slices_cover_a_tensor_in_order(shape: list[int], piece: int, itemsize: int) -> None:
    whole = np.arange(int(np.prod(shape))).reshape(shape)
    parts = [whole[where] for where in slices(tuple(shape), itemsize, piece)]
    assert np.array_equal(np.concatenate([part.ravel() for part in parts]) if parts else [], whole.ravel())
    last = itemsize * (shape[-1] if shape else 1)
    assert all(part.size * itemsize <= max(piece, min(last, piece) if last <= piece else itemsize) for part in parts)


@given(st.integers(0, 10_000), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.integers(8, 200))
def test_pieces_of_joint_cuts_and_factors(seed: int, dtype: torch.dtype, piece: int) -> None:
    draw = np.random.default_rng(seed)
    rows = [r * 6 + c for r in range(4) for c in sorted(draw.permutation(6)[:4])]
    joint = Selection((0, 1), 24, np.array(rows))
    middle = Selection((1,), 6, np.sort(draw.permutation(6)[:4]))
    third = Selection((2,), 5, np.array([0, 3]))
    tensor = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)
    for selections, shape in (((joint,), (4, 4, 5)), ((joint, third), (4, 4, 2)), ((middle, third), (4, 4, 2))):
        cut = Cut((4, 6, 5), shape, selections)
        scales = tuple(Scale("x", dim, tensor.shape[dim], np.array([0, 2]), 1.7) for dim in (0, 1, 2))
        plan = Plan({"x": cut}, {"x": (4, 6, 5)}, (), (), {}, {}, {"flops": (1, 1), "params": (1, 1)}, scales=scales)
        sieve = Sieve(plan, "x")
        parts = [sieve(w, tensor[w].clone()).reshape(-1) for w in slices((4, 6, 5), dtype.itemsize, piece)]
        assert torch.equal(torch.cat(parts).reshape(shape), shrunk(tensor, plan, "x"))


def test_scores_of_files_are_those_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PIECE", 2000)
    for name in list(MODELS)[::12]:
        model, inputs = build(name)
        source = shards(
            {n: t for n, t in model.state_dict().items() if n in dict(model.named_parameters())}, tmp_path / name
        )
        graph = surgeon.trace(model, inputs)
        for criterion in ("l1", "l2"):
            expected, found = surgeon.score(graph, criterion), surgeon.score(graph, criterion, weights=source)
            assert expected.keys() == found.keys() and found.criterion == criterion
            assert all(torch.allclose(expected[g], found[g], rtol=1e-12, atol=0) for g in expected)


def test_traced_on_meta_scored_and_cut_from_files(tmp_path: Path) -> None:
    model = Residual().eval()
    source = shards(model.state_dict(), tmp_path / "source")
    with torch.device("meta"):
        light = Residual().eval()
    graph = surgeon.trace(light, image().to("meta"))
    with pytest.raises(ScoreError, match="weights="):
        surgeon.score(graph, "l1")
    plan = surgeon.plan(graph, surgeon.score(graph, "l1", weights=source), flops=0.5)
    surgeon.operate_file(plan, source, tmp_path / "out")
    graph = surgeon.trace(model, image())
    assert plan.cuts == surgeon.plan(graph, surgeon.score(graph, "l1"), flops=0.5).cuts
    small = surgeon.load(lambda: Residual().eval(), tmp_path / "out")
    surgeon.verify(model, small, plan, image())


# -- kills -------------------------------------------------------------------------------------------

CHILD = """
    import sys, time
    from pathlib import Path
    import surgeon
    from surgeon.files import checkpoint

    checkpoint.PIECE = 2**14
    plan, source, out = sys.argv[1:]
    slow, read = float(0.002), checkpoint.Reader.range

    def slowly(*args):
        time.sleep(slow)
        return read(*args)

    checkpoint.Reader.range = slowly
    print("ready", flush=True)
    surgeon.operate_file(surgeon.Plan.load(plan), source, out, shard_size="400KB")
"""


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model = Residual(width=256, inner=256)
    plan = planned(model, image())
    plan.save(tmp_path / "plan.json")
    source = shards(model.state_dict(), tmp_path / "source")
    before = {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    whole = surgeon.operate_file(plan, source, tmp_path / "whole", shard_size="400KB")
    assert len(whole.shards) > 2
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / "plan.json"), source, str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(surgeon.__file__).parent.parent)}
    hits = 0
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        journal = tmp_path / "out" / PARTS / "journal"
        wanted = random.randint(2, 8) + hits * 3
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < wanted):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        hits += process.wait() == -signal.SIGKILL
        assert not (tmp_path / "out" / INDEX).exists() or hits == 0
    assert hits == 2
    result = surgeon.operate_file(plan, source, tmp_path / "out", shard_size="400KB")
    assert result.resumed > 0
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()} == before


class Stop(Exception):
    """Stands for a kill at a chosen point."""


def interrupted(monkeypatch: pytest.MonkeyPatch, plan: Plan, source: str, out: Path, after: int) -> None:
    """Stop a run in front of a chosen write or rename."""
    calls = 0

    def counting(function: Any) -> Any:
        def count(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                raise Stop
            return function(*args, **kwargs)

        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", counting(os.pwrite))
        patch.setattr(os, "replace", counting(os.replace))
        try:
            surgeon.operate_file(plan, source, out, shard_size="1KB")
        except Stop:
            return


def test_whatever_the_moment_of_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Residual()
    plan = planned(model, image())
    source = shards(model.state_dict(), tmp_path / "source")
    surgeon.operate_file(plan, source, tmp_path / "whole", shard_size="1KB")
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    for after in range(0, 40, 3):
        out = tmp_path / str(after)
        interrupted(monkeypatch, plan, source, out, after)
        if (out / INDEX).exists():
            assert {p.name: p.read_bytes() for p in out.iterdir() if p.name != PARTS} == expected
        surgeon.operate_file(plan, source, out, shard_size="1KB")
        assert {path.name: path.read_bytes() for path in out.iterdir()} == expected


def test_damaged_parts_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Residual()
    plan = planned(model, image())
    source = shards(model.state_dict(), tmp_path / "source")
    surgeon.operate_file(plan, source, tmp_path / "whole", shard_size="1KB")
    interrupted(monkeypatch, plan, source, tmp_path / "out", 14)
    for path in (tmp_path / "out" / PARTS).glob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-8:] = b"\xff" * 8
        path.write_bytes(content)
    with open(tmp_path / "out" / PARTS / "journal", "ab") as file:
        file.write(b'{"tensor": "head.we')
    surgeon.operate_file(plan, source, tmp_path / "out", shard_size="1KB")
    assert_equal(written(tmp_path / "out"), written(tmp_path / "whole"))


def test_the_beginning_of_another_cut_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Residual()
    plan = planned(model, image())
    source = shards(model.state_dict(), tmp_path / "source")
    interrupted(monkeypatch, plan, source, tmp_path / "out", 14)
    with pytest.raises(FileError, match="the beginning of another cut"):
        surgeon.operate_file(planned(model, image(), ratio=0.25), source, tmp_path / "out", shard_size="1KB")
    with pytest.raises(FileError, match="the beginning of another cut"):
        surgeon.operate_file(plan, source, tmp_path / "out", shard_size="2KB")


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    first = Journal(tmp_path / "journal", "a")
    first.add("x", "0")
    with pytest.raises(FileError, match="another process is writing there"):
        Journal(tmp_path / "journal", "a")
    first.close()
    second = Journal(tmp_path / "journal", "a")
    assert second.done == {"x": "0"}
    second.close()


def test_a_finished_run_is_not_repeated_nor_overwritten(tmp_path: Path) -> None:
    model = Residual()
    plan = planned(model, image())
    source = shards(model.state_dict(), tmp_path / "source")
    first = surgeon.operate_file(plan, source, tmp_path / "out")
    before = (tmp_path / "out" / first.shards[0]).stat().st_mtime_ns
    assert surgeon.operate_file(plan, source, tmp_path / "out").resumed == first.tensors
    assert (tmp_path / "out" / first.shards[0]).stat().st_mtime_ns == before
    with pytest.raises(FileError, match=r"holds model-00001-of-00001\.safetensors already"):
        surgeon.operate_file(planned(model, image(), ratio=0.25), source, tmp_path / "out")


# -- what is refused ---------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    shards(Residual().state_dict(), tmp_path / "source")
    return tmp_path / "source"


def refused(source: Any, out: Path, error: Any, message: str, plan: Plan | None = None) -> None:
    """Check that a cut is refused and leaves nothing behind."""
    with pytest.raises(error, match=message):
        surgeon.operate_file(plan or planned(Residual(), image()), source, out)
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(
    "name",
    ["../model-0.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b.safetensors", ".safetensors", 3, None],
)
def test_names_that_lead_elsewhere_are_refused(source: Path, tmp_path: Path, name: Any) -> None:
    listed = {n: p.name for p in source.iterdir() for n in read_header(p).tensors}
    (source / INDEX).write_text(json.dumps({"weight_map": {**listed, "head.bias": name}}))
    refused(source, tmp_path / "out", FileError, "not the name of a safetensors file in the same folder")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": "x", "a": "y"}}']
)
def test_malformed_indices_are_refused(source: Path, tmp_path: Path, text: str) -> None:
    (source / INDEX).write_text(text)
    refused(source, tmp_path / "out", FileError, "is no index")


def test_an_index_that_lies_is_refused(source: Path, tmp_path: Path) -> None:
    listed = {n: p.name for p in source.iterdir() for n in read_header(p).tensors}
    (source / INDEX).write_text(json.dumps({"weight_map": {**listed, "head.bias": "model-0.safetensors"}}))
    with pytest.raises(FileError, match=r"'head\.bias'"):
        headers(source)
    (source / INDEX).write_text(json.dumps({"weight_map": {**listed, "more": "model-0.safetensors"}}))
    refused(source, tmp_path / "out", FileError, "'more' in model-0.safetensors, it is in none of the files")


def test_truncated_shards_are_refused(source: Path, tmp_path: Path) -> None:
    path = source / "model-1.safetensors"
    content = path.read_bytes()
    for length in (0, 5, 60, len(content) - 1):
        path.write_bytes(content[:length])
        refused(source, tmp_path / "out", FileError, r"model-1\.safetensors is truncated")
    path.write_bytes(content + b"more")
    refused(source, tmp_path / "out", FileError, "longer than it should be")


def test_a_shard_that_shrinks_while_it_is_read_is_an_error(source: Path, tmp_path: Path) -> None:
    (stored, *_) = tensors(source).values()
    os.truncate(stored.path, stored.begin)
    with Reader() as reader, pytest.raises(FileError, match="it ended at byte"):
        next(iter(reader.pieces(stored)))


BAD_HEADERS = {
    "no object": "[]",
    "no json": "{",
    "twice": '{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, '
    '"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}',
    "unknown type": '{"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 1]}}',
    "negative": '{"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}',
    "floats": '{"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}',
    "booleans": '{"a": {"dtype": "U8", "shape": [true], "data_offsets": [0, 1]}}',
    "other size": '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1]}}',
    "huge": '{"a": {"dtype": "U8", "shape": [4611686018427387904], "data_offsets": [0, 4611686018427387904]}}',
    "overflow": '{"a": {"dtype": "U8", "shape": [4611686018427387904, 4611686018427387904], "data_offsets": [0, 1]}}',
    "hole": '{"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}',
    "overlap": '{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, '
    '"b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}',
    "more": '{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1], "code": 1}}',
    "metadata": '{"__metadata__": {"a": 1}, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}',
}


@pytest.mark.parametrize("what", list(BAD_HEADERS))
def test_malformed_headers_are_refused(tmp_path: Path, what: str) -> None:
    text = BAD_HEADERS[what].encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0")
    with pytest.raises(FileError):
        read_header(path)


@given(st.binary(max_size=40), st.integers(0, 60))
def test_headers_of_any_bytes_are_read_or_refused(tmp_path_factory: Any, data: bytes, at: int) -> None:
    path = tmp_path_factory.mktemp("header") / "a.safetensors"
    content = bytearray(header_bytes({"a": ("U8", (4,)), "b": ("F32", (2,))}, {"format": "pt"}) + bytes(12))
    content[at : at + len(data)] = data
    path.write_bytes(content)
    try:
        found = read_header(path)
    except FileError:
        return
    assert all(0 <= t.begin <= t.end <= len(content) for t in found.tensors.values())


def test_headers_are_those_of_the_library(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    values = {"b": torch.arange(3.0), "a": torch.tensor(True), "c": torch.zeros(2, 0)}
    header = header_bytes({n: (d, tuple(values[n].shape)) for n, d in (("b", "F32"), ("a", "BOOL"), ("c", "F32"))}, {})
    path.write_bytes(header + b"".join(t.numpy().tobytes() for t in values.values()))
    assert_equal(safetensors.torch.load_file(path), values)
    safetensors.torch.save_file(values, path)
    assert {name: t.shape for name, t in read_header(path).tensors.items()} == {"a": (), "b": (3,), "c": (2, 0)}


def test_other_checkpoints_are_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(tmp_path / "nothing-*.safetensors", out, FileError, "no file matches")
    refused(tmp_path / "nothing.safetensors", out, FileError, "No such file")
    refused([], out, FileError, "no files given")
    refused(sorted(source.iterdir())[:2], out, PlanMismatch, "are all of them given?")
    refused([source / "model-0.safetensors"] * 2, out, FileError, "is in model-0.safetensors and in")
    refused(shards(Residual(width=16).state_dict(), tmp_path / "b"), out, PlanMismatch, "another architecture")
    refused(shards(nn.Linear(3, 3).state_dict(), tmp_path / "c", 1), out, PlanMismatch, "another architecture")
    wrapped = nn.ModuleDict({"module": Residual()})
    refused(shards(wrapped.state_dict(), tmp_path / "d"), out, PlanMismatch, r"names here begin with 'module\.'")


def test_a_full_disk_leaves_the_source_and_no_names(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = planned(Residual(), image()), tmp_path / "out"
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    write, left = os.pwrite, 2000

    def pwrite(handle: int, data: Any, at: int) -> int:
        nonlocal left
        if left < len(data):
            raise OSError(28, "No space left on device")
        left -= len(data)
        return write(handle, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(FileError, match=r"No space left on device; free some space.* goes on from there"):
            surgeon.operate_file(plan, source, out)
    assert [path.name for path in out.iterdir()] == [PARTS]
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    surgeon.operate_file(plan, source, out)
    written(out)


def test_a_disk_that_is_too_small_is_told_first(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(FileError, match="the disk has 100"):
        surgeon.operate_file(planned(Residual(), image()), source, tmp_path / "out")


def test_scores_of_other_files_are_refused(source: Path, tmp_path: Path) -> None:
    graph = surgeon.trace(Residual(width=16), image())
    with pytest.raises(ScoreError, match="the model that was traced has"):
        surgeon.score(graph, "l1", weights=source)
    with pytest.raises(ScoreError, match="are all files given"):
        surgeon.score(graph, "l1", weights=source / "model-0.safetensors")
    with pytest.raises(ScoreError, match="takes no 'weights'"):
        surgeon.score(graph, "lamp", weights=source)
