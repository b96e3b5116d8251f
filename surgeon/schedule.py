"""When to cut while a model trains, and how far: budgets as functions of the training step.

    surgeon.schedule.one_shot(flops=0.5, at=100)
    surgeon.schedule.iterative(flops=0.4, times=5, every=500)
    surgeon.schedule.gradual(flops=0.4, steps=1000, every=100)
    surgeon.schedule.exponential(params="1.2M", steps=1000, every=100)
    surgeon.schedule.custom(lambda progress: {"flops": 1 - 0.6 * progress}, steps=1000, every=100)

Step 1 is the first optimizer step. Budgets say what may remain of the original, as a share or an amount: ``flops``,
``params``, ``memory``; or what goes: ``ratio``, a share of the units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from surgeon.errors import BudgetError
from surgeon.plan.allocate import parse_amount

Amount = float | int | str

# What may remain; beside these there is "ratio", which is what goes.
REMAINS = ("flops", "params", "memory")


@dataclass(frozen=True)
class Target:
    """A budget at one moment: ``value`` is a share of the original, or an amount in the budget's own unit."""

    name: str
    value: float
    share: bool
    asked: Amount

    @staticmethod
    def of(name: str, asked: Any) -> Target:
        """Read a budget; raises BudgetError for what is none."""
        if name not in (*REMAINS, "ratio"):
            raise BudgetError(f"{name!r} is no budget of a schedule; there are {', '.join(REMAINS)} and ratio")
        if name == "ratio":
            number = isinstance(asked, (int, float)) and not isinstance(asked, bool)
            if not number or not 0 <= asked < 1:
                raise BudgetError(f"ratio={asked!r} is the share of units that goes and must be in [0, 1)")
            return Target(name, float(asked), True, asked)
        value = parse_amount(name, asked, 1.0)
        if not value < math.inf:
            raise BudgetError(f"{name}={asked!r} must be finite")
        return Target(name, value, not isinstance(asked, str) and value <= 1, asked)

    def end(self, whole: Mapping[str, float]) -> float:
        """Return the target as a share of the original: of what may remain, or of units that go."""
        if self.share:
            return self.value
        if self.name not in whole:
            raise BudgetError(f"{self}: an amount is a share only of something: whole={{{self.name!r}: ...}}")
        return min(1.0, self.value / whole[self.name])

    def __str__(self) -> str:
        return f"{self.name}={self.asked!r}"


