"""Hugging Face configs of toy width: random models of a few hundred thousand parameters on the path of a real one.

Plain data; imports no transformers. What they measure is plumbing, not skill.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

_WIDTH = 64
_IMAGE_SIZE = 64
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


def toy_hugging_face(family: str, tokenizer: Tokenizer, image_size: int = _IMAGE_SIZE) -> dict[str, Any]:
    """The `hugging_face` of a VlmSettings: two layers of text at width 64, two of vision at width 32.

    `tokenizer` is one of train_tokenizer's. Raises ValueError for a family without a toy.
    """
    if family not in _TOYS:
        raise ValueError(f"family is {family!r}, expected one of {sorted(_TOYS)}")
    return {"model_type": family, **_TOYS[family](tokenizer, image_size)}


def _text(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": _WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }


def _siglip(image_size: int) -> dict[str, Any]:
    return {**_VISION, "num_attention_heads": 2, "image_size": image_size, "patch_size": 16}


def _idefics(model_type: str, tokenizer: Tokenizer, image_size: int) -> dict[str, Any]:
    return {
        "image_token_id": tokenizer.token_to_id("<image>"),
        "pad_token_id": 0,
        "scale_factor": 2,
        "tie_word_embeddings": False,
        "vision_config": {"model_type": f"{model_type}_vision", **_siglip(image_size)},
        "text_config": {"model_type": "llama", **_text(tokenizer)},
    }


def _qwen(tokenizer: Tokenizer, vision: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    shared = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": _WIDTH,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    # The sections of M-RoPE share half a head's dimensions.
    rope = {"rope_type": "default", "rope_theta": 1e4, **rope}
    return {
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "tie_word_embeddings": False,
        "vision_config": {**shared, **vision},
        "text_config": {**_text(tokenizer), "rope_parameters": rope},
    }


def _smolvlm(tokenizer: Tokenizer, image_size: int) -> dict[str, Any]:
    return _idefics("smolvlm", tokenizer, image_size)


def _idefics3(tokenizer: Tokenizer, image_size: int) -> dict[str, Any]:
    return _idefics("idefics3", tokenizer, image_size)


def _qwen3_vl(tokenizer: Tokenizer, image_size: int) -> dict[str, Any]:
    vision = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    return _qwen(tokenizer, vision, {"mrope_section": [4, 2, 2], "mrope_interleaved": True})


def _qwen2_5_vl(tokenizer: Tokenizer, image_size: int) -> dict[str, Any]:
    return _qwen(tokenizer, {"window_size": 64, "fullatt_block_indexes": [1]}, {"mrope_section": [2, 3, 3]})


def _paligemma(tokenizer: Tokenizer, image_size: int) -> dict[str, Any]:
    return {
        "image_token_id": tokenizer.token_to_id("<image>"),
        "projection_dim": _WIDTH,
        "hidden_size": _WIDTH,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "vision_use_head": False,
            "projection_dim": _WIDTH,
            **_siglip(image_size),
        },
        "text_config": {"model_type": "gemma2", **_text(tokenizer)},
    }


def _internvl(tokenizer: Tokenizer, image_size: int) -> dict[str, Any]:
    vision = {**_siglip(image_size), "image_size": [image_size, image_size], "patch_size": [16, 16]}
    return {
        "image_token_id": tokenizer.token_to_id("<IMG_CONTEXT>"),
        "downsample_ratio": 0.5,
        "vision_config": vision,
        "text_config": {"model_type": "qwen2", **_text(tokenizer)},
    }


_TOYS = {
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "qwen3_vl": _qwen3_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "paligemma": _paligemma,
    "internvl": _internvl,
}
