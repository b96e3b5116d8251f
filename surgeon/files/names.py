"""Names of tensors in models and files."""

from __future__ import annotations

from collections.abc import Iterable


def prefix_hint(found: Iterable[str], expected: Iterable[str]) -> str:
    """Say what names have in front that the expected ones have not, or the other way round; nothing otherwise."""
    found, expected = set(found), set(expected)
    if not found or not expected:
        return ""
    for wide, narrow, where in ((found, expected, "here"), (expected, found, "in the plan")):
        # Any name will do to guess from: the guess is held against all of them.
        ends = min(narrow)
        for name in sorted(wide):
            prefix = name[: -len(ends)]
            if not name.endswith(ends) or not prefix.endswith(".") or 2 * len(narrow) < len(wide):
                continue
            if {prefix + n for n in narrow} <= wide:
                return f"; names {where} begin with {prefix!r}: " + (
                    "take what is inside the wrapper" if where == "here" else "the plan is for a model around this one"
                )
    return ""
