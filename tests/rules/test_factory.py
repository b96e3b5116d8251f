"""Squares of the ops that make tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.rules.harness import Case, square

D = torch.float64
# name -> the tensor that a shape makes; random and uninitialised ones are compared by shape alone
MADE: dict[str, Callable[..., Any]] = {
    "zeros": lambda x, *s: torch.zeros(*s, dtype=D),
    "ones": lambda x, *s: torch.ones(s, dtype=D),
    "full": lambda x, *s: torch.full(s, 3.0, dtype=D),
    "new_zeros": lambda x, *s: x.new_zeros(*s),
    "new_ones": lambda x, *s: x.new_ones(s),
    "new_full": lambda x, *s: x.new_full(s, 2.0),
    "rand": lambda x, *s: torch.rand(*s, dtype=D),
    "randn": lambda x, *s: torch.randn(s, dtype=D),
    "empty": lambda x, *s: torch.empty(*s, dtype=D),
    "new_empty": lambda x, *s: x.new_empty(s),
}
RANDOM = {"rand", "randn", "empty", "new_empty"}


@pytest.mark.parametrize("name", sorted(MADE))
@square(*MADE, examples=6)
def test_made_with_a_width_that_shrinks(case: Case, name: str) -> None:
    n, c = case.shape(2, 2, 4)
    make = MADE[name]
    case.check(
        lambda m: m.x + make(m.x, m.x.shape[0], m.c), x=case.tensor(n, c), c=c, cut="x:0 x:1", values=name not in RANDOM
    )


@pytest.mark.parametrize("name", sorted(MADE))
@square(*MADE, examples=4)
def test_made_with_literal_sizes(case: Case, name: str) -> None:
    n, c = case.shape(2, 2, 4)
    make = MADE[name]
    case.check(
        lambda m: m.x + make(m.x, 1, c),
        x=case.tensor(n, c),
        cut="x:0",
        stays={"x:1": "add"},
        values=name not in RANDOM,
    )


@pytest.mark.parametrize("name", sorted(f"{kind}_like" for kind in ("zeros", "ones", "full", "empty", "rand", "randn")))
@square(*(f"{kind}_like" for kind in ("zeros", "ones", "full", "empty", "rand", "randn")), examples=6)
def test_made_like_another(case: Case, name: str) -> None:
    shape = case.shape(case.size(1, 3), 2, 4)
    make, more = getattr(torch, name), (1.5,) if name == "full_like" else ()
    cut = " ".join(f"x:{d}" for d in range(len(shape)))
    values = name in ("zeros_like", "ones_like", "full_like")
    case.check(lambda m: make(m.x, *more), x=case.tensor(*shape), cut=cut, values=values)


# Every position of these depends on its place, so nothing that meets them may shrink there.
PLACED: dict[str, Callable[[int], Any]] = {
    "arange": lambda c: torch.arange(c, dtype=D),
    "linspace": lambda c: torch.linspace(0, 1, c, dtype=D),
    "eye": lambda c: torch.eye(c, dtype=D)[0],
    "tensor": lambda c: torch.tensor([float(i) for i in range(c)], dtype=D),
    "as_tensor": lambda c: torch.as_tensor([float(i) for i in range(c)], dtype=D),
    "randint": lambda c: torch.randint(3, (c,)),
    "randperm": lambda c: torch.randperm(c),
    "meshgrid": lambda c: torch.meshgrid(torch.arange(c), torch.arange(2), indexing="ij")[0][:, 0],
}


@pytest.mark.parametrize("name", sorted(PLACED))
@square(*PLACED, examples=5)
def test_places(case: Case, name: str) -> None:
    n, c = case.shape(2, 2, 4)
    make = PLACED[name]
    case.check(
        lambda m: m.x + make(int(m.c)),
        x=case.tensor(n, c),
        c=c,
        cut="x:0",
        stays={"x:1": ""},
        values=name[:4] != "rand",
    )


@pytest.mark.parametrize("name", ["arange", "linspace"])
@square("arange", "linspace", examples=5)
def test_places_up_to_a_width_keep_it(case: Case, name: str) -> None:
    n, c = case.shape(2, 2, 4)
    make = {"arange": lambda c: torch.arange(c, dtype=D), "linspace": lambda c: torch.linspace(0, 1, c, dtype=D)}[name]
    case.check(lambda m: m.x + make(m.x.shape[1]), x=case.tensor(n, c), cut="x:0", stays={"x:1": ""})
