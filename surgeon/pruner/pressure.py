"""The regularizer of a pruner: it follows the cuts, and presses on what the next one will take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surgeon.errors import PrunerError
from surgeon.plan import Plan
from surgeon.regularize import Regularizer
from surgeon.score import score

if TYPE_CHECKING:
    from surgeon.pruner.pruner import Pruner


class Pressure:
    """A regularizer on the graph of the model as it is.

    "growing" starts anew after each cut, on the units that the schedule's next cut would take by L1 if it came now.
    """

    def __init__(self, pruner: Pruner, given: str | Mapping[str, Any]) -> None:
        self.pruner = pruner
        self.options: dict[str, Any] = {"kind": given} if isinstance(given, str) else dict(given)
        self.options.setdefault("heads", pruner.original.options.heads)
        self.grows = self.options.get("kind") == "growing"
        self.since = 0
        try:
            self.regularizer = Regularizer(pruner.graph, **self.options, plan={} if self.grows else None)
        except TypeError as error:
            raise PrunerError(f"regularizer={given!r}: {error}; see surgeon.Regularizer for the options") from error
        self.chosen = not self.grows

    def __str__(self) -> str:
        return str(self.regularizer)

    def now(self) -> Regularizer:
        """Return the regularizer of the model as it is."""
        graph = self.pruner.graph
        if self.regularizer.sums.graph is graph and self.chosen:
            return self.regularizer
        plan = self._coming() if self.grows else None
        self.regularizer.follow(graph, plan)
        self.since, self.chosen = self.pruner.taken, True
        self.regularizer.calls = 0
        return self.regularizer

    def step(self, taken: int) -> None:
        """Say how many training steps were taken."""
        self.regularizer.calls = taken - self.since

    def _coming(self) -> Plan | Mapping[str, Any]:
        """Return what the next cut would take, nothing where none is due."""
        pruner = self.pruner
        step = pruner.schedule.next(pruner.taken + 1)
        if step is None:
            return {}
        asked = pruner.schedule.at(step, pruner.original.whole)
        return pruner.original.plan(pruner.left, score(pruner.graph, "l1"), asked) or {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a killed run needs to go on."""
        return {"since": self.since, "chosen": self.chosen, **self.regularizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on where an earlier process was; the model is cut as far already."""
        if state is None:
            raise PrunerError("the state was saved by a pruner without a regularizer; make it without one")
        self.regularizer.follow(self.pruner.graph, {} if self.grows else None)
        self.regularizer.load_state_dict(state)
        self.since, self.chosen = int(state["since"]), bool(state["chosen"])
