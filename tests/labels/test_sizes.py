"""Sizes after a cut: attributes are found where widths determine them, and what can't be right is named."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.labels.sizes import Constraint, Index, settle
from surgeon.trace import Arithmetic, Attribute, Expression, Width, evaluate

NAMES = "abcde"


@dataclass
class System:
    """Constraints that hold under old and under new numbers."""

    constraints: list[Constraint]
    old: dict[Attribute, int]
    new: dict[Attribute, int]
    widths: dict[int, int]
    determined: set[Attribute]

    def width(self, width: Width) -> int:
        return self.widths[width.source]


@st.composite
def systems(draw: st.DrawFn) -> System:
    """Draw attributes and, one after the other, constraints that determine each from a width and those before it."""
    attributes = [Attribute("m", name) for name in NAMES[: draw(st.integers(1, 5))]]
    old = {a: draw(st.integers(2, 12)) for a in attributes}
    new = {a: draw(st.integers(1, old[a])) for a in attributes}
    system = System([], old, new, {}, set())
    for i, attribute in enumerate(attributes):
        if draw(st.integers(0, 4)) == 0:
            new[attribute] = old[attribute]  # nothing says what becomes of it
            continue
        expression: Expression = attribute
        for _ in range(draw(st.integers(0, 2))):
            other: Expression = draw(st.sampled_from([*attributes[:i], draw(st.integers(1, 4))]))
            if isinstance(other, Attribute) and other not in system.determined:
                continue
            symbol = draw(st.sampled_from("+-*"))
            sides = (expression, other) if draw(st.booleans()) else (other, expression)
            expression = Arithmetic(symbol, *sides)
        if expression != attribute and (evaluate(expression, old, _no), evaluate(expression, new, _no)).count(0):
            expression = attribute
        system.determined.add(attribute)
        add(system, expression, draw(st.booleans()))
    draw(st.randoms(use_true_random=False)).shuffle(system.constraints)
    return system


def _no(width: Width) -> None:
    raise AssertionError("no width is part of these expressions")


def add(system: System, expression: Expression, swapped: bool) -> None:
    before, after = evaluate(expression, system.old, _no), evaluate(expression, system.new, _no)
    assert before is not None and after is not None
    width = Width(len(system.widths), before)
    system.widths[width.source] = after
    sides = (width, expression) if swapped else (expression, width)
    system.constraints.append(Constraint(*sides, len(system.constraints), "size"))


@settings(max_examples=200)
@given(systems())
def test_attributes_are_found(system: System) -> None:
    settled = settle(system.constraints, system.width, system.old)
    assert not settled.conflicts
    assert settled.attributes == {a: system.new[a] for a in system.determined if system.new[a] != system.old[a]}


@settings(max_examples=200)
@given(systems(), st.data())
def test_no_conflict_means_that_all_hold(system: System, data: st.DataObject) -> None:
    for source in system.widths:
        system.widths[source] += data.draw(st.sampled_from((0, 0, 0, 1, -1)))
    if system.determined:
        twice = data.draw(st.sampled_from(sorted(system.determined)))
        add(system, twice, swapped=False)
    settled = settle(system.constraints, system.width, system.old)
    values = {**system.old, **settled.attributes}
    for constraint in system.constraints:
        left, right = (evaluate(side, values, system.width) for side in (constraint.left, constraint.right))
        assert (left == right) == (constraint not in settled.conflicts), str(constraint)


@given(st.integers(2, 9), st.integers(1, 9))
def test_a_literal_that_should_follow_is_in_conflict(size: int, left: int) -> None:
    width = Width("w", size)
    settled = settle([Constraint(size, width, 3, "size 2 of view")], lambda w: left, {})
    assert bool(settled.conflicts) == (size != left)
    assert all(c.at == 3 and str(c) == f"size 2 of view: {size} == width {size}" for c in settled.conflicts)


def test_a_width_of_unequal_rows_is_in_conflict() -> None:
    settled = settle([Constraint(Attribute("m", "d"), Width("w", 4), 0, "size")], lambda w: None, {})
    assert len(settled.conflicts) == 1


def test_two_widths_of_one_attribute_have_to_agree() -> None:
    channels = Attribute("m", "channels")
    constraints = [Constraint(channels, Width(name, 8), i, "size") for i, name in enumerate("ab")]
    assert settle(constraints, lambda w: 6, {channels: 8}).attributes == {channels: 6}
    uneven = settle(constraints, lambda w: {"a": 6, "b": 5}[w.source], {channels: 8})
    assert [c.at for c in uneven.conflicts] == [1]


def test_a_comparison_keeps_its_outcome() -> None:
    c = Attribute("m", "c")
    shortcut = Constraint(Width("x", 8), c, -1, "compared", "!=", True)
    assert not settle([shortcut], lambda w: 6, {c: 16}).conflicts
    assert settle([shortcut], lambda w: 16, {c: 16}).conflicts
    assert str(shortcut) == "compared: width 8 != m.c"


@settings(max_examples=100)
@given(st.data())
def test_the_index_finds_all_that_a_change_can_reach(data: st.DataObject) -> None:
    attributes = [Attribute("m", name) for name in NAMES]
    widths = [Width(i, 4) for i in range(5)]
    sides = st.one_of(st.sampled_from(attributes), st.sampled_from(widths), st.integers(1, 4))
    constraints = []
    for i in range(data.draw(st.integers(0, 8))):
        left, right, third = (data.draw(sides) for _ in range(3))
        constraints.append(Constraint(Arithmetic("*", left, third), right, i, "size"))
    index = Index(constraints, lambda width: [width.source])
    changed = data.draw(st.sets(st.integers(0, 4)))
    found = {c for c in constraints if changed & {w.source for w in c.widths()}}
    while True:
        known = {a for c in found for a in c.attributes}
        more = {c for c in constraints if c.attributes & known} | found
        if more == found:
            break
        found = more
    assert index.touched(changed) == [c for c in constraints if c in found]


def test_of_two_attributes_that_only_appear_together_one_changes() -> None:
    channels, paths = Attribute("m", "in_channels"), Attribute("m", "num_paths")
    pieces = Constraint(Arithmetic("//", channels, paths), Width("piece", 32), 0, "size of the pieces")
    old = {channels: 64, paths: 2}
    assert settle([pieces], lambda w: 31, old).attributes == {channels: 62}
    assert settle([pieces], lambda w: 32, old).attributes == {}
    # what determines one of them comes first
    fixed = Constraint(channels, 64, 1, "read by mul")
    assert settle([pieces, fixed], lambda w: 16, old).attributes == {paths: 4}
    assert settle([pieces, fixed], lambda w: 31, old).conflicts == (pieces,)
