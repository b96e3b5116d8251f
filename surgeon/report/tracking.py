"""A report in experiment trackers (docs/tracking.md)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from surgeon.errors import SurgeonError
from surgeon.report.document import RATIOS

if TYPE_CHECKING:
    from surgeon.report.report import Report

# Files of more characters are no text to read next to a curve.
READABLE = 100_000


@runtime_checkable
class Tracker(Protocol):
    """What a report needs of a tracker: two methods, as the module ``mlflow`` has them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> Any: ...

    def log_artifact(self, local_path: str) -> Any: ...


@dataclass(frozen=True)
class TensorBoard:
    """A ``SummaryWriter`` as a tracker: metrics are scalars, files are texts."""

    writer: Any

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, global_step=step)
        self.writer.flush()

    def log_artifact(self, local_path: str) -> None:
        path = Path(local_path)
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".txt", ".json") and len(text) <= READABLE:
            self.writer.add_text(f"surgeon/{path.name}", "\n".join(f"    {line}" for line in text.splitlines()))
            self.writer.flush()


@dataclass(frozen=True)
class WandB:
    """A run of Weights & Biases, or the module ``wandb``, as a tracker; a file is an artifact of type "surgeon"."""

    run: Any

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.run.log(metrics, step=step)

    def log_artifact(self, local_path: str) -> None:
        from wandb import Artifact

        artifact = Artifact(Path(local_path).name, type="surgeon")
        artifact.add_file(local_path)
        self.run.log_artifact(artifact)


def tracker(target: Any) -> Tracker:
    """Return a target as a tracker: what has the two methods, a ``SummaryWriter``, or a run of Weights & Biases.

    Raises
    ------
    SurgeonError for anything else.
    """

    def has(*names: str) -> bool:
        return all(callable(getattr(target, name, None)) for name in names)

    if has("log_metrics", "log_artifact"):
        return cast(Tracker, target)
    if has("add_scalar", "add_text", "flush"):
        return TensorBoard(target)
    home = getattr(target, "__name__", None) or type(target).__module__
    if str(home).partition(".")[0] == "wandb" and has("log", "log_artifact"):
        return WandB(target)
    hint = "; pass its .experiment" if hasattr(target, "experiment") else ""
    raise SurgeonError(
        f"{type(target).__name__} is no tracker{hint}: it needs log_metrics(metrics, step) and log_artifact(path), as "
        "the module mlflow has them; docs/tracking.md has adapters of a few lines"
    )


def log(report: Report, target: Any, step: int | None) -> None:
    """Give a report's metrics and files to a tracker."""
    found = tracker(target)
    found.log_metrics(metrics(report), step=step)
    with tempfile.TemporaryDirectory(prefix="surgeon-") as folder:
        for path in _files(report, Path(folder)):
            found.log_artifact(str(path))


def _files(report: Report, folder: Path) -> Iterator[Path]:
    texts = {"report.json": report.to_json(), "report.txt": report.text(layers=None, ascii_only=False) + "\n"}
    if report.plan is not None:
        texts["plan.json"] = report.plan.to_json()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        yield folder / name


def metrics(report: Report) -> dict[str, float]:
    """Return what a report says in numbers, those that are known and finite."""
    found: dict[str, float | None] = {name: getattr(report, name) for name in RATIOS}
    for when, totals in (("before", report.before), ("after", report.after)):
        found |= {f"{name}_{when}": value for name, value in vars(totals).items()}
    if report.latency is not None:
        before, after = report.latency.seconds
        found |= {"latency_before": before, "latency_after": after, "latency_ratio": report.latency.ratio}
    if report.groups:
        found |= {f"units_{when}": sum(row.units[k] for row in report.groups) for k, when in enumerate(_WHEN)}
        found["groups_cut"] = sum(row.share_cut > 0 for row in report.groups)
    if report.plan is not None:
        found |= {"loss": report.plan.loss, "gap": report.plan.gap}
    if report.proof is not None:
        found["proof_difference"] = report.proof.difference
    return {
        f"surgeon/{name}": float(value) for name, value in found.items() if value is not None and math.isfinite(value)
    }


_WHEN = ("before", "after")
