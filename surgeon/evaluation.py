"""What a user's evaluation says of a model: one finite number, higher is better."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
from torch import Tensor, nn

from surgeon.errors import EvaluationError
from surgeon.modules import evaluating

Evaluate = Callable[[Any], Any]


def evaluated(model: Any, evaluate: Evaluate, what: str) -> float:
    """Return the value of a model, which is in eval mode meanwhile and in its own modes afterwards.

    Parameters
    ----------
    what : what is evaluated, for the error: "the original", "group 'conv1' with 3 of 8 units cut"

    Raises
    ------
    EvaluationError when ``evaluate`` raises, or returns anything but one finite number.
    """
    with _evaluating(model):
        try:
            value = evaluate(model)
        except Exception as error:
            raise EvaluationError(f"evaluate failed on {what}: {type(error).__name__}: {error}") from error
    return _number(value, what)


def require_callable(name: str, function: Any) -> None:
    """Raise EvaluationError unless a function can be called at all."""
    if not callable(function):
        raise EvaluationError(f"{name} must be a function of the model, not {type(function).__name__}")


def _evaluating(model: Any) -> Any:
    """Exported programs have no modes."""
    return evaluating(model) if isinstance(model, nn.Module) else nullcontext()


def _number(value: Any, what: str) -> float:
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        shape = f" of shape {list(value.shape)}" if hasattr(value, "shape") else ""
        raise EvaluationError(
            f"evaluate returned a {type(value).__name__}{shape} for {what}; return one number, higher is better"
        )
    if not math.isfinite(value):
        raise EvaluationError(
            f"evaluate returned {value} for {what}, which can't be compared; check the model's outputs for NaN, and "
            "return a finite number, higher is better"
        )
    return float(value) + 0.0  # -0.0, the mean of no errors with a minus in front, is shown as 0
