"""The verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from surgeon.errors import BudgetError
from surgeon.evaluation import Evaluate, evaluated, require_callable
from surgeon.graph import DependencyGraph
from surgeon.guard import Evaluations, Found, nested_plans, smallest_within, tuned
from surgeon.labels.run import run
from surgeon.modules import Model, bare, entering, uncollected
from surgeon.operate import operate
from surgeon.plan import Plan
from surgeon.plan import plan as make_plan
from surgeon.plan.describe import describe
from surgeon.report import Report, compare
from surgeon.score import score
from surgeon.verify import Proof, count_flops, verify


@dataclass(frozen=True)
class Result:
    """What ``prune`` returns: the small model, the plan that made it, the proof, and the report.

    ``evaluations`` holds what was evaluated in search of the smallest model within ``max_drop``.
    """

    model: nn.Module | ExportedProgram
    plan: Plan
    proof: Proof | None
    report: Report
    evaluations: Evaluations | None = None

    def __str__(self) -> str:
        lines = [f"{self.plan}", f"{self.proof or 'not verified'}"]
        return "\n".join(lines if self.evaluations is None else [*lines, f"{self.evaluations}"])


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
    with uncollected(), entering(method, model):
        recorded = run(model, example_inputs, keep)
        return DependencyGraph(model, recorded, method)


def prune(
    model: Model,
    example_inputs: Any,
    *,
    criterion: Any = "l1",
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
    criterion : a name such as "l1", or a callable ``(graph, group) -> Tensor[units]``
    keep : layers to leave as they are
    check : prove the result against the masked original; the proof is of the cut as made, before any ``finetune``
    method : what to run instead of ``forward``
    evaluate : ``evaluate(model) -> float``, higher is better; it is given copies, in eval mode
    max_drop : largest loss of value, in the units of ``evaluate``
    finetune : ``finetune(model)`` tunes each cut in place before it is evaluated
    resolution : how finely FLOPs are searched, as a share of the original's
    budget : ``flops``, ``params`` (what may remain), ``ratio`` (what goes), ``scope``, ``round_to``, ``floor``,
        ``groups``, ``heads``: see ``plan``

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
    _check_guard(evaluate, max_drop, finetune, budget)
    graph = trace(model, example_inputs, keep=keep, method=method)
    graph.require_free()
    scores = score(graph, criterion)
    found = None
    if evaluate is None or max_drop is None:
        plan = make_plan(graph, scores, **budget)
        small = cut = operate(model, plan)
    else:
        plans = nested_plans(lambda shares: _chain(graph, scores, shares, budget), resolution)
        found = _guarded(model, graph, plans, evaluate, max_drop, finetune)
        plan, small = found.plan, found.model
        cut = operate(model, plan)  # what was tuned or evaluated need not be as it was cut
    counts = (count_flops(model, example_inputs, method=method), count_flops(small, example_inputs, method=method))
    proof = verify(model, cut, plan, example_inputs, counts=counts) if check else None
    report = compare(model, small, example_inputs, plan=plan, counts=counts)
    return Result(small, plan, proof, report, found.evaluations if found else None)


def _guarded(
    model: nn.Module,
    graph: DependencyGraph,
    plans: Sequence[tuple[float, Plan]],
    evaluate: Evaluate,
    max_drop: float,
    finetune: Callable[[Any], Any] | None,
) -> Found:
    """Search plans for the smallest model within the drop; the original is evaluated as a copy."""
    whole = describe(graph, [], {}, {})
    base = evaluated(operate(model, whole), evaluate, "the original")

    def build(plan: Plan) -> Any:
        return tuned(operate(model, plan), finetune, str(plan))

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


def _check_names(budget: dict[str, Any]) -> None:
    """Raise BudgetError for options that a plan does not have, and for lists of budgets."""
    known = [name for name, p in signature(make_plan).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in budget:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise BudgetError(f"unknown option {name!r}{hint}")
        if name in AMOUNTS and isinstance(budget[name], (list, tuple)):
            raise BudgetError(
                f"{name}={budget[name]!r} asks for several models, and prune makes one; "
                f"surgeon.plan(graph, scores, {name}=...) makes a plan for each, and surgeon.operate its model"
            )
