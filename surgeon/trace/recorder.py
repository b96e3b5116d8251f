"""Run a model once and hand every torch call to a listener, with module path, source line and tracked sizes."""

from __future__ import annotations

import linecache
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from threading import get_ident
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from surgeon.dispatch import ASIDES, SIZE_QUERIES, Applied, intercept, op_name
from surgeon.errors import SurgeonError, TraceError
from surgeon.modules import as_arguments, distinct, records, submodules, tensors_in, untouched
from surgeon.trace.integers import Attribute, Ledger, Power, Tracked, ledger, tracked_roots

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep
_INTERNAL = frozenset(vars(nn.Module())) | {"training"}
_SIZES = frozenset({int, tuple, list, torch.Size})


@dataclass(frozen=True, eq=False)
class Call:
    """One torch-level call: ``conv2d`` in ``layer1.0.conv1``, with the arguments as Python passed them."""

    index: int
    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    module: str
    location: tuple[str, int]

    @cached_property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, and inside their tuples, lists and dicts."""
        return tensors_in([self.args, self.kwargs])

    @cached_property
    def results(self) -> list[Tensor]:
        """The tensors of the result."""
        return tensors_in(self.result)

    @cached_property
    def numbers(self) -> list[Tracked | Power]:
        """The numbers with a provenance among the arguments, and inside their tuples, lists and dicts."""
        return numbers_in((self.args, self.kwargs))

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def __str__(self) -> str:
        return f"{self.name} in {self.module or 'the model'} ({source_line(self.location)})"


Recall = Callable[[str, nn.Module, tuple[Any, ...]], Any]


class Listener(Protocol):
    """What the recorder tells: each call, and the question how large a tensor is."""

    def call(self, call: Call) -> None: ...

    def sizes(self, tensor: Tensor) -> Sequence[int]: ...

    def knows(self, name: str) -> bool:
        """Whether a custom autograd function has a rule, so that its body says nothing more."""
        ...

    def leave(self, call: Call) -> None:
        """A custom autograd function without a rule has run; the calls of its body came before."""
        ...


def numbers_in(tree: Any) -> list[Tracked | Power]:
    """Return the numbers with a provenance inside tuples, lists and dicts."""
    found: list[Tracked | Power] = []
    for item in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(item, (Tracked, Power)):
            found.append(item)
        elif isinstance(item, (tuple, list, dict)):
            found += numbers_in(item)
    return found


def source_line(location: tuple[str, int]) -> str:
    """Format ``file.py:12: y = x.view(...)``."""
    path, number = location[:2]
    text = location[2] if len(location) > 2 else linecache.getline(path, number).strip()
    return f"{os.path.basename(path)}:{number}" + (f": {text}" if text else "")


def track_attributes(modules: Mapping[str, nn.Module]) -> None:
    """Replace the integers held by modules, given by path, and by the plain objects that they hold, with tracked ones.

    ``untouched`` puts the originals back. An object that several modules hold goes by its first name.
    """
    seen: set[int] = set()
    for path, module in modules.items():
        plain = list(records(module))
        attributes = vars(module)
        attributes.update(_tracked(attributes, path, ""))
        for name, held in plain:
            if id(held) not in seen:
                seen.add(id(held))
                held.update(_tracked(held, path, f"{name}."))


def _tracked(attributes: dict[str, Any], owner: str, prefix: str) -> dict[str, Any]:
    """Return tracked twins of the integers among attributes, and of the tuples and lists of them."""
    return {
        name: _track(value, owner, prefix + name)
        for name, value in attributes.items()
        if type(value) in _SIZES and name not in _INTERNAL
    }


def _track(value: Any, owner: str, name: str) -> Any:
    if type(value) is int:
        return Tracked(value, Attribute(owner, name))
    if any(type(item) is int for item in value):
        items = (Tracked(v, Attribute(owner, name, i)) if type(v) is int else v for i, v in enumerate(value))
        return type(value)(items)
    return value


@dataclass
class _Recording:
    listener: Listener
    names: dict[int, str]
    start: int
    stack: list[str] = field(default_factory=list)
    count: int = 0
    hidden: int = 0  # how many functions with a rule of their own are running
    known: dict[str, bool] = field(default_factory=dict)
    location: tuple[str, int] = ("?", 0)
    # A program that was exported knows where its steps came from; its frames are not the user's.
    source_location: Callable[[], tuple[str, int]] | None = None

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.location = location = self.locate()
        name = op_name(func)
        if name in SIZE_QUERIES:
            return self.size(name, func(*args, **kwargs), *args, **kwargs)
        if name in ASIDES:
            return func(*args, **kwargs)
        index, self.count = self.start + self.count, self.count + 1
        inner = isinstance(func, Applied) and self.listener.knows(name)
        self.hidden += inner
        result = func(*args, **kwargs)
        self.hidden -= inner
        if not self.hidden:
            module = self.stack[-1] if self.stack else ""
            tell = self.listener.leave if isinstance(func, Applied) and not inner else self.listener.call
            tell(Call(index, name, func, args, kwargs, result, module, location))
        return result

    def size(self, name: str, result: Any, tensor: Tensor, dim: int | None = None) -> Any:
        sizes = self.listener.sizes(tensor)
        if name == "numel":
            return math.prod(sizes)
        return torch.Size(sizes) if dim is None else sizes[dim]

    def locate(self) -> tuple[str, int]:
        if self.source_location is not None:
            return self.source_location()
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            path = frame.f_code.co_filename
            foreign = self.known.get(path)
            if foreign is None:
                foreign = self.known[path] = not path.startswith((_TORCH, _OWN, "<"))
            if foreign:
                return path, frame.f_lineno
            frame = frame.f_back
        return "?", 0

    def origin(self, error: Exception) -> str:
        """Return module and source line of the innermost frame that is the user's own."""
        module, location, trail = "", self.location, error.__traceback__
        while trail is not None:
            path, owner = trail.tb_frame.f_code.co_filename, trail.tb_frame.f_locals.get("self")
            module = self.names.get(id(owner), module) if isinstance(owner, nn.Module) else module
            if not path.startswith((_TORCH, _OWN, "<")):
                location = path, trail.tb_lineno
            trail = trail.tb_next
        return f"{module or 'the model'}, {source_line(location)}"

    @contextmanager
    def following(self, recall: Recall | None = None) -> Iterator[None]:
        """Keep count of the module that runs; hooks on all modules would tell too, at several times the cost."""
        names, stack, thread, called = self.names, self.stack, get_ident(), nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if get_ident() != thread:  # the class is everybody's
                return called(module, *args, **kwargs)
            own = names.get(id(module))  # a module that no other has registered goes by the one that runs it
            stack.append(own if own is not None else stack[-1] if stack else "")
            try:
                known = None
                if recall is not None and own is not None and not kwargs:
                    known = _recalled(recall, own, module, args)
                return called(module, *args, **kwargs) if known is None else known
            finally:
                stack.pop()

        nn.Module.__call__ = call  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = called  # type: ignore[method-assign]


