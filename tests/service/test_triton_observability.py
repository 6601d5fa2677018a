"""What Triton tells of itself, and what it is told of a request's trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.backend import BackendUnavailableError
from service.model_settings import ModelSettings
from service.observability.request_trace import recorded
from service.triton.backend import TritonBackend
from service.triton.client import TritonClient
from service.triton.installation import TritonInstallation
from service.triton.server import ExternalTriton, TritonProcess, TritonProcessSettings

TIMEOUT_S = 5.0
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Listener:
    """A unix socket that answers every question with the same text, and keeps the questions."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.address, self._path, self._content = f"unix:{path}", path, content
        self.heads: list[str] = []

    async def __aenter__(self) -> Listener:
        self._server = await asyncio.start_unix_server(self._answer, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                self.heads.append(head)
                length = next(line for line in head.splitlines() if line.lower().startswith("content-length"))
                await reader.readexactly(int(length.split(":")[1]))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self._content) + self._content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class Metered:
    """As much of a TritonServer as metrics take."""

    repository = Path()
    shares_memory = False

    def __init__(self, metrics_address: str | None) -> None:
        self.metrics_address = metrics_address


def backend(server: Any) -> TritonBackend:
    return TritonBackend(server, ModelSettings())


@pytest.fixture
async def listener(tmp_path: Path) -> AsyncIterator[Listener]:
    async with Listener(tmp_path / "triton.sock", b"nv_inference_count 7\n") as listener:
        yield listener


async def test_tritons_metrics_are_read_where_it_listens(listener):
    assert await backend(Metered(listener.address)).metrics(timeout_s=TIMEOUT_S) == b"nv_inference_count 7\n"
    assert listener.heads[0].startswith("GET /metrics HTTP/1.1\r\n")


async def test_a_triton_that_is_away_or_somebody_elses_has_no_metrics_here(tmp_path):
    with pytest.raises(BackendUnavailableError, match="cannot connect"):
        await backend(Metered(f"unix:{tmp_path}/nobody.sock")).metrics(timeout_s=TIMEOUT_S)
    with pytest.raises(BackendUnavailableError, match="known to its owner"):
        await backend(ExternalTriton("127.0.0.1:1", "127.0.0.1:2", tmp_path)).metrics(timeout_s=TIMEOUT_S)


class Trace:
    trace_id, traceparent = TRACEPARENT.split("-")[1], TRACEPARENT

    def stage(self, *_: Any) -> None: ...


async def test_a_request_that_is_traced_says_so_to_triton_and_no_other_does(listener, kit):
    client = TritonClient(listener.address, "unused:1")
    asked = kit.backend()
    async with kit.serve(backend=asked) as gateway:
        await gateway.stub.PredictChunk(kit.request(), timeout=TIMEOUT_S)
    (request,) = asked.requests
    try:
        for trace in (Trace(), None):
            # The listener's answer is no chunk; what was asked is what counts.
            with pytest.raises(Exception, match="not a chunk"):
                if trace is None:
                    await client.infer("model", request, timeout_s=TIMEOUT_S)
                else:
                    with recorded(trace):
                        await client.infer("model", request, timeout_s=TIMEOUT_S)
    finally:
        client.close()
    traced, plain = listener.heads
    assert f"traceparent: {TRACEPARENT}\r\n" in traced and "traceparent" not in plain


def test_triton_sends_spans_only_of_what_is_traced_and_only_where_it_is_told_to(tmp_path):
    def flags(**settings: Any) -> list[str]:
        installation = TritonInstallation(executable=tmp_path / "tritonserver")
        process = TritonProcess(installation, TritonProcessSettings(**settings))
        try:
            return [flag for flag in process._command("x") if flag.startswith("--trace-config")]
        finally:
            asyncio.run(process.stop())

    assert flags() == []
    url = "http://127.0.0.1:4318/v1/traces"
    assert flags(otlp_http_url=url) == [
        "--trace-config=mode=opentelemetry",
        f"--trace-config=opentelemetry,url={url}",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=rate=0",
    ]
