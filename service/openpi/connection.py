"""One robot's connection: a frame, its one reply, the next frame.

Owns the order of an exchange, the robot's ids and the bound of one frame in flight. Does not own the handshake
(server.py), the forms of frames (dialects.py) or the answers, which come from where gRPC's do.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from premotor.v1 import policy_pb2
from premotor.wire import decode_duration, decode_tensor
from service.errors import AuthenticationError, InvalidRequestError
from service.openpi.dialects import (
    VLLM_OMNI_PATH,
    Addressee,
    Call,
    ChunkReply,
    Dialect,
    Verb,
    chunk_frame,
    done_frame,
    error_frame,
    find_addressee,
    read_call,
)
from service.openpi.limits import OpenpiLimits
from service.openpi.observation_map import ObservationMap
from service.openpi.observations import fill_observation
from service.openpi.wire import unpack

# Above this a frame takes longer to unpack and copy than a thread takes to be reached and to come back.
INLINE_MAX_BYTES = 512 * 1024

_Result = TypeVar("_Result")


class Answerer(Protocol):
    """Where chunks come from: the gateway's ChunkAnswerer."""

    @property
    def draining(self) -> asyncio.Event: ...

    async def answer(
        self,
        request: policy_pb2.PredictChunkRequest | None,
        *,
        timeout_s: float | None,
        caller: str = ...,
        num_bytes: int = ...,
    ) -> policy_pb2.PredictChunkResponse | policy_pb2.RequestError: ...

    def refuse(self, error: Exception, request: policy_pb2.PredictChunkRequest | None) -> policy_pb2.RequestError: ...


