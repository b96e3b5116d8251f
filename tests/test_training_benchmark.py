"""The training benchmark compares like with like, and goes on where it was stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("torch_pruning")  # of the accuracy benchmark, whose networks these are

from benchmarks.accuracy_parts.subjects import Subject, digit_images, trained
from benchmarks.training import EXTENTS, METHODS, Narrow, Shuffled, aggregated, kept, run

EXTENT = replace(EXTENTS["digits"], epochs=5, seeds=1, scratch=5, train=320)


def subject() -> Subject:
    train, test = digit_images()
    small = tuple(part[:320] for part in train)
    return trained("digits", Narrow, small, test, {"rate": 1e-2, "epochs": 2})  # type: ignore[arg-type]


def test_every_method_gets_the_same_batches_and_ends_at_the_budget(tmp_path: Path) -> None:
    journal = tmp_path / "training.jsonl"
    rows = run(subject(), EXTENT, METHODS, {}, journal)
    assert {(row["start"], row["method"]) for row in rows} == {(m.start, m.name) for m in METHODS}
    assert {row["steps"] for row in rows} == {5 * (320 // 64)}
    assert all(0.2 < row["FLOPs left"] <= 0.3 for row in rows)
    assert run(subject(), EXTENT, METHODS, kept(journal), journal) == []
    assert len(aggregated(rows)) == len(METHODS)


def test_batches_are_those_of_their_seed() -> None:
    data = digit_images()[0]
    first, same, other = (Shuffled(data, EXTENT, seed) for seed in (0, 0, 1))
    batches = [torch.cat([y for _, y in each]) for each in (first, same, other, first)]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2]) and not torch.equal(batches[0], batches[3])