def _recalled(recall: Recall, path: str, module: nn.Module, args: tuple[Any, ...]) -> Any:
    with torch._C.DisableTorchFunction():  # what it does is no part of the model
        return recall(path, module, args)


def record(
    model: nn.Module,
    example_inputs: Any,
    listener: Listener,
    *,
    training: bool = False,
    start: int = 0,
    recall: Recall | None = None,
) -> tuple[Any, Ledger, int]:
    """Run the model once under the recorder.

    The forward runs without gradients and in eval mode. ``training=True`` puts the modules that
    only hold others in training mode (so that their auxiliary branches run), while layers with state of their
    own, such as batch norm and dropout, stay in eval mode. ``recall(path, module, args)`` may give the result of a
    module, which then does not run.

    Returns the model's output, the ledger of size comparisons and escapes, and the number of calls.
    Raises TraceError when the forward fails.
    """
    args, kwargs = as_arguments(example_inputs)
    modules = distinct(submodules(model))
    recording = _Recording(listener, {id(m): path for path, m in modules.items()}, start)
    recording.source_location = getattr(model, "source_location", None)
    entries = Ledger(where=lambda: source_line(recording.locate()))
    with untouched(model):
        for module in modules.values():
            vars(module)["training"] = training and bool(module._modules)
        track_attributes(modules)
        try:
            with torch.no_grad(), ledger(entries), tracked_roots(), recording.following(recall), intercept(recording):
                output = model(*args, **kwargs)
        except SurgeonError:
            raise
        except Exception as error:
            given = ", ".join(str(tuple(t.shape)) for t in tensors_in([args, kwargs])) or "no tensors"
            raise TraceError(
                f"the forward pass failed at {recording.origin(error)}: {type(error).__name__}: {error}; "
                f"example inputs had shapes {given}; check that model(*example_inputs) runs"
            ) from error
    return output, entries, recording.count
