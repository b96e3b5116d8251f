"""Two processes of DDP cut alike, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import surgeon
from surgeon import schedule
from surgeon.errors import PrunerError
from tests.pruner.loops import batches, network, sample


def together(rank: int, folder: str) -> None:
    """Each rank sees other batches; DDP averages gradients, and the model is wrapped anew after each cut."""
    model = network(width=16, inner=24)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    ddp = DistributedDataParallel(model, find_unused_parameters=True, static_graph=False)
    plan = schedule.iterative(flops=0.4, times=2, every=3)
    pruner = surgeon.Pruner(model, sample(), plan, optimizer=optimizer, criterion="taylor")
    try:
        surgeon.Pruner(ddp, sample(), plan, optimizer=optimizer)
        raise AssertionError("a wrapper was taken")
    except PrunerError as error:
        assert "model.module" in str(error)
    for x, y in batches(9, seed=rank):
        nn.functional.cross_entropy(ddp(x), y).backward()
        optimizer.step()
        if pruner.step():
            ddp = surgeon.pruner.rewrap(ddp)
            assert ddp.find_unused_parameters and ddp.module is model
        optimizer.zero_grad()
    torch.save({"model": model.state_dict(), "plan": pruner.plan.to_json()}, f"{folder}/together{rank}.pt")


def alone(rank: int, folder: str) -> None:
    """Gradients are not synchronised, as under no_sync: scores are averaged, and the cut is the same."""
    model = network(width=16, inner=24)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    pruner = surgeon.Pruner(
        model, sample(), schedule.one_shot(flops=0.5), optimizer=optimizer, criterion="taylor", check=False
    )
    for x, y in batches(1, seed=rank):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        graph = pruner.graph
        mine = graph.per_unit({n: p.detach() * p.grad for n, p in model.named_parameters()})
        pruner.step()
    scores = {name: value.abs() for name, value in mine.items()}
    made = surgeon.plan(graph, scores, flops=0.5).to_json()
    torch.save({"scores": scores, "alone": made, "plan": pruner.plan.to_json()}, f"{folder}/alone{rank}.pt")


def apart(rank: int, folder: str) -> None:
    """Ranks with different weights would cut differently: all of them say so, and none cuts."""
    model = network(seed=rank, width=16, inner=24)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = surgeon.Pruner(model, sample(), schedule.one_shot(flops=0.5), optimizer=optimizer)
    shapes = [p.shape for p in model.parameters()]
    told = ""
    for x, y in batches(1):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        try:
            pruner.step()
        except PrunerError as error:
            told = str(error)
    assert [p.shape for p in model.parameters()] == shapes
    Path(folder, f"apart{rank}.txt").write_text(told)


def work(rank: int, folder: str) -> None:
    """Run all of it in one pair of processes, which take seconds to start."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/rendezvous")
    for each in (together, alone, apart):
        each(rank, folder)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder),), nprocs=2)
    return folder


def test_all_ranks_decide_the_same_cut(done: Path) -> None:
    first, second = (torch.load(done / f"together{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["plan"] == second["plan"]
    weights = [name for name in first["model"] if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in weights)
    assert first["model"]["conv1.weight"].shape[0] < 24


def test_scores_are_averaged_over_ranks(done: Path) -> None:
    first, second = (torch.load(done / f"alone{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["plan"] == second["plan"]
    assert first["alone"] != second["alone"]  # left alone, they would have parted
    mean = {name: (first["scores"][name] + second["scores"][name]) / 2 for name in first["scores"]}
    expected = surgeon.plan(surgeon.trace(network(width=16, inner=24), sample()), mean, flops=0.5)
    assert surgeon.Plan.from_json(first["plan"]).cuts == expected.cuts


def test_ranks_that_differ_are_told(done: Path) -> None:
    told = [(done / f"apart{rank}.txt").read_text() for rank in (0, 1)]
    assert told[0] == told[1] and "ranks [1] differ from rank 0" in told[0] and "broadcast" in told[0]
