"""Cut a vision transformer of timm: hidden units of its MLPs, columns of its heads, or whole heads.

    python examples/timm_vit.py        (where torchvision's operators don't load: make examples)

The weights are random: this shows what can go and what it saves, not what it does to accuracy. The model is a ViT-Tiny
at 96 pixels, so that it is quick; with ``pretrained=True`` and 224 pixels, the calls are the same.
"""

from __future__ import annotations

import timm
import torch
from torch import nn

import surgeon

CUTS = {
    "columns within heads": {},
    "in multiples of 8": {"round_to": 8},
    "whole heads": {"heads": True},
    "MLPs only": {"keep": {"out": ["patch_embed.*", "*.attn.qkv"]}},
    "all blocks alike": {"uniform": True, "round_to": 8},
}


def sizes(model: nn.Module) -> str:
    """Return what is left of the first block and of the last."""
    return ", ".join(
        f"{block.attn.num_heads} heads of {block.attn.head_dim}, {block.mlp.fc1.out_features} units"
        for block in (model.blocks[0], model.blocks[-1])
    )


def main() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=10).eval()
    image = torch.randn(1, 3, 96, 96)

    graph = surgeon.trace(model, image)
    print(graph)
    for group in graph.free[:4]:
        print(f"  {group.name}: {group.size} units that run through {len(group.members)} tensors")

    print(f"\n{'before':>20}: {sizes(model)}")
    small = model
    for name, options in CUTS.items():
        result = surgeon.prune(model, image, flops=0.6, **options)
        small = result.model
        before, after = result.plan.totals["flops"]
        print(f"{name:>20}: {sizes(small)}; {after / before:.1%} of the FLOPs, off by {result.proof.difference:.0e}")

    print("\nIt trains as it is:", end=" ")
    small.train()
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3)
    images, labels = torch.randn(16, 3, 96, 96), torch.arange(16) % 10
    for _ in range(3):
        loss = nn.functional.cross_entropy(small(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"{loss.item():.3f}", end=" ")
    print()


if __name__ == "__main__":
    main()
