"""The verbs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from inspect import signature
from typing import Any, cast, overload

from torch import nn
from torch.export import ExportedProgram

from surgeon.calibrate import calibration
from surgeon.comparison import within
from surgeon.dissect import dissect
from surgeon.errors import BudgetError
from surgeon.evaluation import Evaluate, evaluated, require_callable
from surgeon.graph import DependencyGraph
from surgeon.guard import Evaluations, Found, nested_plans, smallest_within, tuned
from surgeon.labels.run import run
from surgeon.latency import within_latency
from surgeon.modules import Model, bare, entering, uncollected
from surgeon.operate import operate
from surgeon.plan import Plan
from surgeon.plan.allocate import Budget
from surgeon.plan.cost import Cost
from surgeon.plan.describe import describe
from surgeon.plan.make import multiple
from surgeon.plan.make import plan as make_plan
from surgeon.progress import working
from surgeon.recover import Recovery, check_method, recover
from surgeon.report import Report
from surgeon.report import compare as side_by_side
from surgeon.score import curves, score
from surgeon.verify import Proof, count_flops, verify

# Calibration samples that are read at most.
SAMPLES = 512


@dataclass(frozen=True)
class Result:
    """What ``prune`` returns: the small model, the plan that made it, the proof, and the report.

    ``evaluations`` holds what was evaluated in search of the smallest model within ``max_drop``, and ``recovery``
    what compensation did.

    Examples
    --------
    >>> result = surgeon.prune(model, x, flops=0.7)
    >>> print(result)
    >>> result.model(x)
    """

    model: nn.Module | ExportedProgram
    plan: Plan
    proof: Proof | None
    report: Report
    evaluations: Evaluations | None = None
    recovery: Recovery | None = None

    def __str__(self) -> str:
        found = [part for part in (self.evaluations, self.recovery) if part is not None]
        return "\n".join(map(str, (self.plan, self.proof or "not verified", *found)))


def trace(model: Model, example_inputs: Any, *, keep: Iterable[Any] = (), method: str = "forward") -> DependencyGraph:
    """Run the model once and return what is coupled with what.

    Parameters
    ----------
    model : a module, a ``torch.export.ExportedProgram``, or the path of a ``.pt2`` file
    example_inputs : a tensor, a tuple of positional arguments, or a dict of keyword arguments
    keep : layers to leave as they are: names, globs, modules, or ``{"out": ..., "in": ...}`` to keep only the outputs
        or inputs of a layer
    method : what to run instead of ``forward``, such as "encode"; layers that it does not use stay as they are

    Raises
    ------
    TraceError when the forward fails, UnsupportedModel, UnknownLayer

    Examples
    --------
    >>> graph = surgeon.trace(model, torch.randn(1, 3, 224, 224), keep=("head",))
    >>> print(graph.explain("layer3.0.conv1"))
    """
    model = bare(model)
    with working("tracing"), uncollected(), entering(method, model):
        recorded = run(model, example_inputs, keep)
        return DependencyGraph(model, recorded, method, example_inputs)


@overload
def plan(
    graph: DependencyGraph,
    scores: Mapping[str, Any],
    *,
    flops: float | int | str | None = None,
    params: float | int | str | None = None,
    memory: float | int | str | None = None,
    **options: Any,
) -> Plan: ...
@overload
def plan(graph: DependencyGraph, scores: Mapping[str, Any], **options: Any) -> Plan | list[Plan]: ...
def plan(
    graph: DependencyGraph,
    scores: Mapping[str, Any],
    *,
    latency: float | str | None = None,
    latency_backend: str = "eager",
    latency_cache: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Plan | list[Plan]:
    """Choose what goes and write it down.

    Under budgets, the loss of importance is the least that any choice of widths allows, up to the gap that the plan
    tells.

    Parameters
    ----------
    graph : what ``trace`` returned
    scores : group name -> importance per unit, higher stays
    flops, params, memory : upper bounds on what remains: a share such as 0.5, or an amount such as ``1.2e9`` or
        ``"1.2G"``; one FLOP is one multiply-add, memory is bytes of inputs and activations at their peak. A list,
        largest first, gives a list of plans, each of which removes all that the one before it does
    latency : upper bound on what the result takes, measured in turn with the original on its device: a share, or a
        text such as "8ms"; plans are cut and measured until one keeps it, see docs/latency.md
    latency_backend : what runs the model for that: "eager", "compile" or "onnxruntime"
    latency_cache : file of timings, in place of the one in the user's cache directory
    ratio : share of the units that goes, instead of budgets
    scope : with a ratio, "global" over the model or "local" in every group
    round_to : widths that remain are multiples of this; "auto" for what the model's device likes
    floor : smallest share of a group that stays
    groups : layer name or glob -> largest share of its units that may go, or the least and the largest
    heads : what goes where rows could go as well as columns (heads and their widths, conv groups and their channels):
        False columns, True rows, "both"; a ratio then applies to rows and to columns
    uniform : one width for all groups whose names differ only in numbers, as configurations and servers know it
    losses : group name -> (removed steps, loss at each), or a ``Sensitivity``, in place of the importance lost. Groups
        left out keep the importance, so a curve should be of its size: ``-log(share that stays)`` per layer

    Raises
    ------
    NothingPrunable, BudgetError, InfeasibleBudget, ScoreError, UnknownLayer

    Examples
    --------
    >>> surgeon.plan(graph, surgeon.score(graph, "l1"), flops=0.5, round_to=8)
    >>> mild, hard = surgeon.plan(graph, scores, flops=[0.8, 0.6])
    """
    _check_names(options)
    if latency is None:
        with uncollected():
            return make_plan(graph, scores, **options)
    if options.get("ratio") is not None:
        raise BudgetError("give either a ratio or budgets, not both")
    for name, asked in options.items():
        if name in AMOUNTS and isinstance(asked, (list, tuple)):
            raise BudgetError(f"{name}={asked!r}: a list of budgets can't be combined with latency, which is measured")

    def solve(cost: Cost, seconds: float) -> Plan:
        bound = Budget("latency", cost.merged(), seconds, str(latency))
        return cast(Plan, make_plan(graph, scores, bounds=[bound], **options))

    timed = within_latency(
        graph.model,
        graph.example_inputs,
        graph,
        latency,
        solve,
        backend=latency_backend,
        cache=latency_cache,
        round_to=multiple(graph, options.get("round_to", 1)),
        heads=options.get("heads", False),
    )
    chosen = timed.rounds[timed.chosen]
    return replace(
        timed.plan,
        totals={**timed.plan.totals, "latency": chosen.seconds},
        settings={
            **timed.plan.settings,
            "latency": latency,
            "latency_backend": latency_backend,
            "latency_rounds": [[each.predicted, each.measured] for each in timed.rounds],
        },
    )


@working("pruning")
def prune(
    model: Model,
    example_inputs: Any,
    *,
    criterion: Any = None,
    data: Iterable[Any] | None = None,
    compensate: str | None = "auto",
    keep: Iterable[Any] = (),
    check: bool = True,
    method: str = "forward",
    evaluate: Evaluate | None = None,
    max_drop: float | None = None,
    finetune: Callable[[Any], Any] | None = None,
    resolution: float = 0.01,
    **budget: Any,
) -> Result:
    """Cut a model to a budget, or as far as an evaluation allows; prove the cut right, and report.

    The original is untouched. Instead of a budget, ``evaluate`` and ``max_drop`` ask for the model with the fewest
    FLOPs whose value is at least the original's less ``max_drop``. Nested plans are bisected, which takes about seven
    evaluations beside the original's; each cut is made from the original.

    Parameters
    ----------
    model : a module, a ``torch.export.ExportedProgram``, or the path of a ``.pt2`` file; an exported program gives an
        exported program
    criterion : a name such as "l1", or a callable ``(graph, group) -> Tensor[units]``; "l1" where there is no data to
        compensate with, and "obs" with widths from measured loss curves where there is
    data : some batches without labels; 128 to 512 samples are enough
    compensate : how to win back what the cut loses, after the proof: "auto" (refit with data, nothing without),
        "ridge", "bias", "merge", "noise", "norms" or None: see ``recover``
    keep : layers to leave as they are
    check : prove the result against the masked original; the proof is of the cut as made, before any ``finetune``
    method : what to run instead of ``forward``
    evaluate : ``evaluate(model) -> float``, higher is better; it is given copies, in eval mode
    max_drop : largest loss of value, in the units of ``evaluate``
    finetune : ``finetune(model)`` tunes each cut in place before it is evaluated
    resolution : how finely FLOPs are searched, as a share of the original's
    budget : ``flops``, ``params``, ``memory``, ``latency`` (what may remain), ``ratio`` (what goes), ``scope``,
        ``round_to``, ``floor``, ``groups``, ``heads``, ``uniform``, ``losses``: see ``plan``

    Raises
    ------
    SurgeonError and its kinds, each with what to do next: AccuracyDrop where no cut is within ``max_drop``.

    Examples
    --------
    >>> result = surgeon.prune(model, x, flops=0.5)
    >>> result.model, result.plan, result.proof, result.report
    >>> result = surgeon.prune(model, x, evaluate=accuracy, max_drop=0.01)
    >>> print(result.evaluations)
    """
    model = bare(model)
    _check_names(budget)
    _one_budget(budget)
    _check_guard(evaluate, max_drop, finetune, budget)
    if compensate is not None:
        check_method(compensate)
    graph = trace(model, example_inputs, keep=keep, method=method)
    graph.require_free()
    batches = None if data is None else [(given,) for given in calibration(data, SAMPLES)]
    how = None if compensate == "auto" and data is None else compensate
    scores = _scores(graph, criterion, batches if how in ("auto", "ridge") else None, budget)
    recoveries: dict[int, Recovery] = {}

    def mend(small: Any, made: Plan) -> Any:
        if how is not None:
            recoveries[id(made)] = recover(
                model, small, made, batches, method=how, example_inputs=example_inputs, samples=SAMPLES
            )
        return small

    found = None
    if evaluate is None or max_drop is None:
        made = cast(Plan, plan(graph, scores, **budget))
        small = cut = operate(model, made)
    else:
        plans = nested_plans(lambda shares: _chain(graph, scores, shares, budget), resolution)
        found = _guarded(model, graph, plans, evaluate, max_drop, finetune, mend)
        made, small = found.plan, found.model
        cut = operate(model, made)  # what was refitted, tuned or evaluated need not be as it was cut
    counts = (count_flops(model, example_inputs, method=method), count_flops(small, example_inputs, method=method))
    proof = verify(model, cut, made, example_inputs, counts=counts) if check else None
    if found is None:
        mend(small, made)
    report = side_by_side(
        model, small, example_inputs, plan=made, proof=proof, latency=within(made, model), counts=counts
    )
    report = replace(report, anatomy=dissect(graph, scores, made))
    return Result(small, made, proof, report, found.evaluations if found else None, recoveries.get(id(made)))


def _scores(graph: DependencyGraph, criterion: Any, batches: list[Any] | None, budget: dict[str, Any]) -> Any:
    """Score by what a refit can't make up for where there is one, and let measured curves decide about widths."""
    if criterion is not None or batches is None:
        return score(graph, criterion or "l1")
    scores = score(graph, "obs", data=batches)
    if budget.get("ratio") is None and budget.get("losses") is None:
        budget["losses"] = curves(graph, scores, batches)
    return scores


