"""Clients that are transformers: ten families, state spaces, experts, speech."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.clients.training import Client, Training, wrapped

VOCABULARY, TOKENS, PIXELS = 99, 12, 32


def own_loss(network: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the loss that the network computes itself from labels."""
    return network(**batch).loss


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(VOCABULARY, (2, TOKENS)), "attention_mask": torch.ones(2, TOKENS).long()}


def language() -> dict[str, Tensor]:
    made = tokens()
    return {**made, "labels": made["input_ids"]}


def classes() -> dict[str, Tensor]:
    return {**tokens(), "labels": torch.tensor([0, 1])}


def pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, PIXELS, PIXELS), "labels": torch.tensor([0, 1])}


def speech() -> dict[str, Tensor]:
    return {"input_features": torch.randn(2, 8, 32), "labels": torch.randint(1, VOCABULARY, (2, 6))}


def contrast() -> dict[str, Any]:
    return {**tokens(), "pixel_values": torch.randn(2, 3, PIXELS, PIXELS), "return_loss": True}


def waves() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 400), "labels": torch.randint(1, 32, (2, 6))}


def masks() -> dict[str, Any]:
    return {
        "pixel_values": torch.randn(2, 3, 2 * PIXELS, 2 * PIXELS),
        "mask_labels": [torch.randint(2, (2, 2 * PIXELS, 2 * PIXELS)).float() for _ in range(2)],
        "class_labels": [torch.tensor([0, 1])] * 2,
    }


BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
DISTILBERT = {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False}
LLAMA = {**BERT, "num_key_value_heads": 2, "use_cache": False, "head_dim": 8}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": PIXELS,
    "patch_size": 8,
    "num_labels": 5,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "use_cache": False,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "use_cache": False,
}
WHISPER = {
    **BART,
    "num_mel_bins": 8,
    "max_source_positions": 16,
    "max_target_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "use_cache": False}
MIXTRAL = {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
CLIP = {"text_config": BERT, "vision_config": VIT, "projection_dim": 16}
SEGFORMER = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [16, 32],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 16,
    "num_labels": 3,
}

MOE = {**LLAMA, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
DEBERTA = {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
WAV2VEC2 = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_stride": (4, 2),
    "conv_kernel": (8, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
}
MASK2FORMER = {
    "backbone_config": {
        "model_type": "swin",
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 2,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    "feature_size": 16,
    "mask_feature_size": 16,
    "hidden_dim": 16,
    "encoder_feedforward_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "dim_feedforward": 32,
    "num_queries": 5,
    "num_labels": 3,
    "train_num_points": 16,
}

FAMILIES: dict[str, tuple[str, str, Mapping[str, Any], Callable[[], Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", BERT, classes),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", BERT, language),
    "distilbert": ("DistilBertForMaskedLM", "DistilBertConfig", DISTILBERT, language),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, language),
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA, language),
    "mistral": ("MistralForCausalLM", "MistralConfig", LLAMA, language),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", LLAMA, language),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", LLAMA, language),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART, language),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5, language),
    "vit": ("ViTForImageClassification", "ViTConfig", VIT, pixels),
    "clip": ("CLIPModel", "CLIPConfig", CLIP, contrast),
    "segformer": (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        SEGFORMER,
        lambda: {"pixel_values": torch.randn(2, 3, 64, 64), "labels": torch.randint(3, (2, 64, 64))},
    ),
    "mamba": ("MambaForCausalLM", "MambaConfig", MAMBA, language),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", MIXTRAL, language),
    "qwen2_moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", {**MOE, "shared_expert_intermediate_size": 48}, language),
    "deberta": ("DebertaV2ForSequenceClassification", "DebertaV2Config", DEBERTA, classes),
    "wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", WAV2VEC2, waves),
    "mask2former": ("Mask2FormerForUniversalSegmentation", "Mask2FormerConfig", MASK2FORMER, masks),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER, speech),
}


def family(model: str, config: str, options: Mapping[str, Any], batch: Callable[[], Any]) -> Training:
    library = importlib.import_module("transformers")
    return wrapped(getattr(library, model)(getattr(library, config)(**options)), own_loss, batch)


REMARKS = {
    "clip": "The outputs of both towers are returned: in a module that returns only the loss, nothing is locked.",
}

CLIENTS = {
    f"transformers/{name}": Client("transformers", "transformers", partial(family, *made), REMARKS.get(name, ""))
    for name, made in FAMILIES.items()
}
