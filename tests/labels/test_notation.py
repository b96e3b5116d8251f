"""The notation: what a line says, and lines that say nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.labels.contract import spell
from surgeon.labels.notation import Notation, parse, parse_dims
from surgeon.labels.rules.contraction import LINES

LETTERS = st.sampled_from("abcdefgh")
TOKENS = st.one_of(
    LETTERS.map(lambda letter: (letter,)), st.lists(LETTERS, min_size=2, max_size=3, unique=True).map(tuple)
)


def written(tokens: tuple[tuple[str, ...], ...]) -> str:
    return " ".join(f"({' '.join(token)})" if len(token) > 1 else token[0] for token in tokens)


@given(st.lists(TOKENS, max_size=5).map(tuple), st.sampled_from([(), (("...",),), (("*",),)]))
def test_dimensions_are_read_as_written(tokens: tuple[tuple[str, ...], ...], rest: tuple[tuple[str, ...], ...]) -> None:
    assert parse_dims(written((*rest, *tokens))) == (*rest, *tokens)
    assert parse_dims(written((*tokens, *rest))) == (*tokens, *rest)


def test_every_part_of_a_line() -> None:
    line = "input[n (g c) *] groups=g weight[(g c)] eps -> n (g c) * over c"
    notation = parse(line)
    assert [(a.position, a.name, a.dims, a.size) for a in notation.arguments] == [
        (0, "input", (("n",), ("g", "c"), ("*",)), None),
        (1, "groups", None, "g"),
        (2, "weight", (("g", "c"),), None),
        (3, "eps", None, None),
    ]
    assert notation.output == (("n",), ("g", "c"), ("*",))
    assert notation.over == ("c",)
    assert str(notation) == line


def test_a_scalar_has_no_dimensions() -> None:
    assert parse("a[k] b[k] -> ").output == ()
    assert parse("s[] b[k] -> k").arguments[0].dims == ()


def test_a_name_inside_another_is_no_tensor() -> None:
    assert [a.dims for a in parse("dim outdim[i] -> i").arguments] == [None, (("i",),)]


@pytest.mark.parametrize("name", sorted(LINES))
def test_lines_of_the_table(name: str) -> None:
    notation = parse(LINES[name])
    assert isinstance(notation, Notation)
    assert [a.position for a in notation.arguments] == list(range(len(notation.arguments)))
    sizes = {a.size for a in notation.arguments if a.size}
    assert sizes <= {letter for a in notation.arguments for token in a.dims or () for letter in token}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("a[i j] -> i k", r"\['k'\]"),
        ("a[i] b[j] -> (i z) j", r"\['z'\]"),
        ("a[i] -> i over y", r"\['y'\]"),
        ("a[i] -> ()", "not among"),
        ("a[i] -> ,", "no output"),
        ("-> i", r"\['i'\]"),
    ],
)
def test_malformed_lines_name_what_is_wrong(line: str, what: str) -> None:
    with pytest.raises(ValueError, match=f"malformed notation.*{what}"):
        parse(line)


@given(st.lists(LETTERS.map(lambda letter: (letter,)), max_size=4, unique=True), st.integers(0, 3), st.data())
def test_every_dimension_gets_a_letter(tokens: list[tuple[str, ...]], wild: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(tokens)))
    named = list(spell([*tokens[:at], ("...",), *tokens[at:]], len(tokens) + wild))
    assert len(named) == len(tokens) + wild
    assert [t for t in named if not t[0].startswith("...")] == tokens
    # broadcast dimensions are counted from the right, so those of two operands meet at their ends
    assert [t[0] for t in named[at : at + wild]] == [f"...{i}" for i in reversed(range(wild))]
    pixels = spell([*tokens[:at], ("*",), *tokens[at:]], len(tokens) + wild)
    assert list(pixels) == [*tokens[:at], *[()] * wild, *tokens[at:]]
