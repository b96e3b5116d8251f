"""The models themselves are sound: they run, learn and repeat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo import MODELS, build, call

# Layers whose output nobody reads, as in the published code of these models: the last residual branch.
UNREAD = {"conv_tasnet": "tcn.2.res_conv.", "conv_tasnet_bn": "tcn.2.res_conv."}


def tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested outputs, dataclasses included."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from tensors(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors(item)
    elif hasattr(tree, "__dataclass_fields__"):
        yield from tensors(vars(tree))


@pytest.mark.parametrize("name", MODELS)
def test_output_has_an_ordinary_size(name: str) -> None:
    model, inputs = build(name)
    with torch.no_grad():
        outputs = list(tensors(call(model, inputs)))
    assert outputs
    for output in outputs:
        assert output.dtype == torch.float64
        assert output.isfinite().all()
        assert 1e-3 < output.std() < 1e2


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient_in_training(name: str) -> None:
    model, inputs = build(name)
    model.train()
    # Squares, so that the gradient through a last norm or softmax does not cancel.
    sum(output.square().sum() for output in tensors(call(model, inputs))).backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.startswith(UNREAD.get(name, "?")):
            continue
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", MODELS)
def test_weights_hide_nothing(name: str) -> None:
    model, _ = build(name)
    for parameter_name, parameter in model.named_parameters():
        assert parameter.numel() == 1 or parameter.std() > 0, parameter_name
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean.any()
            assert ((module.running_var >= 0.5) & (module.running_var <= 1.5)).all()


def test_build_repeats_itself() -> None:
    (first, x), (second, y) = build("unet2d"), build("unet2d")
    assert torch.equal(x, y)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    other, _ = build("unet2d", seed=1)
    assert not torch.equal(first.outc.weight, other.outc.weight)


def test_build_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    build("tcn")
    assert torch.equal(before, torch.random.get_rng_state())
