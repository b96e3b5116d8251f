"""Reports in MLflow, TensorBoard and Weights & Biases: what is logged is read back from their own stores."""

from __future__ import annotations

import json
import math
import struct
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import surgeon
from surgeon.report import Latency, Tracker
from tests.nets import Residual, image
from tests.run_code_blocks import blocks


@pytest.fixture(scope="module")
def report() -> surgeon.Report:
    found = surgeon.prune(Residual(), image(), ratio=0.5, scope="local").report
    return replace(found, latency=Latency((0.04, 0.025), 0.625, "eager", 0.01, 15, "cpu", 1))


def test_metrics_are_the_reports_numbers(report: surgeon.Report) -> None:
    found = report.metrics()
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    assert found["surgeon/flops_before"] == report.before.flops and found["surgeon/params_after"] == report.after.params
    assert found["surgeon/memory_after"] == report.after.memory and found["surgeon/bytes_after"] == report.after.bytes
    assert found["surgeon/latency_before"] == 0.04 and found["surgeon/latency_ratio"] == 0.625
    assert found["surgeon/units_before"] == 20 and found["surgeon/units_after"] == 10 == 20 - 4 - 6
    assert found["surgeon/compression_ratio"] == report.compression_ratio and found["surgeon/groups_cut"] == 2
    assert found["surgeon/proof_difference"] == report.proof.difference  # type: ignore[union-attr]


def test_what_is_not_known_is_left_out(report: surgeon.Report) -> None:
    bare = surgeon.compare(Residual(), Residual(), image())
    assert not any(word in name for name in bare.metrics() for word in ("latency", "memory", "units", "proof", "loss"))
    uncounted = replace(report, after=replace(report.after, flops=float("nan")))
    assert "surgeon/flops_after" not in uncounted.metrics() and "surgeon/theoretical_speedup" not in uncounted.metrics()


