"""A service that is started goes by its registry's tokens, encrypts where told, and does not open up by accident."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path

import grpc
import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from premotor.v1 import policy_pb2, policy_pb2_grpc
from service.__main__ import main
from service.credentials import Scope, ServingTls, TlsFiles, TokenSpec, read_tls
from service.credentials.exposure import ExposedError
from service.credentials.issuing import create_token
from service.model_settings import ModelSettings
from service.registry import Registry, open_database
from service.serve import ServeConfig, Service

WITHIN_S = 1.0


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def tls_flags(certificates) -> list[str]:
    return ["--tls-cert", str(certificates.server), "--tls-key", str(certificates.server_key)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 is not loopback, and there is no TLS (--tls-cert, --tls-key)"),
        (["--host", "gateway.local"], "gateway.local is not loopback"),
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key come together"),
        (["--tls-client-ca", "ca.pem"], "--tls-client-ca with them"),
        (["--tls-cert", "no.pem", "--tls-key", "no.key"], "--tls-cert: no.pem cannot be read: No such file"),
    ],
)
def test_what_would_listen_in_the_open_or_cannot_encrypt_is_a_wrong_call(arguments, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["serve", "--state", str(tmp_path / "state"), *arguments])
    assert end.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_tls_alone_does_not_open_a_service_to_everybody(tls_flags, tmp_path, capsys):
    command = ["serve", "--state", str(tmp_path), "--backend", "local", "--host", "0.0.0.0", "--port", "0"]
    assert main([*command, "--admin-port", "0", *tls_flags]) == 2
    captured = capsys.readouterr()
    assert "there is no token (`python -m service token create --registry URL`)" in captured.err
    assert captured.out == ""


def config(state: Path, **changes) -> ServeConfig:
    made = ServeConfig(
        policies=(), state=state, model=ModelSettings(), backend="local", port=0, admin_port=0, drain_s=0.0
    )
    return replace(made, **changes)


@asynccontextmanager
async def running(config: ServeConfig) -> AsyncIterator[dict[str, str]]:
    service = Service(config)
    try:
        yield await service.start()
    finally:
        await service.stop()


def registry_of(state: Path) -> Registry:
    """The registry as another process has it."""
    return Registry(open_database(f"sqlite:///{state}/registry.db"))


async def status_of(stub, token: str) -> grpc.StatusCode:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    try:
        await stub.ListPolicies(policy_pb2.ListPoliciesRequest(), timeout=5, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def seconds_until(stub, token: str, status: grpc.StatusCode) -> float:
    started_s = time.perf_counter()
    async with asyncio.timeout(10):
        while True:
            if await status_of(stub, token) is status:
                return time.perf_counter() - started_s
            await asyncio.sleep(0.02)


async def test_a_token_made_or_revoked_elsewhere_counts_within_a_second_without_a_restart(tmp_path):
    async with running(config(tmp_path)) as announced, grpc.aio.insecure_channel(announced["grpc"]) as channel:
        stub, elsewhere = policy_pb2_grpc.PolicyServiceStub(channel), registry_of(tmp_path)
        assert await status_of(stub, "") is grpc.StatusCode.OK
        spec = TokenSpec(name="arm-7", scopes=frozenset({Scope.INFER}))
        record, issued = await asyncio.to_thread(create_token, elsewhere, spec, actor="ada")
        assert await seconds_until(stub, "", grpc.StatusCode.UNAUTHENTICATED) < WITHIN_S
        assert await status_of(stub, issued.token) is grpc.StatusCode.OK
        await asyncio.to_thread(elsewhere.revoke_token, record.token_id, actor="ada")
        assert await seconds_until(stub, issued.token, grpc.StatusCode.UNAUTHENTICATED) < WITHIN_S
        elsewhere.close()


@pytest.mark.parametrize("mutual", [False, True])
async def test_every_port_encrypts_and_asks_for_a_certificate_where_told(tmp_path, certificates, mutual):
    registry = registry_of(tmp_path)
    spec = TokenSpec(name="ada", scopes=frozenset({Scope.INFER, Scope.ADMIN}))
    token = create_token(registry, spec, actor="ada")[1].token
    registry.close()
    files = TlsFiles(
        certificate=certificates.server, key=certificates.server_key, client_ca=certificates.ca if mutual else None
    )
    context = ssl.create_default_context(cafile=str(certificates.ca))
    if mutual:
        context.load_cert_chain(certificates.client, certificates.client_key)
    credentials = grpc.ssl_channel_credentials(
        certificates.ca.read_bytes(), certificates.client_key.read_bytes(), certificates.client.read_bytes()
    )
    headers = {"authorization": f"Bearer {token}"}
    async with running(config(tmp_path, tls=read_tls(files), openpi_port=0)) as announced:
        assert announced["admin"].startswith("https://") and announced["openpi"].startswith("wss://")
        async with grpc.aio.secure_channel(announced["grpc"], credentials) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            assert await status_of(stub, token) is grpc.StatusCode.OK
            assert await status_of(stub, "") is grpc.StatusCode.UNAUTHENTICATED
        async with httpx.AsyncClient(verify=context) as http:
            assert (await http.get(f"{announced['admin']}/v1/tokens", headers=headers)).status_code == 200
            assert (await http.get(f"{announced['admin']}/v1/tokens")).status_code == 401
        with pytest.raises(InvalidStatus) as refused:
            await connect(announced["openpi"], ssl=context)
        assert refused.value.response.status_code in (401, 503)
        stranger = ssl.create_default_context(cafile=str(certificates.ca))
        async with httpx.AsyncClient(verify=stranger) as http:
            if mutual:
                with pytest.raises(httpx.TransportError):
                    await http.get(f"{announced['admin']}/healthz")
            else:
                assert (await http.get(f"{announced['admin']}/healthz")).status_code == 200


async def test_every_port_shows_a_new_certificate_without_a_restart(tmp_path, certificates, monkeypatch):
    monkeypatch.setattr(ServingTls, "follow", partialmethod(ServingTls.follow, interval_s=0.02))
    files = TlsFiles(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    shutil.copy(certificates.server, files.certificate)
    shutil.copy(certificates.server_key, files.key)
    async with running(config(tmp_path / "state", tls=read_tls(files), openpi_port=0)) as announced:
        ports = [int(announced[name].rsplit(":", 1)[1]) for name in ("grpc", "admin", "openpi")]

        async def shown() -> list[str]:
            ask = partial(asyncio.to_thread, ssl.get_server_certificate, timeout=5)
            return [await ask(("127.0.0.1", port)) for port in ports]

        assert await shown() == [certificates.server.read_text()] * 3
        shutil.copy(certificates.client, files.certificate)
        shutil.copy(certificates.client_key, files.key)
        async with asyncio.timeout(10):
            while await shown() != [certificates.client.read_text()] * 3:  # noqa: ASYNC110  # nobody says so
                await asyncio.sleep(0.02)


async def test_while_nobody_needs_a_token_only_loopbacks_names_are_answered(tmp_path):
    async with running(config(tmp_path)) as announced, httpx.AsyncClient(base_url=announced["admin"]) as http:
        assert (await http.get("/")).status_code == 200
        assert (await http.get("/", headers={"host": "evil.example"})).status_code == 403


async def test_an_exposed_service_starts_only_when_told_to_and_says_so(tmp_path, caplog):
    with pytest.raises(ExposedError):
        config(tmp_path, host="0.0.0.0")
    with caplog.at_level(logging.WARNING):
        async with running(config(tmp_path, host="0.0.0.0", insecure_listen=True)):
            pass
    (warning,) = [record for record in caplog.records if record.getMessage() == "listening insecurely"]
    assert warning.fields == {"tls": False, "tokens": False, "allowed_by": "--insecure-listen"}
