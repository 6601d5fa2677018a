"""openpi's wire: msgpack with its numpy markers on one websocket, one question at a time.

Owns the codec of the few types that a fleet sends and the connection. Needs the extra `premotor[fleet]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from premotor.client.fleet.endpoint import Answer, AskError, MissingPeerError, Reconnection, Sent
from premotor.client.fleet.questions import Question
from premotor.client.identity import TlsOptions

_NUMBER_KINDS = "biuf"
_HEADROOM_BYTES = 64 * 1024 * 1024


class OpenpiEndpoint:
    """One websocket. openpi's own client waits for an answer however long it takes, and so does a robot here unless it
    is told when to give up. The protocol has no request ids: a late answer would be taken for the next one's, so a
    connection on which a question timed out is given up."""

    max_in_flight = 1

    def __init__(
        self, address: str, *, generator: random.Random, token: str = "", tls: TlsOptions | None = None
    ) -> None:
        self._url = f"{'ws' if tls is None else 'wss'}://{address}"
        self._ssl = None if tls is None else _context(tls)
        self._token = token
        self._connection: Any = None
        self._reconnection = Reconnection(generator)

    @property
    def num_reconnections(self) -> int:
        return self._reconnection.count

    async def open(self, *, timeout_s: float) -> None:
        _require_extra()
        await self._connect(timeout_s)

    async def ask(self, question: Question, *, timeout_s: float, sent: Sent) -> Answer:
        deadline_s = time.monotonic() + timeout_s
        if self._connection is None:
            if not self._reconnection.may_try(time.monotonic()):
                raise AskError("Disconnected", "the connection was lost a moment ago")
            await self._connect(timeout_s)
        frame = pack_observation(question)
        sent(len(frame))
        reply = await self._exchange(frame, deadline_s - time.monotonic())
        if isinstance(reply, str):
            # An error, a traceback with the stock server, after which it closes.
            await self._lose()
            self._reconnection.lost(time.monotonic())
            raise AskError("ServerFailureError", reply.strip().splitlines()[-1] if reply.strip() else "no text")
        message = unpack(reply)
        if not isinstance(message, dict) or not isinstance(message.get("actions"), np.ndarray):
            raise AskError("ProtocolError", "an answer without actions came")
        actions = np.array(message["actions"], np.float32)
        received_s = time.monotonic()
        return Answer(
            actions=actions,
            revision=str(message.get("revision", "")),
            server_s=_server_s(message),
            response_bytes=len(reply),
            received_s=received_s,
        )

    async def close(self) -> None:
        await self._lose()

    async def _exchange(self, frame: bytes, timeout_s: float) -> bytes | str:
        from websockets.exceptions import ConnectionClosed

        async def send_and_receive() -> bytes | str:
            await self._connection.send(frame)
            return await self._connection.recv()

        try:
            return await asyncio.wait_for(send_and_receive(), timeout_s)
        except asyncio.TimeoutError:
            await self._lose()
            self._reconnection.lost(time.monotonic())
            raise AskError("DeadlineExceededError", f"no answer within {timeout_s:g} s") from None
        except (ConnectionClosed, OSError) as error:
            await self._lose()
            self._reconnection.lost(time.monotonic())
            raise AskError("RetryableError", f"the connection ended: {type(error).__name__}") from None

    async def _connect(self, timeout_s: float) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        headers = {"Authorization": f"Api-Key {self._token}"} if self._token else None
        try:
            connection = await asyncio.wait_for(
                connect(
                    self._url,
                    ssl=self._ssl,
                    compression=None,
                    max_size=_HEADROOM_BYTES,
                    additional_headers=headers,
                    proxy=None,
                    # The stock server answers no ping while it infers, and would be taken for dead.
                    ping_interval=None,
                ),
                timeout_s,
            )
            await asyncio.wait_for(connection.recv(), timeout_s)
        except (OSError, WebSocketException, asyncio.TimeoutError) as error:
            self._reconnection.lost(time.monotonic())
            raise AskError("RetryableError", f"{self._url}: {type(error).__name__}: {error}") from None
        self._connection = connection
        self._reconnection.found()

    async def _lose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # The closing handshake of a server that hangs would take its whole timeout.
            connection.transport.abort()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(connection.wait_closed(), 1.0)


def _context(tls: TlsOptions) -> ssl.SSLContext:
    roots = tls.root_certificates
    return ssl.create_default_context(cadata=None if roots is None else roots.decode("ascii", "ignore"))


def pack_observation(question: Question) -> bytes:
    """The names of a robot that uses the policy's own: `observation/<camera>`, `observation/state`, `prompt`.

    A free dictionary, so that the seed has a place too; a policy that knows none leaves it alone.
    """
    import msgpack

    observation: dict[str, Any] = {f"observation/{camera}": frame for camera, frame in question.images.items()}
    observation["observation/state"] = question.state
    observation["prompt"] = question.instruction
    observation["seed"] = question.seed
    frame = msgpack.packb(observation, default=_encode)
    assert frame is not None  # as it is for packers that keep what they packed
    return frame


def unpack(frame: bytes) -> Any:
    """The message of a frame. Raises AskError for one that is none."""
    import msgpack

    try:
        return msgpack.unpackb(frame, object_hook=_decode, strict_map_key=False)
    except (ValueError, TypeError, KeyError) as error:
        raise AskError("ProtocolError", f"a frame that is no message came: {error}") from None


def _encode(value: object) -> Mapping[bytes, object]:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in _NUMBER_KINDS:
        raise TypeError(f"{type(value).__name__} has no form on this wire")
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def _decode(entries: dict[Any, Any]) -> Any:
    if b"__ndarray__" in entries:
        dtype = np.dtype(entries[b"dtype"])
        if dtype.kind not in _NUMBER_KINDS:
            raise ValueError(f"elements of dtype {dtype} came, expected numbers")
        return np.frombuffer(entries[b"data"], dtype).reshape(entries[b"shape"])
    if b"__npgeneric__" in entries:
        return entries[b"data"]
    return entries


def _server_s(message: Mapping[str, Any]) -> dict[str, float]:
    """What the stock server says is the time inside its policy; what it waited for others is not told."""
    timing = message.get("server_timing")
    infer_ms = timing.get("infer_ms") if isinstance(timing, dict) else None
    return {"inference": float(infer_ms) / 1e3} if isinstance(infer_ms, (int, float)) else {}


def _require_extra() -> None:
    try:
        import msgpack
        import websockets
    except ImportError as error:
        raise MissingPeerError(f"openpi's wire needs {error.name}: pip install 'premotor[fleet]'") from None
    del msgpack, websockets
