"""Cut every group alone by several ratios, and see what that costs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from surgeon.api import trace
from surgeon.errors import BudgetError
from surgeon.evaluation import Evaluate, require_callable
from surgeon.graph import DependencyGraph
from surgeon.groups import Group
from surgeon.modules import Model, bare
from surgeon.plan.describe import describe
from surgeon.plan.ladders import ranked
from surgeon.progress import working
from surgeon.score import score
from surgeon.sensitivity.curves import Curve, Sensitivity
from surgeon.sensitivity.journal import ORIGINAL, Point, add, begin, header, name_of
from surgeon.sensitivity.measure import Packed, Task, measured

RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9)

NOTHING = np.zeros(0, np.int64)


def sensitivity(
    model: Model,
    example_inputs: Any,
    *,
    evaluate: Evaluate,
    criterion: Any = "l1",
    ratios: Sequence[float] = RATIOS,
    keep: Iterable[Any] = (),
    method: str = "forward",
    executor: Executor | None = None,
    in_flight: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Sensitivity:
    """Cut each free group alone, by several ratios, and evaluate: what does each group cost? The original is untouched.

    The method is that of Li et al., 2017, "Pruning Filters for Efficient ConvNets", section 3.2, for coupled groups.

    Parameters
    ----------
    evaluate : ``evaluate(model) -> float``, higher is better; it is given copies, in eval mode
    criterion : what goes first: a name such as "l1", or a callable ``(graph, group) -> Tensor[units]``
    ratios : shares of a group that go, in (0, 1); at least one unit goes, and as many stay as have to
    keep : layers to leave as they are
    method : what to run instead of ``forward``
    executor : a ``concurrent.futures.Executor`` to run the evaluations, one after the other without; for processes,
        model and evaluate must be picklable
    in_flight : how many evaluations an executor is handed at a time, default twice the number of processors
    resume : a file to write values to as they come; what it holds from an earlier run of the same model, whatever its
        ratios, is not evaluated again
    progress : show a bar on stderr after two seconds; by default, where that is a terminal

    Raises
    ------
    EvaluationError, naming group and ratio, when ``evaluate`` fails; SensitivityError for a file of another run;
    TraceError, NothingPrunable, ScoreError, BudgetError

    Examples
    --------
    >>> found = surgeon.sensitivity(model, x, evaluate=accuracy, resume="accuracy.jsonl")
    >>> print(found)
    """
    require_callable("evaluate", evaluate)
    model, ratios = bare(model), _checked(ratios, in_flight)
    graph = trace(model, example_inputs, keep=keep, method=method)
    graph.require_free()
    scores = score(graph, criterion)
    orders = {group.name: ranked(group, scores)[0] for group in graph.free}
    wanted = _points(graph.free, ratios)
    settings = {"criterion": name_of(criterion), "method": method}
    first = header(model, evaluate, method=method, criterion=criterion, orders=orders) if resume is not None else {}
    known = begin(resume, first) if resume is not None else {}
    missing = {point: what for point, what in wanted.items() if point not in known}
    tasks = _tasks(graph, Packed(model), evaluate, orders, missing, settings)
    with working("sensitivity", len(wanted), done=len(wanted) - len(missing), wanted=progress) as work:
        for point, value in measured(tasks, executor, in_flight):
            known[point] = value
            if resume is not None:
                add(resume, point, value)
            work.done += 1
    curves = tuple(_curve(group, ratios, known) for group in graph.free)
    return Sensitivity(known[ORIGINAL], ratios, curves, settings)


def _checked(ratios: Sequence[float], in_flight: int | None) -> tuple[float, ...]:
    for ratio in ratios:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
            raise BudgetError(f"ratio {ratio!r} is the share of a group that goes and must be in (0, 1)")
    if not ratios:
        raise BudgetError("give at least one ratio, such as ratios=(0.25, 0.5, 0.75)")
    if in_flight is not None and in_flight < 1:
        raise BudgetError(f"in_flight={in_flight!r} evaluations can't be under way; give at least 1")
    return tuple(sorted(set(map(float, ratios))))


def _steps(group: Group, ratio: float) -> int:
    """Return how many units go: at least one, and never those that have to stay."""
    return min(max(1, int(ratio * group.size + 1e-9)), group.size - group.least)


def _points(groups: Sequence[Group], ratios: Sequence[float]) -> dict[Point, str]:
    """Return what to evaluate, each with what to call it in an error."""
    points = {ORIGINAL: "the original"}
    for group in groups:
        for ratio in ratios:
            steps = _steps(group, ratio)
            what = f"group {group.name!r} at ratio {ratio:.4g} ({steps} of {group.size} units cut)"
            points.setdefault(Point(group.name, steps), what)
    return points


def _tasks(
    graph: DependencyGraph,
    model: Packed,
    evaluate: Evaluate,
    orders: Mapping[str, np.ndarray],
    points: Mapping[Point, str],
    settings: Mapping[str, str],
) -> Iterator[Task]:
    """Make the plans one at a time: all of them together may be larger than the model."""
    for point, what in points.items():
        units = orders[point.group][: point.removed].ravel() if point != ORIGINAL else NOTHING
        plan = describe(graph, units, {point.group: point.removed}, settings)
        yield Task(point, model, plan, evaluate, what)


def _curve(group: Group, ratios: Sequence[float], known: Mapping[Point, float]) -> Curve:
    removed = tuple(_steps(group, ratio) for ratio in ratios)
    return Curve(group.name, group.size, removed, tuple(known[Point(group.name, steps)] for steps in removed))
