"""FLOPs as fvcore counts them: one multiply-add counts one."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.dispatch import intercept, unfused
from surgeon.exported import Program
from surgeon.modules import Model, as_arguments, bare, entering, evaluating, tensors_in
from surgeon.progress import working


@dataclass(frozen=True)
class Count:
    """What fvcore counted: total multiply-adds, by module, and the ops that it does not know."""

    total: float
    by_module: dict[str, float] = field(default_factory=dict)
    uncounted: dict[str, int] = field(default_factory=dict)
    failed: str = ""

    def __str__(self) -> str:
        return self.failed or f"{self.total:.6g} multiply-adds"


class _Flat(nn.Module):
    """A model with tensors in and tensors out, which is all that tracing takes."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.args, self.kwargs = model, args, kwargs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        queue = list(tensors)
        args = tuple(queue.pop(0) if isinstance(a, Tensor) else a for a in self.args)
        kwargs = {k: queue.pop(0) if isinstance(v, Tensor) else v for k, v in self.kwargs.items()}
        return tuple(tensors_in(self.model(*args, **kwargs)))


def _as_is(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


@working("counting FLOPs")
def count_flops(model: Model, example_inputs: Any, *, method: str = "forward") -> Count:
    """Count a forward pass with fvcore, in eval mode; where it can't trace the model, say why."""
    model = bare(model)
    args, kwargs = as_arguments(example_inputs)
    tensors = tuple(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore scripts a function on import, which torch deprecates
        from fvcore.nn import FlopCountAnalysis
    # The operators of an exported program reach fvcore as the torch functions that they stand for.
    spelled = intercept(_as_is) if isinstance(model, Program) else unfused()
    analysis = FlopCountAnalysis(_Flat(model, args, kwargs), tensors)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    log = logging.getLogger("fvcore.nn.jit_analysis")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad(), evaluating(model), entering(method, model), spelled:
            warnings.simplefilter("ignore")
            modules = {
                name.removeprefix("model").lstrip("."): float(n) for name, n in analysis.by_module().items() if name
            }
            missing: Counter[str] = analysis.unsupported_ops()
            return Count(float(analysis.total()), modules, dict(missing))
    except Exception as error:
        return Count(
            float("nan"), failed=f"fvcore can't trace this model: {type(error).__name__}: {str(error).splitlines()[0]}"
        )
    finally:
        log.setLevel(level)
