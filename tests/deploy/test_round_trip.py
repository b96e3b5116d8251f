"""Saved, loaded and replayed: the published networks, the hand-written ones, and transformers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import surgeon
from surgeon.modules import tensors_in
from surgeon.verify.count import Count
from tests.schema import assert_follows_the_schema
from tests.zoo import MODELS, call, randomize
from tests.zoo.catalogue import entries
from tests.zoo.networks import NETWORKS

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, not of ours

UNCOUNTED = (Count(float("nan")), Count(float("nan")))

TRANSFORMERS = {
    "timm": ("test_vit", "test_vit3", "test_vit_relpos", "test_coatnet", "test_maxvit"),
    "transformers": ("bert", "gpt2", "llama", "t5", "vit", "swin", "whisper", "mixtral", "deberta_v2", "clip"),
}

QUICK = {"resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small", "squeezenet1_0", "googlenet"}
QUICK |= {"timm/test_vit", "transformers/gpt2", "transformers/t5", *(f"by_hand/{name}" for name in list(MODELS)[::4])}


def published(name: str) -> tuple[Callable[[], nn.Module], Any]:
    constructor, side = NETWORKS[name]
    return constructor, torch.randn(1, 3, side, side)


def collected(name: str) -> tuple[Callable[[], nn.Module], Any]:
    collection, entry = name.split("/")
    make = entries(collection)[entry]
    return lambda: make()[0], make()[1]


CASES = {
    **{name: published for name in NETWORKS},
    **{f"by_hand/{name}": collected for name in MODELS},
    **{f"{kind}/{name}": collected for kind, names in TRANSFORMERS.items() for name in names},
}


def seeded(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return randomize(factory(), seed).eval()


def assert_same_outputs(small: nn.Module, again: nn.Module, inputs: Any) -> None:
    with torch.no_grad():
        expected, found = ([*tensors_in(call(each, inputs))] for each in (small, again))
    assert len(expected) == len(found) > 0
    assert all(torch.equal(a, b) for a, b in zip(expected, found))


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_saved_loaded_and_replayed(tmp_path: Path, name: str) -> None:
    if name.startswith("transformers/"):
        pytest.importorskip("transformers")
    factory, inputs = CASES[name](name)
    model = seeded(factory, 0)
    graph = surgeon.trace(model, inputs)
    plan = surgeon.plan(graph, surgeon.score(graph), ratio=0.4, scope="local")
    small = surgeon.operate(model, plan)

    surgeon.save(small, plan, tmp_path / "small.safetensors")
    again = surgeon.load(lambda: factory().eval(), tmp_path / "small.safetensors")
    assert_same_outputs(small, again, inputs)

    plan.save(tmp_path / "plan.json")
    read = surgeon.Plan.load(tmp_path / "plan.json")
    assert read == plan
    assert_follows_the_schema(plan)
    other = seeded(factory, 1)
    before = copy.deepcopy(other.state_dict())
    replayed = surgeon.operate(other, read)
    proof = surgeon.verify(other, replayed, read, inputs, counts=UNCOUNTED)
    assert proof.difference <= proof.tolerance
    after = other.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
