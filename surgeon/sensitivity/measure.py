"""Cut and evaluate, here or wherever an executor runs it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import nn

from surgeon.errors import EvaluationError, SurgeonError
from surgeon.evaluation import Evaluate, evaluated
from surgeon.operate import operate
from surgeon.plan import Plan
from surgeon.sensitivity.journal import Point


class Packed:
    """A model that goes to other processes as bytes, which are made once.

    Left to itself, a process pool moves the original's tensors to shared memory, with an open file for each.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._bytes = b""

    def __reduce__(self) -> Any:
        self._bytes = self._bytes or _pickler().dumps(self.model)
        return _unpacked, (self._bytes,)


def _unpacked(data: bytes) -> Packed:
    return Packed(pickle.loads(data))


def _pickler() -> Any:
    """Return cloudpickle where there is one, as with Dask and Ray: it takes classes that were defined in a script."""
    try:
        import cloudpickle
    except ImportError:
        return pickle
    return cloudpickle


@dataclass(frozen=True, eq=False)
class Task:
    """One evaluation: the model, what to cut from it, and by what to judge."""

    point: Point
    model: Packed
    plan: Plan
    evaluate: Evaluate
    what: str

    def __str__(self) -> str:
        return self.what


def run(task: Task) -> float:
    """Cut a copy and return its value."""
    return evaluated(operate(task.model.model, task.plan), task.evaluate, task.what)


def measured(tasks: Iterable[Task], executor: Executor | None, in_flight: int | None) -> Iterator[tuple[Point, float]]:
    """Run tasks and yield their values as they come, at most ``in_flight`` of them handed out at a time.

    Raises
    ------
    EvaluationError for the first task that fails; tasks that wait are then cancelled.
    """
    if executor is None:
        yield from ((task.point, run(task)) for task in tasks)
        return
    queue, most = iter(tasks), in_flight or 2 * (os.cpu_count() or 1)
    pending: dict[Future[float], Task] = {}
    try:
        while True:
            for task in islice(queue, most - len(pending)):
                pending[_submitted(executor, task)] = task
            if not pending:
                return
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            # As they were handed out, so that one error of several is always the same; values first, to be kept.
            ready = [future for future in pending if future in done]
            for future in sorted(ready, key=lambda future: future.exception() is not None):
                task = pending.pop(future)
                yield task.point, _result(future, task)
    finally:
        for future in pending:
            future.cancel()


def _submitted(executor: Executor, task: Task) -> Future[float]:
    try:
        return executor.submit(run, task)
    except Exception as error:
        raise _lost(task, error) from error


def _result(future: Future[float], task: Task) -> float:
    try:
        return future.result()
    except SurgeonError:
        raise
    except Exception as error:
        raise _lost(task, error) from error


def _lost(task: Task, error: Exception) -> EvaluationError:
    return EvaluationError(
        f"the executor could not run the evaluation of {task} ({type(error).__name__}: {error}); for an executor of "
        "processes, define the model's class and evaluate at the top of a module, or use threads"
    )
