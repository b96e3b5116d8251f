"""Bundles of units: any number of steps leaves every surviving row of every table with equally many cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, note, settings
from hypothesis import strategies as st
from scipy import sparse

from surgeon.labels.space import Space
from surgeon.labels.units import Block, Solution, arrange, solve
from tests.labels.facts import Facts, facts


def arranged(space: Space) -> tuple[Solution, list[Block]]:
    solution = solve(space)
    return solution, arrange(solution, sparse.csr_matrix((0, solution.classes), dtype=np.int32))


def dead_labels(solution: Solution, units: list[int]) -> set[int]:
    classes = set(solution.closure[units].indices.tolist())
    return {label for label, c in enumerate(solution.class_of.tolist()) if c in classes}


def removal(draw: Any, block: Block) -> list[int]:
    """Draw some steps of a block, and in each atom any of its units."""
    steps = draw(st.integers(1, max(block.steps - 1, 1)))
    units: list[int] = []
    for atom in block.atoms:
        order = draw(st.permutations(atom.tolist()))
        units += order[: steps * len(atom) // block.steps]
    return units


@settings(max_examples=200)
@given(facts(), st.data())
def test_every_prefix_of_steps_leaves_rectangles(said: Facts, data: st.DataObject) -> None:
    solution, blocks = arranged(said.space)
    for block in blocks:
        if block.reason is None and block.steps > 1:
            units = removal(data.draw, block)
            note(f"{block}: {[atom.tolist() for atom in block.atoms]}, {units} go; tables {said.tables}")
            dead = dead_labels(solution, units)
            assert said.balanced({said.find(label) for label in dead})


@settings(max_examples=200)
@given(facts(), st.data())
def test_blocks_that_hold_nothing_of_each_other_go_together(said: Facts, data: st.DataObject) -> None:
    solution, blocks = arranged(said.space)
    taken: set[int] = set()
    units: list[int] = []
    for block in blocks:
        classes = set(solution.closure[np.concatenate(block.atoms)].indices.tolist())
        if block.reason is None and block.steps > 1 and not classes & taken:
            taken |= classes
            units += removal(data.draw, block)
    note(f"{units} go; tables {said.tables}")
    dead = {said.find(label) for label in dead_labels(solution, units)} if units else set()
    for table in said.tables:
        emptied = [row for row in table if said.roots(row) <= dead]
        if len(emptied) == len(table):
            return  # what is empty has no shape
    assert said.balanced(dead)


@settings(max_examples=60)
@given(facts())
def test_every_unit_is_in_one_block(said: Facts) -> None:
    solution, blocks = arranged(said.space)
    units = sorted(unit for block in blocks for atom in block.atoms for unit in atom.tolist())
    assert units == list(range(solution.closure.shape[0]))
    assert all(len(atom) % block.steps == 0 for block in blocks for atom in block.atoms)


def test_heads_and_their_columns() -> None:
    # 3 heads of 4 columns: 12 columns in 3 rows go one per row, and heads as a whole
    space = Space()
    space.split(space.fresh(12).view(3, 4))
    _, blocks = arranged(space)
    sizes = sorted((block.steps, sorted(len(atom) for atom in block.atoms)) for block in blocks)
    assert sizes == [(3, [3]), (4, [4, 4, 4])]


def test_two_groupings_of_the_same_labels() -> None:
    # 12 channels in 2 groups of 6 and in 3 groups of 4: a step takes one sixth of either
    space = Space()
    labels = space.fresh(12)
    space.split(labels.view(2, 6))
    space.split(labels.view(3, 4))
    _, blocks = arranged(space)
    columns = max(blocks, key=lambda block: len(block.atoms))
    # runs of channels between two bounds: 0-3, 4-5, 6-7, 8-11
    assert sorted(len(atom) for atom in columns.atoms) == [2, 2, 4, 4]
    assert columns.steps == 2


def test_rows_of_unlike_lengths_pin() -> None:
    # the first row can lose its shared cell, the second has none to lose
    space = Space()
    a, b = space.fresh(2), space.fresh(2)
    space.split(a.view(1, 2))
    space.pin(b, "stays")
    space.balance(np_rows := a.new_tensor([a.tolist(), b.tolist()]))
    assert np_rows.shape == (2, 2)
    _, blocks = arranged(space)
    assert any(block.reason is not None and "rows" in block.reason.text for block in blocks)


def test_widths_keep_units_apart() -> None:
    # units that count in another width are not interchangeable
    space = Space()
    labels = space.fresh(4)
    solution = solve(space)
    incidence = np.zeros((1, solution.classes), np.int32)
    incidence[0, solution.class_of[labels[:1].numpy()]] = 1
    blocks = arrange(solution, sparse.csr_matrix(incidence))
    assert sorted(block.steps for block in blocks) == [1, 3]
