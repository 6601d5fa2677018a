"""The proxy: every byte, in order, not before its time. Lower bounds only: a busy machine makes everything later."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from premotor.client.fleet.network import NONE, WAN, NetworkProfile
from premotor.client.fleet.proxy import ShapingProxy

DEADLINE_S = 20.0


@contextlib.asynccontextmanager
async def echo_behind(profile: NetworkProfile) -> AsyncIterator[tuple[ShapingProxy, str]]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(1 << 16):
                writer.write(piece)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    proxy = ShapingProxy(profile, seed=0)
    try:
        yield proxy, await proxy.listen(f"127.0.0.1:{port}")
    finally:
        await proxy.close()
        server.close()


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def round_trip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes) -> float:
    started_s = time.monotonic()
    writer.write(content)
    await writer.drain()
    assert await asyncio.wait_for(reader.readexactly(len(content)), DEADLINE_S) == content
    return time.monotonic() - started_s


async def test_every_byte_comes_through_in_order_and_is_counted() -> None:
    content = bytes(range(256)) * 4000
    async with echo_behind(NONE) as (proxy, address), connected(address) as (reader, writer):
        async with asyncio.timeout(DEADLINE_S):
            sending = asyncio.create_task(round_trip(reader, writer, content))
            await sending
        assert (proxy.up_bytes, proxy.down_bytes) == (len(content), len(content))


async def test_a_round_trip_takes_both_ways() -> None:
    async with echo_behind(WAN) as (_, address), connected(address) as (reader, writer):
        assert await round_trip(reader, writer, b"x") >= 2 * (WAN.delay_s - WAN.jitter_s)


async def test_a_narrow_link_takes_its_time() -> None:
    narrow = NetworkProfile(name="narrow", delay_s=0.0, rate_bits_per_s=8e6)
    async with echo_behind(narrow) as (_, address), connected(address) as (reader, writer):
        assert await round_trip(reader, writer, bytes(100_000)) >= 0.1


async def test_nothing_passes_during_a_cut_and_everything_after_it() -> None:
    async with echo_behind(NONE) as (proxy, address), connected(address) as (reader, writer):
        await round_trip(reader, writer, b"before")
        proxy.cut(0.2, is_partition=False)
        assert await round_trip(reader, writer, b"after") >= 0.15


async def test_a_connection_comes_back_from_a_partition_with_its_next_retransmission() -> None:
    async with echo_behind(NONE) as (proxy, address), connected(address) as (reader, writer):
        await round_trip(reader, writer, b"before")
        proxy.cut(0.25, is_partition=True)
        # Sent again after 0.2 s in vain, then after another 0.4 s.
        assert await round_trip(reader, writer, b"after") >= 0.55


async def test_a_server_that_is_gone_ends_the_connection() -> None:
    proxy = ShapingProxy(NONE, seed=0)
    try:
        async with connected(await proxy.listen("127.0.0.1:1")) as (reader, _):
            assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
    finally:
        await proxy.close()


async def test_the_end_of_a_stream_arrives_after_its_last_byte() -> None:
    async with echo_behind(WAN) as (_, address), connected(address) as (reader, writer):
        writer.write(b"last words")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b"last words"
