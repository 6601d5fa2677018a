"""The blocking side of StreamChunks.

Owns one bidirectional call, the thread that reads its answers, and their hand-over to callers by request id.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

from premotor.client.channel import Deadline
from premotor.client.chunks import Chunk, ChunkArguments, build_request
from premotor.client.description import PolicyDescription
from premotor.client.episode_revisions import EpisodeRevisions
from premotor.client.errors import ClosedError, PolicyError, ProtocolError, RetryableError, error_from_call
from premotor.client.ledger import Ledger
from premotor.v1 import policy_pb2
from premotor.wire import encode_duration

if TYPE_CHECKING:
    from typing_extensions import Unpack

_JOIN_TIMEOUT_S = 5.0


class ChunkStream:
    """Many requests on one stream, answered in any order. Thread-safe: one thread may send while another receives."""

    def __init__(
        self,
        open_call: Callable[[Iterator[policy_pb2.StreamChunksRequest]], Any],
        *,
        descriptions: Mapping[str, PolicyDescription],
        episodes: EpisodeRevisions,
        timeout_s: float,
        client_is_closed: Callable[[], bool],
    ) -> None:
        self._open_call = open_call
        self._timeout_s = timeout_s
        self._client_is_closed = client_is_closed
        self._episodes = episodes
        self._ledger = Ledger(descriptions, episodes)
        self._changed = threading.Condition()
        self._outbox: SimpleQueue[policy_pb2.StreamChunksRequest | None] = SimpleQueue()
        self._call: Any = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> ChunkStream:
        if self._reader is not None:
            raise RuntimeError("a stream is entered once; ask the client for another")
        self._call = self._open_call(iter(self._outbox.get, None))
        self._reader = threading.Thread(target=self._read, name="premotor-stream", daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send(self, *, timeout_s: float | None = None, **arguments: Unpack[ChunkArguments]) -> str:
        """Sends one request, as `PolicyClient.predict_chunk` would, and returns its id without waiting for the answer.

        Raises FixRequestError for what no policy could accept, and the error that ended the stream if it has ended.
        """
        if self._reader is None:
            raise RuntimeError("use the stream in a `with` block")
        deadline = Deadline(self._timeout_s if timeout_s is None else timeout_s)
        request = build_request(**arguments)
        self._episodes.tell(request)
        message = policy_pb2.StreamChunksRequest(request=request)
        with self._changed:
            message.timeout.CopyFrom(encode_duration(deadline.require_time(request_id=request.request_id)))
            self._ledger.add(request, deadline)
            self._outbox.put(message)
        return request.request_id

    def receive(self, request_id: str | None = None) -> Chunk:
        """Waits for the answer to one request, or for None for whichever comes next, until its timeout has passed.

        Raises the request's own error; its `request_id` says whose it is.
        """
        with self._changed:
            while (chunk := self._ledger.take(request_id)) is None:
                self._changed.wait(self._ledger.wait_s(request_id))
            return chunk

    def is_unanswered(self, request_id: str) -> bool:
        """Whether the request's timeout has passed, and nothing has come for it since either."""
        with self._changed:
            return self._ledger.is_unanswered(request_id)

    def close(self) -> None:
        """Ends the stream; what has not been answered by now never is. Closing twice is harmless."""
        self._end(lambda request_id: ClosedError("the stream is closed", request_id=request_id))
        if self._call is not None:
            self._call.cancel()
        if self._reader is not None:
            self._reader.join(_JOIN_TIMEOUT_S)

    def _read(self) -> None:
        try:
            for response in self._call:
                with self._changed:
                    self._ledger.enter(response)
                    self._changed.notify_all()
            self._end(lambda request_id: RetryableError("the server ended the stream", request_id=request_id))
        except grpc.RpcError as error:
            # The name `error` is unbound when this block ends, the errors are made later.
            status = error
            self._end(lambda request_id: self._error(status, request_id))
        except ProtocolError as error:
            text = str(error)
            self._end(lambda request_id: ProtocolError(f"the stream was given up: {text}", request_id=request_id))
            self._call.cancel()

    def _error(self, status: grpc.RpcError, request_id: str) -> PolicyError:
        if self._client_is_closed():
            return ClosedError("the client was closed", request_id=request_id)
        return error_from_call(status, request_id=request_id)

    def _end(self, error: Callable[[str], PolicyError]) -> None:
        with self._changed:
            self._ledger.end(error)
            self._changed.notify_all()
        # gRPC's sending thread waits on the outbox and would otherwise stay for good.
        self._outbox.put(None)
