"""``surgeon plan``: read plans and compare them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from surgeon.cli import options
from surgeon.cli.answer import Answer
from surgeon.plan import Plan

SHOW = """
surgeon plan show small/plan.json
"""
DIFF = """
surgeon plan diff small/plan.json reviewed.json
"""

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="a plan.json")]


def show(plan: PlanFile, as_json: options.AsJson = False) -> Answer:
    """Say what a plan takes from each group, what that costs, and what stays and why."""
    made = Plan.load(plan)
    return Answer(json.loads(made.to_json()), (made.summary(),))


def diff(plan: PlanFile, other: PlanFile, as_json: options.AsJson = False) -> Answer:
    """Say where two plans differ, part by part."""
    found = Plan.load(plan).diff(Plan.load(other))
    return Answer({"same": not found, "changes": [asdict(change) for change in found.changes]}, (str(found),))
