"""Which model a config means: paper A's VLA, or with `intent` paper B's. Where both meet, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from tokenizers import Tokenizer

from policy.config import ModelConfig
from policy.vla import build_vla

if TYPE_CHECKING:
    from policy.intent_vla import IntentVLA
    from policy.vla import VLA

# What answers requests: both have `config`, `backbone`, `observe` and `sample`.
Model: TypeAlias = "VLA | IntentVLA"


def build_model(config: ModelConfig, tokenizer: Tokenizer) -> Model:
    """Fresh weights from torch's default generator."""
    if config.intent is None:
        return build_vla(config, tokenizer)
    from policy.intent_vla import build_intent_vla  # reaches transformers, which takes seconds; only this kind pays

    return build_intent_vla(config, tokenizer)
