"""Write a model to a file that runs without it, and hold the file's results against the model's."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from surgeon.deploy.formats import FORMATS, Exportable, Format, Runner
from surgeon.deploy.shapes import Dynamic, Inputs, doubled, dynamic_shapes, inputs_of, others
from surgeon.errors import ExportError, SurgeonError
from surgeon.files.atomic import explained
from surgeon.modules import bare, evaluating, tensors_in, untouched
from surgeon.progress import working

# Largest difference allowed, relative to the largest value of an output, by the output's type.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how it compares with the model.

    difference   largest difference of an output, relative to the output's largest absolute value
    checked      the inputs that it was compared on

    Examples
    --------
    >>> exported = surgeon.export(small, "small.pt2", x)
    >>> print(exported.path, exported.difference, exported.checked)
    """

    path: Path
    format: str
    difference: float
    checked: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.format}, {self.path.stat().st_size / 1e6:.1f} MB, within {self.difference:.1e} of the "
            f"model on inputs: {'; '.join(self.checked)}"
        )


@working("exporting")
def export(
    model: Exportable,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic: Dynamic = True,
    tolerance: float | None = None,
) -> Exported:
    """Write a model to a file that runs elsewhere, in eval mode, and check that it computes the same.

    The file is run on the example inputs and on random ones, with another batch where that is free, before it gets its
    name; one that differs is not left behind. The model's modes, hooks and buffers and the random state stay as they
    are.

    Parameters
    ----------
    model : a module or an exported program
    path : the ending says what is written: ``.onnx`` (checked in ONNX Runtime), ``.pt2`` (``torch.export``), ``.ts``
        or ``.pt`` (TorchScript, by tracing), ``.pte`` (ExecuTorch, for the shapes of the example)
    example_inputs : a tensor, a tuple of positional arguments, or a dict of keyword arguments
    dynamic : True leaves the batch free, the first dimension of every tensor that shares that of the first; False
        writes the shapes of the example; ``{"x": {0: "batch", 2: "height"}}`` names what is free. An exported program
        stays as free as it is.
    tolerance : largest difference allowed, relative to the largest value of an output; 1e-4 unless the output is of
        half precision

    Returns
    -------
    Exported, which tells how close the file came

    Raises
    ------
    ExportError naming the output that differs, or saying why torch or the runtime can't take the model; what to
    install, where a package is missing

    Examples
    --------
    >>> print(surgeon.export(small, "small.onnx", torch.randn(1, 3, 224, 224)))
    """
    target = Path(path)
    kind = FORMATS.get(target.suffix)
    if kind is None:
        raise ExportError(f"{target.name!r} ends in none of {', '.join(FORMATS)}, which say what to write")
    if not target.parent.is_dir():
        raise ExportError(f"there is no folder {str(target.parent)!r} to write {target.name!r} to")
    if not isinstance(model, ExportedProgram):
        model = bare(model)
    inputs = inputs_of(model, example_inputs)
    scratch = tempfile.TemporaryDirectory(dir=target.parent, prefix=".surgeon-")
    with explained(target), scratch as folder, _at_rest(model):
        part = Path(folder) / target.name
        free = _write(kind, model, inputs, dynamic, part)
        run = _opened(kind, part)
        reference = _reference(model)
        checked, worst = [], 0.0
        for name, given, expected in _cases(reference, inputs, free):
            worst = max(worst, _compared(kind, run, given, expected, name, tolerance))
            checked.append(name)
        _publish(part, target)
    return Exported(target, kind.name, worst, tuple(checked))


@contextmanager
def _at_rest(model: Exportable) -> Iterator[None]:
    """Run a block in eval mode, without gradients and warnings, and leave the model as it was."""
    modules = [model] if isinstance(model, nn.Module) else []
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # exporters warn of their own insides
        if not modules:
            yield
            return
        with untouched(modules[0]), evaluating(*modules):
            yield