def _guarded(
    model: nn.Module,
    graph: DependencyGraph,
    plans: Sequence[tuple[float, Plan]],
    evaluate: Evaluate,
    max_drop: float,
    finetune: Callable[[Any], Any] | None,
    mend: Callable[[Any, Plan], Any],
) -> Found:
    """Search plans for the smallest model within the drop; the original is evaluated as a copy."""
    whole = describe(graph, [], {}, {})
    base = evaluated(operate(model, whole), evaluate, "the original")

    def build(plan: Plan) -> Any:
        return tuned(mend(operate(model, plan), plan), finetune, str(plan))

    return smallest_within(plans, build, base=base, evaluate=evaluate, max_drop=max_drop)


def _chain(graph: DependencyGraph, scores: Any, shares: Sequence[float], options: dict[str, Any]) -> list[Plan]:
    plans = make_plan(graph, scores, flops=list(shares), **options)
    assert isinstance(plans, list)  # as for any list of budgets
    return plans


# What says how much goes, of the options of a plan.
AMOUNTS = ("flops", "params", "memory", "latency", "ratio")


def _check_guard(evaluate: Any, max_drop: Any, finetune: Any, budget: dict[str, Any]) -> None:
    if evaluate is None:
        given = [name for name, value in (("max_drop", max_drop), ("finetune", finetune)) if value is not None]
        if given:
            raise BudgetError(f"{given[0]} needs evaluate=, a function (model) -> float, higher is better")
        return
    require_callable("evaluate", evaluate)
    if finetune is not None:
        require_callable("finetune", finetune)
    amounts = [name for name in AMOUNTS if budget.get(name) is not None]
    if amounts:
        raise BudgetError(
            f"give either {amounts[0]}={budget[amounts[0]]!r} or evaluate= with max_drop=, which looks for the fewest "
            "FLOPs itself"
        )
    number = isinstance(max_drop, (int, float)) and not isinstance(max_drop, bool)
    if not number or not 0 <= max_drop < float("inf"):
        raise BudgetError(
            f"max_drop={max_drop!r} is how much the value of evaluate may fall, such as 0.01, and must be a finite "
            "number of at least 0"
        )


def _one_budget(budget: dict[str, Any]) -> None:
    for name in AMOUNTS:
        if isinstance(budget.get(name), (list, tuple)):
            raise BudgetError(
                f"{name}={budget[name]!r} asks for several models, and prune makes one; "
                f"surgeon.plan(graph, scores, {name}=...) makes a plan for each, and surgeon.operate its model"
            )


def _check_names(options: dict[str, Any]) -> None:
    """Raise BudgetError for options that a plan does not have."""
    kinds = [p for function in (make_plan, plan) for p in signature(function).parameters.values()]
    known = [p.name for p in kinds if p.kind is p.KEYWORD_ONLY and p.name != "bounds"]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise BudgetError(f"unknown option {name!r}{hint}")
