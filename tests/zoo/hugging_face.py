"""Hugging Face transformers with small random configurations, built offline, with heads on and caches off."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Inputs = Callable[[], dict[str, Tensor]]

VOCABULARY = 100
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
TEXT = {**SMALL, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
DECODER = {**TEXT, "num_key_value_heads": 2}
IMAGE = {**SMALL, "image_size": 32, "patch_size": 8}
SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
SOUND = {
    **SMALL, "conv_dim": (16, 16), "conv_stride": (4, 4), "conv_kernel": (8, 4), "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}


def ids(length: int = 12, name: str = "input_ids") -> dict[str, Tensor]:
    return {name: torch.randint(5, VOCABULARY - 1, (2, length))}


def pixels(side: int = 32) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(1, 3, side, side)}


def wave() -> dict[str, Tensor]:
    return {"input_values": torch.randn(1, 800)}


def _encoders() -> dict[str, tuple[str, dict[str, Any], Inputs]]:
    distil = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": VOCABULARY}
    relative = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]}
    return {
        "bert": ("BertForSequenceClassification", TEXT, ids),
        "roberta": ("RobertaForSequenceClassification", TEXT, ids),
        "distilbert": ("DistilBertForSequenceClassification", distil, ids),
        "albert": ("AlbertForSequenceClassification", {**TEXT, "embedding_size": 16}, ids),
        "deberta_v2": ("DebertaV2ForSequenceClassification", {**TEXT, **relative}, ids),
        "electra": ("ElectraForSequenceClassification", {**TEXT, "embedding_size": 16}, ids),
        "mpnet": ("MPNetForSequenceClassification", TEXT, ids),
    }


def _decoders() -> dict[str, tuple[str, dict[str, Any], Inputs]]:
    opt = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "vocab_size": VOCABULARY,
        "word_embed_proj_dim": 32,
    }  # fmt: skip
    mamba = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "state_size": 4}
    bloom = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY}
    return {
        "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY}, ids),
        "gpt_neox": ("GPTNeoXForCausalLM", TEXT, ids),
        "opt": ("OPTForCausalLM", opt, ids),
        "bloom": ("BloomForCausalLM", bloom, ids),
        "llama": ("LlamaForCausalLM", DECODER, ids),
        "mistral": ("MistralForCausalLM", DECODER, ids),
        "qwen2": ("Qwen2ForCausalLM", DECODER, ids),
        "qwen3": ("Qwen3ForCausalLM", {**DECODER, "head_dim": 8}, ids),
        "gemma": ("GemmaForCausalLM", {**DECODER, "head_dim": 8}, ids),
        "phi3": ("Phi3ForCausalLM", {**DECODER, "pad_token_id": 0}, ids),
        "mixtral": ("MixtralForCausalLM", {**DECODER, "num_local_experts": 4}, ids),
        "mamba": ("MambaForCausalLM", mamba, ids),
    }


def _translators() -> dict[str, tuple[str, dict[str, Any], Inputs]]:
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY}
    whisper = {
        **SEQ2SEQ, "vocab_size": VOCABULARY, "num_mel_bins": 8, "max_source_positions": 20, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }  # fmt: skip
    spoken = {"input_features": torch.randn(1, 8, 40), "decoder_input_ids": torch.randint(5, 99, (1, 7))}
    return {
        "t5": ("T5ForConditionalGeneration", t5, lambda: {**ids(), **ids(7, "decoder_input_ids")}),
        "bart": ("BartForConditionalGeneration", {**SEQ2SEQ, "vocab_size": VOCABULARY}, ids),
        "whisper": ("WhisperForConditionalGeneration", whisper, lambda: spoken),
        "wav2vec2": ("Wav2Vec2ForCTC", SOUND, wave),
        "hubert": ("HubertForCTC", SOUND, wave),
    }


def _seers() -> dict[str, tuple[str, dict[str, Any], Inputs]]:
    swin = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
    segformer = {
        "hidden_sizes": [16, 32], "depths": [1, 1], "num_encoder_blocks": 2, "num_attention_heads": [1, 2],
        "sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 16,
    }  # fmt: skip
    detr = {**SEQ2SEQ, "num_queries": 6, "backbone_config": RESNET, "use_timm_backbone": False}
    clip = {"text_config": {**TEXT, "projection_dim": 16}, "vision_config": IMAGE, "projection_dim": 16}
    blip = {
        "text_config": {**TEXT, "encoder_hidden_size": 32, "projection_dim": 16}, "vision_config": IMAGE,
        "projection_dim": 16, "image_text_hidden_size": 16,
    }  # fmt: skip
    return {
        "vit": ("ViTForImageClassification", IMAGE, pixels),
        "deit": ("DeiTForImageClassification", IMAGE, pixels),
        "swin": ("SwinForImageClassification", swin, pixels),
        "convnext": (
            "ConvNextForImageClassification",
            {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
            pixels,
        ),
        "segformer": ("SegformerForSemanticSegmentation", segformer, partial(pixels, 64)),
        "detr": ("DetrForObjectDetection", detr, partial(pixels, 64)),
        "clip": ("CLIPModel", clip, lambda: {**ids(), **pixels()}),
        "blip": ("BlipModel", blip, lambda: {**ids(), **pixels()}),
        "sam": ("SamModel", _sam(), lambda: {**pixels(64), "input_points": torch.rand(1, 1, 2, 2) * 64}),
    }


def _sam() -> dict[str, Any]:
    vision = {
        "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64,
        "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 8, "mlp_dim": 64,
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
    }  # fmt: skip
    return {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": decoder}


def entries() -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    """Return a function for each name that makes the model and its example inputs."""
    table = {**_encoders(), **_decoders(), **_translators(), **_seers()}
    return {name: partial(make, *entry) for name, entry in table.items()}


def make(kind: str, settings: dict[str, Any], inputs: Inputs) -> tuple[nn.Module, Any]:
    """Make a model of a class of transformers from its configuration, without a cache, and inputs."""
    transformers.utils.logging.set_verbosity_error()
    model_class = getattr(transformers, kind)
    config = model_class.config_class(**settings)
    config.use_cache = False
    return model_class(config).eval(), inputs()
