"""The state that optimizers keep for a parameter, and how it is cut along with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim

from surgeon.errors import MigrateError
from surgeon.operate.select import factors, select
from surgeon.plan.plan import Plan

ADAM = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}

# What each optimizer keeps in the shape of the parameter, and the power of the gradient that it grows with: where a
# weight is multiplied by f, its gradient is divided by f. What grows with the weight itself has power -1.
POWERS: dict[type[optim.Optimizer], dict[str, int]] = {
    optim.SGD: {"momentum_buffer": 1},
    optim.Adam: ADAM,
    optim.AdamW: ADAM,
    optim.NAdam: ADAM,
    optim.RAdam: ADAM,
    optim.SparseAdam: ADAM,
    optim.Adamax: {"exp_avg": 1, "exp_inf": 1},
    optim.Adagrad: {"sum": 2},
    optim.Adadelta: {"square_avg": 2, "acc_delta": -2},
    optim.RMSprop: {"square_avg": 2, "grad_avg": 1, "momentum_buffer": 0},
    optim.Rprop: {"prev": 1, "step_size": 0},
    optim.ASGD: {"ax": -1},
}
ADAFACTOR = {"variance": 2}
# Newer than the oldest torch that is supported.
for _name, _powers in {"Muon": {"momentum_buffer": 1}, "Adafactor": ADAFACTOR}.items():
    if hasattr(optim, _name):
        POWERS[getattr(optim, _name)] = _powers

# What torch's Adafactor keeps of a matrix: means of squares along its last dimension, and along the one before.
MEANS = {"row_var": -1, "col_var": -2}

REFUSED = {
    optim.LBFGS: "its history describes the curvature of the larger model as one vector; make a new LBFGS of "
    "small.parameters()",
}


def powers(optimizer: optim.Optimizer, given: Mapping[str, float] | None) -> Mapping[str, float] | None:
    """Return what is known of an optimizer's state; None for an optimizer that nothing is known of.

    Raises MigrateError for optimizers whose state can't be cut.
    """
    for kind in type(optimizer).__mro__:
        if kind in REFUSED:
            raise MigrateError(f"{type(optimizer).__name__} can't be migrated: {REFUSED[kind]}")
    if given is not None:
        return given
    return next((POWERS[kind] for kind in type(optimizer).__mro__ if kind in POWERS), None)


def cut_state(
    state: Mapping[str, Any],
    old: nn.Parameter,
    plan: Plan,
    name: str,
    known: Mapping[str, float] | None,
    kind: str,
) -> dict[str, Any]:
    """Return what is left of a parameter's state.

    Parameters
    ----------
    state : the optimizer's state of the parameter, ``[*shape]`` and scalars
    known : state of the parameter's shape -> power of the gradient
    kind : name of the optimizer, for errors

    Raises
    ------
    MigrateError for state that nothing is known of.
    """
    if name not in plan.cuts:
        return dict(state)
    found = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            found[key] = value
        elif known is not None and key in known and value.shape == old.shape and type(value) is Tensor:
            found[key] = _cut(value, plan, name, known[key])
        elif key in MEANS and known is ADAFACTOR:
            found[key] = _cut_means(state, key, old, plan, name)
        else:
            raise MigrateError(
                f"{kind} keeps {key!r} of shape {list(value.shape)} for {name} of shape {list(old.shape)}, and it is "
                "not known how that follows a cut; where it has an entry for every weight, say how it grows with the "
                f"gradient: state={{{key!r}: 1}}, 2 for squares; otherwise make a new optimizer"
            )
    return found


def _cut(value: Tensor, plan: Plan, name: str, power: float) -> Tensor:
    kept = select(value, plan.cuts[name])
    for factor in factors(value, plan, name) if power else ():
        kept /= factor**power
    return kept


def _cut_means(state: Mapping[str, Any], key: str, old: nn.Parameter, plan: Plan, name: str) -> Tensor:
    """Cut one factor of the second moments ``v[i, j] = row[i] col[j] / mean(row)`` so that v stays what it was.

    Where the dimension that the mean was taken along shrinks, the mean is that of the survivors, by the other factor.
    """
    cut = plan.cuts[name]
    averaged, other = (MEANS[k] % old.dim() for k in (key, *(set(MEANS) - {key})))
    if any(len(s.dims) > 1 for s in cut.selections) or any(scale.parameter == name for scale in plan.scales):
        raise MigrateError(
            f"Adafactor keeps row and column means for {name} of shape {list(old.shape)}, which the plan cuts row by "
            "row, or multiplies; make a new Adafactor"
        )
    kept, along = state[key], state[next(k for k in MEANS if k != key)]
    for s in cut.selections:
        index = torch.from_numpy(s.keep).to(kept.device)
        dim = s.dims[0]
        if dim == averaged:
            whole = along.mean(dim=averaged, keepdim=True)
            left = along.index_select(averaged, index).mean(dim=averaged, keepdim=True)
            kept = kept * torch.where(whole > 0, left / whole, torch.ones_like(whole))
        else:
            kept = kept.index_select(dim, index)
        if dim not in (averaged, other):
            along = along.index_select(dim, index)
    return kept.clone()