def _write(kind: Format, model: Exportable, inputs: Inputs, dynamic: Dynamic, path: Path) -> bool:
    """Write the file; tell whether its batch is free."""
    free = kind.free and (dynamic is True or isinstance(model, ExportedProgram))
    shapes = dynamic_shapes(inputs, dynamic) if kind.free and isinstance(model, nn.Module) else None
    given = doubled(inputs) if shapes is not None else inputs
    try:
        kind.write(model, given, shapes, path)
    except SurgeonError:
        raise
    except Exception as error:
        hint = "; dynamic=False writes it for the shapes of the example alone" if shapes is not None else ""
        raise ExportError(f"torch can't write {type(model).__name__} as {kind} ({_reason(error)}){hint}") from error
    return free


def _reason(error: BaseException) -> str:
    """Return kind and first line of what an error comes from: exporters wrap it, with advice for their own users."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line for line in str(error).splitlines() if line.strip()), "").strip()
    return f"{type(error).__name__}: {line}"


def _opened(kind: Format, path: Path) -> Runner:
    try:
        return kind.read(path)
    except SurgeonError:
        raise
    except Exception as error:
        raise ExportError(
            f"{kind}: the file that torch wrote can't be loaded ({_reason(error)}); where "
            "an operator is missing for a type, convert the model, for example by model.float()"
        ) from error


# -- comparing ---------------------------------------------------------------------------------------


def _reference(model: Exportable) -> Runner:
    module = model.module() if isinstance(model, ExportedProgram) else model
    return lambda inputs: [t.detach() for t in tensors_in(module(*inputs.args, **inputs.kwargs))]


def _cases(reference: Runner, inputs: Inputs, free: bool) -> Iterator[tuple[str, Inputs, list[Tensor]]]:
    """Yield the example, and the first of the other inputs that the model takes, each with what it makes of it."""
    yield "the example", inputs, reference(inputs)
    for name, given in others(inputs, free):
        try:
            expected = reference(given)
        except Exception:
            continue
        yield name, given, expected
        return


def _compared(
    kind: Format, run: Runner, inputs: Inputs, expected: list[Tensor], name: str, tolerance: float | None
) -> float:
    """Return the largest relative difference of an output; raise ExportError for one that is too large."""
    try:
        found = run(inputs)
    except SurgeonError:
        raise
    except Exception as error:
        raise ExportError(
            f"{kind}: the file does not run on {name} inputs, {inputs} ({_reason(error)}); "
            " dynamic=False writes it for the shapes of the example alone"
        ) from error
    if len(found) != len(expected):
        raise ExportError(f"{kind}: the file returns {len(found)} tensors, the model {len(expected)}")
    worst = 0.0
    for i, (want, have) in enumerate(zip(expected, found)):
        difference = _difference(want, have)
        allowed = TOLERANCE.get(want.dtype, 0.0) if tolerance is None else tolerance
        if not difference <= allowed:
            raise ExportError(
                f"{kind}: output {i}, {list(want.shape)} in the model and {list(have.shape)} in the file, differs by "
                f"{difference:.3g} of its largest value on {name} inputs (allowed {allowed:.0e}); nothing was written"
            )
        worst = max(worst, difference)
    return worst


def _difference(want: Tensor, have: Tensor) -> float:
    if want.shape != have.shape:
        return float("inf")
    a, b = (t.detach().cpu().to(torch.complex128 if t.is_complex() else torch.float64) for t in (want, have))
    if not a.numel():
        return 0.0
    finite = torch.isfinite(a)
    # Infinities, as of masked logits, have to be the same ones.
    if not torch.equal(a[~finite].nan_to_num(nan=7.0), b[~finite].nan_to_num(nan=7.0)):
        return float("inf")
    if not finite.any():
        return 0.0
    return float((a - b)[finite].abs().max() / a[finite].abs().max().clamp(min=1e-12))


# -- writing -----------------------------------------------------------------------------------------


def _publish(part: Path, target: Path) -> None:
    """Move what was written to its place, weights before the graph that names them, once it is on disk."""
    files = sorted(part.parent.iterdir(), key=lambda file: file == part)
    for file in files:
        with open(file, "rb") as written:
            os.fsync(written.fileno())
    for file in files:
        os.replace(file, target.parent / file.name)
