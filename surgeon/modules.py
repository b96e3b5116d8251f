"""Modules and their inputs as users hand them in."""

from __future__ import annotations

import gc
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from enum import Enum
from functools import lru_cache
from operator import is_
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from surgeon.errors import TraceError, UnsupportedModel
from surgeon.exported import Program, load

T = TypeVar("T")

# What the verbs take: a module, an exported program, or the path of a saved one.
Model = nn.Module | ExportedProgram | str | os.PathLike[str]


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors inside nested tuples, lists, dicts and dataclass-like outputs."""
    found: list[Tensor] = []
    _gather(tree, found)
    return found


def _gather(tree: Any, found: list[Tensor]) -> None:
    if isinstance(tree, Tensor):
        found.append(tree)
        return
    if tree is None or isinstance(tree, (int, float, str)):
        return
    if isinstance(tree, (list, tuple, set, frozenset)):
        items: Iterable[Any] = tree
    elif isinstance(tree, Mapping):
        items = tree.values()
    elif hasattr(tree, "__dict__") and not isinstance(tree, (type, nn.Module)) and not callable(tree):
        items = vars(tree).values()
    else:
        return
    for item in items:
        _gather(item, found)


def bare(model: Any) -> nn.Module:
    """Unwrap data-parallel and compiled models, read exported programs; refuse what can't be recorded."""
    if isinstance(model, (str, os.PathLike)):
        model = load(model)
    if isinstance(model, ExportedProgram):
        return Program(model)
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise UnsupportedModel(
            "a scripted model hides its Python forward; pass the nn.Module that it was scripted from"
        )
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(model, "_orig_mod"):
        model = getattr(model, "_orig_mod", None) or model.module
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"expected a torch.nn.Module, got {type(model).__name__}")
    return model


def submodules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the model and all that is in it, under all their paths, in the order of ``named_modules``.

    Torch's own is a generator in a generator for each level of nesting, which shows in models of many small layers.
    """
    found: dict[str, nn.Module] = {}
    left: list[tuple[str, nn.Module]] = [("", model)]
    while left:
        path, module = left.pop()
        found[path] = module
        start = f"{path}." if path else ""
        left.extend((start + name, child) for name, child in reversed(module._modules.items()) if child is not None)
    return found


def named_tensors(model: nn.Module, kinds: Sequence[str] = ("_parameters", "_buffers")) -> dict[str, Tensor]:
    """Return parameters, and after them buffers, under all their names."""
    modules = submodules(model)
    return {
        f"{path}.{name}" if path else name: tensor
        for kind in kinds
        for path, module in modules.items()
        for name, tensor in getattr(module, kind).items()
        if tensor is not None
    }


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return parameters by their first names, as ``model.named_parameters()`` does."""
    return distinct(cast(dict[str, nn.Parameter], named_tensors(model, ("_parameters",))))


def first_names(things: Mapping[str, Any]) -> dict[str, str]:
    """Map every name of a tied tensor, or of a shared module, to its first, under which it is recorded."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(thing), name) for name, thing in things.items()}


def distinct(things: Mapping[str, T]) -> dict[str, T]:
    """Return things by their first names."""
    return {name: things[name] for name, first in first_names(things).items() if name == first}


def as_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read ``example_inputs``: a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


@lru_cache(maxsize=1024)
def _is_record(kind: Any) -> bool:
    """Whether instances hold plain attributes, as configurations do."""
    other = (Tensor, nn.Module, type, Enum, Mapping, list, tuple, set, logging.Logger)
    names = dir(kind)
    return "__dict__" in names and "__call__" not in names and not issubclass(kind, other)


# Most attributes of modules are of these types, which need no closer look.
_PLAIN = frozenset({bool, int, float, str, tuple, list, set, type(None), torch.Size, nn.Parameter})
_REGISTRIES = frozenset({dict, OrderedDict})


def records(module: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and attributes of the configurations and other plain objects that a module holds."""
    for name, value in vars(module).items():
        kind: Any = type(value)
        if kind not in _PLAIN and kind not in _REGISTRIES and _is_record(kind):
            yield name, vars(value)


