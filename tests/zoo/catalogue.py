"""Where models come from: collections of ``name -> function that makes a model and its example inputs``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

Make = Callable[[], tuple[nn.Module, Any]]

# collection -> module with ``entries()``; imported only when asked for, since each needs a library of its own
COLLECTIONS = {
    "by_hand": "tests.zoo.models",
    "transformers": "tests.zoo.hugging_face",
    "torchvision": "tests.zoo.torchvision_families",
    "timm": "tests.zoo.timm_families",
}


def entries(collection: str) -> dict[str, Make]:
    """Return the models of a collection."""
    table: dict[str, Make] = importlib.import_module(COLLECTIONS[collection]).entries()
    return table
