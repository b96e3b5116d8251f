"""Importance of units."""

from surgeon.score.curves import curves
from surgeon.score.score import CRITERIA, score

__all__ = ["CRITERIA", "curves", "score"]
