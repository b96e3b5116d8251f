"""A training run that saves a checkpoint after every step and goes on from it; test_resume.py starts and kills it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import surgeon
from tests.pruner.loops import network, sample

STEPS = 24


def main(folder: Path, kind: str, slow: bool) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(5)
    model = nn.Sequential(network(width=12, inner=20), nn.Dropout(0.2))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    plan = surgeon.schedule.gradual(flops=0.3, steps=20, every=4)
    criterion = "l1" if kind == "soft" else "taylor"
    pruner = surgeon.Pruner(
        model, sample(), plan, optimizer=optimizer, ema=average, criterion=criterion, gradients=3, soft=kind == "soft"
    )
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "rate": rate, "ema": average}
    checkpoint, resumed = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        pruner.load_state_dict(state["pruner"])  # first: it cuts what the other states then fit
        for name, part in parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        resumed = pruner.taken
    for step in range(pruner.taken + 1, STEPS + 1):
        x, y = torch.randn(8, 3, 6, 6), torch.randint(0, 5, (8,))
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        rate.step()
        average.update_parameters(model)
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save({**state, "pruner": pruner.state_dict(), "random": torch.get_rng_state()}, folder / "next.pt")
        os.replace(folder / "next.pt", checkpoint)
        (folder / f"at-{step}").touch()
        if slow and step >= 14:
            time.sleep(0.2)
    states = {name: part.state_dict() for name, part in parts.items()}
    torch.save({**states, "pruner": pruner.state_dict(), "resumed": resumed}, folder / "final.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "slow")
