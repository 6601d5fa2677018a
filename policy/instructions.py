"""Instructions to token ids, whole or not at all.

Owns how long an instruction may be and what is remembered of those already read. Does not own the tokenizers
(vocabulary.py trains one, a pretrained VLM brings its own) nor what a backbone makes of the tokens.
"""

from __future__ import annotations

from tokenizers import Tokenizer

MAX_TOKENS = 128
_MAX_REMEMBERED = 1024


class InstructionTooLongError(ValueError):
    """An instruction has more tokens than are read. What was cut off could be the task itself."""


class InstructionReader:
    """Text that spells a special token is read as text, so that no instruction can move a sequence's parts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True
        self._read: dict[str, tuple[int, ...]] = {}

    def tokens(self, instruction: str) -> tuple[int, ...]:
        """Raises InstructionTooLongError that says how many came and how many may."""
        tokens = self._read.get(instruction)
        if tokens is None:
            tokens = tuple(self._tokenizer.encode(instruction).ids)
            if len(tokens) > MAX_TOKENS:
                raise InstructionTooLongError(
                    f"an instruction of {len(tokens)} tokens came, expected at most {MAX_TOKENS}"
                )
            if len(self._read) >= _MAX_REMEMBERED:
                self._read.clear()
            self._read[instruction] = tokens
        return tokens
