"""HTTP/1.1 to one tritonserver, as little of it as that takes: questions and answers of known length.

Owns the connections, which are kept, their reuse and their end. Does not own what is said on them (client.py). No
general client does this because of what one costs: an inference request by grpc.aio took 1.0 ms of this process's CPU
and 2.1 ms in all, by this 0.3 and 1.3, when a forward pass had just emptied the caches, as one always has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

_END_OF_HEAD = b"\r\n\r\n"
_UNIX = "unix:"


class TritonConnectionError(Exception):
    """A connection could not be made, broke, or carried what is no answer."""


@dataclass(frozen=True, kw_only=True)
class HttpAnswer:
    """A whole answer; the names of `headers` are in lower case."""

    status: int
    headers: dict[bytes, bytes]
    content: bytes


class TritonConnections:
    """Connections to `address`, "host:port" or "unix:path", as many as there are questions at the same time."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._closed = False

    async def ask(self, method: str, path: str, content: bytes = b"", *, headers: str = "") -> HttpAnswer:
        """One question and its answer. Raises TritonConnectionError; a cancelled question ends its connection.

        `headers` are whole lines, line ends included.
        """
        connection = self._idle.pop() if self._idle else await self._connect()
        head = f"{method} {path} HTTP/1.1\r\nHost: triton\r\nContent-Length: {len(content)}\r\n{headers}\r\n"
        try:
            answer = await connection.ask(b"".join((head.encode(), content)))
        except BaseException:
            # What still comes on this connection answers a question that nobody asks any more.
            connection.abort()
            raise
        if not connection.is_lost:
            self._idle.append(connection)
        return answer

    def close(self) -> None:
        """Ends every question in progress with TritonConnectionError."""
        self._closed = True
        for connection in tuple(self._open):
            connection.abort()

    async def _connect(self) -> _Connection:
        if self._closed:
            raise TritonConnectionError("the connection was closed")
        loop = asyncio.get_running_loop()
        connection = _Connection(self._forget)
        try:
            if is_unix(self._address):
                await loop.create_unix_connection(lambda: connection, self._address.removeprefix(_UNIX))
            else:
                host, _, port = self._address.rpartition(":")
                await loop.create_connection(lambda: connection, host.strip("[]"), int(port))
        except OSError as error:
            raise TritonConnectionError(f"cannot connect to {self._address}: {error}") from None
        if self._closed:  # meanwhile
            connection.abort()
            raise TritonConnectionError("the connection was closed")
        self._open.add(connection)
        return connection

    def _forget(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


def is_unix(address: str) -> bool:
    """Whether an address is "unix:path" and no "host:port"."""
    return address.startswith(_UNIX)


class _Connection(asyncio.Protocol):
    """One question at a time."""

    def __init__(self, on_lost: Callable[[_Connection], None]) -> None:
        self.is_lost = False
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[HttpAnswer] | None = None
        self._received = bytearray()
        self._head: _Head | None = None

    async def ask(self, request: bytes) -> HttpAnswer:
        if self.is_lost or self._transport is None:
            raise TritonConnectionError("the connection was closed")
        self._received.clear()
        self._head = None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._lose("the connection was closed")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose("the connection was closed" if exc is None else f"the connection broke: {exc}")

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            answer = self._read()
        except (ValueError, KeyError) as error:
            self._lose(f"what came is no HTTP answer of known length: {error!r}")
            self.abort()
            return
        if answer is not None and self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def _read(self) -> HttpAnswer | None:
        """The answer once it is whole."""
        if self._head is None:
            end = self._received.find(_END_OF_HEAD)
            if end < 0:
                return None
            self._head = _Head.parse(bytes(self._received[:end]))
        start, stop = self._head.num_bytes, self._head.num_bytes + self._head.content_length
        if len(self._received) < stop:
            return None
        content = bytes(memoryview(self._received)[start:stop])
        return HttpAnswer(status=self._head.status, headers=self._head.headers, content=content)

    def _lose(self, reason: str) -> None:
        if not self.is_lost:
            self.is_lost = True
            self._on_lost(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(TritonConnectionError(reason))


@dataclass(frozen=True, kw_only=True)
class _Head:
    status: int
    headers: dict[bytes, bytes]
    num_bytes: int
    content_length: int

    @classmethod
    def parse(cls, head: bytes) -> _Head:
        """Raises ValueError or KeyError for what is no head of an answer, or does not say how long the answer is."""
        status_line, *lines = head.split(b"\r\n")
        _, status, *_ = status_line.split(b" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if (content_length := int(headers[b"content-length"])) < 0:
            raise ValueError(f"content-length is {content_length}")
        return cls(
            status=int(status),
            headers=headers,
            num_bytes=len(head) + len(_END_OF_HEAD),
            content_length=content_length,
        )
