"""See every torch-level call of a forward pass.

``intercept`` runs a block so that each builtin torch call (``conv2d``, ``view``, ``__getitem__``,
``.shape``, ...) goes through one Python function. The recorder and the masked reference both stand
on it, and it knows nothing of either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._ops import OpOverload
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

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        spelled = spelling(func)
        if spelled is None:
            return self.call(func, args, kwargs or {})
        with self:
            return spelled(*args, **(kwargs or {}))


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
    try:
        with unfused(), _Mode(call):
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
_BINARY = {"add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul"}


def op_name(func: Any) -> str:
    """Return the table name of a torch function or operator.

    ``conv2d``, ``getitem``, ``add`` (also for ``add_``, ``+=``, ``__radd__``, ``aten.add.Tensor``).
    """
    if isinstance(func, OpOverload):
        return table_name(func)
    name = getattr(func, "__name__", None) or str(func)
    if name == "__get__":
        return str(getattr(func.__self__, "__name__", "attribute"))
    special, name = name.startswith("__"), name.strip("_")
    return name[1:] if special and name[:1] in ("i", "r") and name[1:] in _BINARY else name
