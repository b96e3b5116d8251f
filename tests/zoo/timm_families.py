"""One timm model of each architecture family, the smallest, at a low resolution where the model accepts it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

# The smallest model of each family, where a family is a module of timm and the first word of a model's name, and
# timm's own models for tests.
NAMES = """
beit_base_patch16_224 beitv2_base_patch16_224 botnet26t_256 eca_botnext26ts_256 halo2botnet50ts_256 halonet_h1
haloregnetz_b lambda_resnet26t lamhalobotnet50ts_256 sebotnet33ts_256 sehalonet33ts bat_resnext26ts eca_resnext26ts
gcresnet33ts gcresnext26ts gernet_s mobileone_s1 regnetz_b16 repvgg_a0 resnet32ts resnext26ts seresnet33ts
seresnext26ts test_byobnet cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 convnext_zepto_rms convnextv2_atto
test_convnext test_convnext2 test_convnext3 cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspdarknet53
cspresnet50 cspresnext50 darknet17 darknetaa53 sedarknet21 cspnext_tiny davit_tiny deepseek_vit_412m
deit_tiny_patch16_224 densenet121 densenetblur121d dla46x_c dpn48b edgenext_xx_small efficientformer_l1
efficientformerv2_s0 efficientnet_lite0 fbnetc_100 gc_efficientnetv2_rw_t mixnet_s mnasnet_small
mobilenet_edgetpu_100 mobilenetv2_035 semnasnet_050 spnasnet_100 test_efficientnet test_efficientnet_evos
test_efficientnet_gn test_efficientnet_ln tf_efficientnetv2_b0 tinynet_e efficientvim_m1 efficientvit_b0
efficientvit_m0 eva02_tiny_patch14_224 vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8 focalnet_tiny_srf
gcvit_xxtiny gemma4_vit_167m_enc ghostnet_050 ghostnetv3_050 hardcorenas_b hgnet_tiny hgnetv2_b0 hiera_tiny_224
hieradet_small sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3
inception_v4 lcnetv2_small levit_128s lowformer_b0 mambaout_femto test_mambaout coatnet_pico_rw_224
coatnext_nano_rw_224 maxvit_pico_rw_256 maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256 test_coatnet test_maxvit
caformer_s18 convformer_s18 poolformer_s12 poolformerv2_s12 gmixer_12_224 gmlp_ti16_224 mixer_s16_224 resmlp_12_224
fbnetv3_b lcnet_035 mobilenetv3_small_050 mobilenetv5_300m_enc mobilevit_xxs mobilevitv2_050 mvitv2_tiny
naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small dm_nfnet_f0 eca_nfnet_l0 nf_regnet_b0
nfnet_l0 test_nfnet pit_ti_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetv_040 regnetx_002 regnety_002
regnetz_005 repghostnet_050 repvit_m1 res2next50 resnest14d ecaresnet26t ecaresnetlight ecaresnext26t_32x4d
resnet10t resnetaa34d resnetblur18 resnetrs50 resnext50_32x4d senet154 seresnet18 seresnetaa50d seresnext26t_32x4d
seresnextaa201d_32x8d test_resnet wide_resnet50_2 resnetv2_18 rexnet_100 rexnetr_100 selecsls42 legacy_senet154
legacy_seresnet18 legacy_seresnext26_32x4d sequencer2d_s shvit_s1 skresnet18 skresnext50_32x4d starnet_s050
swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224
tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny aimv2_large_patch14_224
beit3_base_patch16_224 eva_large_patch14_196 flexivit_small test_vit test_vit2 test_vit3 test_vit4
vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 test_vit_relpos vit_srelpos_small_patch16_224 samvit_base_patch16_224
vitamin_small_224 volo_d1_224 eca_vovnet39b ese_vovnet19b_slim_dw vovnet39a legacy_xception xception41p
xcit_nano_12_p8_224
""".split()

# Families whose smallest model is too large to be cut in float64 next to others: the same with fewer blocks.
SHORTENED: dict[str, dict[str, Any]] = {
    "aimv2_large_patch14_224": {"depth": 3},
    "eva_large_patch14_196": {"depth": 3},
    "deepseek_vit_412m": {"depth": 3},
    "gemma4_vit_167m_enc": {"depth": 3},
    "qwen3_vit_88m": {"depth": 3},
    "naflexvit_base_patch16_parfac_gap": {"depth": 3},
    "beit_base_patch16_224": {"depth": 3},
    "beitv2_base_patch16_224": {"depth": 3},
    "beit3_base_patch16_224": {"depth": 3},
    "samvit_base_patch16_224": {"depth": 3, "global_attn_indexes": (2,)},
}

CLASSES = 10
SIDES = (64, 128)


def entries() -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    """Return a function for each name that makes the model and an example input."""
    return {name: partial(make, name) for name in NAMES}


def make(name: str) -> tuple[nn.Module, Any]:
    """Make a model in eval mode and the smallest image that it runs on."""
    settings = SHORTENED.get(name, {})
    native = timm.get_pretrained_cfg(name)
    assert native is not None
    channels, side, _ = native.input_size
    if native.fixed_input_size:
        return _of_fixed_size(name, channels, side, settings)
    model = timm.create_model(name, num_classes=CLASSES, **settings).eval()
    for smaller in (*(s for s in SIDES if s < side), side // 2):
        if _runs(model, torch.randn(1, channels, smaller, smaller)):
            return model, torch.randn(1, channels, smaller, smaller)
    return model, torch.randn(1, channels, side, side)


def _of_fixed_size(name: str, channels: int, side: int, settings: dict[str, Any]) -> tuple[nn.Module, Any]:
    """Build a model for images of half the size, or of its own where it can't be built so."""
    for smaller in (side // 2, side):
        x = torch.randn(1, channels, smaller, smaller)
        try:
            model = timm.create_model(name, num_classes=CLASSES, img_size=smaller, **settings).eval()
        except Exception:
            continue
        if _runs(model, x):
            return model, x
    return timm.create_model(name, num_classes=CLASSES, **settings).eval(), torch.randn(1, channels, side, side)


def _runs(model: nn.Module, x: torch.Tensor) -> bool:
    try:
        with torch.no_grad():
            model(x)
    except Exception:
        return False
    return True
