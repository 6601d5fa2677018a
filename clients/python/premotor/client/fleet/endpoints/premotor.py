"""premotor's own wire, one stream a robot or one call a question.

Owns the calls and what is counted of them. Messages are made and read by chunks.py, as in the clients that robots use;
those hide how many bytes a message has, which is why this is not one of them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from premotor.client.asker import TIMEOUTS_BEFORE_RECONNECTING
from premotor.client.channel import CHANNEL_OPTIONS
from premotor.client.chunks import build_request, read_response
from premotor.client.description import PolicyDescription
from premotor.client.episode_revisions import EpisodeRevisions
from premotor.client.errors import (
    FixRequestError,
    ObservationSupersededError,
    PolicyError,
    error_from_call,
    error_from_details,
)
from premotor.client.fleet.endpoint import Answer, AskError, Reconnection, Sent
from premotor.client.fleet.questions import Question
from premotor.client.identity import Metadata, TlsOptions
from premotor.client.images import ImageEncoding
from premotor.v1 import policy_pb2, policy_pb2_grpc
from premotor.wire import encode_duration

# What a stream may hold at the gateway; the same bound for calls, of which a robot has no more use for either.
MAX_IN_FLIGHT = 32


@dataclass(frozen=True, kw_only=True)
class PremotorTarget:
    """Where the gateway is, who asks, and what of the policy."""

    address: str
    description: PolicyDescription
    embodiment: str
    robot_id: str
    image_encoding: ImageEncoding
    num_inference_steps: int | None
    metadata: Metadata
    tls: TlsOptions | None


class UnaryEndpoint:
    """PredictChunk: as many calls at once as there are questions."""

    max_in_flight = MAX_IN_FLIGHT

    def __init__(self, target: PremotorTarget) -> None:
        self._target = target
        self._channel: grpc.aio.Channel | None = None
        self._reconnection = Reconnection(random.Random(target.robot_id))
        self._episodes = EpisodeRevisions()

    @property
    def num_reconnections(self) -> int:
        return self._reconnection.count

    async def open(self, *, timeout_s: float) -> None:
        self._channel = _channel(self._target)
        await _ready(self._channel, self._target, timeout_s)

    async def ask(self, question: Question, *, timeout_s: float, sent: Sent) -> Answer:
        assert self._channel is not None
        request = _request(self._target, question)
        self._episodes.tell(request)
        stub = policy_pb2_grpc.PolicyServiceStub(self._channel)
        started_s = time.monotonic()
        try:
            response = await stub.PredictChunk(request, timeout=timeout_s, metadata=self._target.metadata)
            # gRPC has its own back-off: a call is always tried.
            self._reconnection.found()
            self._episodes.note(request, response.revision)
            return _answer(self._target, request, response, started_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._reconnection.lost(time.monotonic())
            raise _failure(error_from_call(error)) from None
        finally:
            # Counting serialises the message once more, and so comes last.
            sent(request.ByteSize())

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()


class StreamEndpoint:
    """StreamChunks: one stream on a connection of its own; answers are matched by request id.

    As a player does, it connects again when the stream breaks, and when nothing comes for as long as two questions are
    waited for. A question that the network does not take yet makes way for a newer one.
    """

    max_in_flight = MAX_IN_FLIGHT

    def __init__(self, target: PremotorTarget) -> None:
        self._target = target
        self._channel: grpc.aio.Channel | None = None
        self._stream: _Stream | None = None
        self._reconnection = Reconnection(random.Random(target.robot_id))
        self._episodes = EpisodeRevisions()

    @property
    def num_reconnections(self) -> int:
        return self._reconnection.count

    async def open(self, *, timeout_s: float) -> None:
        self._channel = _channel(self._target)
        await _ready(self._channel, self._target, timeout_s)

    async def ask(self, question: Question, *, timeout_s: float, sent: Sent) -> Answer:
        request = _request(self._target, question)
        self._episodes.tell(request)
        stream = await self._opened(longest_silence_s=TIMEOUTS_BEFORE_RECONNECTING * timeout_s)
        started_s = time.monotonic()
        try:
            response = await stream.ask(request, timeout_s)
            self._reconnection.found()
            self._episodes.note(request, response.revision)
            return _answer(self._target, request, response, started_s)
        except asyncio.TimeoutError:
            raise AskError("DeadlineExceededError", f"no answer within {timeout_s:g} s") from None
        except PolicyError as error:
            raise _failure(error) from None
        finally:
            # Counting serialises the message once more, and so comes last.
            sent(request.ByteSize())

    async def close(self) -> None:
        stream, self._stream = self._stream, None
        channel, self._channel = self._channel, None
        if stream is not None:
            await stream.close()
        if channel is not None:
            await channel.close()

    async def _opened(self, *, longest_silence_s: float) -> _Stream:
        """The stream, a new one in place of one that is lost. Raises AskError while it is too early to try."""
        if self._stream is not None:
            if self._stream.is_open and self._stream.silence_s < longest_silence_s:
                return self._stream
            self._reconnection.lost(time.monotonic())
            await self.close()
        if not self._reconnection.may_try(time.monotonic()):
            raise AskError("Disconnected", "the stream was lost a moment ago")
        self._channel = self._channel or _channel(self._target)
        stub = policy_pb2_grpc.PolicyServiceStub(self._channel)
        self._stream = _Stream(lambda: stub.StreamChunks(metadata=self._target.metadata))
        return self._stream


class _Stream:
    """One StreamChunks call with its two tasks. At most one request waits for the network to take it."""

    def __init__(self, open_call: Callable[[], Any]) -> None:
        self._call = open_call()
        self._unsent: policy_pb2.StreamChunksRequest | None = None
        self._has_unsent = asyncio.Event()
        # When the first question was asked since something came.
        self._silent_since_s: float | None = None
        self._waiting: dict[str, asyncio.Future[policy_pb2.PredictChunkResponse]] = {}
        self._tasks = (asyncio.create_task(self._write()), asyncio.create_task(self._read()))
        self.is_open = True

    @property
    def silence_s(self) -> float:
        """How long something has been waited for while nothing came."""
        return 0.0 if self._silent_since_s is None else time.monotonic() - self._silent_since_s

    async def ask(self, request: policy_pb2.PredictChunkRequest, timeout_s: float) -> policy_pb2.PredictChunkResponse:
        answer: asyncio.Future[policy_pb2.PredictChunkResponse] = asyncio.get_running_loop().create_future()
        self._waiting[request.request_id] = answer
        if self._silent_since_s is None:
            self._silent_since_s = time.monotonic()
        if self._unsent is not None:
            older = self._waiting.get(self._unsent.request.request_id)
            if older is not None and not older.done():
                older.set_exception(ObservationSupersededError("a newer question took its place before it was sent"))
        message = policy_pb2.StreamChunksRequest(request=request, timeout=encode_duration(timeout_s))
        self._unsent = message
        self._has_unsent.set()
        try:
            return await asyncio.wait_for(answer, timeout_s)
        finally:
            self._waiting.pop(request.request_id, None)
            if self._unsent is message:
                self._unsent = None

    async def close(self) -> None:
        self.is_open = False
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self) -> None:
        try:
            while await self._has_unsent.wait():
                self._has_unsent.clear()
                message, self._unsent = self._unsent, None
                # None where it was given up before the network took what came before it.
                if message is not None:
                    await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The reader sees the same, and says why.
            return

    async def _read(self) -> None:
        reason: PolicyError = PolicyError("the stream has ended", code=grpc.StatusCode.UNAVAILABLE)
        try:
            async for response in self._call:
                self._enter(response)
        except grpc.aio.AioRpcError as error:
            reason = error_from_call(error)
        finally:
            self.is_open = False
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(reason)

    def _enter(self, response: policy_pb2.StreamChunksResponse) -> None:
        self._silent_since_s = None
        is_chunk = response.WhichOneof("answer") == "chunk"
        request_id = response.chunk.request_id if is_chunk else response.error.request_id
        # One that nobody waits for any more came after its timeout.
        waiting = self._waiting.get(request_id)
        if waiting is None or waiting.done():
            return
        if is_chunk:
            waiting.set_result(response.chunk)
        else:
            waiting.set_exception(error_from_details(response.error, request_id=request_id))


async def _ready(channel: grpc.aio.Channel, target: PremotorTarget, timeout_s: float) -> None:
    try:
        await asyncio.wait_for(channel.channel_ready(), timeout_s)
    except asyncio.TimeoutError:
        raise AskError("UNAVAILABLE", f"{target.address} cannot be reached") from None


def _channel(target: PremotorTarget) -> grpc.aio.Channel:
    if target.tls is not None:
        return grpc.aio.secure_channel(target.address, target.tls.credentials(), options=CHANNEL_OPTIONS)
    return grpc.aio.insecure_channel(target.address, options=CHANNEL_OPTIONS)


def _request(target: PremotorTarget, question: Question) -> policy_pb2.PredictChunkRequest:
    return build_request(
        policy=target.description.name,
        robot_id=target.robot_id,
        episode_id=f"fleet-{question.episode}",
        embodiment=target.embodiment,
        images=question.images,
        state=question.state,
        instruction=question.instruction,
        history=question.history,
        seed=question.seed,
        num_inference_steps=target.num_inference_steps,
        image_encoding=target.image_encoding,
    )


def _answer(
    target: PremotorTarget,
    request: policy_pb2.PredictChunkRequest,
    response: policy_pb2.PredictChunkResponse,
    started_s: float,
) -> Answer:
    round_trip_s = time.monotonic() - started_s
    try:
        chunk = read_response(request, response, description=target.description, round_trip_s=round_trip_s)
    except PolicyError as error:
        raise _failure(error) from None
    received_s = time.monotonic()
    timing = chunk.timing
    server_s: Mapping[str, float] = {
        "decode": timing.decode_s,
        "queue": timing.queue_s,
        "inference": timing.inference_s,
        "total": timing.total_s,
    }
    return Answer(
        actions=chunk.actions,
        revision=chunk.revision,
        server_s=server_s,
        response_bytes=response.ByteSize(),
        received_s=received_s,
    )


def _failure(error: PolicyError) -> AskError | FixRequestError:
    if isinstance(error, FixRequestError):
        return error
    return AskError(type(error).__name__, str(error))
