"""Errors that surgeon raises.

SurgeonError
├── TraceError          the forward pass could not be recorded
├── UnsupportedModel    the object is not a module that can be recorded (scripted, ...)
├── ModelNotFound       a name, path or factory on the command line that leads to no model; lists the nearest
├── NothingPrunable     no group is free; lists why for each layer
├── UnknownLayer        a name in ``keep`` or ``groups`` matches no layer; lists the nearest
├── BudgetError         a ratio or budget is malformed or out of range
│   └── InfeasibleBudget    the budget is below what floors and pins leave reachable
├── RuleError           a rule for a custom op is malformed, or the op has one
├── ScoreError          weights or scores that can't be ranked (NaN, wrong length)
├── DataError           calibration data that is empty, not finite, or does not fit the model
├── RecoverError        compensation that can't be made, such as for a model whose calls changed with the cut
├── PlanMismatch        the plan was made for another architecture, or is malformed; names the tensor
├── FileError           a file that is damaged, incomplete or hostile, or can't be written
├── MigrateError        an optimizer's state that can't follow a cut
├── PrunerError         a training loop that a pruner can't cut in: what it was given does not belong together
├── ConvertError        what another tool left that can't be read as a plan; says which values are ambiguous
├── ExportError         a file that can't be written, or that computes something else than the model
├── VerificationError   the small model does not compute what the masked original computes
├── EvaluationError     ``evaluate`` or ``finetune`` failed, or gave no finite number; names the cut
├── AccuracyDrop        no cut stays within ``max_drop``; says how close one came
└── SensitivityError    a file of sensitivities that is damaged, or belongs to another model
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "SurgeonError",
    "TraceError",
    "UnsupportedModel",
    "ModelNotFound",
    "NothingPrunable",
    "UnknownLayer",
    "BudgetError",
    "InfeasibleBudget",
    "RuleError",
    "ScoreError",
    "DataError",
    "RecoverError",
    "PlanMismatch",
    "FileError",
    "MigrateError",
    "PrunerError",
    "ConvertError",
    "ExportError",
    "VerificationError",
    "EvaluationError",
    "AccuracyDrop",
    "SensitivityError",
]


class SurgeonError(Exception):
    """Base of all errors that surgeon raises on purpose."""


class TraceError(SurgeonError):
    """The forward pass could not be recorded."""


class UnsupportedModel(SurgeonError):
    """The object given as a model can't be recorded."""


class ModelNotFound(SurgeonError):
    """A name, path or factory leads to no model."""


class NothingPrunable(SurgeonError):
    """No group of the model may lose a unit."""


class UnknownLayer(SurgeonError):
    """A layer name matches nothing in the model."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        near = get_close_matches(name, list(known), n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
        super().__init__(f"no layer or parameter matches {name!r}{hint}")


class BudgetError(SurgeonError, ValueError):
    """A ratio, floor, multiple or budget is malformed or out of range."""


class InfeasibleBudget(BudgetError):
    """The budget is below what floors and pins leave reachable."""


class RuleError(SurgeonError, ValueError):
    """A rule for a custom op that can't be read, or an op that already has one."""


class ScoreError(SurgeonError):
    """Scores that can't rank units."""


class DataError(SurgeonError, ValueError):
    """Calibration data that can't be used."""


class RecoverError(SurgeonError):
    """What was cut can't be compensated."""


class PlanMismatch(SurgeonError):
    """The plan was made for another architecture, or is no plan."""


class FileError(SurgeonError):
    """A file can't be read, is not what it should be, or can't be written."""


class MigrateError(SurgeonError):
    """An optimizer's state that can't follow a cut."""


class PrunerError(SurgeonError):
    """A pruner was given what does not belong together, or is called where it can't work."""


class ConvertError(SurgeonError):
    """What another tool left that can't be read as a plan."""


class ExportError(SurgeonError):
    """A file that can't be written, or that computes something else than the model."""


class VerificationError(SurgeonError):
    """The small model does not compute what the masked original computes."""


class EvaluationError(SurgeonError):
    """A function of the user's failed on a model, or did not return one finite number."""


class AccuracyDrop(SurgeonError):
    """Even the mildest cut loses more than ``max_drop``.

    ``evaluations`` holds what was tried, a ``surgeon.guard.Evaluations``.
    """

    def __init__(self, message: str, evaluations: object = None) -> None:
        super().__init__(message)
        self.evaluations = evaluations


class SensitivityError(SurgeonError):
    """A file of sensitivities that can't be read, or that belongs to another run."""
