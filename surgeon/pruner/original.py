"""The model as it was before the first cut: what shares are shares of, how far each group may go, and what is left."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, cast

import numpy as np

from surgeon.errors import BudgetError, InfeasibleBudget, NothingPrunable
from surgeon.graph import DependencyGraph
from surgeon.plan import Plan
from surgeon.plan.describe import units_of
from surgeon.plan.ladders import ladders, limits, movable
from surgeon.plan.make import COSTS, check, multiple
from surgeon.plan.make import plan as make_plan

# The largest ratio below one: as far as limits allow.
ALL = float(np.nextafter(1, 0))


@dataclass(frozen=True)
class Options:
    """How widths are chosen, as in ``surgeon.plan``; shares are of the original's groups, at every cut."""

    scope: str = "global"
    round_to: int | str = 1
    floor: float = 0.1
    groups: Mapping[str, Any] | None = None
    heads: bool | str = False
    uniform: bool = False


class Left:
    """The graph of the model as it is, and which label of the original each of its labels is.

    Parameters
    ----------
    labels : label of the original by label, ``[labels]``
    """

    def __init__(self, graph: DependencyGraph, labels: np.ndarray) -> None:
        self.graph, self.labels = graph, labels

    def without(self, plan: Plan) -> Callable[[], Left]:
        """Return what gives, once a plan has been carried out in place, what is then left; the model is not run.

        What can go wrong goes wrong here, before anything is cut.
        """
        graph, units = self.graph, units_of(self.graph, plan)
        run = graph.without(units)
        labels = self.labels[~graph.dead_classes(units)[graph.solution.class_of]]
        return lambda: Left(DependencyGraph(graph.model, run, graph.method, graph.example_inputs), labels)

    def __str__(self) -> str:
        return f"{self.graph}, {len(self.labels)} labels left"