class Kept:
    """A tracker that keeps everything."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.files: dict[str, str] = {}
        self.steps: list[int | None] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.update(metrics)
        self.steps.append(step)

    def log_artifact(self, local_path: str) -> None:
        self.files[Path(local_path).name] = Path(local_path).read_text(encoding="utf-8")


def test_two_methods_are_a_tracker(report: surgeon.Report) -> None:
    kept = Kept()
    assert isinstance(kept, Tracker)
    report.log(kept, step=7)
    assert kept.metrics == report.metrics() and kept.steps == [7]
    assert surgeon.Report.from_json(kept.files["report.json"]) == report
    assert surgeon.Plan.from_json(kept.files["plan.json"]) == report.plan
    assert "Proved" in kept.files["report.txt"] and kept.files.keys() == {"report.json", "report.txt", "plan.json"}


class Recorder:
    """Takes any call, and the paths that it is indexed with."""

    def __init__(self, calls: list[tuple[Any, ...]], path: str = "") -> None:
        self.calls, self.path = calls, path

    def __getitem__(self, path: str) -> Recorder:
        return Recorder(self.calls, path)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.calls.append((name, self.path, args, options))


@pytest.mark.parametrize("name", ["Neptune", "Comet"])
def test_adapters_of_the_documentation(report: surgeon.Report, name: str) -> None:
    page = (Path(__file__).parents[2] / "docs/tracking.md").read_text(encoding="utf-8")
    (code,) = (block.code for block in blocks(page) if "class Neptune" in block.code)
    space: dict[str, Any] = {"__name__": __name__}
    exec(code, space)
    calls: list[tuple[Any, ...]] = []
    report.log(space[name](Recorder(calls)), step=5)
    if name == "Neptune":
        appended = {path: args[0] for what, path, args, _ in calls if what == "append"}
        assert appended == report.metrics() and all(o == {"step": 5} for what, _, _, o in calls if what == "append")
        assert {path for what, path, _, _ in calls if what == "upload"} == {
            "surgeon/report.json", "surgeon/report.txt", "surgeon/plan.json",
        }  # fmt: skip
        return
    assert calls[0] == ("log_metrics", "", (report.metrics(),), {"step": 5})
    assert [Path(args[0]).name for what, _, args, _ in calls[1:]] == ["report.json", "report.txt", "plan.json"]


@pytest.mark.parametrize("target", [None, "runs/", 3, Residual()])
def test_other_things_are_refused(report: surgeon.Report, target: Any) -> None:
    with pytest.raises(surgeon.SurgeonError, match=r"no tracker.*log_metrics.*docs/tracking"):
        report.log(target)


def test_loggers_of_lightning_are_told_what_to_pass(report: surgeon.Report, tmp_path: Path) -> None:
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    logger = loggers.TensorBoardLogger(tmp_path)
    with pytest.raises(surgeon.SurgeonError, match=r"pass its \.experiment"):
        report.log(logger)
    report.log(logger.experiment)
    assert list(tmp_path.rglob("events*"))


def test_tensorboard(report: surgeon.Report, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        report.log(writer, step=3)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == report.metrics().keys()
    for name, value in report.metrics().items():
        (event,) = events.Scalars(name)
        assert event.step == 3 and event.value == pytest.approx(value, rel=1e-6)  # float32
    (text,) = events.Tensors("surgeon/report.txt/text_summary")
    assert "    Totals" in text.tensor_proto.string_val[0].decode()


@pytest.mark.slow
def test_mlflow(report: surgeon.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sqlalchemy")
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow, about what it imports
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
        try:
            mlflow.create_experiment("pruning", artifact_location=(tmp_path / "artifacts").as_uri())
            mlflow.set_experiment("pruning")
            with mlflow.start_run() as run:
                report.log(mlflow, step=2)
            client = mlflow.MlflowClient()
            found = client.get_run(run.info.run_id).data.metrics
            steps = {metric.step for metric in client.get_metric_history(run.info.run_id, "surgeon/flops_after")}
            files = {file.path for file in client.list_artifacts(run.info.run_id)}
            stored = Path(client.download_artifacts(run.info.run_id, "report.json", str(tmp_path))).read_text()
        finally:
            mlflow.set_tracking_uri(before)
    assert found == report.metrics() and steps == {2}
    assert files == {"report.json", "report.txt", "plan.json"}
    assert json.loads(stored) == json.loads(report.to_json())


def stored(data: bytes) -> Iterator[bytes]:
    """Yield the records of an offline run: a log as LevelDB writes them, in blocks of 32 KiB, behind seven bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little for a header: the rest of the block is empty
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # the whole of a record, or its last piece
            yield whole
            whole = b""


def told(file: Path) -> tuple[dict[str, float], set[str]]:
    """Return what an offline run holds of a report: the step with its metrics, and the names of artifacts."""
    from wandb.proto.wandb_internal_pb2 import Record

    history: dict[str, float] = {}
    artifacts = set()
    for data in stored(file.read_bytes()):
        record = Record.FromString(data)
        keys = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        if any(key.startswith("surgeon/") for key in keys):
            history |= keys
        if record.request.log_artifact.artifact.name or record.artifact.name:
            artifacts.add(record.artifact.name or record.request.log_artifact.artifact.name)
    return history, artifacts


@pytest.mark.slow
@pytest.mark.parametrize("passed", ["run", "module"])
def test_wandb_offline(report: surgeon.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passed: str) -> None:
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = wandb.init(mode="offline", dir=tmp_path, project="pruning", settings=wandb.Settings(console="off"))
        report.log(run if passed == "run" else wandb, step=4)
        run.finish()
    (file,) = tmp_path.rglob("*.wandb")
    history, artifacts = told(file)
    end = time.monotonic() + 30
    while not (history and len(artifacts) == 3) and time.monotonic() < end:
        time.sleep(0.1)  # its service writes the file, and may still be at it
        history, artifacts = told(file)
    assert {name: value for name, value in history.items() if name.startswith("surgeon/")} == report.metrics()
    assert history["_step"] == 4
    assert artifacts == {"report.json", "report.txt", "plan.json"}
