"""Which parameter became which, in the cuts of this process: what is needed to follow an optimizer's parameters."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from surgeon.modules import named_tensors
from surgeon.plan.plan import Plan


@dataclass(frozen=True, eq=False)
class Descent:
    """What one cut made of a parameter.

    small  the model that the cut made, as long as it lives
    new    the parameter's successor, of a cut in place; in a copy it is found by name
    """

    plan: Plan
    name: str
    small: weakref.ref[nn.Module]
    new: nn.Parameter | None = None

    def __str__(self) -> str:
        return f"{self.name} in {type(self.small()).__name__}"

    def of(self, plan: Plan) -> bool:
        """Tell whether the cut was by this plan."""
        return self.plan is plan or self.plan == plan

    @property
    def successor(self) -> nn.Parameter | None:
        """The parameter that came of it; None where the small model is gone, or has no parameter of that name."""
        if self.new is not None:
            return self.new
        small = self.small()
        return parameters(small).get(self.name) if small is not None else None


# Parameter -> its descents. Successors never refer to their ancestors, so an entry goes with its parameter.
_descents = WeakIdKeyDictionary()


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return parameters under all their names."""
    return cast(dict[str, nn.Parameter], named_tensors(model, ("_parameters",)))


def remember(before: Mapping[str, nn.Parameter], small: nn.Module, plan: Plan, inplace: bool) -> None:
    """Note what a cut made of every parameter of a model; in place, of those that it replaced."""
    after = parameters(small)
    for name, old in before.items():
        new = after[name]
        if inplace and new is old:
            continue
        known = [d for d in descents(old) if d.small() is not None]
        _descents[old] = [*known, Descent(plan, name, weakref.ref(small), new if inplace else None)]


def descents(old: nn.Parameter) -> Iterator[Descent]:
    """Yield what became of a parameter, oldest cut first."""
    yield from _descents.get(old, ())


def plan_between(original: nn.Module, small: nn.Module) -> Plan | None:
    """Return the plan by which this process made a model from an original; None where it did not, or not in one cut."""
    known = (d for p in original.parameters() for d in descents(p))
    return next((d.plan for d in known if d.small() is small and small is not original), None)