class OpenpiConnection:
    """Runs one connection from its greeting to its end."""

    def __init__(
        self,
        *,
        websocket: ServerConnection,
        path: str,
        observation_map: ObservationMap,
        answerer: Answerer,
        admit: Callable[[], AbstractContextManager[str]],
        check_key: Callable[[], None],
        check_interval_s: float,
        limits: OpenpiLimits,
        decode_threads: Executor,
    ) -> None:
        """`admit` is asked for each frame; it gives whose robot this is, or raises a ServiceError to refuse it.

        `check_key` is asked every `check_interval_s` and raises AuthenticationError once the robot's key has ended.
        """
        self._websocket = websocket
        self._path = path
        self._map = observation_map
        self._answerer = answerer
        self._admit = admit
        self._check_key, self._check_interval_s = check_key, check_interval_s
        self._limits = limits
        self._decode_threads = decode_threads
        # Whom to answer what cannot be read: the one who spoke last.
        self._addressee = Addressee(dialect=Dialect.VLLM_OMNI if path == VLLM_OMNI_PATH else Dialect.OPENPI)
        self._robot_id, self._episode_id = f"openpi-{secrets.token_hex(8)}", secrets.token_hex(8)
        self._session = ""
        self._num_requests = 0
        self._prev_total_ms: float | None = None
        # Held from a frame's arrival until its reply is out.
        self._exchange = asyncio.Lock()

    async def run(self, greeting: bytes) -> None:
        """Returns once the connection is closed, by whomever."""
        left = asyncio.create_task(self._websocket.wait_closed())
        watching = asyncio.create_task(self._until_key_ends())
        try:
            await self._send(greeting)
            while True:
                frame = await self._websocket.recv()
                async with self._exchange:
                    arrived_s = time.perf_counter()
                    reply = await _unless(left, self._reply(frame, arrived_s))
                    if reply is None:
                        return
                    await self._send(reply)
                    self._prev_total_ms = _ms_since(arrived_s)
        except ConnectionClosed:
            return
        finally:
            left.cancel()
            watching.cancel()
            await asyncio.gather(left, watching, return_exceptions=True)

    async def close(self, *, grace_s: float) -> None:
        """Says that the service leaves, after the reply that is being made if that comes within `grace_s`."""
        try:
            async with asyncio.timeout(grace_s), self._exchange:
                pass
        except TimeoutError:
            pass
        await self._websocket.close(1001, "the gateway is stopping")

    async def _until_key_ends(self) -> None:
        """Ends the connection then, after the reply that is being made: a silent robot would keep it for ever."""
        while True:
            await asyncio.sleep(self._check_interval_s)
            try:
                self._check_key()
            except AuthenticationError as error:
                async with self._exchange:
                    # 1008 is what websockets have for a peer that may not go on.
                    await self._websocket.close(1008, f"UNAUTHENTICATED: {error.message}")
                return

    async def _reply(self, frame: bytes | str, arrived_s: float) -> bytes | str:
        """A refusal as well is a reply, and the connection goes on."""
        request = policy_pb2.PredictChunkRequest(policy=self._map.policy, embodiment=self._map.embodiment)
        try:
            with self._admit() as holder:
                message = await self._message(frame)
                self._addressee = find_addressee(message, path=self._path)
                call = read_call(message, self._addressee)
                if call.verb is not Verb.INFER:
                    self._enter(call)
                    return done_frame(call)
                self._name(request, call)
                await self._off_loop(len(frame), fill_observation, request, call.observation, self._map)
                # openpi's client does not say how long it waits.
                answer = await self._answerer.answer(request, timeout_s=None, caller=holder, num_bytes=len(frame))
            if isinstance(answer, policy_pb2.RequestError):
                return error_frame(self._addressee, answer)
            return chunk_frame(self._addressee, self._chunk_reply(answer, arrived_s))
        except Exception as error:  # the edge: whatever went wrong, the robot reads why and may ask again
            return error_frame(self._addressee, self._answerer.refuse(error, request))

    async def _message(self, frame: bytes | str) -> dict[str | bytes, Any]:
        if isinstance(frame, str):
            raise InvalidRequestError("", "a text frame came, expected a binary one that holds a msgpack map")
        message = await self._off_loop(len(frame), unpack, frame, self._limits)
        if not isinstance(message, dict):
            raise InvalidRequestError("", f"{type(message).__name__} came, expected a map")
        return message

    def _name(self, request: policy_pb2.PredictChunkRequest, call: Call) -> None:
        self._enter(call)
        self._num_requests += 1
        request.robot_id, request.episode_id = self._robot_id, self._episode_id
        request.request_id = str(self._num_requests)
        if call.seed is not None:
            request.seed = call.seed

    def _enter(self, call: Call) -> None:
        """A session is a robot of its own; a reset and another session each begin an episode."""
        moved = call.session not in ("", self._session)
        if moved:
            self._session, self._robot_id = call.session, f"session-{call.session}"
        if moved or call.verb is Verb.RESET:
            self._episode_id = secrets.token_hex(8)

    def _chunk_reply(self, answer: policy_pb2.PredictChunkResponse, arrived_s: float) -> ChunkReply:
        return ChunkReply(
            actions=decode_tensor(answer.actions, field="actions", dtype=np.float32, shape=(None, None)),
            actions_key=self._map.actions,
            revision=answer.revision,
            seed=answer.seed,
            infer_ms=_ms_since(arrived_s),
            policy_infer_ms=1000 * decode_duration(answer.timing.inference, field="timing.inference"),
            prev_total_ms=self._prev_total_ms,
        )

    async def _off_loop(self, num_bytes: int, work: Callable[..., _Result], *arguments: Any) -> _Result:
        if num_bytes <= INLINE_MAX_BYTES:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._decode_threads, work, *arguments)

    async def _send(self, frame: bytes | str) -> None:
        try:
            async with asyncio.timeout(self._limits.send_timeout_s):
                await self._websocket.send(frame)
        except TimeoutError:
            # Half a frame may be on its way: nothing after it could be read.
            self._websocket.transport.abort()


async def _unless(left: asyncio.Task[None], work: Coroutine[Any, Any, _Result]) -> _Result | None:
    """What `work` returns, or None when it was cut short because the robot has left."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _ms_since(start_s: float) -> float:
    return 1000 * (time.perf_counter() - start_s)
