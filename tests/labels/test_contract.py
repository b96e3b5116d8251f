"""The quick meeting, letter by letter, says what the general one says."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.labels import contract as module
from surgeon.labels.contract import Operand, contract
from surgeon.labels.family import Value, fresh_family
from surgeon.labels.notation import parse, parse_dims
from surgeon.labels.space import Space
from surgeon.labels.units import solve

LINES = [
    "a[n i] b[o i] c[o] -> n o",
    "a[n c *] b[c] c[c] d[c] -> n c *",
    "a[m k] b[k n] -> m n",
    "a[b m k] b[b k n] -> b m n",
    "a[x y] b[x y] c[y] -> x y",
    "a[x y] b[y] c[x] d[x y] -> y",
    "a[k] b[k] -> ",
]
STATES = ["solid", "labelled", "unused", "broadcast", "as before"]


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, Space, list[Operand]]:
    """Draw operands of a line whose dimensions are solid, labelled, not used yet, size 1, or labelled as another is."""
    line = draw(st.sampled_from(LINES))
    space, known = Space(), dict[str, Any]()
    sizes: dict[str, int] = {}
    operands = []
    for argument in parse(line).arguments:
        assert argument.dims is not None
        tokens = tuple(() if token == ("*",) else token for token in argument.dims)
        states = [draw(st.sampled_from(STATES)) for _ in tokens]
        wide = [sizes.setdefault(token[0] if token else "*", draw(st.integers(2, 4))) for token in tokens]
        shape = tuple(1 if state == "broadcast" else size for state, size in zip(states, wide))
        unused = {dim for dim, state in enumerate(states) if state == "unused"}
        value = Value(shape, unbound=unused, leaf=f"p{len(operands)}" if unused else None)
        for dim, (state, token) in enumerate(zip(states, tokens)):
            name = token[0] if token else "*"
            if state == "labelled" or (state == "as before" and name not in known):
                known[name] = fresh_family(space, len(shape), dim, shape[dim])
                value.families.append(known[name])
            elif state == "as before":
                value.families.append(known[name].along(len(shape), dim))
        operands.append(Operand(value, tokens, draw(st.sampled_from(["", "an input"]))))
    return line, space, operands


def facts(line: str, space: Space, operands: list[Operand]) -> tuple[list[Any], list[int], list[str]]:
    """Contract, and tell where labels are, which of them are one, and why those that stay do."""
    before = space.count
    rank = len(parse(line).output)
    families, _ = contract(space, parse(line), operands, {}, rank)
    where = [sorted(f.dims for f in families), *(sorted(f.dims for f in o.value.families) for o in operands)]
    solution = solve(space)
    labels = [np.arange(before)]
    for family in sorted(families, key=lambda f: f.dims):
        labels.append(family.labels.reshape(-1).numpy())
    for operand in operands:
        labels += [f.labels.reshape(-1).numpy() for f in sorted(operand.value.families, key=lambda f: f.dims)]
    classes = solution.class_of[np.concatenate(labels)]
    _, first, same = np.unique(classes, return_index=True, return_inverse=True)
    assert all(not operand.value.unbound for operand in operands)
    why = [str(solution.reasons[i]) if i >= 0 else "" for i in solution.pinned[classes]]
    return where, first[same].tolist(), [reason and "stays" for reason in why]


@given(cases())
@settings(max_examples=400, deadline=None)
def test_quick_and_general_meetings_agree(case: tuple[str, Space, list[Operand]]) -> None:
    line, space, operands = case
    other_space, other = copy.deepcopy((space, operands))
    quick = facts(line, space, operands)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_single_letters", lambda families: False)
        general = facts(line, other_space, other)
    assert quick == general


def test_both_ways_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family over two letters takes the general way, one over a letter the quick one."""
    taken: list[str] = []
    quick = module._letter_by_letter
    monkeypatch.setattr(module, "_letter_by_letter", lambda *args: taken.append("quick") or quick(*args))
    for grouped in (False, True):
        space = Space()
        rows = parse_dims("n (g i) *" if grouped else "n i *")
        value = Value((1, 4, 3), [fresh_family(space, 3, 1, 4)])
        line = parse(f"a[{'n (g i) *' if grouped else 'n i *'}] -> n {'(g i)' if grouped else 'i'} *")
        contract(space, line, [Operand(value, (rows[0], rows[1], ()))], {"g": 2} if grouped else {}, 3)
        taken.append("grouped" if grouped else "plain")
    assert taken == ["quick", "plain", "grouped"]
