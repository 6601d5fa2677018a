"""The asyncio side of StreamChunks.

Owns one bidirectional call, the two tasks that write and read it, and the hand-over of answers by request id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
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


class AsyncChunkStream:
    """Many requests on one stream, answered in any order. One task may send while others receive."""

    def __init__(
        self,
        open_call: Callable[[], Any],
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
        self._outbox: asyncio.Queue[policy_pb2.StreamChunksRequest] = asyncio.Queue()
        self._waiters: set[asyncio.Future[None]] = set()
        self._call: Any = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    async def __aenter__(self) -> AsyncChunkStream:
        if self._tasks:
            raise RuntimeError("a stream is entered once; ask the client for another")
        self._call = self._open_call()
        self._tasks = (asyncio.create_task(self._write()), asyncio.create_task(self._read()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def send(self, *, timeout_s: float | None = None, **arguments: Unpack[ChunkArguments]) -> str:
        """Sends one request, as `predict_chunk` would, and returns its id without waiting for the answer.

        Raises FixRequestError for what no policy could accept, and the error that ended the stream if it has ended.
        """
        if not self._tasks:
            raise RuntimeError("use the stream in an `async with` block")
        deadline = Deadline(self._timeout_s if timeout_s is None else timeout_s)
        request = await asyncio.to_thread(build_request, **arguments)
        self._episodes.tell(request)
        message = policy_pb2.StreamChunksRequest(request=request)
        message.timeout.CopyFrom(encode_duration(deadline.require_time(request_id=request.request_id)))
        self._ledger.add(request, deadline)
        # Written by a task of its own: grpc.aio ends the whole stream when a write is cancelled.
        self._outbox.put_nowait(message)
        return request.request_id

    async def receive(self, request_id: str | None = None) -> Chunk:
        """Waits for the answer to one request, or for None for whichever comes next, until its timeout has passed.

        Raises the request's own error; its `request_id` says whose it is.
        """
        while (chunk := self._ledger.take(request_id)) is None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait((waiter,), timeout=self._ledger.wait_s(request_id))
            finally:
                self._waiters.discard(waiter)
        return chunk

    async def close(self) -> None:
        """Ends the stream; what has not been answered by now never is. Closing twice is harmless."""
        self._end(lambda request_id: ClosedError("the stream is closed", request_id=request_id))
        if self._call is not None:
            self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self) -> None:
        try:
            while True:
                await self._call.write(await self._outbox.get())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The call is over; the reader sees the same and knows why.
            return

    async def _read(self) -> None:
        try:
            async for response in self._call:
                self._ledger.enter(response)
                self._wake()
            self._end(lambda request_id: RetryableError("the server ended the stream", request_id=request_id))
        except grpc.aio.AioRpcError as error:
            # The name `error` is unbound when this block ends, the errors are made later.
            status = error
            self._end(lambda request_id: self._error(status, request_id))
        except asyncio.CancelledError:
            # Closing the channel cancels the call, and grpc.aio then raises as if this task had been cancelled.
            self._end(lambda request_id: ClosedError("the client was closed", request_id=request_id))
            raise
        except ProtocolError as error:
            text = str(error)
            self._end(lambda request_id: ProtocolError(f"the stream was given up: {text}", request_id=request_id))
            self._call.cancel()

    def _error(self, status: grpc.aio.AioRpcError, request_id: str) -> PolicyError:
        if self._client_is_closed():
            return ClosedError("the client was closed", request_id=request_id)
        return error_from_call(status, request_id=request_id)

    def _end(self, error: Callable[[str], PolicyError]) -> None:
        self._ledger.end(error)
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
