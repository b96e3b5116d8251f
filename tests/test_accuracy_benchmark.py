"""The accuracy benchmark compares like with like, at equal FLOPs, and goes on where it was stopped."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("torch_pruning")
pytest.importorskip("sklearn")

from benchmarks.accuracy import WHOLE, Extent, Row, kept, run
from benchmarks.accuracy_parts.methods import FULL, METHODS, Bench
from benchmarks.accuracy_parts.page import aggregated, page
from benchmarks.accuracy_parts.subjects import Subject, digit_images, trained
from benchmarks.accuracy_parts.training import reestimated, varied
from benchmarks.cifar import ResNet

NAMES = ("torch-pruning L1, global", "torch-pruning Taylor, local", "random", "uniform", "l1", "l1 + ridge", FULL)
EXTENT = Extent((0.5,), NAMES, seeds=1, tuned=("l1",))


@cache
def resnet() -> Subject:
    return trained("digits", lambda: ResNet(blocks=1, given=1), *digit_images(), {"rate": 5e-3, "epochs": 4})


@cache
def mlp() -> Subject:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 10)
        )

    return trained("mlp", make, *digit_images(), {"rate": 5e-3, "epochs": 8}, ("3",))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Row], Path]:
    journal = tmp_path_factory.mktemp("accuracy") / "rows.jsonl"
    return {row["method"]: row for row in run(resnet(), EXTENT, {}, journal)}, journal


def test_rows_of_a_budget_have_equal_flops(measured: tuple[dict[str, Row], Path]) -> None:
    rows, _ = measured
    assert set(rows) == {WHOLE, *NAMES}
    for name in NAMES:
        assert 0.47 < rows[name]["FLOPs left"] <= 0.5, name
    for name in ("random", "uniform", "l1", FULL):
        assert rows[name]["FLOPs left"] > 0.495, name


def test_without_a_cut_accuracy_is_that_of_the_network(measured: tuple[dict[str, Row], Path]) -> None:
    row = measured[0][WHOLE]
    assert row["FLOPs left"] == 1
    assert row["one-shot"] == row["base"] > 90


def test_a_refit_wins_back_more_than_new_statistics(measured: tuple[dict[str, Row], Path]) -> None:
    rows, _ = measured
    assert rows["l1 + ridge"]["one-shot"] > rows["l1"]["norms"] > rows["l1"]["one-shot"]
    assert rows["l1"]["tuned"] > rows["l1"]["one-shot"]
    assert "tuned" not in rows[FULL]


def test_a_stopped_run_goes_on(measured: tuple[dict[str, Row], Path], tmp_path: Path) -> None:
    rows, journal = measured
    assert run(resnet(), EXTENT, kept(journal), journal) == []
    stopped = tmp_path / "stopped.jsonl"
    lines = [line for line in journal.read_text().splitlines(keepends=True) if json.loads(line)["method"] != "uniform"]
    stopped.write_text("".join(lines))
    (again,) = run(resnet(), EXTENT, kept(stopped), stopped)
    assert {**again, "CPU seconds": 0} == {**rows["uniform"], "CPU seconds": 0}
    assert kept(stopped).keys() == kept(journal).keys()


def test_rows_are_measured_anew_where_more_is_asked_for(measured: tuple[dict[str, Row], Path], tmp_path: Path) -> None:
    _, journal = measured
    extent = Extent((0.5,), ("l1", "random"), seeds=1, tuned=("l1", "random"))
    (row,) = run(resnet(), extent, kept(journal), tmp_path / "more.jsonl")
    assert row["method"] == "random"
    assert "tuned" in row


@pytest.mark.parametrize("name", ["l1", "uniform", "torch-pruning L1, local", "torch-pruning Taylor, global"])
def test_only_the_layers_that_may_be_cut_are(name: str) -> None:
    subject = mlp()
    budget = subject.half()
    small, _ = Bench(subject).cut(METHODS[name], budget, 0)
    assert subject.share(small) <= budget
    assert [layer.out_features for layer in small if isinstance(layer, nn.Linear)] == [48, 20, 10]


def test_calibration_images_are_training_images() -> None:
    subject = resnet()
    images, labels = subject.drawn(1, 64)
    for image, label in zip(images, labels):
        (at,) = (subject.train[0] == image).flatten(1).all(1).nonzero()[:1, 0].tolist()
        assert subject.train[1][at] == label
    assert not torch.equal(images, subject.drawn(0, 64)[0])


def test_new_statistics_leave_the_network_alone() -> None:
    subject = resnet()
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    x = subject.train[0][:32]
    changed = reestimated(subject.model, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.model.state_dict().items())
    first = subject.model.conv1(x)
    assert torch.allclose(changed.bn1.running_mean, first.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(changed.bn1.running_var, first.var((0, 2, 3)), rtol=1e-4)


def test_varied_images_are_crops_of_their_own() -> None:
    x = torch.randn(20, 2, 5, 4)
    padded = nn.functional.pad(x, (1,) * 4)
    crops = torch.stack([padded[:, :, i : i + 5, j : j + 4] for i in range(3) for j in range(3)])
    found = varied(x, torch.Generator().manual_seed(0), 1, mirror=True)
    fits = (crops == found).flatten(2).all(2) | (crops.flip(4) == found).flatten(2).all(2)
    assert fits.any(0).all()
    assert len({tuple(column) for column in fits.T.tolist()}) > 5


def test_the_page_says_what_lost() -> None:
    def row(method: str, seed: int, accuracy: float, budget: float = 0.5, left: float = 0.5) -> Row:
        told = {"network": "digits", "budget": budget, "method": method, "seed": seed, "images": 100, "base": 99.0}
        return {**told, "FLOPs left": left, "one-shot": accuracy, "norms": None, "CPU seconds": 1.0}

    rows = [
        row("random", 0, 60.0),
        row("random", 1, 64.0),
        row("l1", 0, 50.0),
        row(FULL, 0, 95.0),
        row(WHOLE, 0, 99.0, 1.0, 1.0),
    ]
    rows += [row("torch-pruning L1, local", 0, 70.0, left=0.48), row("l1 + noise", 0, 97.0)]
    lines = aggregated(rows, ["digits"], [WHOLE, *METHODS])
    (random,) = (line for line in lines if line["method"] == "random")
    assert (random["one-shot"], random["± one-shot"], random["seeds"]) == (62.0, 2.83, 2)
    text = page(lines, "here")
    assert "| digits | 0.5 | as cut | l1 + noise | 2.00 |" in text
    assert "| digits | 0.5 | as cut | 62.0 | l1 50.0 |" in text
    assert "| digits | 0.5 | as cut | 50.0 | torch-pruning L1, local 70.0 |" in text
    assert "| digits | torch-pruning L1, local | 0.5 | 0.480 |" in text
    assert "| l1 + noise | **97.0** |" in text
