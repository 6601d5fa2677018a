"""Which requests of a stream wait for an answer, and which answers wait to be taken.

Owns matching by request id, expiry and the fate of what is pending when the stream ends. Does no I/O and takes no
locks: each stream guards its own ledger.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from premotor.client.channel import Deadline
from premotor.client.chunks import Chunk, read_response
from premotor.client.description import PolicyDescription
from premotor.client.episode_revisions import EpisodeRevisions
from premotor.client.errors import (
    DeadlineExceededError,
    FixRequestError,
    PolicyError,
    ProtocolError,
    error_from_details,
)
from premotor.v1 import policy_pb2

# Beyond these the caller sends without receiving, or the server never answers; memory stays bounded in both cases.
MAX_UNRECEIVED = 1024
MAX_EXPIRED = 4096


@dataclass(frozen=True, kw_only=True)
class _Pending:
    request: policy_pb2.PredictChunkRequest
    deadline: Deadline
    sent_s: float


class Ledger:
    """The state of one stream's requests: pending, then answered, then taken."""

    def __init__(self, descriptions: Mapping[str, PolicyDescription], episodes: EpisodeRevisions) -> None:
        self._descriptions, self._episodes = descriptions, episodes
        self._pending: dict[str, _Pending] = {}
        self._answers: dict[str, Chunk | PolicyError] = {}
        self._expired: OrderedDict[str, None] = OrderedDict()
        self._error_at_end: Callable[[str], PolicyError] | None = None

    def add(self, request: policy_pb2.PredictChunkRequest, deadline: Deadline) -> None:
        """Enters a request that is about to be sent. Raises the error that ended the stream, if one did."""
        if self._error_at_end is not None:
            raise self._error_at_end(request.request_id)
        if len(self._pending) + len(self._answers) >= MAX_UNRECEIVED:
            raise FixRequestError(f"{MAX_UNRECEIVED} answers wait to be received on this stream; receive them first")
        self._pending[request.request_id] = _Pending(request=request, deadline=deadline, sent_s=time.perf_counter())

    def enter(self, response: policy_pb2.StreamChunksResponse) -> None:
        """Matches an answer; one that came too late is dropped. Raises ProtocolError for one that nobody asked for."""
        kind = response.WhichOneof("answer")
        if kind is None:
            raise ProtocolError("an answer came that is neither a chunk nor an error")
        answer = response.chunk if kind == "chunk" else response.error
        request_id = answer.request_id
        if request_id in self._expired:
            del self._expired[request_id]
            return
        pending = self._pending.pop(request_id, None)
        if pending is None:
            raise ProtocolError(f"an answer to request_id {request_id!r} came, which was not sent on this stream")
        self._answers[request_id] = self._read(pending, response)

    def end(self, error: Callable[[str], PolicyError]) -> None:
        """Gives every pending request, and every later one, the error that ended the stream, made for its id."""
        self._error_at_end = self._error_at_end or error
        for request_id in self._pending:
            self._answers[request_id] = self._error_at_end(request_id)
        self._pending.clear()

    def take(self, request_id: str | None) -> Chunk | None:
        """The answer to one request, or for None the oldest answer; None when it has not come yet.

        Raises the request's own error, DeadlineExceededError once its deadline has passed, and ValueError for a request
        id that is not awaited.
        """
        self._expire()
        found = next(iter(self._answers), None) if request_id is None else request_id
        answer = None if found is None else self._answers.pop(found, None)
        if isinstance(answer, PolicyError):
            raise answer
        if answer is None:
            self._require_pending(request_id)
        return answer

    def is_unanswered(self, request_id: str) -> bool:
        """Whether the request's deadline has passed, and nothing has come for it since either."""
        return request_id in self._expired

    def wait_s(self, request_id: str | None) -> float:
        """Seconds until `take` will have something at the latest."""
        awaited = self._pending.values() if request_id is None else [self._pending[request_id]]
        return min(pending.deadline.remaining_s() for pending in awaited)

    def _require_pending(self, request_id: str | None) -> None:
        if request_id is None and not self._pending:
            if self._error_at_end is not None:
                raise self._error_at_end("")
            raise ValueError("nothing was sent that has not been received")
        if request_id is not None and request_id not in self._pending:
            raise ValueError(f"request_id {request_id!r} was not sent on this stream, or was received before")

    def _expire(self) -> None:
        for request_id in [i for i, pending in self._pending.items() if pending.deadline.remaining_s() == 0]:
            timeout_s = self._pending.pop(request_id).deadline.timeout_s
            self._answers[request_id] = DeadlineExceededError(
                f"no answer came within timeout_s {timeout_s:g}", request_id=request_id
            )
            self._expired[request_id] = None
        while len(self._expired) > MAX_EXPIRED:
            self._expired.popitem(last=False)

    def _read(self, pending: _Pending, response: policy_pb2.StreamChunksResponse) -> Chunk | PolicyError:
        request = pending.request
        if response.WhichOneof("answer") == "error":
            return error_from_details(response.error, request_id=request.request_id)
        try:
            chunk = read_response(
                request,
                response.chunk,
                description=self._descriptions.get(request.policy),
                round_trip_s=time.perf_counter() - pending.sent_s,
            )
        except PolicyError as error:
            return error
        self._episodes.note(request, chunk.revision)
        return chunk
