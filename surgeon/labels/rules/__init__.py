"""The rule table: op name -> rule. One small file per kind; a name may be given only once."""

from __future__ import annotations

from surgeon.labels.flow import Rule
from surgeon.labels.rules import (
    contraction,
    elementwise,
    factory,
    images,
    indexing,
    joining,
    movement,
    recurrent,
    reduction,
)

__all__ = ["RULES", "merge"]


def merge(*tables: dict[str, Rule]) -> dict[str, Rule]:
    """Join rule tables; raises ValueError when two of them claim an op."""
    merged: dict[str, Rule] = {}
    for table in tables:
        twice = merged.keys() & table.keys()
        if twice:
            raise ValueError(f"two rules for {sorted(twice)}")
        merged.update(table)
    return merged


RULES: dict[str, Rule] = merge(
    contraction.RULES,
    elementwise.RULES,
    factory.RULES,
    images.RULES,
    indexing.RULES,
    joining.RULES,
    movement.RULES,
    recurrent.RULES,
    reduction.RULES,
)
