"""Make torchvision importable where its compiled operators don't load.

The torchvision wheel on PyPI is linked against CUDA; next to a CPU build of torch its library does not load, and
``import torchvision`` then fails while it registers shape functions for ``torchvision::nms`` and its siblings, which
nobody has declared. Its models are plain Python, and most need none of these operators, so declaring them is enough to
import them. Those that detectors need are written in plain torch in ``torchvision_ops``; the others can't be called.

    from tests.torchvision_stub import install

    install()            # before the first import of torchvision; does nothing where the operators load
    import torchvision

As a program it runs a script that imports torchvision: ``python -m tests.torchvision_stub examples/demo.py``.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import torch

from tests import torchvision_ops

_IMAGE = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_SIZE = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_GRAD = "Tensor grad, Tensor rois"
_POOLED = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_DEFORM = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, "
    "SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, "
    "bool use_mask"
)
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({_IMAGE}, int sampling_ratio, bool aligned) -> Tensor",
    f"qroi_align({_IMAGE}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool({_IMAGE}) -> (Tensor, Tensor)",
    f"ps_roi_align({_IMAGE}, int sampling_ratio) -> (Tensor, Tensor)",
    f"ps_roi_pool({_IMAGE}) -> (Tensor, Tensor)",
    f"_roi_align_backward({_GRAD}, {_POOLED}, {_SIZE}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_pool_backward({_GRAD}, Tensor argmax, {_POOLED}, {_SIZE}) -> Tensor",
    f"_ps_roi_align_backward({_GRAD}, Tensor channel_mapping, {_POOLED}, int sampling_ratio, {_SIZE}) -> Tensor",
    f"_ps_roi_pool_backward({_GRAD}, Tensor channel_mapping, {_POOLED}, {_SIZE}) -> Tensor",
    f"deform_conv2d({_DEFORM}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {_DEFORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "_cuda_version() -> int",
)

# A library's declarations last as long as the object that made them.
_declared: list[torch.library.Library] = []


def install() -> bool:
    """Declare torchvision's operators if its library can't be loaded; return whether that was needed."""
    if "torchvision" in sys.modules or _declared:
        return bool(_declared)
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _loads(Path(spec.origin).parent):
        return False
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    library.impl("nms", torchvision_ops.nms, "CompositeExplicitAutograd")
    library.impl("roi_align", torchvision_ops.roi_align, "CompositeExplicitAutograd")
    library.impl("_cuda_version", lambda: -1, "CompositeExplicitAutograd")
    _declared.append(library)
    _announce(Path(spec.origin).parent)
    return True


def _announce(package: Path) -> None:
    """Let torchvision find its operators in place: it asks whether its library loads, then whether they are there."""
    load = torch.ops.load_library

    def load_others(path: Any) -> None:
        if Path(path).parent != package or not Path(path).name.startswith("_C"):
            load(path)

    torch.ops.load_library = load_others  # type: ignore[method-assign]


def _loads(package: Path) -> bool:
    for path in package.glob("_C*"):
        try:
            torch.ops.load_library(str(path))
        except OSError:
            continue
        return True
    return False


def main(arguments: list[str]) -> None:
    """Run a script as ``python script.py ...`` would, with torchvision made importable."""
    if not arguments:
        sys.exit("usage: python -m tests.torchvision_stub SCRIPT [ARGUMENT ...]")
    install()
    sys.argv = arguments
    sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
