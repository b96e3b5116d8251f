"""What can be told to be wrong before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.export import ExportedProgram
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.weak import TensorWeakRef

from surgeon.errors import DataError, PlanMismatch, PrunerError, ScoreError
from surgeon.modules import bare, named_tensors
from surgeon.plan import Plan
from surgeon.pruner.gradients import CRITERIA
from surgeon.schedule import Schedule, described
from surgeon.score import CRITERIA as KNOWN


def trainable(model: Any) -> nn.Module:
    """Return the model; refuse wrappers, and what can't be trained.

    Raises
    ------
    PrunerError, UnsupportedModel
    """
    kind = type(model).__name__
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        raise PrunerError(
            f"the pruner cuts the model inside of {kind}: give it model.module, train through the wrapper, and after "
            "each cut go on with a new one: if pruner.step(): model = surgeon.pruner.rewrap(model)"
        )
    if hasattr(model, "_orig_mod"):
        raise PrunerError(
            "the pruner cuts the model that torch.compile was given: give it model._orig_mod, and train through the "
            "compiled one, which compiles again after each cut"
        )
    if isinstance(model, ExportedProgram) or not isinstance(model, nn.Module):
        raise PrunerError(f"a {kind} is no torch.nn.Module that trains; give the module itself")
    sharded = next((name for name, p in model.named_parameters() if hasattr(p, "device_mesh")), None)
    if sharded is not None:
        raise PrunerError(f"{sharded} is sharded over processes; cut before the model is sharded")
    return bare(model)


def check_options(schedule: Any, criterion: Any, gradients: Any, data: Any, loss: Any) -> None:
    """Refuse what does not fit together.

    Raises
    ------
    PrunerError, ScoreError, DataError
    """
    if not isinstance(schedule, Schedule):
        raise PrunerError(
            f"schedule={schedule!r:.60} is no schedule; write surgeon.schedule.gradual(flops=0.4, steps=1000, "
            "every=100), or surgeon.schedule.custom(function, ...) for a function of progress"
        )
    if isinstance(gradients, bool) or not isinstance(gradients, int) or gradients < 1:
        raise PrunerError(f"gradients={gradients!r} is a number of training steps, at least 1")
    if not isinstance(criterion, str):
        if not callable(criterion):
            raise ScoreError(f"criterion={criterion!r:.60} is neither a name nor a callable (graph, group) -> scores")
        return
    if criterion not in KNOWN:
        raise ScoreError(
            f"unknown criterion {criterion!r}; choose one of {', '.join(sorted(KNOWN))}, or pass a callable"
        )
    if isinstance(data, Iterator):
        raise DataError("data= is read again at every cut: give a list of batches or a DataLoader, not a generator")
    options = _options(KNOWN[criterion])
    if criterion not in CRITERIA and "data" in options and data is None:
        raise ScoreError(f"criterion {criterion!r} looks at data: give data=, a list of batches")
    if "loss" in options and (data is None) != (loss is None):
        raise ScoreError(f"criterion {criterion!r} takes data= and loss= together, or neither of them")
    if "loss" not in options and loss is not None:
        raise ScoreError(f"criterion {criterion!r} takes no loss")
    if "data" not in options and data is not None:
        raise ScoreError(f"criterion {criterion!r} takes no data")
    if criterion == "synflow":
        raise ScoreError("criterion 'synflow' prunes before training; use surgeon.prune for that")


def _options(criterion: Callable[..., Any]) -> tuple[str, ...]:
    code = criterion.__code__
    return code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]


def check_state(state: Any, schedule: Schedule, gradients: bool) -> None:
    """Refuse a state that is none, or that another pruner left.

    Raises
    ------
    PrunerError
    """
    keys = {"version", "step", "schedule", "plan", "history", "gradients", "masks"}
    if not isinstance(state, Mapping) or not keys <= state.keys() or state["version"] != 1:
        raise PrunerError("this is no state of a pruner of this version; load what pruner.state_dict() returned")
    if dict(state["schedule"]) != schedule.state_dict():
        raise PrunerError(
            f"the state was saved under {described(state['schedule'])}, and this pruner follows {schedule}; make it "
            "with the schedule of the run that it goes on with"
        )
    if (state["gradients"] is not None) != gradients:
        raise PrunerError("the state was saved by a pruner with another kind of criterion; make it with the same one")


def check_size(model: nn.Module, plan: Plan) -> None:
    """Raise PlanMismatch for a model of another size than the one that a plan was made for."""
    tensors = named_tensors(model)
    for name, shape in plan.fingerprint.items():
        found = list(tensors[name].shape) if name in tensors else "missing"
        if found != list(shape):
            raise PlanMismatch(
                f"{name} is {found} here, and was {list(shape)} when the run began: a pruner's state goes into a model "
                "of the original's size, before the model's own state"
            )


class Steps:
    """Tells a training step from none, and the model from another one, by what training changes.

    A step changes weights in place, or at least the gradients, where a scaler skips the optimizer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[str, nn.Parameter] = {}
        self._seen: _Marks | None = None
        self._begun = 0
        self.note(model, changed=True)
        self._seen = None

    def check(self, model: nn.Module) -> None:
        """Raise PrunerError where the model's parameters are others, or nothing has happened since the last call."""
        known = self._names
        for name, p in model.named_parameters():
            if known.get(name) is not p:
                before = known.get(name)
                what = "is new" if before is None else f"was replaced ({list(before.shape)} -> {list(p.shape)})"
                raise PrunerError(
                    f"the model was changed under the pruner: {name} {what}. Load weights with load_state_dict, which "
                    "keeps the parameters, and make a new Pruner for a model that was changed"
                )
        now = self._marks()
        if now.gradients and now == self._seen:
            raise PrunerError(
                "nothing has changed since the last pruner.step(), neither weights nor gradients: it is called once "
                "per training step, after optimizer.step()"
            )

    def check_trained(self) -> None:
        """Raise PrunerError before a cut where nothing has ever changed since there are these parameters."""
        now = self._marks()
        if not now.gradients and now.writes == self._begun:
            raise PrunerError(
                "a cut is due, but no weight has changed since the pruner was made, and there are no gradients: it "
                "needs the very model that trains, not a copy"
            )

    def note(self, model: nn.Module, changed: bool) -> None:
        """Remember the state after a step.

        Parameters
        ----------
        changed : the parameters are new ones
        """
        if changed:
            self._names = dict(model.named_parameters())
            self._begun = self._marks().writes
        self._seen = self._marks()

    def _marks(self) -> _Marks:
        """Return a number that grows with each write to a weight, and which gradients there are, in which state.

        Gradients are compared as objects: a new one may lie at the address of an old one, and is none of its writes.
        """
        slopes = [p.grad for p in self._names.values() if p.grad is not None]
        writes = sum(p._version for p in self._names.values())
        return _Marks(writes, [(_Same(TensorWeakRef(slope)), slope._version) for slope in slopes])

    def __str__(self) -> str:
        return f"{len(self._names)} parameters"


@dataclass(frozen=True)
class _Marks:
    """How often weights were written to, and the gradients with how often each was."""

    writes: int
    gradients: list[tuple[_Same, int]]


class _Same:
    """A tensor that is not kept alive, equal to itself alone, and to nothing once it is gone."""

    def __init__(self, ref: TensorWeakRef) -> None:
        self.ref = ref

    def __eq__(self, other: object) -> bool:
        mine = self.ref()
        return mine is not None and isinstance(other, _Same) and other.ref() is mine

    __hash__ = None  # type: ignore[assignment]
