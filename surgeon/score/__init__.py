"""Importance of units."""

from surgeon.score.score import CRITERIA, score

__all__ = ["CRITERIA", "score"]
