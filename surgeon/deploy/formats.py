"""The formats of exported files: how each is written, and how it is run again.

Optional packages are imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from surgeon.deploy.shapes import Inputs
from surgeon.errors import ExportError
from surgeon.modules import tensors_in

Exportable = nn.Module | ExportedProgram
# Runs a file on inputs and returns the tensors that come out.
Runner = Callable[[Inputs], list[Tensor]]

# Protocol buffers hold two gigabytes; larger weights go into a file of their own.
EXTERNAL = 1_900_000_000


@dataclass(frozen=True)
class Format:
    """A format: ``write(model, inputs, dynamic_shapes, path)``, and ``read(path)`` for what runs it."""

    name: str
    write: Callable[[Exportable, Inputs, Any, Path], None]
    read: Callable[[Path], Runner]
    free: bool = True

    def __str__(self) -> str:
        return self.name


def required(what: str, extra: str, *names: str) -> Any:
    """Import optional packages and return the first.

    Raises ExportError that says what to install.
    """
    try:
        first, *_ = [import_module(name) for name in names]
    except ImportError as error:
        packages = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
        raise ExportError(f"{what} needs {packages}: pip install {extra} ({error})") from error
    return first


def program(model: Exportable, inputs: Inputs, dynamic_shapes: Any) -> ExportedProgram:
    """Return a model as a program of ``torch.export``."""
    if isinstance(model, ExportedProgram):
        return model
    return torch.export.export(model, inputs.args, inputs.kwargs, dynamic_shapes=dynamic_shapes)


# -- ONNX --------------------------------------------------------------------------------------------

ONNX = ("an ONNX file", "'channel-surgeon[export]'")


def _write_onnx(model: Exportable, inputs: Inputs, dynamic_shapes: Any, path: Path) -> None:
    required(*ONNX, "onnx", "onnxscript", "onnxruntime")
    state = model.state_dict if isinstance(model, ExportedProgram) else model.state_dict()
    held = sum(t.numel() * t.element_size() for t in state.values() if isinstance(t, Tensor))
    options: dict[str, Any] = {"dynamo": True, "external_data": held > EXTERNAL, "verbose": False}
    if isinstance(model, nn.Module):
        # Of a module, and not of a program, the names of free dimensions reach the file.
        options |= {"args": inputs.args, "kwargs": inputs.kwargs, "dynamic_shapes": dynamic_shapes}
    torch.onnx.export(model, f=str(path), **options)


def _read_onnx(path: Path) -> Runner:
    onnxruntime = required(*ONNX, "onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = [given.name for given in session.get_inputs()]

    def run(inputs: Inputs) -> list[Tensor]:
        tensors = list(tensors_in([inputs.args, inputs.kwargs]))
        if len(tensors) != len(wanted):
            raise ExportError(
                f"the ONNX graph takes {len(wanted)} tensors ({', '.join(wanted)}), the model {len(tensors)}: the "
                "outputs don't depend on the others; leave them out of the example inputs"
            )
        fed = {name: tensor.detach().cpu().numpy() for name, tensor in zip(wanted, tensors)}
        return [torch.from_numpy(value) for value in session.run(None, fed)]

    return run


# -- torch.export and TorchScript --------------------------------------------------------------------


def _write_pt2(model: Exportable, inputs: Inputs, dynamic_shapes: Any, path: Path) -> None:
    torch.export.save(program(model, inputs, dynamic_shapes), path)


def _read_pt2(path: Path) -> Runner:
    module = torch.export.load(path).module()
    return lambda inputs: list(tensors_in(module(*inputs.args, **inputs.kwargs)))


class _Positional(nn.Module):
    """A model that takes and returns nothing but tensors, by position, which is all that TorchScript knows."""

    def __init__(self, model: nn.Module, named: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.named = model, named

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        named = {name: next(given) if isinstance(value, Tensor) else value for name, value in self.named.items()}
        return tuple(tensors_in(self.model(**named)))


def _write_torchscript(model: Exportable, inputs: Inputs, dynamic_shapes: Any, path: Path) -> None:
    if isinstance(model, ExportedProgram):
        raise ExportError("an exported program can't be traced; write it as .pt2 or .onnx")
    result = model(*inputs.args, **inputs.kwargs)
    plain = isinstance(result, Tensor) or (type(result) is tuple and all(isinstance(t, Tensor) for t in result))
    entry = model if plain and not inputs.kwargs else _Positional(model, inputs.named)
    torch.jit.save(torch.jit.trace(entry, _tensors(inputs), check_trace=False), str(path))


def _read_torchscript(path: Path) -> Runner:
    module = torch.jit.load(str(path))
    return lambda inputs: list(tensors_in(module(*_tensors(inputs))))


def _tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """Return the inputs by position, in the order of the signature."""
    return tuple(tensors_in(inputs.named))


# -- ExecuTorch --------------------------------------------------------------------------------------


def _write_pte(model: Exportable, inputs: Inputs, dynamic_shapes: Any, path: Path) -> None:
    exir = required("an ExecuTorch file", "executorch", "executorch.exir")
    path.write_bytes(exir.to_edge(program(model, inputs, None)).to_executorch().buffer)


def _read_pte(path: Path) -> Runner:
    runtime = required("running an ExecuTorch file", "executorch", "executorch.runtime")
    method = runtime.Runtime.get().load_program(path).load_method("forward")
    return lambda inputs: list(tensors_in(method.execute(list(tensors_in([inputs.args, inputs.kwargs])))))


FORMATS: dict[str, Format] = {
    ".onnx": Format("ONNX", _write_onnx, _read_onnx),
    ".pt2": Format("torch.export", _write_pt2, _read_pt2),
    ".ts": Format("TorchScript", _write_torchscript, _read_torchscript),
    ".pt": Format("TorchScript", _write_torchscript, _read_torchscript),
    ".pte": Format("ExecuTorch", _write_pte, _read_pte, free=False),
}
