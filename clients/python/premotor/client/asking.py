"""Questions, their answers, and what a control loop needs of whoever carries them.

Owns the boundary between the thread that plays and the one that asks. Does not own either (control_loop.py, asker.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from premotor.client.chunks import Chunk, ChunkArguments
from premotor.client.errors import PolicyError
from premotor.client.events import PlayerEvent


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One observation to ask with, taken at `captured_s` in control step `step`; times are on the player's clock.

    The answer is of no use after `expires_s`. `owner` is whoever asks: an answer that comes in a later episode is not
    for that one.
    """

    owner: object
    step: int
    captured_s: float
    expires_s: float
    arguments: ChunkArguments


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """The chunk of a question, or the error that came in its place."""

    question: Question
    outcome: Chunk | PolicyError
    arrived_s: float


News = Answer | PlayerEvent


class Asking(Protocol):
    """What a control loop needs of whoever asks for it."""

    def is_free(self) -> bool:
        """Whether a question would be sent at once: none is in flight, and nothing has to be waited for first."""
        ...

    def ask(self, question: Question) -> None:
        """Hands over a question; one that was not sent yet is forgotten for it."""
        ...

    def take(self) -> list[News]:
        """What came since the last call, oldest first; once asking has ended, that it has, at every call.

        The `step` of events is for the taker to fill in.
        """
        ...
