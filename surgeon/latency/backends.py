"""What runs a model: eager torch, ``torch.compile``, or ONNX Runtime.

A back end takes a module and its inputs, does its one-off work, and returns a function that runs the model once.
Optional packages are imported when they are asked for.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import nn

from surgeon.errors import BudgetError, SurgeonError, UnsupportedModel
from surgeon.modules import as_arguments, tensors_in

Runner = Callable[[], Any]


class _Entry(nn.Module):
    """A model whose forward is another of its methods."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.model, self.method)(*args, **kwargs)


def prepare(model: nn.Module, example_inputs: Any, backend: str = "eager", method: str = "forward") -> Runner:
    """Ready a model on a back end and return what runs it once.

    Raises
    ------
    BudgetError for a back end that does not exist, SurgeonError when its packages are missing, UnsupportedModel when
    it can't take the model.
    """
    if backend not in BACKENDS:
        raise BudgetError(f"no back end {backend!r}; there are {', '.join(map(repr, BACKENDS))}")
    entry = model if method == "forward" else _Entry(model, method)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # exporters warn of their own insides
            run = BACKENDS[backend](entry, *as_arguments(example_inputs))
            run()
    except SurgeonError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise UnsupportedModel(
            f"{backend} can't run {type(model).__name__} ({type(error).__name__}: {first}); try another back end"
        ) from error
    return run


def _eager(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Runner:
    return lambda: model(*args, **kwargs)


def _compiled(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Runner:
    def run() -> Any:
        return model(*args, **kwargs)

    # Compiled code is kept per code object, and only so many variants of one. Each model gets a code object to itself.
    own = FunctionType(run.__code__.replace(), run.__globals__, "run", None, run.__closure__)
    compiled: Runner = torch.compile(own, dynamic=False)
    return compiled


def _onnxruntime(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Runner:
    onnxruntime = _required("onnxruntime", "onnx", "onnxscript")
    tensors = tensors_in([args, kwargs])
    kind = tensors[0].device.type if tensors else "cpu"
    provider = "CUDAExecutionProvider" if kind == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise UnsupportedModel(f"this onnxruntime has no {provider}; install onnxruntime-gpu, or move the model")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(model, args, path, kwargs=kwargs, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
    names = [given.name for given in session.get_inputs()]
    if len(names) != len(tensors):
        raise UnsupportedModel(f"the ONNX graph takes {len(names)} tensors, the model {len(tensors)}")
    binding = session.io_binding()
    for name, tensor in zip(names, tensors):
        value = onnxruntime.OrtValue.ortvalue_from_numpy(tensor.detach().cpu().numpy(), kind, 0)
        binding.bind_ortvalue_input(name, value)
    for result in session.get_outputs():
        binding.bind_output(result.name, kind)
    return lambda: session.run_with_iobinding(binding)


def _required(*names: str) -> Any:
    """Import optional packages and return the first; raises SurgeonError that says what to install."""
    try:
        first, *_ = [import_module(name) for name in names]
    except ImportError as error:
        raise SurgeonError(
            f"the back end {names[0]!r} needs {', '.join(names)}: pip install 'channel-surgeon[export]' ({error})"
        ) from error
    return first


BACKENDS: dict[str, Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Runner]] = {
    "eager": _eager,
    "compile": _compiled,
    "onnxruntime": _onnxruntime,
}
