"""Labels: fresh ones, and what is known about them, against a slow reading of the same facts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.labels.space import ALWAYS, Space
from surgeon.labels.units import solve
from tests.labels.facts import Facts, facts


@given(st.lists(st.lists(st.integers(0, 3), min_size=0, max_size=3), max_size=4))
def test_fresh_labels_are_new(shapes: list[list[int]]) -> None:
    space = Space()
    made = [space.fresh(*shape) for shape in shapes]
    assert [list(labels.shape) for labels in made] == shapes
    every = [ALWAYS, *(label for labels in made for label in labels.reshape(-1).tolist())]
    assert len(set(every)) == len(every) == space.count


@settings(max_examples=60)
@given(facts())
def test_equal_labels_are_those_of_a_union_find(said: Facts) -> None:
    class_of = solve(said.space).class_of
    roots = [said.find(label) for label in range(said.space.count)]
    assert len(set(zip(class_of.tolist(), roots))) == len(set(class_of.tolist())) == len(set(roots))


@settings(max_examples=150)
@given(facts())
def test_units_are_what_dies_together(said: Facts) -> None:
    solution = solve(said.space)
    root_of = {int(c): said.find(label) for label, c in enumerate(solution.class_of)}
    rows = [solution.closure[i].indices.tolist() for i in range(solution.closure.shape[0])]
    found = [frozenset(root_of[c] for c in row) for row in rows]
    assert len(set(found)) == len(found), "two units are the same"
    assert set(found) == said.units()


@settings(max_examples=60)
@given(facts())
def test_what_no_unit_takes_has_a_reason(said: Facts) -> None:
    solution = solve(said.space)
    taken = set(solution.closure.indices.tolist())
    stuck = {c for c in range(solution.classes) if solution.pinned[c] >= 0}
    assert taken | stuck == set(range(solution.classes))
    assert not taken & {int(solution.class_of[label]) for label in said.pinned}


def test_unify_broadcasts() -> None:
    space = Space()
    column, table = space.fresh(3, 1), space.fresh(3, 2)
    space.unify(column, table)
    class_of = solve(space).class_of
    assert [len(set(class_of[row.numpy()])) for row in torch.cat([column, table], 1)] == [1, 1, 1]
    assert len(set(class_of.tolist())) == 4


def test_unify_refuses_shapes_that_do_not_meet() -> None:
    space = Space()
    with pytest.raises(RuntimeError, match="size"):
        space.unify(space.fresh(2), space.fresh(3))


def test_the_label_that_always_survives_is_pinned() -> None:
    space = Space()
    labels = space.fresh(3)
    space.unify(labels[:1], torch.tensor([ALWAYS]))
    solution = solve(space)
    assert solution.closure.shape[0] == 2
    assert solution.pinned[solution.class_of[int(labels[0])]] >= 0


def test_a_pin_is_explained_by_the_call_that_made_it() -> None:
    space = Space()
    labels = space.fresh(2)
    space.at = 7
    space.pin(labels, "because")
    solution = solve(space)
    reasons = [solution.reasons[solution.pinned[solution.class_of[label]]] for label in labels.tolist()]
    assert [(str(r), r.at) for r in reasons] == [("because", 7)] * 2
