"""What every test starts from: torchvision importable, threads that don't fight, fixed seeds."""

from __future__ import annotations

import os
import random

import hypothesis
import numpy as np
import pytest
import torch

from tests.torchvision_stub import install

# Here and not in a fixture: test modules import torchvision and timm while they are collected.
install()

# The models are tiny, and each xdist worker is a process of its own: threads that wait for each other on a few shared
# cores cost up to sixty times what they save.
torch.set_num_threads(1)

# The first example of a test pays for imports and traces, which says nothing about the code under test.
hypothesis.settings.register_profile("default", deadline=None)
# The same examples on every run, so that a change is never blamed for a case it did not bring about; a hunt for bugs
# (SURGEON_EFFORT=10) draws new ones.
hypothesis.settings.register_profile("same", parent=hypothesis.settings.get_profile("default"), derandomize=True)
hypothesis.settings.load_profile("default" if os.environ.get("SURGEON_EFFORT") else "same")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