def holder(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """Return the dictionary that holds an attribute, and its key there: ``heads``, or ``config.heads``.

    Raises KeyError or TypeError where there is none. Looks attributes up and never calls anything, such as a property.
    """
    owner: Any = module
    *path, leaf = name.split(".")
    for part in path:
        owner = vars(owner)[part]
    return vars(owner), leaf


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Leave modules' attributes, buffers, registries, hooks, train/eval flags and the random state as they were."""
    held: list[dict[Any, Any]] = []
    for attributes in map(vars, distinct(submodules(model)).values()):
        held.append(attributes)
        for value in attributes.values():
            kind: Any = type(value)
            if kind in _PLAIN:
                continue
            if isinstance(value, dict):
                held.append(value)
            elif _is_record(kind):
                held.append(vars(value))
    # Most are registries of hooks, and empty.
    saved = [(entries, dict(entries)) for entries in {id(entries): entries for entries in held if entries}.values()]
    empty = [entries for entries in held if not entries]
    try:
        with buffers_kept(model):
            yield
    finally:
        for entries in empty:
            entries.clear()
        for entries, before in saved:
            _restore(entries, before)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Leave buffers that a forward pass writes to, and the random state, as they were."""
    tensors = {id(b): b for module in submodules(model).values() for b in module._buffers.values() if b is not None}
    buffers = [(b, b._version, b.detach().clone()) for b in tensors.values() if not b.is_inference()]
    on_gpu = {p.get_device() for p in model.parameters() if p.is_cuda} if torch.cuda.is_initialized() else set()
    try:
        with torch.random.fork_rng(devices=sorted(on_gpu)):
            yield
    finally:
        for buffer, version, value in buffers:
            if buffer._version != version:
                buffer.data.copy_(value)


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause the search for reference cycles: facts and records pile up, and none of them is garbage.

    Activations go when their last reference does, as always.
    """
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()


def _restore(entries: dict[Any, Any], before: dict[Any, Any]) -> None:
    same = len(entries) == len(before) and all(map(is_, entries, before))
    if not same or not all(map(is_, entries.values(), before.values())):
        entries.clear()
        entries.update(before)


@contextmanager
def entering(method: str, *models: nn.Module) -> Iterator[None]:
    """Make calls of the models run another method than ``forward``; inside that method, ``forward`` is itself again."""
    if method == "forward":
        yield
        return
    entries = [(model, vars(model).get("forward"), _entry(model, method)) for model in models]
    for model, _, entry in entries:
        vars(model)["forward"] = entry
    try:
        yield
    finally:
        for model, own, _ in entries:
            _set_forward(model, own)


def _set_forward(model: nn.Module, own: Callable[..., Any] | None) -> None:
    """Set the model's own ``forward``, if it has another than its class."""
    if own is None:
        vars(model).pop("forward", None)
    else:
        vars(model)["forward"] = own


def _entry(model: nn.Module, method: str) -> Callable[..., Any]:
    bound = getattr(model, method, None)
    if not callable(bound):
        known = [name for name in dir(type(model)) if not name.startswith("_") and not hasattr(nn.Module, name)]
        near = get_close_matches(method, known, n=3) or known[:5]
        raise TraceError(f"{type(model).__name__} has no method {method!r}; it has {', '.join(near) or 'none'}")

    own = vars(model).get("forward")

    def entry(*args: Any, **kwargs: Any) -> Any:
        _set_forward(model, own)
        try:
            return bound(*args, **kwargs)
        finally:
            vars(model)["forward"] = entry

    return entry


@contextmanager
def modes_kept(*models: nn.Module) -> Iterator[None]:
    """Put every module's own train/eval flag back afterwards."""
    flags = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models in eval mode and put every module's own flag back afterwards."""
    with modes_kept(*models):
        for model in models:
            for module in model.modules():
                module.training = False
        yield
