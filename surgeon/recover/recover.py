"""The stage verb: compensate a cut."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from surgeon.calibrate import calibration, noise, size
from surgeon.errors import DataError, PlanMismatch, RecoverError
from surgeon.exported import Program
from surgeon.modules import bare, buffers_kept, entering, named_tensors
from surgeon.plan.plan import Plan
from surgeon.progress import tracked, working
from surgeon.recover.fold import Folds
from surgeon.recover.gather import Limits
from surgeon.recover.norms import Renormed, renorm
from surgeon.recover.refit import Refit, refit

# Samples of noise that weights are judged on which are found without data, and how many go through the models at once.
JUDGES, BATCH = 64, 64
METHODS = ("auto", "bias", "merge", "noise", "norms", "ridge")


@dataclass(frozen=True)
class Recovery:
    """What compensation did, layer by layer, and the samples that it was fitted to and judged on: data, or noise.

    Examples
    --------
    >>> recovery = surgeon.recover(model, small, plan, batches)
    >>> for layer in recovery.layers:
    ...     print(layer)
    """

    method: str
    layers: tuple[Refit | Renormed, ...]
    samples: int = 0
    noisy: bool = False

    def __str__(self) -> str:
        taken = sum(layer.taken for layer in self.layers)
        kind = "samples of noise" if self.noisy else "samples"
        return f"{self.method}: {taken} of {len(self.layers)} layers compensated, {self.samples} {kind}"


def recover(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    data: Iterable[Any] | None = None,
    *,
    method: str = "auto",
    example_inputs: Any = None,
    samples: int = 512,
    rows: int = 65536,
    memory: float = 2**28,
    seed: int = 0,
) -> Recovery:
    """Win back what a cut lost, without training, by refitting what stays of the small model in place.

    Parameters
    ----------
    model, small : the original, and what ``operate`` made of it by the plan
    data : batches without labels (of a tuple or list, the first item counts); 128 to 512 samples are enough
    method : "ridge" refits every layer behind the cut, from input to output, to what the original makes there; "bias"
        folds the means of what is cut into offsets, as the statistics of norms tell them; "merge" also adds what is cut
        to what is like it; "noise" is "ridge" on noise in place of data; "norms" estimates statistics of batch norms
        anew, and nothing else; "auto" is "ridge" where there is data and "merge" where there is none. What a layer
        gets is taken only where it is better on samples held out: of the data, or of noise where there is none
    example_inputs : what noise is made of where there is no data, as for ``trace``
    samples : how many samples of the data are read at most
    rows : most positions of a layer that one fit uses
    memory : bytes that rows or second moments of one layer may take; above it, a convolution is fitted to channels
        instead of channels at every tap, and above it still, only means are met

    Returns
    -------
    Recovery with a record for every layer.

    Raises
    ------
    DataError for data that is missing, empty or not finite, or that the model fails on; RecoverError where layers
    can't be compared; PlanMismatch for models that the plan is not about.

    Examples
    --------
    >>> small = surgeon.operate(model, plan)
    >>> print(surgeon.recover(model, small, plan, batches))
    """
    check_method(method)
    model, small = bare(model), bare(small)
    _check_pair(model, small, plan)
    method = ("merge" if data is None else "ridge") if method == "auto" else method
    if data is None and method in ("ridge", "norms"):
        raise DataError(f"method {method!r} needs data: some batches without labels")
    if data is None and example_inputs is None:
        raise DataError(f"method {method!r} needs data, or example_inputs to make noise of")
    if method == "norms" and isinstance(model, Program):
        raise RecoverError("an exported program has no training mode, in which batch norms are estimated; try 'ridge'")
    noisy = data is None or method == "noise"
    with torch.no_grad(), entering(plan.method, model, small), working("compensating"):
        if noisy:
            given = example_inputs if example_inputs is not None or data is None else calibration(data, 2)[0]
            fixed = isinstance(model, Program) and model.fixed
            many = samples if method == "noise" else min(samples, JUDGES)
            batches = noise(given, many, size(given) if fixed else BATCH, seed)
        else:
            assert data is not None
            batches = calibration(data, samples)
        many = sum(map(size, batches))
        if method == "norms":
            with buffers_kept(model):
                return Recovery(method, tuple(renorm(model, small, batches)), many)
        folds = partial(Folds, merge=method == "merge") if method in ("bias", "merge") else None
        track = partial(tracked, text="compensating")
        limits = Limits(rows, memory)
        found = refit(model, small, plan, batches, limits, seed, proposals=folds, measured=not noisy, track=track)
    return Recovery(method, tuple(found), many, noisy)


def _check_pair(model: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Raise PlanMismatch unless the plan made one model of the other."""
    for what, each, which in (("the original", model, "shape"), ("the small model", small, "new_shape")):
        tensors = named_tensors(each)
        for name, cut in plan.cuts.items():
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != getattr(cut, which):
                raise PlanMismatch(
                    f"{what} is not of this plan: {name} is {found and list(found)}, not {list(getattr(cut, which))}; "
                    "pass the original first, and what operate made of it"
                )


def check_method(method: str) -> None:
    """Raise RecoverError for a method that there is not."""
    if method not in METHODS:
        raise RecoverError(f"there is no compensation {method!r}; choose one of {', '.join(METHODS)}, or None")
