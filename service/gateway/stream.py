"""One StreamChunks call: many requests at a time, each answered once, in whatever order they finish.

Owns reading, the bound on requests in flight on the stream and the writing of answers. Does not own the answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from premotor.v1 import policy_pb2
from premotor.wire import WireError, decode_duration
from service.errors import AuthenticationError, InvalidRequestError, OverloadedError
from service.gateway.answers import Answer
from service.gateway.authentication import AuthorizedAnswerer
from service.gateway.limits import GatewayLimits
from service.gateway.refusal import abort
from service.gateway.tracing import TracedAnswerer

_UNAUTHENTICATED: int = grpc.StatusCode.UNAUTHENTICATED.value[0]


class ChunkStream:
    """Runs one bidirectional stream to its end."""

    def __init__(
        self,
        *,
        messages: AsyncIterator[tuple[policy_pb2.StreamChunksRequest | None, int]],
        context: grpc.aio.ServicerContext,
        answerer: AuthorizedAnswerer | TracedAnswerer,
        check_caller: Callable[[], object],
        limits: GatewayLimits,
    ) -> None:
        """`messages` yields each with the number of its bytes, None for bytes that are not a message.

        `check_caller` raises AuthenticationError once the caller's token has ended.
        """
        self._messages = messages
        self._context = context
        self._answerer = answerer
        self._check_caller = check_caller
        self._limits = limits
        self._answering: set[asyncio.Task[None]] = set()
        # gRPC takes one message at a time.
        self._writing = asyncio.Lock()
        # The refusal of a request whose caller's token had ended since the stream began.
        self._locked_out: asyncio.Future[policy_pb2.RequestError] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Returns once the client has sent its last request and been sent its last answer.

        Aborts in a drain, and when the caller's token has ended; what was taken before is answered first.
        """
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read(tasks))
            draining = tasks.create_task(self._answerer.draining.wait())
            await self._until_one_ends({reader, draining, self._locked_out})
            reader.cancel()
            draining.cancel()
        if self._locked_out.done():
            await abort(self._context, self._locked_out.result())
        if self._answerer.draining.is_set():
            await self._context.abort(grpc.StatusCode.UNAVAILABLE, "the gateway is stopping; ask another replica")

    async def _until_one_ends(self, ends: set[asyncio.Future[Any]]) -> None:
        """One end may be that the caller's token has ended, which a stream without requests would never learn."""
        while True:
            done, _ = await asyncio.wait(
                ends, timeout=self._limits.credential_check_s, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return
            try:
                self._check_caller()
            except AuthenticationError as error:
                self._lock_out(self._answerer.refuse(error, None))

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        async for message, num_bytes in self._messages:
            if len(self._answering) >= self._limits.max_in_flight_per_stream:
                # Waited for, so that a client which does not read is not read from either; shielded, because a write
                # that is broken off leaves the stream unusable.
                await asyncio.shield(tasks.create_task(self._write(self._overloaded(message))))
                continue
            task = tasks.create_task(self._answer(message, num_bytes))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answer(self, message: policy_pb2.StreamChunksRequest | None, num_bytes: int) -> None:
        answer = await self._answer_to(message, num_bytes)
        await self._write(answer)
        if isinstance(answer, policy_pb2.RequestError) and answer.code == _UNAUTHENTICATED:
            self._lock_out(answer)

    def _lock_out(self, refusal: policy_pb2.RequestError) -> None:
        if not self._locked_out.done():
            self._locked_out.set_result(refusal)

    async def _answer_to(self, message: policy_pb2.StreamChunksRequest | None, num_bytes: int) -> Answer:
        if message is None:
            return await self._answerer.answer(None, timeout_s=None, num_bytes=num_bytes)
        if not message.HasField("request"):
            return self._answerer.refuse(InvalidRequestError("request", "none came, it is required"), None)
        try:
            timeout_s = self._timeout_s(message)
        except InvalidRequestError as error:
            return self._answerer.refuse(error, message.request)
        return await self._answerer.answer(message.request, timeout_s=timeout_s, num_bytes=num_bytes)

    def _timeout_s(self, message: policy_pb2.StreamChunksRequest) -> float | None:
        """How long this request is worth waiting for: its own timeout and the stream's, whichever is less."""
        stream_s = self._context.time_remaining()
        if not message.HasField("timeout"):
            return stream_s
        try:
            timeout_s = decode_duration(message.timeout, field="timeout")
        except WireError as error:
            raise InvalidRequestError(error.field, error.message) from None
        if timeout_s < 0:
            raise InvalidRequestError("timeout", f"{timeout_s} s came, expected no negative span")
        return timeout_s if stream_s is None else min(timeout_s, stream_s)

    def _overloaded(self, message: policy_pb2.StreamChunksRequest | None) -> policy_pb2.RequestError:
        error = OverloadedError(
            f"{len(self._answering)} requests of this stream are in flight, the most that are taken",
            retry_after_s=self._limits.overload_retry_s,
        )
        return self._answerer.refuse(error, message.request if message is not None else None)

    async def _write(self, answer: Answer) -> None:
        if isinstance(answer, policy_pb2.RequestError):
            response = policy_pb2.StreamChunksResponse(error=answer)
        else:
            response = policy_pb2.StreamChunksResponse(chunk=answer)
        # No bound on this wait: gRPC can neither take a message back nor send a status past it. A client that does not
        # read holds as many answers as it may have requests in flight, until its deadline, keepalive or a drain.
        async with self._writing:
            await self._context.write(response)
