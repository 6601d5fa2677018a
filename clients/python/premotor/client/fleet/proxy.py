"""A proxy that makes a loopback connection as slow, narrow and lossy as a network.

Owns the sockets, the clock and the cuts. Does not own how late bytes are (network.py) nor when it is cut (faults.py).
Bytes that were accepted are delivered in order; nothing is ever dropped, for TCP would not drop it either.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from premotor.client.fleet.network import Link, NetworkProfile, resumed_s

_PIECE_BYTES = 64 * 1024
# As much as a connection has under way before its sender has to wait, as with a socket's send buffer.
_MOST_PIECES = 64
_CONNECT_TIMEOUT_S = 10.0


@dataclass(kw_only=True)
class Cut:
    """A time in which nothing passes. A pause is short and nobody notices but by waiting; after a partition each sender
    waits for its next retransmission."""

    start_s: float
    end_s: float
    is_partition: bool


class ShapingProxy:
    """Listens on loopback, one port for each target, and forwards both ways over one shared link."""

    def __init__(self, profile: NetworkProfile, *, seed: int) -> None:
        rng = random.Random(seed)
        self._profile = profile
        self._up, self._down = Link(profile, rng), Link(profile, rng)
        self._cuts: list[Cut] = []
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self.up_bytes = 0
        self.down_bytes = 0

    async def listen(self, target: str) -> str:
        """The address, host:port, that stands for `target`: host:port or unix:path."""

        def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._forward(target, reader, writer))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._servers.append(server)
        host, port = server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    def cut(self, duration_s: float, *, is_partition: bool) -> None:
        """Nothing passes from now on, for so long."""
        now_s = time.monotonic()
        self._cuts.append(Cut(start_s=now_s, end_s=now_s + duration_s, is_partition=is_partition))

    def set_loss(self, loss: float) -> None:
        """Segments lost on top of the profile's, both ways."""
        self._up.extra_loss = self._down.extra_loss = loss

    async def close(self) -> None:
        """Ends every connection."""
        for server in self._servers:
            server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _forward(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until both sides have ended it or either broke."""
        async with _closing(writer):
            await self._wait_s(self._uncut_s(time.monotonic()))
            try:
                far_reader, far_writer = await asyncio.wait_for(_connect(target), _CONNECT_TIMEOUT_S)
            except (OSError, asyncio.TimeoutError):
                return
            async with _closing(far_writer):
                ways = [
                    asyncio.create_task(self._carry(self._up, reader, far_writer, up=True)),
                    asyncio.create_task(self._carry(self._down, far_reader, writer, up=False)),
                ]
                try:
                    await asyncio.gather(*ways)
                except OSError:
                    # One side is gone: so is the other, once it hears of it.
                    return
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    async def _carry(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MOST_PIECES)
        ends = [
            asyncio.create_task(self._accept(link, reader, pieces, up=up)),
            asyncio.create_task(self._deliver(pieces, writer)),
        ]
        try:
            await asyncio.gather(*ends)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _accept(
        self, link: Link, reader: asyncio.StreamReader, pieces: asyncio.Queue[tuple[float, bytes]], *, up: bool
    ) -> None:
        """An empty piece is the end of the stream."""
        arrival_s, piece = 0.0, b"more"
        while piece:
            piece = await reader.read(_PIECE_BYTES)
            sent_s = self._uncut_s(time.monotonic())
            arrival_s = link.arrival_s(len(piece), sent_s, not_before_s=arrival_s)
            if up:
                self.up_bytes += len(piece)
            else:
                self.down_bytes += len(piece)
            await pieces.put((arrival_s, piece))

    async def _deliver(self, pieces: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            arrival_s, piece = await pieces.get()
            # A cut that began after it was sent stops it on the way.
            while (resumes_s := self._uncut_s(arrival_s)) > arrival_s or arrival_s > time.monotonic():
                arrival_s = resumes_s
                await self._wait_s(arrival_s)
            if not piece:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            writer.write(piece)
            await writer.drain()

    def _uncut_s(self, moment_s: float) -> float:
        """`moment_s`, or when what meets a cut at that moment gets through."""
        for cut in self._cuts:
            if cut.start_s <= moment_s < cut.end_s:
                if not cut.is_partition:
                    return cut.end_s
                return resumed_s(moment_s, cut.end_s, self._profile.retransmission_s)
        return moment_s

    async def _wait_s(self, until_s: float) -> None:
        remaining_s = until_s - time.monotonic()
        if remaining_s > 0:
            await asyncio.sleep(remaining_s)


async def _connect(target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if target.startswith("unix:"):
        return await asyncio.open_unix_connection(target.removeprefix("unix:"))
    host, _, port = target.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port))


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
