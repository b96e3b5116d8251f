"""Regularisers over units, through the same labels that cut them: what is to go is driven to zero first."""

from surgeon.regularize.regularize import KINDS, Regularizer
from surgeon.regularize.sums import UnitSums

__all__ = ["KINDS", "Regularizer", "UnitSums"]
