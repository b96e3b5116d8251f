"""What a report consists of: plain records, each with the original's value first and the small model's second."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import nn


@dataclass(frozen=True)
class LayerRow:
    """One layer: its class, the shape of its first parameter, multiply-adds and parameters, each before and after."""

    name: str
    shape: tuple[tuple[int, ...], tuple[int, ...]]
    flops: tuple[float, float]
    params: tuple[int, int]
    kind: str = ""

    @property
    def share_cut(self) -> float:
        """Share of the layer's parameters that went."""
        return 1 - self.params[1] / self.params[0] if self.params[0] else 0.0

    @property
    def changed(self) -> bool:
        return self.shape[0] != self.shape[1] or self.params[0] != self.params[1] or self.flops[0] != self.flops[1]

    def __str__(self) -> str:
        return f"{self.name}: FLOPs {self.flops[0]:.6g} -> {self.flops[1]:.6g}, parameters {_arrow(self.params)}"


@dataclass(frozen=True)
class GroupRow:
    """One coupled group: its units before and after, and the layers that they are cut from."""

    name: str
    units: tuple[int, int]
    layers: tuple[str, ...]

    @property
    def share_cut(self) -> float:
        """Share of the units that went."""
        return 1 - self.units[1] / self.units[0] if self.units[0] else 0.0

    def __str__(self) -> str:
        return f"{self.name}: {_arrow(self.units)}"


@dataclass(frozen=True)
class Totals:
    """Sums over a model: multiply-adds, parameters, bytes, and the same counting non-zero weights only.

    ``memory`` is bytes of inputs and activations at the peak of a forward pass, as the plan has it (docs/budgets.md),
    or None where there is no plan.
    """

    flops: float
    params: int
    bytes: int
    nonzero_flops: float
    nonzero_params: int
    memory: float | None = None

    def __str__(self) -> str:
        return f"{self.flops:.6g} multiply-adds, {self.params} parameters, {self.bytes} bytes"


@dataclass(frozen=True)
class Latency:
    """Measured time of one forward pass, in eval mode without gradients: the median over runs of both in turn.

    seconds  before and after
    ratio    median over the rounds of after / before within one round, which drift of the machine does not reach
    spread   half the width of the 95% interval of that median, where it is known
    """

    seconds: tuple[float, float]
    ratio: float
    backend: str
    spread: float | None = None
    runs: int | None = None
    device: str = ""
    threads: int | None = None

    def __str__(self) -> str:
        before, after = (1e3 * s for s in self.seconds)
        return f"{before:.3g} ms -> {after:.3g} ms ({self.ratio:.1%}), {self.how}"

    @property
    def how(self) -> str:
        """Say how it was measured."""
        known = (
            f"p50 of {self.runs} runs" if self.runs else "p50",
            self.backend,
            self.device,
            f"{self.threads} thread{'s' * (self.threads != 1)}" if self.threads else "",
        )
        return ", ".join(filter(None, known))


@dataclass(frozen=True)
class Environment:
    """Where a report was made; the date, ISO 8601 in UTC, is no part of its equality."""

    surgeon: str
    torch: str
    python: str
    platform: str
    device: str
    threads: int
    date: str = field(compare=False)

    def __str__(self) -> str:
        return (
            f"surgeon {self.surgeon}, torch {self.torch}, Python {self.python}, {self.platform}, {self.device}, "
            f"{self.threads} threads, {self.date}"
        )


def environment(model: nn.Module) -> Environment:
    """Return the versions and the machine in use, and the device of a model's first parameter."""
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    try:
        own = version("channel-surgeon")
    except PackageNotFoundError:
        own = "not installed"
    return Environment(
        surgeon=own,
        torch=str(torch.__version__),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _arrow(pair: tuple[int, int]) -> str:
    return f"{pair[0]} -> {pair[1]}"
