"""Exported programs are compensated as modules are, and processes share what they see."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import RecoverError, TraceError
from tests.nets import Perceptron, Residual
from tests.recover.test_recover import correlated, halves


def exported(samples: int, free: bool) -> tuple[nn.Module, Any]:
    model, x = Residual(inner=24).eval(), correlated(samples)
    shapes = ({0: torch.export.Dim("n", min=1, max=1024)},) if free else None
    return model, torch.export.export(model, (x,), dynamic_shapes=shapes)


def distance(model: nn.Module, program: Any, x: Tensor) -> float:
    with torch.no_grad():
        wanted = model(x)
        return float((program.module()(x) - wanted).square().mean() / wanted.var())


@pytest.mark.parametrize("method, free", [("auto", True), ("auto", False), ("merge", False), ("noise", True)])
def test_programs(method: str, free: bool) -> None:
    model, program = exported(8, free)
    state = {name: value.clone() for name, value in program.state_dict.items()}
    data = [correlated(8) for _ in range(4)]
    result = surgeon.prune(program, data[0], flops=0.6, criterion="l1", data=data, compensate=method)
    plain = surgeon.prune(program, data[0], flops=0.6, criterion="l1")
    assert result.recovery is not None and [layer.layer for layer in result.recovery.layers] == ["conv2", "head"]
    x = correlated(8)
    assert distance(model, result.model, x) < distance(model, plain.model, x)
    assert all(torch.equal(value, state[name]) for name, value in program.state_dict.items())
    again = surgeon.prune(model, data[0], flops=0.6, criterion="l1", data=data, compensate=method)
    assert distance(again.model, result.model, x) < 1e-6


def test_programs_of_one_batch_size_say_so() -> None:
    _, program = exported(8, free=False)
    with pytest.raises(TraceError, match="exported for"):
        surgeon.prune(program, correlated(8), flops=0.6, data=[correlated(6)] * 4)
    with pytest.raises(RecoverError, match="training mode"):
        surgeon.prune(program, correlated(8), flops=0.6, data=[correlated(8)] * 4, compensate="norms")


def _recover(rank: int, port: int, path: str) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    small, recovery = _compensated(slice(rank, None, 2))
    torch.save((small.state_dict(), [layer.after for layer in recovery.layers]), f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _compensated(mine: slice) -> tuple[nn.Module, surgeon.Recovery]:
    """Give a process some of the batches."""
    torch.manual_seed(0)
    model = Perceptron(hidden=12).double().eval()
    data = [torch.randn(8, 6, dtype=torch.float64) for _ in range(6)]
    small, plan = halves(model, data[0])
    return small, surgeon.recover(model, small, plan, data[mine])


@pytest.mark.slow
def test_processes_share_their_rows(tmp_path: Path) -> None:
    """Two processes with batches of their own find what one with all of them finds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_recover, (port, str(tmp_path)), nprocs=2)
    alone, recovery = _compensated(slice(None))
    for rank in range(2):
        state, errors = torch.load(tmp_path / f"{rank}.pt")
        assert errors == pytest.approx([layer.after for layer in recovery.layers], rel=1e-6)
        assert all(torch.allclose(value, alone.state_dict()[name], rtol=1e-6) for name, value in state.items())
