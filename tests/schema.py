"""The schema of plans that the package ships, as a validator."""

from __future__ import annotations

import json
from importlib.resources import files

import jsonschema

import surgeon

SCHEMA = json.loads(files("surgeon.plan").joinpath("plan.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def assert_follows_the_schema(plan: surgeon.Plan) -> None:
    """Check that a plan's document is valid, and that reading it gives the plan and its bytes again."""
    text = plan.to_json()
    VALIDATOR.validate(json.loads(text))
    again = surgeon.Plan.from_json(text)
    assert again == plan and again.to_json() == text
