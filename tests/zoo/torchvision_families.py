"""torchvision's classifiers, segmenters, video models, detectors and optical flow, at low resolution."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision.models as tv
from torch import Tensor, nn

CLASSIFIERS = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x0_5
squeezenet1_0 squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_32 wide_resnet50_2
""".split()
SIDES = {"inception_v3": 299, "maxvit_t": 224, "vit_b_32": 224, "alexnet": 64}

SEGMENTERS = "deeplabv3_mobilenet_v3_large deeplabv3_resnet50 fcn_resnet50 lraspp_mobilenet_v3_large".split()

# Frames and side of the clip.
VIDEO = {
    "r3d_18": (4, 32),
    "mc3_18": (4, 32),
    "r2plus1d_18": (4, 32),
    "s3d": (14, 224),
    "swin3d_t": (4, 64),
}

# The settings by which torchvision tells its two kinds of MViT apart; the models themselves take minutes in float64.
MVIT = {
    "mvit_v1": {
        "residual_pool": False, "residual_with_cls_embed": True, "rel_pos_embed": False, "proj_after_attn": False,
    },
    "mvit_v2": {
        "residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True, "proj_after_attn": True,
    },
}  # fmt: skip

DETECTORS = """
fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2 fcos_resnet50_fpn
keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn maskrcnn_resnet50_fpn_v2 retinanet_resnet50_fpn
retinanet_resnet50_fpn_v2 ssd300_vgg16 ssdlite320_mobilenet_v3_large
""".split()


def entries() -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    """Return a function for each name that makes the model and an example input."""
    return {
        **{name: partial(classifier, name) for name in CLASSIFIERS},
        **{name: partial(segmenter, name) for name in SEGMENTERS},
        **{name: partial(video, name) for name in VIDEO},
        **{name: partial(mvit, name) for name in MVIT},
        **{name: partial(detector, name) for name in DETECTORS},
        "raft_small": lambda: (_made("raft_small"), (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))),
    }


def classifier(name: str) -> tuple[nn.Module, Any]:
    """Make a classifier and a small image."""
    settings: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    side = SIDES.get(name, 64)
    return _made(name, num_classes=10, **settings), torch.randn(1, 3, side, side)


def segmenter(name: str) -> tuple[nn.Module, Any]:
    """Make a segmenter, without downloaded backbone, and a small image."""
    return _made(name, weights_backbone=None, num_classes=5), torch.randn(1, 3, 64, 64)


def video(name: str) -> tuple[nn.Module, Any]:
    """Make a video classifier and a short clip."""
    frames, side = VIDEO[name]
    return _made(name, num_classes=10), torch.randn(1, 3, frames, side, side)


def mvit(name: str) -> tuple[nn.Module, Any]:
    """Make a small multiscale vision transformer of four blocks, two of them with a stride, and a short clip."""
    block = tv.video.mvit.MSBlockConfig
    blocks = [
        block(1, 32, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 4, 4]),
        block(2, 32, 64, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 2, 2]),
        block(2, 64, 64, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        block(4, 64, 128, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    model = tv.video.MViT((64, 64), 4, blocks, num_classes=10, **MVIT[name])
    return model.eval(), torch.randn(1, 3, 4, 64, 64)


def detector(name: str) -> tuple[nn.Module, Any]:
    """Make a detector and a list with one image; few boxes are kept, but whatever their score."""
    settings: dict[str, Any] = {"weights_backbone": None, "num_classes": 5}
    if "rcnn" in name:
        settings |= {
            "min_size": 96, "max_size": 96, "box_score_thresh": 0.0, "box_detections_per_img": 5,
            "rpn_post_nms_top_n_test": 20, "rpn_pre_nms_top_n_test": 50,
        }  # fmt: skip
    elif "ssd" in name:
        settings |= {"score_thresh": 0.0, "detections_per_img": 5, "topk_candidates": 20}
    else:
        settings |= {
            "min_size": 96, "max_size": 96, "score_thresh": 0.0, "detections_per_img": 5, "topk_candidates": 20,
        }  # fmt: skip
    image: Tensor = torch.rand(3, 96, 96)
    return _made(name, **settings), ([image],)


def _made(name: str, **settings: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return tv.get_model(name, weights=None, **settings).eval()
