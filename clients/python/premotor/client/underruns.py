"""Which of a robot's underruns the service knows of: each is to be told once, also those of an outage.

Owns what becomes of a number whose question failed. Does not own counting underruns (playback.py) or asking (asker.py).
"""

from __future__ import annotations

from typing import NamedTuple

from premotor.client.chunks import MAX_UNDERRUNS, Chunk
from premotor.client.errors import PolicyError
from premotor.client.sync_stream import ChunkStream
from premotor.v1 import policy_pb2

_Reason = policy_pb2.RequestError
# The service says these of requests that it has read and counted.
_COUNTED = frozenset(
    {
        _Reason.REASON_EXPIRED,
        _Reason.REASON_SUPERSEDED,
        _Reason.REASON_OVERLOADED,
        _Reason.REASON_UNAVAILABLE,
        _Reason.REASON_OUTPUT_VIOLATION,
        _Reason.REASON_FAILED,
    }
)


class _InDoubt(NamedTuple):
    """Told in a request that was sent and not answered in time; an answer that is late says that it was read."""

    stream: ChunkStream
    request_id: str
    num_underruns: int


class UnderrunAccount:
    """For one question at a time: `tell` before it is sent, `note` what became of it.

    Where nobody can know whether a request was read, its number is told again: twice is a lesser error than never.
    """

    def __init__(self) -> None:
        self._untold = 0
        self._in_flight = 0
        self._in_doubt: _InDoubt | None = None

    def tell(self, num_new: int) -> int:
        """What the next question is to say: `num_new` and those that the service does not know of yet."""
        total = self._untold + num_new
        self._in_flight = min(total, MAX_UNDERRUNS)
        self._untold = total - self._in_flight
        return self._in_flight

    def note(self, outcome: Chunk | PolicyError, stream: ChunkStream | None) -> None:
        """`stream` is the one that the question was sent on, None without one."""
        self._decide_doubt()
        if isinstance(outcome, Chunk) or outcome.reason in _COUNTED:
            pass
        elif stream is not None and stream.is_unanswered(outcome.request_id):
            # A service that is only slow will still say so on this stream, before the next question has ended.
            self._in_doubt = _InDoubt(stream, outcome.request_id, self._in_flight)
        else:
            self._untold += self._in_flight
        self._in_flight = 0

    def _decide_doubt(self) -> None:
        doubt, self._in_doubt = self._in_doubt, None
        if doubt is not None and doubt.stream.is_unanswered(doubt.request_id):
            self._untold += doubt.num_underruns
