"""What a cut did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from surgeon.plan import Plan
from surgeon.verify import Proof


@dataclass(frozen=True)
class Cut:
    """One cut of a training run; the model, its parameters and its graph are others now.

    step      the training step after which it was made
    asked     the budgets of that step, as shares of the original
    left      what remains of the original's "flops", "params" and "memory", and the "ratio" of units that went so far
    removed   units that went with this cut
    plan      from the model before the cut to the one after it; None where it was read from a checkpoint
    proof     that the model before, masked, computes what the one after computes; None where that was not asked for
    """

    step: int
    asked: Mapping[str, float]
    left: Mapping[str, float]
    removed: int
    plan: Plan | None = field(default=None, repr=False, compare=False)
    proof: Proof | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        asked = ", ".join(f"{name} {value:.3f}" for name, value in self.asked.items())
        return (
            f"step {self.step}: {self.removed} units cut, {self.left['flops']:.3f} of the FLOPs and "
            f"{self.left['params']:.3f} of the parameters left (asked: {asked})"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return {"step": self.step, "asked": dict(self.asked), "left": dict(self.left), "removed": self.removed}
