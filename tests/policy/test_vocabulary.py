from __future__ import annotations

import pytest

from policy.vocabulary import IMAGE_MARKERS, PAD, RESERVED, train_tokenizer

_INSTRUCTIONS = ["open the drawer", "pick up the puck", "press the button", "lift the cube", "close the drawer"]


def test_the_same_instructions_give_the_same_tokenizer_in_any_order_and_number() -> None:
    shuffled = [*_INSTRUCTIONS[::-1], *_INSTRUCTIONS[:2]]
    assert train_tokenizer(_INSTRUCTIONS).to_str() == train_tokenizer(shuffled).to_str()
    assert train_tokenizer(_INSTRUCTIONS).to_str() != train_tokenizer(_INSTRUCTIONS[:2]).to_str()


@pytest.mark.parametrize("text", ["open the drawer", "naïve café, 23 °C", "把方块放进碗里 🤖", ""])
def test_any_text_is_encoded_without_loss(text: str) -> None:
    tokenizer = train_tokenizer(_INSTRUCTIONS)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text.lower()


def test_case_is_folded() -> None:
    tokenizer = train_tokenizer(_INSTRUCTIONS)
    assert tokenizer.encode("Open The DRAWER").ids == tokenizer.encode("open the drawer").ids


def test_special_tokens_have_fixed_ids_and_padding_is_0() -> None:
    tokenizer = train_tokenizer(_INSTRUCTIONS)
    specials = [PAD, *RESERVED, *IMAGE_MARKERS]
    assert [tokenizer.token_to_id(name) for name in specials] == list(range(len(specials)))
    assert len(tokenizer.encode("<query>").ids) == 1


def test_the_vocabulary_never_grows_past_its_size_and_known_words_are_short() -> None:
    many = [f"{verb} {thing} {place}" for verb in _INSTRUCTIONS for thing in "abcdefgh" for place in _INSTRUCTIONS]
    assert train_tokenizer(many, size=300).get_vocab_size() <= 300
    assert len(train_tokenizer(_INSTRUCTIONS).encode("open the drawer").ids) == 3


def test_no_instructions_are_refused() -> None:
    with pytest.raises(ValueError, match="instructions are empty"):
        train_tokenizer([])
