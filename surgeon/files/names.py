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
            if name.endswith(ends) and prefix.endswith((".", "_")) and {prefix + n for n in narrow} <= wide:
                return f"; names {where} begin with {prefix!r}: " + (
                    "pass the model inside the wrapper" if where == "here" else "pass the model that holds this one"
                )
    return ""
