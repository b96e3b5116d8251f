"""A plan in a few lines of text."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgeon.plan.plan import Plan


def summarised(plan: Plan) -> str:
    """Return what goes from each group, what that costs, and what stays and why."""
    lines = [str(plan)]
    lines += [
        f"  {name}: {before:.6g} -> {after:.6g} ({after / max(before, 1e-300):.1%})"
        for name, before, after in [(name, *pair) for name, pair in sorted(plan.totals.items())]
    ]
    asked = {k: v for k, v in sorted(plan.settings.items()) if v not in (None, {}, [], False)}
    lines.append("made with " + ", ".join(f"{name}={value!r}" for name, value in asked.items()))
    cut = [g for g in plan.groups if g.removed]
    lines.append(
        f"cut, {len(cut)} of {len(plan.groups)} groups, {len(plan.cuts)} tensors, {len(plan.edits)} attributes:"
    )
    lines += [f"  {group} ({1 - group.removed / group.size:.0%} stays), {_few(group.layers)}" for group in cut]
    reasons = Counter(plan.pins.values())
    lines.append(f"pinned, {len(plan.pins)} groups:" if reasons else "pinned: nothing")
    lines += [f"  {count} times: {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def _few(names: tuple[str, ...], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name or "the model" for name in names[:most]) + rest
