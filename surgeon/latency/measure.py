"""Measure models against each other: in turn, in one process, medians."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from surgeon.latency.backends import Runner, prepare
from surgeon.modules import Model, as_arguments, bare, evaluating, tensors_in, uncollected
from surgeon.progress import working

Clock = Callable[[], float]


@dataclass(frozen=True)
class Measurement:
    """Latency of models that ran in turn.

    seconds [models]  p50 of each
    ratios  [models]  median over the rounds of its time by the first model's in the same round, which drift of the
                      machine does not reach
    spread  [models]  half the width of the 95% interval of that median
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]
    spread: tuple[float, ...]
    runs: int
    backend: str
    threads: int
    device: str

    def __str__(self) -> str:
        times = ", ".join(
            f"{1e3 * s:.3g} ms" + (f" ({r:.3f} ± {w:.3f})" if i else "")
            for i, (s, r, w) in enumerate(zip(self.seconds, self.ratios, self.spread))
        )
        return f"{times}; p50 of {self.runs} runs, {self.backend}, {self.device}, {self.threads} threads"


def measure(
    *models: Model,
    example_inputs: Any,
    backend: str = "eager",
    method: str = "forward",
    runs: int = 15,
    precision: float = 0.01,
    seconds: float = 20.0,
    clock: Clock | None = None,
) -> Measurement:
    """Run several models in turn and return the p50 latency of each, in eval mode and without gradients.

    Each round runs every model once, in an order that is reversed every other round. Rounds go on until the ratios
    to the first model are known to ``precision``, or ``seconds`` are over.

    Parameters
    ----------
    models : modules, exported programs, or paths of saved ones; ratios are to the first
    backend : "eager", "compile" (torch.compile) or "onnxruntime"
    runs : rounds at least
    precision : half the width of the 95% interval at which a ratio is good enough, as a share of it
    seconds : time after which no further round starts, once there are seven
    clock : seconds since some moment, after waiting for the device; for tests

    Raises
    ------
    BudgetError for an unknown back end, SurgeonError when its packages are missing, UnsupportedModel

    Examples
    --------
    >>> print(measure(model, small, example_inputs=torch.randn(1, 3, 224, 224)))
    """
    modules = [bare(model) for model in models]
    with torch.no_grad(), evaluating(*modules):
        runners = [prepare(module, example_inputs, backend, method) for module in modules]
        return race(runners, example_inputs, backend, runs, precision, seconds, clock)


@working("measuring latency", still=True)
def race(
    runners: Sequence[Runner],
    example_inputs: Any,
    backend: str = "eager",
    runs: int = 15,
    precision: float = 0.01,
    seconds: float = 20.0,
    clock: Clock | None = None,
) -> Measurement:
    """Measure what is prepared already, in whatever mode it is; see ``measure``."""
    with steady():
        for runner in runners:
            runner()
        rounds = _rounds(runners, clock or clock_for(example_inputs), runs, precision, seconds)
    intervals = [_interval([r[i] / r[0] for r in rounds]) for i in range(len(runners))]
    return Measurement(
        tuple(median(times) for times in zip(*rounds)),
        tuple(middle for middle, _ in intervals),
        tuple(half for _, half in intervals),
        len(rounds),
        backend,
        torch.get_num_threads(),
        device_of(example_inputs).type,
    )


def _rounds(runners: Sequence[Runner], clock: Clock, runs: int, precision: float, seconds: float) -> list[list[float]]:
    """Return what each model took in each round, ``[rounds][models]``."""
    rounds: list[list[float]] = []
    start = clock()
    while not _enough(rounds, runs, precision, clock() - start > seconds):
        times = [0.0] * len(runners)
        order = range(len(runners)) if len(rounds) % 2 == 0 else reversed(range(len(runners)))
        for i in order:
            begin = clock()
            runners[i]()
            times[i] = clock() - begin
        rounds.append(times)
    return rounds


def _enough(rounds: list[list[float]], runs: int, precision: float, late: bool) -> bool:
    if len(rounds) < min(7, runs):
        return False
    if late or len(rounds) >= 50 * runs:
        return True
    if len(rounds) < runs:
        return False
    intervals = [_interval([r[i] / r[0] for r in rounds]) for i in range(1, len(rounds[0]))]
    return all(half <= precision * middle for middle, half in intervals)


def _interval(values: list[float]) -> tuple[float, float]:
    """Return the median and half the width of its 95% interval, by order statistics, which assume no distribution."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * n**0.5
    low, high = ordered[max(0, int(n / 2 - reach))], ordered[min(n - 1, int(n / 2 + reach))]
    return median(ordered), (high - low) / 2


@contextmanager
def steady() -> Iterator[None]:
    """Run a block without gradients, without searches for reference cycles, and with memory that stays."""
    with torch.no_grad(), uncollected(), _kept_memory():
        yield


# Parameters of glibc's ``mallopt``: (name in malloc.h, number, while measuring, afterwards). Afterwards they have the
# values that glibc itself arrives at once a program has freed a block of 32 MiB.
_MALLOC = (
    ("M_TRIM_THRESHOLD", -1, -1, 64 << 20),
    ("M_MMAP_MAX", -4, 0, 65536),
    ("M_MMAP_THRESHOLD", -3, 32 << 20, 32 << 20),
)


@contextmanager
def _kept_memory() -> Iterator[None]:
    """Keep freed memory in the process while it is measured, as allocators for servers do.

    glibc hands large blocks back to the system, or not, by what happens to lie behind them. Activations then cost page
    faults all over again or don't: half of a forward pass, in one process and not in the next.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    try:
        for _, number, value, _ in _MALLOC:
            libc.mallopt(number, value)
        yield
    finally:
        for _, number, _, value in _MALLOC:
            libc.mallopt(number, value)
        libc.malloc_trim(0)


def device_of(example_inputs: Any) -> torch.device:
    """Return the device of the first tensor among the inputs."""
    first = next(iter(tensors_in(as_arguments(example_inputs))), None)
    return torch.device("cpu") if first is None else first.device


def clock_for(example_inputs: Any) -> Clock:
    """Return a clock that waits for the device before it is read."""
    device = device_of(example_inputs)
    if device.type == "cpu":
        return time.perf_counter
    synchronize = torch.get_device_module(device).synchronize

    def read() -> float:
        synchronize(device)
        return time.perf_counter()

    return read
