"""A run that is killed goes on from its last checkpoint, to the same bits."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import surgeon
from surgeon import schedule
from surgeon.errors import PrunerError
from tests.pruner.loops import network, pruner, sample, train
from tests.pruner.resumable import main

RUN = Path(__file__).with_name("resumable.py")


def start(folder: Path, kind: str, slow: bool) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(RUN.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(RUN), str(folder), kind, "slow" if slow else "fast"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes]) -> None:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output.decode()


@pytest.mark.parametrize("kind", ["gradual", "soft"])
def test_killed_in_the_middle(tmp_path: Path, kind: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    victim = start(killed, kind, slow=True)
    # The checkpoint of step 14 is between two cuts, within the steps whose gradients are averaged.
    deadline = time.monotonic() + 100
    while not (killed / "at-14").exists():
        assert victim.poll() is None and time.monotonic() < deadline, victim.communicate()[0].decode()
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL and not (killed / "final.pt").exists()
    finish(start(killed, kind, slow=False))
    main(whole, kind, slow=False)
    expected, found = (torch.load(folder / "final.pt", weights_only=True) for folder in (whole, killed))
    assert found["resumed"] >= 14 and expected["resumed"] == 0
    same(found["model"], expected["model"])
    same(found["ema"], expected["ema"])
    same(found["optimizer"]["state"], expected["optimizer"]["state"])
    same(found["pruner"], expected["pruner"])
    assert len(expected["pruner"]["history"]) >= (1 if kind == "soft" else 4)


def same(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            same(x, y)
    else:
        assert a == b


def made(**options: Any) -> tuple[Any, Any, surgeon.Pruner]:
    model = network(width=16, inner=24)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    plan = schedule.iterative(flops=0.4, times=3, every=3)
    return model, optimizer, pruner(model, plan, optimizer, **options)


@pytest.mark.parametrize("soft", [False, True])
def test_state_is_plain_and_complete(tmp_path: Path, soft: bool) -> None:
    model, optimizer, first = made(criterion="taylor", soft=soft)
    train(model, optimizer, 5, lambda step: first.step())
    torch.save(first.state_dict(), tmp_path / "pruner.pt")
    state = torch.load(tmp_path / "pruner.pt", weights_only=True)
    other, theirs, second = made(criterion="taylor", soft=soft)
    second.load_state_dict(state)
    other.load_state_dict(model.state_dict())
    theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    same(second.state_dict(), first.state_dict())
    assert str(second) == str(first) and second.shares() == first.shares()
    for one, own, found in ((model, optimizer, first), (other, theirs, second)):
        train(one, own, 6, lambda step, found=found: found.step(), seed=7)
    same(other.state_dict(), model.state_dict())
    same(second.state_dict(), first.state_dict())
    assert first.done and first.shares()["flops"] <= 0.4
    # Into the pruner that has gone on as far, it changes nothing.
    shapes = [p.shape for p in model.parameters()]
    first.load_state_dict(second.state_dict())
    assert [p.shape for p in model.parameters()] == shapes


def test_states_that_do_not_fit() -> None:
    model, optimizer, first = made()
    train(model, optimizer, 4, lambda step: first.step())
    state = first.state_dict()
    fresh = network(width=16, inner=24)
    own = torch.optim.AdamW(fresh.parameters(), 1e-2)
    other = pruner(fresh, schedule.one_shot(flops=0.4, at=9), own)
    with pytest.raises(PrunerError, match=r"saved under iterative to flops=0\.4, 9 steps"):
        other.load_state_dict(state)
    _, _, taylor = made(criterion="taylor")
    with pytest.raises(PrunerError, match="another kind of criterion"):
        taylor.load_state_dict(state)
    with pytest.raises(PrunerError, match="no state of a pruner"):
        taylor.load_state_dict({"step": 3})
    different, theirs, second = made()
    train(different, theirs, 7, lambda step: second.step(), seed=3)
    with pytest.raises(PrunerError, match="has cut its model already"):
        second.load_state_dict(state)
    narrow = network(width=12, inner=24)
    own = torch.optim.AdamW(narrow.parameters(), 1e-2)
    third = pruner(narrow, schedule.iterative(flops=0.4, times=3, every=3), own)
    shapes = [p.shape for p in narrow.parameters()]
    with pytest.raises(surgeon.errors.PlanMismatch, match="of the original's size, before the model's own state"):
        third.load_state_dict(state)
    assert [p.shape for p in narrow.parameters()] == shapes and third.taken == 0
    assert sample().shape == (1, 3, 6, 6)
