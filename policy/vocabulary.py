"""The tokenizer of models trained from nothing: byte-level BPE over the instructions they will read.

Owns its training and the reserved tokens. A pretrained VLM brings its own tokenizer (vlm.py adds the reserved tokens).
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PAD = "<pad>"
# Where embeddings enter a VLM that are no words: soft dataset tokens, state, history latent, query.
SOFT, STATE, HISTORY, QUERY = "<soft>", "<state>", "<history>", "<query>"
RESERVED = (SOFT, STATE, HISTORY, QUERY)
# The image markers of the families in vlm_families.py, under the names that their published tokenizers use, so that a
# toy model takes the path of a real one.
IMAGE_MARKERS = (
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<|vision_start|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_end|>",
    "<img>",
    "<IMG_CONTEXT>",
    "</img>",
)
SIZE = 512


def train_tokenizer(instructions: Iterable[str], size: int = SIZE) -> Tokenizer:
    """Depends on the set of instructions alone, not on their order or number. May end below `size` when they are few.

    Any text can be encoded: what no merge covers stays bytes. Case is folded. Raises ValueError without instructions.
    """
    corpus = sorted(set(instructions))
    if not corpus:
        raise ValueError("instructions are empty, expected at least one to train a tokenizer on")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, *RESERVED, *IMAGE_MARKERS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer
