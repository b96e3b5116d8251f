"""Published convolutional networks at low resolution, as users get them from torchvision and timm."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision.models as tv
from torch import nn

from tests.zoo.weights import randomize

# name -> (constructor, side of the input image)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "alexnet": (lambda: tv.alexnet(num_classes=10), 63),
    "vgg16_bn": (lambda: _without_wide_head(tv.vgg16_bn(num_classes=10)), 32),
    "resnet18": (lambda: tv.resnet18(num_classes=10), 32),
    "resnet50": (lambda: tv.resnet50(num_classes=10), 32),
    "resnext50": (lambda: tv.resnext50_32x4d(num_classes=10), 32),
    "wide_resnet50": (lambda: tv.wide_resnet50_2(num_classes=10), 32),
    "densenet121": (lambda: tv.densenet121(num_classes=10), 32),
    "densenet201": (lambda: tv.densenet201(num_classes=10), 32),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(num_classes=10), 32),
    "mobilenet_v3_small": (lambda: tv.mobilenet_v3_small(num_classes=10), 32),
    "mobilenet_v3_large": (lambda: tv.mobilenet_v3_large(num_classes=10), 32),
    "efficientnet_b0": (lambda: tv.efficientnet_b0(num_classes=10), 32),
    "regnet_y_400mf": (lambda: tv.regnet_y_400mf(num_classes=10), 32),
    "squeezenet1_0": (lambda: tv.squeezenet1_0(num_classes=10), 48),
    "googlenet": (lambda: tv.googlenet(num_classes=10, init_weights=False), 64),
    "inception_v3": (lambda: tv.inception_v3(num_classes=10, init_weights=False), 299),
    "shufflenet_v2_x0_5": (lambda: tv.shufflenet_v2_x0_5(num_classes=10), 32),
    "shufflenet_v2_x1_0": (lambda: tv.shufflenet_v2_x1_0(num_classes=10), 32),
    "convnext_tiny": (lambda: tv.convnext_tiny(num_classes=10), 32),
    "mnasnet0_5": (lambda: tv.mnasnet0_5(num_classes=10), 32),
    "xception": (lambda: timm.create_model("xception41", num_classes=10), 32),
    "legacy_xception": (lambda: timm.create_model("legacy_xception", num_classes=10), 71),
    "res2net": (lambda: timm.create_model("res2net50_14w_8s", num_classes=10), 32),
}


def _without_wide_head(model: nn.Module) -> nn.Module:
    """Narrow VGG's classifier, whose 120 million weights say nothing that 1 million don't."""
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10))
    return model


def network(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any]:
    """Make a network in eval mode with random weights, and an example input."""
    constructor, side = NETWORKS[name]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # torchvision announces another default initialisation, which the random weights replace anyway.
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        model = randomize(constructor()).to(dtype).eval()
    return model, torch.randn(1, 3, side, side, dtype=dtype, generator=torch.Generator().manual_seed(0))
