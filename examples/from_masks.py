"""Make a model that ``torch.nn.utils.prune`` has masked really smaller.

    python examples/from_masks.py

Masks set weights to zero and leave the model as large and as slow as it was. ``plan_from_zeros`` finds the channels
that can go without changing what the model computes, and says of the others why they stay.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import prune

import surgeon


def network() -> nn.Module:
    """Three convolutions with batch norms, [n, 3, h, w] -> [n, 10]."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    ).eval()


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    model, x = network(), torch.randn(8, 3, 32, 32)

    # Half of the filters of three layers, and what is added to them afterwards.
    for conv, offset in ((model[0], model[1]), (model[3], model[4]), (model[6], model[6])):
        prune.ln_structured(conv, "weight", amount=0.5, n=2, dim=0)
        prune.custom_from_mask(offset, "bias", conv.weight_mask[:, 0, 0, 0])
    kept = (model[4].bias_mask == 0).nonzero()[:4]  # four of these biases are not masked after all:
    model[4].bias_mask[kept] = 1.0  # their channels are constant,
    model[4].bias_orig[kept] = 0.5  # but not zero, and have to stay

    numbers = sum(int(mask.numel()) for name, mask in model.named_buffers() if name.endswith("weight_mask"))
    zeros = sum(int((mask == 0).sum()) for name, mask in model.named_buffers() if name.endswith("weight_mask"))
    print(f"{zeros} of {numbers} masked weights are zero")

    plan = surgeon.plan_from_zeros(model, x[:1])
    print(plan)
    for group in plan.groups:
        print(f"  {group}")
    for skipped in plan.settings["skipped"]:
        print(f"  stays: {skipped}")

    small = surgeon.operate(model, plan)
    print(f"\nlargest difference of an output: {float((small(x) - model(x)).abs().max()):.1e}")
    for index, name in ((0, "weight"), (1, "bias"), (3, "weight"), (4, "bias"), (6, "weight"), (6, "bias")):
        prune.remove(model[index], name)
        prune.remove(small[index], name)  # the masks were cut along; now they are made permanent
    print(surgeon.compare(model, small, x[:1]))


if __name__ == "__main__":
    main()