@dataclass(frozen=True)
class Schedule:
    """Budgets by training step, a pure function of it.

    kind      "one_shot", "iterative", "gradual", "exponential" or "custom"
    targets   budgets at the end
    steps     from the start to the last cut
    every     steps between cuts
    start     the step that progress is counted from
    initial   share of the way that is gone at the start (gradual)
    function  progress in [0, 1] -> budgets (custom)
    """

    kind: str
    targets: tuple[Target, ...]
    steps: int
    every: int
    start: int = 0
    initial: float = 0.0
    function: Callable[[float], Mapping[str, Amount]] | None = None

    @property
    def end(self) -> int:
        """The step of the last cut."""
        return self.start + self.steps

    @property
    def cuts(self) -> tuple[int, ...]:
        """The steps at which cuts are due, increasing."""
        return tuple(step for step in range(max(self.start, 1), self.end + 1) if self.due(step))

    def due(self, step: int) -> bool:
        """Tell whether a cut is due after a training step."""
        if not max(self.start, 1) <= step <= self.end:
            return False
        at_once = self.initial > 0 and step == max(self.start, 1)
        return at_once or step == self.end or (step > self.start and (step - self.start) % self.every == 0)

    def next(self, step: int) -> int | None:
        """Return the first step from this one on at which a cut is due; None after the last."""
        if step > self.end:
            return None
        near = max(step, self.start, 1)
        if self.due(near):
            return near
        return min(self.end, self.start + ((near - self.start) // self.every + 1) * self.every)

    def progress(self, step: int) -> float:
        """Return how much of the schedule is over at a step, in [0, 1]."""
        if step >= self.end:
            return 1.0
        return max(0, step - self.start) / self.steps if self.steps else 0.0

    def at(self, step: int, whole: Mapping[str, float] | None = None) -> dict[str, float]:
        """Return the budgets of a step: shares of the original that may remain, or the share of units that goes.

        Parameters
        ----------
        whole : budget name -> what the original costs, where budgets are amounts

        Raises
        ------
        BudgetError for an amount without its whole, or when a function gives no budgets.
        """
        progress = self.progress(step)
        if self.function is not None:
            return {target.name: target.end(whole or {}) for target in _asked(self.function, progress)}
        way = 1.0 if step >= self.end else self._way(progress) if step >= self.start else 0.0
        return {target.name: self._between(target, way, whole or {}) for target in self.targets}

    def _way(self, progress: float) -> float:
        """Return which share of the way to the targets is gone."""
        if self.kind != "gradual":
            return progress
        left = 1 - progress
        return 1 + (self.initial - 1) * (left * left * left)

    def _between(self, target: Target, way: float, whole: Mapping[str, float]) -> float:
        end = target.end(whole)
        if way >= 1:
            return end
        power = self.kind == "exponential"
        if target.name == "ratio":
            return min(end, 1 - (1 - end) ** way if power else end * way)
        return max(end, end**way if power else 1 + (end - 1) * way)

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule as plain data, from which ``from_state`` makes it again; a function is left out."""
        return {
            "kind": self.kind,
            "targets": {target.name: target.asked for target in self.targets},
            "steps": self.steps,
            "every": self.every,
            "start": self.start,
            "initial": self.initial,
        }

    def __str__(self) -> str:
        asked = ", ".join(map(str, self.targets))
        cuts = self.cuts
        when = f"at step {self.end}" if len(cuts) == 1 else f"in {len(cuts)} cuts, steps {cuts[0]} to {self.end}"
        return f"{self.kind} to {asked} {when}"


# -- kinds -------------------------------------------------------------------------------------------


def one_shot(*, at: int = 1, **budgets: Amount | None) -> Schedule:
    """One cut, after training step ``at``.

    Parameters
    ----------
    at : optimizer steps before the cut, at least 1
    budgets : ``flops``, ``params``, ``memory``: what may remain; or ``ratio``: the share of units that goes

    Raises
    ------
    BudgetError

    Examples
    --------
    >>> print(surgeon.schedule.one_shot(flops=0.5, at=100))
    one_shot to flops=0.5 at step 100
    """
    return Schedule("one_shot", _targets(budgets), 0, 1, _whole("at", at, 1))


def iterative(*, times: int, every: int, start: int = 0, **budgets: Amount | None) -> Schedule:
    """Cut ``times`` times, each time the same amount, and fine-tune for ``every`` steps before each cut but the first.

    Parameters
    ----------
    times : number of cuts; the first is ``every`` steps after ``start``
    every : optimizer steps between cuts
    budgets : as in ``one_shot``

    Raises
    ------
    BudgetError

    Examples
    --------
    >>> schedule = surgeon.schedule.iterative(flops=0.4, times=3, every=500)
    >>> [round(schedule.at(step)["flops"], 3) for step in schedule.cuts]
    [0.8, 0.6, 0.4]
    """
    every = _whole("every", every, 1)
    return Schedule("iterative", _targets(budgets), _whole("times", times, 1) * every, every, _whole("start", start, 0))


def gradual(*, steps: int, every: int, start: int = 0, initial: float = 0.0, **budgets: Amount | None) -> Schedule:
    """Cut often, much at first and less and less: ``s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3``.

    Zhu and Gupta, 2017, "To prune, or not to prune", equation 1, with ``s`` the share of the budget that is gone.

    Parameters
    ----------
    steps : ``n dt``, optimizer steps from the start to the last cut
    every : ``dt``, steps between cuts
    start : ``t0``
    initial : ``s_i / s_f``, the share of the way that goes at once at the start
    budgets : as in ``one_shot``

    Raises
    ------
    BudgetError

    Examples
    --------
    >>> schedule = surgeon.schedule.gradual(flops=0.4, steps=300, every=100)
    >>> [round(schedule.at(step)["flops"], 3) for step in schedule.cuts]
    [0.578, 0.422, 0.4]
    """
    if isinstance(initial, bool) or not isinstance(initial, (int, float)) or not 0 <= initial < 1:
        raise BudgetError(f"initial={initial!r} is the share of the way that goes at the start, in [0, 1)")
    return _stepped("gradual", budgets, steps, every, start, float(initial))


def exponential(*, steps: int, every: int, start: int = 0, **budgets: Amount | None) -> Schedule:
    """Cut the same share of what is left each time: what remains is ``target ** progress``.

    Parameters
    ----------
    steps, every, start, budgets : as in ``gradual``

    Raises
    ------
    BudgetError

    Examples
    --------
    >>> schedule = surgeon.schedule.exponential(flops=0.25, steps=200, every=100)
    >>> [schedule.at(step)["flops"] for step in schedule.cuts]
    [0.5, 0.25]
    """
    return _stepped("exponential", budgets, steps, every, start)


def custom(function: Callable[[float], Mapping[str, Amount]], *, steps: int, every: int, start: int = 0) -> Schedule:
    """Any budgets: a function of progress, which must not let the model grow again.

    Parameters
    ----------
    function : progress in [0, 1] -> budgets such as ``{"flops": 0.7}``, named and measured as in ``one_shot``
    steps, every, start : as in ``gradual``

    Raises
    ------
    BudgetError, also where a later cut is asked to leave more than an earlier one.

    Examples
    --------
    >>> schedule = surgeon.schedule.custom(lambda progress: {"flops": 1 - 0.6 * progress**2}, steps=200, every=100)
    >>> [round(schedule.at(step)["flops"], 3) for step in schedule.cuts]
    [0.85, 0.4]
    """
    if not callable(function):
        raise BudgetError(f"{function!r} is no function of progress; write lambda progress: {{'flops': ...}}")
    steps, every, start = _whole("steps", steps, 1), _whole("every", every, 1), _whole("start", start, 0)
    schedule = Schedule("custom", _asked(function, 1.0), steps, every, start, function=function)
    asked = [(step, _asked(function, schedule.progress(step))) for step in schedule.cuts]
    for (_, before), (step, after) in pairwise(asked):
        _check_order(step, before, after)
    return schedule


def from_state(state: Mapping[str, Any]) -> Schedule:
    """Return the schedule that ``Schedule.state_dict`` described.

    Raises
    ------
    BudgetError for a custom schedule, whose function is no data.
    """
    if state.get("kind") == "custom":
        raise BudgetError("a custom schedule is a function, which plain data can't hold; make it again")
    names = ("kind", "steps", "every", "start", "initial")
    if any(name not in state for name in (*names, "targets")):
        raise BudgetError(f"{state!r:.80} does not describe a schedule")
    kind, steps, every, start, initial = (state[name] for name in names)
    return Schedule(str(kind), _targets(state["targets"]), int(steps), int(every), int(start), float(initial))


def described(state: Mapping[str, Any]) -> str:
    """Return what a state says in words, also where no schedule can be made of it."""
    asked = ", ".join(f"{name}={value!r}" for name, value in dict(state.get("targets", {})).items())
    steps, start, every = (state.get(name) for name in ("steps", "start", "every"))
    return f"{state.get('kind')} to {asked}, {steps} steps from {start}, every {every}"


# -- what is asked for -------------------------------------------------------------------------------


def _stepped(
    kind: str, budgets: Mapping[str, Any], steps: int, every: int, start: int, initial: float = 0.0
) -> Schedule:
    steps, every, start = _whole("steps", steps, 1), _whole("every", every, 1), _whole("start", start, 0)
    return Schedule(kind, _targets(budgets), steps, every, start, initial)


def _targets(budgets: Mapping[str, Any]) -> tuple[Target, ...]:
    found = tuple(Target.of(name, asked) for name, asked in budgets.items() if asked is not None)
    if not found:
        raise BudgetError("say how much: flops=0.5, params=0.5, memory=0.5 or ratio=0.5")
    if len(found) > 1 and any(target.name == "ratio" for target in found):
        raise BudgetError("give either a ratio or budgets, not both")
    return found


def shares(budgets: Mapping[str, Any], whole: Mapping[str, float]) -> dict[str, float]:
    """Return budgets as shares of the original: of what may remain, or of units that go."""
    return {target.name: target.end(whole) for target in _targets(budgets)}


def _asked(function: Callable[[float], Mapping[str, Any]], progress: float) -> tuple[Target, ...]:
    found = function(progress)
    if not isinstance(found, Mapping):
        raise BudgetError(f"the function of a schedule gave {found!r:.60}, not budgets such as {{'flops': 0.5}}")
    return _targets(found)


def _check_order(step: int, before: tuple[Target, ...], after: tuple[Target, ...]) -> None:
    earlier = {target.name: target for target in before}
    if earlier.keys() != {target.name for target in after}:
        names = ", ".join(map(str, after))
        raise BudgetError(f"at step {step} the schedule asks for other budgets than before: {names}")
    for target in after:
        known = earlier[target.name]
        if known.share != target.share:
            raise BudgetError(f"{known}, then {target} at step {step}: write all as shares, or all as amounts")
        if (target.value < known.value) if target.name == "ratio" else (target.value > known.value):
            raise BudgetError(f"{known}, then {target} at step {step}: a model that was cut does not grow again")


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BudgetError(f"{name}={value!r} must be a whole number of steps, at least {least}")
    return value
