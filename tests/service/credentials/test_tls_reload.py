"""New certificates serve without a restart, and only good ones; what is open goes on."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from premotor.v1 import policy_pb2, policy_pb2_grpc
from service.credentials import ServingTls, TlsFiles, read_tls, tls
from service.gateway import GatewayServer

TIMEOUT_S = 10.0


@dataclass
class Served:
    """A gRPC port and a port of asyncio, as uvicorn and websockets open theirs, that show the same."""

    tls: ServingTls
    files: TlsFiles
    grpc_port: int
    plain_port: int

    @property
    def ports(self) -> tuple[int, int]:
        return self.grpc_port, self.plain_port


async def shown_on(port: int) -> str:
    """The certificate in PEM that a port shows to a connection that begins now."""
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port), timeout=TIMEOUT_S)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()


@pytest.fixture
def serve(kit, certificates, tmp_path: Path):
    @asynccontextmanager
    async def serving(*, mutual: bool = False) -> AsyncIterator[Served]:
        files = TlsFiles(
            certificate=tmp_path / "cert.pem",
            key=tmp_path / "key.pem",
            client_ca=tmp_path / "ca.pem" if mutual else None,
        )
        shutil.copy(certificates.server, files.certificate)
        shutil.copy(certificates.server_key, files.key)
        if files.client_ca is not None:
            shutil.copy(certificates.ca, files.client_ca)
        tls = ServingTls(read_tls(files))
        gateway = GatewayServer(
            policies=kit.policies, backend=kit.backend(), metrics_registry=CollectorRegistry(), tls=tls
        )
        plain = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=tls.context())
        try:
            yield Served(tls, files, await gateway.start(), plain.sockets[0].getsockname()[1])
        finally:
            plain.close()
            await gateway.stop(0)

    return serving


def channel_of(certificates, port: int) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        certificates.ca.read_bytes(), certificates.client_key.read_bytes(), certificates.client.read_bytes()
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)


async def answers(channel: grpc.aio.Channel) -> bool:
    try:
        await policy_pb2_grpc.PolicyServiceStub(channel).ListPolicies(
            policy_pb2.ListPoliciesRequest(), timeout=TIMEOUT_S
        )
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return False
    return True


async def echoes(certificates, port: int) -> bool:
    context = ssl.create_default_context(cafile=str(certificates.ca))
    context.load_cert_chain(certificates.client, certificates.client_key)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"hello\n")
        line = await asyncio.wait_for(reader.readline(), TIMEOUT_S)
        writer.close()
    except (ssl.SSLError, ConnectionError):
        return False
    return line == b"hello\n"


async def test_a_new_certificate_is_shown_to_who_connects_then_and_open_connections_go_on(serve, certificates):
    old, new = certificates.server.read_text(), certificates.client.read_text()
    async with serve() as served, channel_of(certificates, served.grpc_port) as channel:
        assert await answers(channel)
        assert [await shown_on(port) for port in served.ports] == [old, old]
        shutil.copy(certificates.client, served.files.certificate)
        shutil.copy(certificates.client_key, served.files.key)
        assert served.tls.reload()
        assert not served.tls.reload()
        assert [await shown_on(port) for port in served.ports] == [new, new]
        assert await answers(channel)


async def test_a_client_of_an_authority_that_was_withdrawn_is_refused_from_then_on(serve, certificates):
    async with serve(mutual=True) as served:
        async with channel_of(certificates, served.grpc_port) as channel:
            assert await answers(channel)
        assert await echoes(certificates, served.plain_port)
        assert served.files.client_ca is not None
        shutil.copy(certificates.other_ca, served.files.client_ca)
        assert served.tls.reload()
        async with channel_of(certificates, served.grpc_port) as channel:
            assert not await answers(channel)
        assert not await echoes(certificates, served.plain_port)


@pytest.mark.parametrize(
    ("part", "source", "said"),
    [
        ("certificate", None, "holds no certificate in PEM"),
        ("key", "client_key", "is not the key of"),
        ("key", None, "is not an unencrypted private key in PEM"),
    ],
)
async def test_a_bad_file_leaves_the_old_one_serving_and_is_logged_once(
    serve, certificates, tmp_path: Path, caplog, part: str, source: str | None, said: str
):
    async with serve() as served:
        following = asyncio.create_task(served.tls.follow(interval_s=0.005))
        with caplog.at_level(logging.INFO):
            spoiled = tmp_path / "spoiled"
            spoiled.write_bytes(getattr(certificates, source).read_bytes() if source else b"not PEM")
            spoiled.replace(getattr(served.files, part))
            await until(lambda: bool(refusals(caplog)))
            # Nothing changed since: there is nothing to read, and nothing more to say.
            assert not served.tls.reload()
            assert [said in each["error"] for each in refusals(caplog)] == [True]
            assert "PRIVATE KEY" not in caplog.text
            assert [await shown_on(port) for port in served.ports] == [certificates.server.read_text()] * 2
            # Mended, by a pair that belongs together.
            shutil.copy(certificates.client, served.files.certificate)
            shutil.copy(certificates.client_key, served.files.key)
            await until(lambda: served.tls.current.certificate == certificates.client.read_bytes())
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert [await shown_on(port) for port in served.ports] == [certificates.client.read_text()] * 2


async def test_a_file_that_goes_while_it_is_read_ends_no_watch_and_the_next_ones_serve(
    serve, certificates, monkeypatch, caplog
):
    async with serve() as served:
        make_context = tls._context

        def made_too_late(files: TlsFiles) -> ssl.SSLContext:
            monkeypatch.setattr(tls, "_context", make_context)
            moved = files.key.rename(files.key.with_suffix(".moved"))
            try:
                return make_context(files)
            finally:
                moved.rename(files.key)

        monkeypatch.setattr(tls, "_context", made_too_late)
        shutil.copy(certificates.client_key, served.files.key)
        shutil.copy(certificates.client, served.files.certificate)
        following = asyncio.create_task(served.tls.follow(interval_s=0.005))
        with caplog.at_level(logging.INFO):
            await until(lambda: served.tls.current.certificate == certificates.client.read_bytes())
        assert "new certificates cannot be read" in caplog.text
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that a task does by itself."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110  # nobody says so
            await asyncio.sleep(0.005)


def refusals(caplog) -> list[dict[str, str]]:
    return [record.fields for record in caplog.records if record.getMessage() == "new certificates refused"]
