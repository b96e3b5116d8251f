"""The pruner: called once per training step, it cuts when the schedule says so."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from surgeon.api import trace
from surgeon.errors import PrunerError, ScoreError
from surgeon.graph import DependencyGraph
from surgeon.operate import operate
from surgeon.plan import Plan
from surgeon.pruner.following import Following
from surgeon.pruner.gradients import CRITERIA, Gradients
from surgeon.pruner.guards import Steps, check_options, check_size, check_state, trainable
from surgeon.pruner.masks import Masks
from surgeon.pruner.original import Left, Options, Original
from surgeon.pruner.ranks import Ranks
from surgeon.pruner.records import Cut
from surgeon.schedule import Amount, Schedule, shares
from surgeon.score import score
from surgeon.score.score import Scores
from surgeon.verify import Proof, verify

logger = logging.getLogger("surgeon.pruner")


class Pruner:
    """Cuts a model while it trains, in place, and takes its optimizer and averages along.

    Call ``step`` once per training step, after ``optimizer.step()`` and before ``optimizer.zero_grad()``. Budgets are
    shares of the original, and so are floors and limits, however often is cut. The model is traced once; after a cut
    the graph is updated, and equals that of a new trace.

    Parameters
    ----------
    model : the module that trains, without the wrappers of DDP or ``torch.compile``
    example_inputs : a tensor, a tuple of positional arguments, or a dict of keyword arguments; one sample is enough
    schedule : of ``surgeon.schedule``, such as ``surgeon.schedule.gradual(flops=0.4, steps=1000, every=100)``
    criterion : a name such as "l1", or a callable ``(graph, group) -> Tensor[units]``. "taylor", "taylor_squared",
        "fisher" and "gradient" read the gradients that the loop has left on the parameters, unless there is ``data``
    optimizer : the optimizer, or a list of them; schedulers of learning rates and ``GradScaler`` need nothing done.
        None says that there is none, or that you migrate it yourself with ``cut.plan``
    ema : an ``AveragedModel``, a copy of the model that holds averages, a state dict of averages, or a list of these
    keep, method : as in ``surgeon.trace``
    scope, round_to, floor, groups, heads, uniform : as in ``surgeon.plan``; ``groups`` gives the largest share that
        may go
    check : prove each cut before it is made, on the example inputs: a cut that can't be proved is an error, and changes
        nothing
    soft : mask units first, so that they may come back, and cut at the end of the schedule, or when ``cut`` is called
    gradients : over how many training steps before a cut the mean of a gradient criterion is taken
    data, loss : for criteria that look at data: see ``surgeon.score``
    state : for optimizers that aren't torch's: see ``surgeon.migrate``
    process_group : the processes that train this model together; None is the default group

    Attributes
    ----------
    graph : the dependency graph of the model as it is
    plan : one plan from the original to the model as it is; None before the first cut
    history : the cuts so far, each a ``Cut``

    Raises
    ------
    PrunerError for a wrapped model, or an optimizer or average of another one; InfeasibleBudget for a schedule that
    asks for more than can be reached, and what ``surgeon.trace`` raises

    Examples
    --------
    >>> schedule = surgeon.schedule.gradual(flops=0.4, steps=1000, every=100)
    >>> pruner = surgeon.Pruner(model, x, schedule, optimizer=optimizer)
    >>> for batch in loader:
    ...     loss(model, batch).backward()
    ...     optimizer.step()
    ...     pruner.step()
    ...     optimizer.zero_grad()
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        schedule: Schedule,
        *,
        criterion: Any = "l1",
        optimizer: Any,
        ema: Any = None,
        keep: Iterable[Any] = (),
        method: str = "forward",
        scope: str = "global",
        round_to: int | str = 1,
        floor: float = 0.1,
        groups: Mapping[str, Any] | None = None,
        heads: bool | str = False,
        uniform: bool = False,
        check: bool = True,
        soft: bool = False,
        gradients: int = 8,
        data: Iterable[Any] | None = None,
        loss: Any = None,
        state: Mapping[str, float] | None = None,
        process_group: Any = None,
    ) -> None:
        self.model, self.schedule, self.check, self.soft = trainable(model), schedule, check, soft
        check_options(schedule, criterion, gradients, data, loss)
        self.criterion, self.example_inputs = criterion, example_inputs
        self.score_options = {name: value for name, value in (("data", data), ("loss", loss)) if value is not None}
        self.following = Following(model, optimizer, ema, state)
        options = Options(scope, round_to, floor, groups, heads, uniform)
        self.original = Original(trace(model, example_inputs, keep=keep, method=method), options)
        self.original.require_reachable(schedule.at(schedule.end, self.original.whole))
        self.left: Left = self.original.uncut
        self.ranks = Ranks(process_group)
        reads = isinstance(criterion, str) and criterion in CRITERIA and data is None
        self.gradients = Gradients(criterion) if reads else None
        self.window = gradients
        self.taken, self._looked = 0, 0
        self.plan: Plan | None = None
        self.history: list[Cut] = []
        self.masks = Masks()
        self.steps = Steps(model)

    # -- looking -----------------------------------------------------------------------------------------

    @property
    def graph(self) -> DependencyGraph:
        """The dependency graph of the model as it is."""
        return self.left.graph

    @property
    def done(self) -> bool:
        """Whether the schedule is over."""
        return self.taken >= self.schedule.end

    def due(self) -> bool:
        """Tell whether the next call of ``step`` is one at which the schedule cuts."""
        return self.schedule.due(self.taken + 1)

    def shares(self) -> dict[str, float]:
        """Return what remains of the original's "flops", "params" and "memory", and the "ratio" of units that went."""
        return self.original.shares(self.left)

    def __str__(self) -> str:
        left = self.shares()
        return (
            f"Pruner(step {self.taken}, {len(self.history)} cuts, {left['flops']:.3f} of the FLOPs and "
            f"{left['params']:.3f} of the parameters left; {self.schedule})"
        )

    __repr__ = __str__

    # -- cutting -----------------------------------------------------------------------------------------

    def step(self) -> Cut | None:
        """Count a training step, and cut if one is due; returns what was cut, and None where the model is as it was.

        Nothing is changed where an error is raised. With ``soft``, units are masked, and cut at the end of the
        schedule.

        Raises
        ------
        PrunerError where it is called in the wrong place, or model and optimizer do not belong together any more;
        what ``surgeon.plan`` raises, and VerificationError for a cut that can't be proved
        """
        now = self.taken + 1
        self.steps.check(self.model)
        self._look(now)
        due = self.schedule.due(now)
        if due:
            self.steps.check_trained()
        made = self._due(now) if due else None
        if due and self.gradients is not None:
            self.gradients.clear()
        self.masks.apply(self.model, self.following.optimizers)
        self._taken(now, made)
        return made

    def cut(self, **budgets: Amount) -> Cut | None:
        """Cut now, whatever the schedule says: to ``flops``, ``params`` or ``memory``, or by a ``ratio``.

        Parameters
        ----------
        budgets : as in ``surgeon.schedule``; without any, cut what is masked, or else what the schedule asks for now

        Raises
        ------
        InfeasibleBudget, and what ``step`` raises
        """
        asked = self.schedule.at(self.taken, self.original.whole)
        if self.masks.plan is not None and not budgets:
            self.following.check(self.model)
            self.ranks.agree(self.masks.plan, self.taken)
            made: Cut | None = self._make(self.masks.plan, asked, self.taken)
        else:
            asked = shares(budgets, self.original.whole) if budgets else asked
            self.original.require_reachable(asked)
            if self.gradients is not None and not self.gradients.count:
                self.gradients.add(self.graph)
            made = self._cut(asked, self.taken)
        if made is not None and self.gradients is not None:
            self.gradients.clear()
        self._taken(self.taken, made)
        return made

    def _taken(self, now: int, made: Cut | None) -> None:
        self.taken = now
        self.steps.note(self.model, changed=made is not None)

    def _due(self, now: int) -> Cut | None:
        asked = self.schedule.at(now, self.original.whole)
        if self.soft and now < self.schedule.end:
            self._mask(asked, now)
            return None
        return self._cut(asked, now)

    # -- deciding ----------------------------------------------------------------------------------------

    def _look(self, now: int) -> None:
        """Take the gradients of this step into account, if a cut is near; once, also where the step is tried again."""
        coming = self.schedule.next(now)
        if self.gradients is None or coming is None or coming - now >= self.window or self._looked == now:
            return
        self.gradients.add(self.graph)
        self._looked = now

    def _scores(self) -> Mapping[str, Tensor]:
        if self.gradients is not None:
            return self.ranks.mean(self.gradients.scores())
        try:
            return score(self.graph, self.criterion, **self.score_options)
        except ScoreError as error:
            raise ScoreError(f"{error} (at step {self.taken + 1} of training)") from error

    def _decide(self, asked: Mapping[str, float], now: int) -> tuple[Plan | None, Mapping[str, Tensor]]:
        """Plan on all processes alike; returns the plan, and the scores that it was made from."""
        self.following.check(self.model)
        name = self.criterion if isinstance(self.criterion, str) else getattr(self.criterion, "__qualname__", "given")
        scores = Scores(self.masks.ranked(self.graph, self._scores()), name)
        plan = self.original.plan(self.left, scores, asked)
        self.ranks.agree(plan, now)
        if plan is None:
            logger.debug("step %d: nothing to cut for %s", now, dict(asked))
        return plan, scores

    # -- acting ------------------------------------------------------------------------------------------

    def _mask(self, asked: Mapping[str, float], now: int) -> None:
        plan, scores = self._decide(asked, now)
        if plan is None:
            return
        before, ranked = self.masks.plan, self.masks.scores
        self.masks.set(self.model, plan, scores)
        if plan.masked:
            try:
                self.masks.compare(self.model, self.example_inputs, self.graph.method)
            except PrunerError:
                self.masks.set(self.model, before, ranked)
                raise
        removed, flops = sum(g.removed for g in plan.groups), plan.totals["flops"][1]
        logger.info("step %d: %d units masked, %.3f of the FLOPs left without them", now, removed, self._share(flops))

    def _share(self, flops: float) -> float:
        return flops / (self.original.whole["flops"] or 1.0)

    def _cut(self, asked: Mapping[str, float], now: int) -> Cut | None:
        """Cut to budgets: plan, agree, prove, and only then change anything."""
        plan, scores = self._decide(asked, now)
        if plan is None:
            return None
        before, ranked = self.masks.plan, self.masks.scores
        if before is None:
            return self._make(plan, asked, now)
        self.masks.set(self.model, plan, scores)
        try:
            return self._make(plan, asked, now)
        except Exception:
            self.masks.set(self.model, before, ranked)
            raise

    def _make(self, plan: Plan, asked: Mapping[str, float], now: int) -> Cut:
        self.following.rehearse(self.model, plan)
        proof = self._proof(plan) if self.check else None
        whole = plan if self.plan is None else self.plan.then(plan)
        self._replace(plan, whole)
        cut = Cut(now, dict(asked), self.shares(), sum(g.removed for g in plan.groups), plan, proof)
        self.history.append(cut)
        logger.info("%s", cut)
        return cut

    def _proof(self, plan: Plan) -> Proof:
        return verify(self.model, operate(self.model, plan), plan, self.example_inputs)

    def _replace(self, plan: Plan, whole: Plan) -> None:
        """Carry a plan out on the model and all that follows it."""
        left = self.left.without(plan)
        operate(self.model, plan, inplace=True)
        self.following.follow(self.model, plan)
        self.left = left()
        self.plan = whole
        self.masks.clear()

    # -- state -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a killed run needs to go on, as plain data and tensors: ``torch.load`` takes it as weights only.

        It holds the composed plan, not weights: save it beside the state dicts of the model and the optimizer.
        """
        return {
            "version": 1,
            "step": self.taken,
            "schedule": self.schedule.state_dict(),
            "plan": None if self.plan is None else self.plan.to_json(compact=True),
            "history": [cut.state_dict() for cut in self.history],
            "gradients": None if self.gradients is None else self.gradients.state_dict(),
            "masks": self.masks.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where an earlier process was: cut the model as far, and its optimizer and averages with it.

        Make model, optimizer and pruner as that process did, at the original's size; load this state; then load the
        states of the model, the optimizer, averages and schedulers, which now fit. What follows is bit for bit what the
        process would have done, if its random state is restored as well.

        Parameters
        ----------
        state : of ``state_dict``

        Raises
        ------
        PrunerError for another schedule, or a model that was cut otherwise; PlanMismatch for another architecture
        """
        check_state(state, self.schedule, self.gradients is not None)
        plan = None if state["plan"] is None else Plan.from_json(state["plan"])
        if self.plan is not None and self.plan != plan:
            raise PrunerError(
                "this pruner has cut its model already, and otherwise than the state says; load the state into a new "
                "Pruner around a model of the original size"
            )
        if plan is not None and self.plan is None:
            check_size(self.model, plan)
            self.following.rehearse(self.model, plan)
            self._replace(plan, plan)
        self.history = [Cut(**record) for record in state["history"]]
        if self.gradients is not None:
            self.gradients.load_state_dict(state["gradients"])
        self.masks.load_state_dict(self.model, state["masks"])
        self.taken = int(state["step"])
        self.steps = Steps(self.model)


__all__ = ["Pruner"]
