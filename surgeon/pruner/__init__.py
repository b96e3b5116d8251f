"""Prune while training: a schedule says when and how far, and everything that training keeps follows each cut."""

from surgeon.pruner.pruner import Pruner
from surgeon.pruner.ranks import rewrap
from surgeon.pruner.records import Cut

__all__ = ["Cut", "Pruner", "rewrap"]
