"""The smallest model whose evaluation stays within a drop: bisection over nested plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from torch import nn

from surgeon.errors import AccuracyDrop, BudgetError, EvaluationError, InfeasibleBudget
from surgeon.evaluation import Evaluate, evaluated
from surgeon.modules import modes_kept

if TYPE_CHECKING:
    from surgeon.plan.plan import Plan

    # Budgets, decreasing, to plans of which each cuts what the one before it cuts, and more.
    MakePlans = Callable[[Sequence[float]], Sequence[Plan]]
    Build = Callable[[Plan], Any]

# Two values that each were rounded to float32, as accuracies often are, differ by this share of them at most.
ROUNDING = 2e-7


@dataclass(frozen=True)
class Trial:
    """One model that was evaluated: the budget asked for and the share of FLOPs that it has, both of the original's."""

    budget: float
    flops: float
    value: float

    def __str__(self) -> str:
        return f"budget {self.budget:.4g}, {self.flops:.1%} of the FLOPs: {self.value:.6g}"


@dataclass(frozen=True)
class Evaluations:
    """What was evaluated in search of the smallest model: the original's value, and the trials in their order."""

    base: float
    max_drop: float
    trials: tuple[Trial, ...]

    def within(self, trial: Trial) -> bool:
        """Whether a trial loses no more than ``max_drop``."""
        return self.base - trial.value <= self.max_drop + ROUNDING * abs(self.base)

    @property
    def chosen(self) -> Trial | None:
        """The trial with the fewest FLOPs of those within the drop."""
        return min(filter(self.within, self.trials), key=lambda trial: trial.flops, default=None)

    def __rich_console__(self, console: Console, options: Any) -> Any:
        title = f"Evaluations (original {self.base:.6g}, allowed drop {self.max_drop:.6g})"
        table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
        for heading in ("budget", "FLOPs left", "value", "drop"):
            table.add_column(heading, justify="right")
        table.add_column("")
        for trial in self.trials:
            verdict = "chosen" if trial == self.chosen else "within" if self.within(trial) else "too much"
            drop = f"{self.base - trial.value:.4g}"
            table.add_row(f"{trial.budget:.4g}", f"{trial.flops:.1%}", f"{trial.value:.6g}", drop, verdict)
        yield table

    def __str__(self) -> str:
        console = Console(width=100, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return captured.get()


@dataclass(frozen=True, eq=False)
class Found:
    """The smallest model within the drop, its plan, and everything that was evaluated."""

    model: Any
    plan: Plan
    evaluations: Evaluations

    def __str__(self) -> str:
        return f"{self.plan}\n{self.evaluations}"


def smallest_within(
    plans: Sequence[tuple[float, Plan]], build: Build, *, base: float, evaluate: Evaluate, max_drop: float
) -> Found:
    """Bisect for the smallest model whose value is at least ``base - max_drop``.

    Where values don't fall steadily with size, a smaller model than the one found may be within the drop as well; the
    one found has been evaluated, and is.

    Parameters
    ----------
    plans : budgets and plans, decreasing in FLOPs, as ``nested_plans`` makes them
    build : makes the model of a plan, tuned where it is to be
    base : the original's value

    Raises
    ------
    AccuracyDrop when no trial is within the drop, the mildest plan among them; EvaluationError
    Complexity: as many models as it takes to bisect, 7 for 99 plans.
    """
    trials: list[Trial] = []
    best: list[tuple[Any, Plan]] = []

    def within(index: int) -> bool:
        budget, plan = plans[index]
        model = build(plan)
        value = evaluated(model, evaluate, f"the model cut to {_flops(plan):.1%} of the FLOPs")
        trials.append(Trial(budget, _flops(plan), value))
        if not Evaluations(base, max_drop, ()).within(trials[-1]):
            return False
        best[:] = [(model, plan)]
        return True

    _last(within, len(plans))
    evaluations = Evaluations(base, max_drop, tuple(trials))
    if not best:
        raise _too_much(evaluations)
    return Found(*best[0], evaluations)


def nested_plans(make_plans: MakePlans, resolution: float = 0.01) -> list[tuple[float, Plan]]:
    """Return budgets and plans, one for each ``resolution`` of the original's FLOPs, as far down as it goes.

    Of budgets that come to the same cut, only the lowest is listed.

    Raises
    ------
    BudgetError, and what ``make_plans`` raises for the mildest budget
    """
    if not 0 < resolution < 1:
        raise BudgetError(f"resolution={resolution!r} is a share of the original's FLOPs and must be in (0, 1)")
    budgets = [1 - k * resolution for k in range(1, int(1 / resolution + 1e-9) + 1)]
    budgets = [round(budget, 12) for budget in budgets if budget > 1e-9]

    def reachable(index: int) -> bool:
        return _made(make_plans, budgets[index : index + 1]) is not None

    # A budget may be within reach alone and yet not below all others, so a chain is tried before it is shortened.
    length = _last(reachable, len(budgets)) + 1
    plans = _made(make_plans, budgets[:length])
    if plans is None:
        length = _last(lambda index: _made(make_plans, budgets[: index + 1]) is not None, length) + 1
    plans = plans or make_plans(budgets[: max(1, length)])
    cuts = [(budget, plan) for budget, plan in zip(budgets, plans) if plan.cuts]
    cuts.sort(key=lambda pair: -_flops(pair[1]))
    return [pair for pair, after in zip(cuts, [*cuts[1:], None]) if after is None or pair[1].cuts != after[1].cuts]


def tuned(model: Any, finetune: Callable[[Any], Any] | None, what: str) -> Any:
    """Return a model after ``finetune``, which changes it in place, with its train/eval flags as they were."""
    if finetune is None:
        return model
    with modes_kept(*([model] if isinstance(model, nn.Module) else [])):
        try:
            returned = finetune(model)
        except Exception as error:
            raise EvaluationError(f"finetune failed on {what}: {type(error).__name__}: {error}") from error
    if isinstance(returned, nn.Module) and returned is not model:
        raise EvaluationError("finetune returned another model; it has to tune the one that it is given")
    return model


def _last(works: Callable[[int], bool], count: int) -> int:
    """Return the last index that works, -1 if none was seen to, where what follows a failure fails as well."""
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        if works(middle):
            low = middle
        else:
            high = middle
    return low


def _made(make_plans: MakePlans, budgets: Sequence[float]) -> Sequence[Plan] | None:
    try:
        return make_plans(budgets) if budgets else None
    except InfeasibleBudget:
        return None


def _flops(plan: Plan) -> float:
    """Return the share of the original's multiply-adds that a plan leaves."""
    before, after = plan.totals["flops"]
    return after / before if before else 1.0


def _too_much(evaluations: Evaluations) -> AccuracyDrop:
    best = max(evaluations.trials, key=lambda trial: trial.value)
    drop = evaluations.base - best.value
    return AccuracyDrop(
        f"every cut that was tried loses more than max_drop={evaluations.max_drop:.6g}: the original is at "
        f"{evaluations.base:.6g}, and the best of {len(evaluations.trials)} cuts at {best.value:.6g}, a drop of "
        f"{drop:.4g}, with budget {best.budget:.4g} ({best.flops:.1%} of the FLOPs); allow a larger drop, tune each "
        "cut with finetune=, or keep= the layers that surgeon.sensitivity shows to matter",
        evaluations,
    )
