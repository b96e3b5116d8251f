"""Cut torchvision's ResNet-50 to half of its FLOPs at 224 x 224 pixels, in steps of eight channels.

    make demo        or, where torchvision's compiled operators load,        python examples/resnet50_demo.py

The weights are random: this shows the surgery and its price, not what it does to accuracy.
"""

from __future__ import annotations

import time

import torch
from torchvision.models import resnet50

import surgeon


def main() -> None:
    torch.manual_seed(0)
    model = resnet50(weights=None)
    image = torch.randn(1, 3, 224, 224)

    start = time.perf_counter()
    result = surgeon.prune(model, image, flops=0.5, round_to=8)
    seconds = time.perf_counter() - start

    print(f"{result.plan}\n")
    for group in result.plan.groups:
        if group.removed:
            print(f"  {group}")
    print(f"\nProof: {result.proof}\n")

    print(result.report)
    print(f"\nTraced, scored, planned, cut, proved and counted in {seconds:.1f} s")


if __name__ == "__main__":
    main()
