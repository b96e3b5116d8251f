"""Example inputs from ``--input``: shapes, types and names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import typer
from torch import Tensor

_SPEC = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>[A-Za-z]\w*)(?::(?P<below>\d+))?)?"
)
DTYPES = {
    name: getattr(torch, name)
    for name in "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64".split()
}
HINT = "write 1x3x224x224, 1x16:int64, 1x16:int64:1000 (values below 1000) or input_ids=1x16:int64"


@dataclass(frozen=True)
class Spec:
    """One tensor: values are normal, or integers from 0 to below ``below``."""

    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    below: int

    def tensor(self) -> Tensor:
        if self.dtype.is_floating_point or self.dtype.is_complex:
            return torch.randn(self.shape, dtype=self.dtype)
        return torch.randint(0, self.below, self.shape).to(self.dtype)


def parse(text: str) -> Spec:
    """Read ``[NAME=]SHAPE[:DTYPE[:BELOW]]``.

    Integers are zeros and ones unless ``below`` says more: these are tokens of any vocabulary, and masks.
    """
    found = _SPEC.fullmatch(text)
    if found is None:
        raise _bad(f"{text!r} is no input; {HINT}")
    shape = tuple(int(size) for size in found["shape"].split("x"))
    if 0 in shape:
        raise _bad(f"{text!r} has no values, as a size is 0; {HINT}")
    dtype = DTYPES.get(found["dtype"] or "float32")
    if dtype is None:
        raise _bad(f"{text!r}: no type {found['dtype']!r}; there are {', '.join(DTYPES)}")
    whole = not (dtype.is_floating_point or dtype.is_complex)
    if found["below"] is not None and (not whole or int(found["below"]) < 1):
        raise _bad(f"{text!r}: a bound on values is for integers, and at least 1")
    return Spec(found["name"], shape, dtype, int(found["below"] or 2))


def tensors(texts: Sequence[str], seed: int) -> Any:
    """Return example inputs: a tuple of positional arguments, or a dict of keyword arguments where all have names."""
    specs = [parse(text) for text in texts]
    names = [spec.name for spec in specs if spec.name is not None]
    if names and len(names) != len(specs):
        raise _bad("give names to all inputs or to none")
    if len(set(names)) != len(names):
        raise _bad(f"two inputs are called {max(names, key=names.count)!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = [spec.tensor() for spec in specs]
    return dict(zip(names, made)) if names else tuple(made)


def moved(tree: Any, device: str) -> Any:
    """Return inputs on a device."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: moved(value, device) for key, value in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(moved(value, device) for value in tree)
    return tree


def _bad(text: str) -> typer.BadParameter:
    return typer.BadParameter(text, param_hint="--input")
