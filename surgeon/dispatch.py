"""See every torch-level call of a forward pass.

``intercept`` runs a block so that each builtin torch call (``conv2d``, ``view``, ``__getitem__``,
``.shape``, ...) goes through one Python function. The recorder and the masked reference both stand
on it, and it knows nothing of either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import get_ident
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd.function import _SingleLevelFunction
from torch.overrides import TorchFunctionMode

from surgeon.aten import spelling, table_name

# ``call(func, args, kwargs)`` returns what the model sees as the result.
Interceptor = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_PYTHON_LEVEL = (torch.nn.functional, torch.functional)
_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


class _Mode(TorchFunctionMode):
    def __init__(self, call: Interceptor) -> None:
        super().__init__()
        self.call = call
        self.deaf = False  # while the interceptor itself runs outside of a torch call

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.deaf:
            return func(*args, **kwargs or {})
        spelled = spelling(func)
        if spelled is None:
            return self.call(func, args, kwargs or {})
        with self:
            return spelled(*args, **(kwargs or {}))

    @contextmanager
    def listening(self, on: bool) -> Iterator[None]:
        before, self.deaf = self.deaf, not on
        try:
            yield
        finally:
            self.deaf = before


class Applied:
    """A custom autograd function as a callable named as its class; the calls of its body come while it runs."""

    def __init__(self, function: type, mode: _Mode) -> None:
        self.function, self.mode = function, mode
        self.__name__, self.__module__ = function.__name__, function.__module__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.mode.listening(True):
            return _apply(self.function, *args, **kwargs)


def _apply(function: type, *args: Any, **kwargs: Any) -> Any:
    return super(_SingleLevelFunction, function).apply(*args, **kwargs)  # type: ignore[misc]


@contextmanager
def _applied(mode: _Mode) -> Iterator[None]:
    """Route ``Function.apply`` through a mode too, which does not see it, nor a kernel that its body runs.

    Modules often keep a bound ``apply``, so it is replaced one class above the one where they got it from.
    """

    thread = get_ident()

    def routed(function: type, *args: Any, **kwargs: Any) -> Any:
        if get_ident() != thread:  # a mode is one thread's, a class is everybody's
            return _apply(function, *args, **kwargs)
        with mode.listening(False):
            return mode.call(Applied(function, mode), args, kwargs)

    setattr(_SingleLevelFunction, "apply", classmethod(routed))  # noqa: B010  (mypy knows no such attribute)
    try:
        yield
    finally:
        delattr(_SingleLevelFunction, "apply")


@contextmanager
def intercept(call: Interceptor) -> Iterator[None]:
    """Route every builtin torch call in the block through ``call``.

    Functions that torch writes in Python (``F.interpolate``, ``F.multi_head_attention_forward``)
    would stop at the mode before their body runs; with their override checks off, their bodies run and only
    builtins arrive. Operators of exported programs arrive as the torch functions that they stand for. The fused
    attention path is off meanwhile: it hides its parts.
    """
    saved = [
        (module, name, getattr(module, name)) for module in _PYTHON_LEVEL for name in _CHECKS if hasattr(module, name)
    ]
    for module, name, _ in saved:
        setattr(module, name, lambda *tensors: False)
    mode = _Mode(call)
    try:
        with unfused(), _applied(mode), mode:
            yield
    finally:
        for module, name, check in saved:
            setattr(module, name, check)


@contextmanager
def unfused() -> Iterator[None]:
    """Switch the fused path of ``nn.MultiheadAttention`` and ``nn.TransformerEncoder`` off."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


# Questions about a tensor's size: they move no data and are not counted as calls.
SIZE_QUERIES = frozenset({"shape", "size", "numel"})
# What layers ask or do beside their computation, more or less often from run to run: not counted as calls either. A
# recurrent layer looks its weights over whenever they are other tensors than they were, as under a reference.
ASIDES = frozenset({"dtype", "device", "is_cuda", "dim", "data_ptr", "grad_fn", "cudnn_rnn_flatten_weight"})
_BINARY = {"add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul"}


def op_name(func: Any) -> str:
    """Return the table name of a torch function or operator.

    ``conv2d``, ``getitem``, ``add`` (also for ``add_``, ``+=``, ``__radd__``, ``aten.add.Tensor``); operators of a
    library keep its name, ``torchvision::nms``, whichever overload is called. A custom autograd function goes by the
    name of its class.
    """
    # One is made per call and knows its recording, which a cache would keep alive.
    return func.__name__ if isinstance(func, Applied) else _op_name(func)


@lru_cache(maxsize=4096)
def _op_name(func: Any) -> str:
    if isinstance(func, OpOverloadPacket):
        qualified = str(func._qualified_op_name)
        if not qualified.startswith("aten::"):
            return qualified
    if isinstance(func, OpOverload):
        return table_name(func)
    name = getattr(func, "__name__", None) or str(func)
    if name == "__get__":
        return str(getattr(func.__self__, "__name__", "attribute"))
    special, name = name.startswith("__"), name.strip("_")
    return name[1:] if special and name[:1] in ("i", "r") and name[1:] in _BINARY else name
