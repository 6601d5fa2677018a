"""Connections to Triton: reuse, breaks, and answers that come in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from service.triton.http import TritonConnectionError, TritonConnections

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """A server on a unix socket that answers each body with what `answer` writes."""

    answer: Answer
    num_connections: int = 0
    num_questions: int = 0
    asked: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                async with self.asked:
                    self.num_questions += 1
                    self.asked.notify_all()
                await self.answer(body, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def wait_for_questions(self, count: int) -> None:
        async with asyncio.timeout(5), self.asked:
            await self.asked.wait_for(lambda: self.num_questions >= count)


@asynccontextmanager
async def connected(answer: Answer, directory: Path) -> AsyncIterator[tuple[Server, TritonConnections]]:
    server = Server(answer)
    listening = await asyncio.start_unix_server(server.serve, directory / "s")
    connections = TritonConnections(f"unix:{directory / 's'}")
    try:
        async with asyncio.timeout(10):
            yield server, connections
    finally:
        connections.close()
        listening.close()


async def echo(body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Name:  Value \r\n\r\n%s" % (len(body), body))


async def test_questions_that_follow_each_other_share_a_connection(tmp_path: Path) -> None:
    async with connected(echo, tmp_path) as (server, connections):
        for number in range(5):
            answer = await connections.ask("POST", "/", b"%d" % number)
            assert (answer.status, answer.content) == (200, b"%d" % number)
            assert answer.headers[b"x-name"] == b"Value"
        assert server.num_connections == 1


async def test_questions_at_the_same_time_have_connections_of_their_own(tmp_path: Path) -> None:
    together = asyncio.Barrier(4)

    async def answer(body: bytes, writer: asyncio.StreamWriter) -> None:
        await together.wait()
        await echo(body, writer)

    async with connected(answer, tmp_path) as (server, connections):
        bodies = [b"a", b"bb", b"ccc", b""]
        answers = await asyncio.gather(*(connections.ask("POST", "/", body) for body in bodies))
        assert [answer.content for answer in answers] == bodies
        assert server.num_connections == 4


async def test_an_answer_in_single_bytes_is_one_answer(tmp_path: Path) -> None:
    async def answer(body: bytes, writer: asyncio.StreamWriter) -> None:
        for position in b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello":
            writer.write(bytes([position]))
            await writer.drain()

    async with connected(answer, tmp_path) as (_, connections):
        for _ in range(2):
            got = await connections.ask("GET", "/")
            assert (got.status, got.content) == (404, b"hello")


@pytest.mark.parametrize(
    "garbage",
    [
        b"no HTTP\r\n\r\n",
        b"HTTP/1.1 abc\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    ],
)
async def test_what_is_no_answer_of_known_length_is_an_error(garbage: bytes, tmp_path: Path) -> None:
    async def answer(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(garbage)

    async with connected(answer, tmp_path) as (_, connections):
        with pytest.raises(TritonConnectionError, match="no HTTP answer"):
            await connections.ask("GET", "/")


async def test_a_connection_that_breaks_ends_its_question_and_the_next_has_a_new_one(tmp_path: Path) -> None:
    async def answer(body: bytes, writer: asyncio.StreamWriter) -> None:
        if body == b"break":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
            await writer.drain()
            writer.close()
        else:
            await echo(body, writer)

    async with connected(answer, tmp_path) as (server, connections):
        with pytest.raises(TritonConnectionError, match="closed"):
            await connections.ask("POST", "/", b"break")
        assert (await connections.ask("POST", "/", b"whole")).content == b"whole"
        assert server.num_connections == 2


async def test_the_answer_to_a_cancelled_question_never_reaches_the_next(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def answer(body: bytes, writer: asyncio.StreamWriter) -> None:
        if body == b"late":
            await release.wait()
        await echo(body, writer)

    async with connected(answer, tmp_path) as (server, connections):
        late = asyncio.create_task(connections.ask("POST", "/", b"late"))
        await server.wait_for_questions(1)
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        release.set()
        assert (await connections.ask("POST", "/", b"next")).content == b"next"


async def test_closing_ends_questions_in_progress_and_refuses_new_ones(tmp_path: Path) -> None:
    async def never(body: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with connected(never, tmp_path) as (server, connections):
        asking = asyncio.create_task(connections.ask("POST", "/", b"?"))
        await server.wait_for_questions(1)
        connections.close()
        with pytest.raises(TritonConnectionError, match="closed"):
            await asking
        with pytest.raises(TritonConnectionError, match="closed"):
            await connections.ask("POST", "/", b"?")


async def test_nobody_there_is_an_error_that_names_the_address(tmp_path: Path) -> None:
    with pytest.raises(TritonConnectionError, match="cannot connect to unix:"):
        await TritonConnections(f"unix:{tmp_path / 'nobody'}").ask("GET", "/")
