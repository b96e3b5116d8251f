"""Tracked integers: arithmetic as plain integers have it, and a memory of where they came from."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from surgeon.trace import Arithmetic, Attribute, Tracked, Width, evaluate, solve
from surgeon.trace.integers import Ledger, expression, leaves, ledger

HEADS, WIDTH = Attribute("attn", "num_heads"), Attribute("attn", "widths", 1)
APPLY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}
SMALL = st.integers(-6, 12)
# a tree of operators over leaf numbers: (symbol, left, right), or the index of a leaf
TREES = st.recursive(
    st.integers(0, 3), lambda inner: st.tuples(st.sampled_from(sorted(APPLY)), inner, inner), max_leaves=6
)


def computed(tree: Any, numbers: list[Any]) -> Any:
    if isinstance(tree, int):
        return numbers[tree]
    symbol, left, right = tree
    return APPLY[symbol](computed(left, numbers), computed(right, numbers))


def sources() -> list[Any]:
    return [HEADS, WIDTH, Width("x", 7), None]


def tracked(numbers: list[int]) -> list[int]:
    """Make an attribute, an item of one, a width and a literal of four numbers."""
    return [n if s is None else Tracked(n, s) for n, s in zip(numbers, sources())]


def known(numbers: list[int]) -> tuple[dict[Attribute, int], Callable[[Width], int]]:
    return {HEADS: numbers[0], WIDTH: numbers[1]}, lambda width: numbers[2]


def outcome(function: Callable[[], Any]) -> Any:
    try:
        return int(function())
    except ZeroDivisionError:
        return None


@settings(max_examples=200)
@given(TREES, st.lists(SMALL, min_size=4, max_size=4), st.lists(SMALL, min_size=4, max_size=4))
def test_arithmetic_is_that_of_int_and_is_remembered(tree: Any, old: list[int], new: list[int]) -> None:
    new[3] = old[3]  # a literal stays what it is
    value = outcome(lambda: computed(tree, old))
    assume(value is not None)
    result = computed(tree, tracked(old))
    assert result == value
    assert evaluate(expression(result), *known(old)) == value
    assert evaluate(expression(result), *known(new)) == outcome(lambda: computed(tree, new))


@settings(max_examples=200)
@given(TREES, st.lists(SMALL, min_size=4, max_size=4), st.integers(-20, 40), st.sampled_from([HEADS, WIDTH]))
def test_solving_inverts(tree: Any, numbers: list[int], wanted: int, unknown: Attribute) -> None:
    assume(outcome(lambda: computed(tree, numbers)) is not None)
    source = expression(computed(tree, tracked(numbers)))
    attributes, width = known(numbers)
    del attributes[unknown]
    found = solve(source, wanted, attributes, width)
    if found is not None:
        assert found[0] == unknown
        assert evaluate(source, {**attributes, unknown: found[1]}, width) == wanted


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(1, 9), st.booleans()), max_size=5), SMALL)
def test_one_unknown_under_invertible_steps_is_always_found(steps: list[tuple[str, int, bool]], value: int) -> None:
    number: Any = Tracked(value, HEADS)
    for symbol, other, reflected in steps:
        number = APPLY[symbol](other, number) if reflected else APPLY[symbol](number, other)
    assert solve(expression(number), int(number), {}, lambda width: None) == (HEADS, value)


def test_nothing_is_found_without_an_unknown() -> None:
    assert solve(12, 12, {}, lambda width: None) is None
    assert solve(HEADS, 12, {HEADS: 12}, lambda width: None) is None
    assert solve(Arithmetic("*", HEADS, 5), 12, {}, lambda width: None) is None
    assert solve(Arithmetic("%", HEADS, 5), 2, {}, lambda width: None) is None
    assert solve(Arithmetic("*", HEADS, WIDTH), 12, {}, lambda width: None) is None


@given(TREES)
def test_leaves_are_those_of_the_tree(tree: Any) -> None:
    def used(tree: Any) -> list[int]:
        return [tree] if isinstance(tree, int) else used(tree[1]) + used(tree[2])

    numbers = [5, 6, 7, 8]
    assume(outcome(lambda: computed(tree, numbers)) is not None)
    found = list(leaves(expression(computed(tree, tracked(numbers)))))
    places = [HEADS, WIDTH, "width", None]
    expected = [places[i] for i in used(tree) if i != 3]
    assert ["width" if isinstance(leaf, Width) else leaf for leaf in found] == expected


@pytest.mark.parametrize(("symbol", "compare"), [("==", operator.eq), ("!=", operator.ne), ("<", operator.lt)])
@given(a=SMALL, b=SMALL, both=st.booleans())
def test_comparisons_are_noted_with_their_outcome(symbol: str, compare: Any, a: int, b: int, both: bool) -> None:
    left, right = Tracked(a, HEADS), Tracked(b, WIDTH) if both else b
    with ledger(Ledger(where=lambda: "model.py:3")) as entries:
        assert compare(left, right) is compare(a, b)
    (noted,) = entries.comparisons
    assert (noted.left, noted.relation, noted.right) == (HEADS, symbol, WIDTH if both else b)
    assert (noted.outcome, noted.source) == (compare(a, b), "model.py:3")


def test_nothing_is_noted_outside_a_ledger() -> None:
    entries = Ledger()
    with ledger(entries):
        pass
    assert Tracked(3, HEADS) == 3
    assert not entries.comparisons and not entries.escaped()


@pytest.mark.parametrize("escape", [float, lambda n: n / 2, lambda n: 2 / n, lambda n: n**2, lambda n: 2**n])
def test_leaving_the_integers_is_noted(escape: Callable[[int], Any]) -> None:
    with ledger(Ledger(where=lambda: "here")) as entries:
        assert escape(Tracked(3, HEADS)) == escape(3)
    assert entries.escaped() == [(HEADS, 3, "here")]


@given(SMALL)
def test_copies_are_plain(value: int) -> None:
    number = Tracked(value, HEADS)
    for copied in (copy.deepcopy(number), pickle.loads(pickle.dumps(number)), copy.deepcopy([number])[0]):
        assert type(copied) is int
        assert copied == value


@given(st.integers(0, 20))
def test_tracked_integers_pass_for_plain_ones(value: int) -> None:
    number = Tracked(value, HEADS)
    assert {value: "found"}[number] == "found"
    assert list(range(20))[:number] == list(range(20))[:value]
    assert torch.zeros(number, 2).shape == (value, 2)
    assert f"{number}" == str(value)
    assert isinstance(torch.Size([number])[0], int)


def test_expressions_print_as_written() -> None:
    heads, size = Tracked(12, HEADS), Tracked(7, Width("x", 7))
    assert str(expression(3 * heads // size + 1)) == "(((3 * attn.num_heads) // width 7) + 1)"
    assert str(WIDTH) == "attn.widths[1]"
    assert str(Attribute("", "groups")) == "groups"