class Original:
    """What the original cost, and how many steps of each of its groups have to stay."""

    def __init__(self, graph: DependencyGraph, options: Options) -> None:
        check({}, None, options.scope, options.round_to, options.floor, options.heads, bounded=True)
        graph.require_free()
        self.graph, self.options = graph, options
        self.whole = {name: float(cost(graph).total(graph.initial)) for name, cost in COSTS.items()}
        self.round_to = multiple(graph, options.round_to)
        self.movable = {group.name for group in movable(graph, options.heads)}
        self.least = self._least()
        self.home = np.full(graph.solution.closure.shape[0], -1)
        for i, group in reversed(list(enumerate(graph.free))):
            self.home[group.units] = i
        self.uncut = Left(graph, np.arange(len(graph.solution.class_of)))

    def _least(self) -> dict[str, int]:
        shares = limits(self.graph, self.options.groups or {})
        for name, (low, _) in shares.items():
            if low:
                raise BudgetError(
                    f"groups: {name} has to lose at least {low:.0%}, which no single cut of a schedule could do; give "
                    "the largest share that may go alone"
                )
        return {
            g.name: max(g.least, ceil(self.options.floor * g.size - 1e-9), g.size - int(high * g.size + 1e-9))
            for g in self.graph.free
            for high in (shares.get(g.name, (0.0, 1.0))[1],)
        }

    # -- what can be reached ---------------------------------------------------------------------------

    def require_reachable(self, budgets: Mapping[str, float]) -> None:
        """Raise InfeasibleBudget, with what can be reached, for budgets that no cut reaches.

        Parameters
        ----------
        budgets : shares of the original that may remain, or ``ratio`` that goes
        """
        bounded = self._bounded(self.uncut, {})
        scores = {group.name: np.ones(len(group.units)) for group in bounded.free}
        found, _ = ladders(
            bounded,
            scores,
            round_to=self.round_to,
            floor=0.0,
            groups={},
            heads=self.options.heads,
            uniform=self.options.uniform,
            losses={},
        )
        taken = np.concatenate([ladder.order[: int(ladder.rungs[-1])].ravel() for ladder in found])
        counts = bounded.incidence @ (~bounded.dead_classes(taken)).astype(np.int64)
        for name, asked in budgets.items():
            if name == "ratio":
                most = len(taken) / sum(ladder.size * ladder.weight for ladder in found)
                if asked > most + 1e-9:
                    raise InfeasibleBudget(
                        f"ratio={asked:.4g}: floors, multiples and limits let at most {most:.4g} of the units go; ask "
                        "for less, or lower floor or round_to"
                    )
                continue
            if not self.whole[name]:
                raise NothingPrunable(f"{name}={asked:.4g}: none of the model's operations counts any; use params=")
            least = COSTS[name](bounded).total(counts) / self.whole[name]
            if asked < least:
                raise InfeasibleBudget(
                    f"{name}={asked:.4g} of the original: floors, multiples and pinned groups leave at least "
                    f"{least:.4g}; raise the budget, or lower floor or round_to, or keep fewer layers"
                )

    # -- what is left ----------------------------------------------------------------------------------

    def shares(self, left: Left) -> dict[str, float]:
        """Return what remains of each cost, as shares of the original, and which share of the units is gone."""
        graph = left.graph
        costs = {name: cost(graph).total(graph.initial) for name, cost in COSTS.items()}
        remains = {name: value / self.whole[name] if self.whole[name] else 1.0 for name, value in costs.items()}
        gone, units = self._units(left)
        return {**remains, "ratio": gone / max(units, 1)}

    def _units(self, left: Left) -> tuple[int, int]:
        """Return how many units of the groups that may be cut are gone, and how many there were."""
        dead = ~self._living(left)
        mine = [group for group in self.graph.free if group.name in self.movable]
        return sum(int(dead[g.units].sum()) for g in mine), sum(len(g.units) for g in mine)

    def _living(self, left: Left) -> np.ndarray:
        """Return which units of the original are left, ``[units]``."""
        alive = np.zeros(self.graph.solution.classes, bool)
        alive[self.graph.solution.class_of[left.labels]] = True
        return np.asarray(self.graph.solution.closure @ alive.astype(np.int64)) > 0

    def names(self, left: Left) -> dict[str, str]:
        """Return the original's group of each free group that is left: numbers in names may have moved."""
        mine, theirs = self.graph.solution, left.graph.solution
        origin = np.zeros(theirs.classes, np.int64)
        origin[theirs.class_of] = mine.class_of[left.labels]
        alive = np.zeros(mine.classes, np.int64)
        alive[origin] = 1
        marks = np.random.default_rng(0).integers(1, 2**62, mine.classes, dtype=np.int64)
        known = dict(zip((mine.closure @ (marks * alive)).tolist(), range(len(self.home))))
        found = theirs.closure @ marks[origin]
        free, names = self.graph.free, {}
        for group in left.graph.free:
            unit = known.get(int(found[group.units[0]]))
            if unit is None:
                unit = self._within(alive, origin[theirs.closure[group.units[0]].indices])
            names[group.name] = free[self.home[unit]].name
        return names

    def _within(self, alive: np.ndarray, classes: np.ndarray) -> int:
        """Return the largest unit of the original within some classes: where one cell is left of a row, both go."""
        here = np.zeros(len(alive), np.int64)
        here[classes] = 1
        taken, inside = (self.graph.solution.closure @ marks for marks in (alive, here))
        return int(np.argmax(np.where((taken == inside) & (self.home >= 0), inside, -1)))

    # -- the next cut ----------------------------------------------------------------------------------

    def plan(
        self,
        left: Left,
        scores: Mapping[str, Any],
        budgets: Mapping[str, float],
        last: Mapping[str, float] | None = None,
    ) -> Plan | None:
        """Return the plan that takes what is left to budgets, shares of the original; None where it is there already.

        Parameters
        ----------
        last : the budgets that the schedule ends with: no group goes below the width that it would have there. The
            cheapest way to spare a little is a channel of the widest layer, and many little cuts would all be that

        Raises
        ------
        InfeasibleBudget, ScoreError
        """
        bounded = self._bounded(left, budgets)
        if last is not None and _further(last, budgets):
            there = self._made(left, self._bounded(left, last), scores, last)
            removed = {group.name: group.removed for group in there.groups} if there is not None else {}
            bounded.groups = [
                replace(g, least=max(g.least, g.size - removed.get(g.name, 0))) if g.pinned is None else g
                for g in bounded.groups
            ]
        return self._made(left, bounded, scores, budgets)

    def _made(
        self, left: Left, bounded: DependencyGraph, scores: Mapping[str, Any], budgets: Mapping[str, float]
    ) -> Plan | None:
        have = self.shares(left)
        if all((have[n] >= asked - 1e-9) if n == "ratio" else have[n] <= asked for n, asked in budgets.items()):
            return None
        try:
            made = make_plan(
                bounded,
                scores,
                **self._asked(left, budgets),
                scope=self.options.scope,
                round_to=self.round_to,
                floor=0.0,
                heads=self.options.heads,
                uniform=self.options.uniform,
            )
        except NothingPrunable:
            return None  # less than one step of any group
        return cast(Plan, made) if cast(Plan, made).cuts else None

    def _asked(self, left: Left, budgets: Mapping[str, float]) -> dict[str, Any]:
        """Return budgets as amounts, and a ratio as one of the units that are left."""
        if "ratio" not in budgets:
            return {name: repr(asked * self.whole[name]) for name, asked in budgets.items()}
        if self.options.scope == "local":
            return {"ratio": ALL}  # limits say how far each group goes
        gone, units = self._units(left)
        here = sum(len(group.units) for group in movable(left.graph, self.options.heads))
        return {"ratio": min(max(budgets["ratio"] * units - gone, 0.0) / max(here, 1), ALL)}

    def _bounded(self, left: Left, budgets: Mapping[str, float]) -> DependencyGraph:
        """Return the graph with the limits of the original's groups; of a local ratio as well."""
        names = self.names(left) if left is not self.uncut else {g.name: g.name for g in self.graph.free}
        sizes = {group.name: group.size for group in self.graph.free}
        local = budgets.get("ratio") if self.options.scope == "local" else None
        bounded = copy.copy(left.graph)
        bounded.groups = []
        for group in left.graph.groups:
            if group.pinned is None:
                name = names[group.name]
                least = max(group.least, self.least[name])
                if local is not None:
                    least = max(least, sizes[name] - int(local * sizes[name] + 1e-9))
                group = replace(group, least=min(least, group.size))
            bounded.groups.append(group)
        return bounded


def _further(last: Mapping[str, float], budgets: Mapping[str, float]) -> bool:
    """Tell whether some budgets ask for more than others of the same names."""
    more = [last.get(n, -1.0) > asked if n == "ratio" else last.get(n, 2.0) < asked for n, asked in budgets.items()]
    return last.keys() == budgets.keys() and all(more)
