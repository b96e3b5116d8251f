"""``--input`` says shape, type, name and range."""

from __future__ import annotations

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st

from surgeon.cli.inputs import DTYPES, parse, tensors

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(SHAPES, st.sampled_from(sorted(DTYPES)), st.sampled_from(["", "ids", "_x1"]), st.integers(0, 99))
def test_tensors_are_as_asked(shape: list[int], dtype: str, name: str, seed: int) -> None:
    text = (f"{name}=" if name else "") + "x".join(map(str, shape)) + f":{dtype}"
    made, again = tensors([text], seed), tensors([text], seed)
    tensor, same = (x[name] if name else x[0] for x in (made, again))
    assert list(tensor.shape) == shape and tensor.dtype == getattr(torch, dtype) and torch.equal(tensor, same)
    if not (tensor.is_floating_point() or tensor.is_complex()):
        assert set(tensor.unique().tolist()) <= {0, 1}


def test_integers_below_a_bound() -> None:
    (tensor,) = tensors(["1000:int64:7"], 0)
    assert tensor.unique().tolist() == list(range(7))


def test_defaults() -> None:
    assert parse("3") == parse("3:float32") and parse("1x3").name is None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is no input"),
        ("1xAx3", "is no input"),
        ("1x3x", "is no input"),
        ("-1x3", "is no input"),
        ("1,3", "is no input"),
        ("=1x3", "is no input"),
        ("1x0x3", "a size is 0"),
        ("1x3:int65", "no type 'int65'; there are float32"),
        ("1x3:float32:9", "a bound on values is for integers"),
        ("1x3:int64:0", "a bound on values is for integers, and at least 1"),
    ],
)
def test_malformed(text: str, part: str) -> None:
    with pytest.raises(typer.BadParameter, match=part):
        parse(text)


def test_names_for_all_or_none() -> None:
    with pytest.raises(typer.BadParameter, match="all inputs or to none"):
        tensors(["a=1x3", "1x3"], 0)
    with pytest.raises(typer.BadParameter, match="two inputs are called 'a'"):
        tensors(["a=1x3", "b=1", "a=1x3"], 0)
