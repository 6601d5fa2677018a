"""A client says who it is, encrypted, and keeps its token from everybody else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from premotor.client import AsyncPolicyClient, PolicyClient, RetryableError, TlsOptions
from premotor.client.__main__ import main
from premotor.v1 import policy_pb2, policy_pb2_grpc

TOKEN = "pm_0123456789ab_" + "s" * 43


class Listener(policy_pb2_grpc.PolicyServiceServicer):
    """Keeps the credential of every call it gets."""

    def __init__(self) -> None:
        self.heard: list[str | None] = []

    def ListPolicies(self, request: Any, context: grpc.ServicerContext) -> policy_pb2.ListPoliciesResponse:
        self._hear(context)
        return policy_pb2.ListPoliciesResponse()

    def StreamChunks(self, requests: Any, context: grpc.ServicerContext) -> Iterator[policy_pb2.StreamChunksResponse]:
        next(requests)
        self._hear(context)
        yield from ()

    def _hear(self, context: grpc.ServicerContext) -> None:
        self.heard.append(dict(context.invocation_metadata()).get("authorization"))


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def listen(listener: Listener) -> Iterator[Any]:
    servers: list[grpc.Server] = []

    def start(credentials: grpc.ServerCredentials | None = None) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(4))
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(listener, server)
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        assert server.stop(None).wait(10)


def server_credentials(certificates, *, client_ca: bool) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(certificates.server_key.read_bytes(), certificates.server.read_bytes())],
        root_certificates=certificates.ca.read_bytes() if client_ca else None,
        require_client_auth=client_ca,
    )


def test_every_call_carries_the_token(listen, listener, arguments) -> None:
    with PolicyClient(listen(), token=TOKEN) as client:
        client.list_policies()
        with client.stream() as stream:
            request_id = stream.send(**arguments)
            with pytest.raises(RetryableError, match="the server ended the stream"):
                stream.receive(request_id)
    assert listener.heard == [f"Bearer {TOKEN}"] * 2


def test_no_token_sends_none(listen, listener) -> None:
    with PolicyClient(listen()) as client:
        client.list_policies()
    assert listener.heard == [None]


@pytest.mark.asyncio
async def test_every_call_of_the_async_client_carries_the_token_over_tls(
    listen, listener, certificates, arguments
) -> None:
    address = listen(server_credentials(certificates, client_ca=False))
    tls = TlsOptions(root_certificates=certificates.ca.read_bytes())
    async with AsyncPolicyClient(address, token=TOKEN, tls=tls) as client:
        await client.list_policies()
        async with client.stream() as stream:
            request_id = await stream.send(**arguments)
            with pytest.raises(RetryableError, match="the server ended the stream"):
                await stream.receive(request_id)
    assert listener.heard == [f"Bearer {TOKEN}"] * 2


def test_a_gateway_that_the_roots_do_not_vouch_for_never_hears_the_token(listen, listener, certificates) -> None:
    address = listen(server_credentials(certificates, client_ca=False))
    for roots in (certificates.other_ca.read_bytes(), None):
        tls = TlsOptions(root_certificates=roots)
        with PolicyClient(address, token=TOKEN, tls=tls) as client, pytest.raises(RetryableError):
            client.list_policies()
    assert listener.heard == []


def test_a_certificate_of_ones_own_is_shown_where_it_is_asked_for(listen, listener, certificates) -> None:
    address = listen(server_credentials(certificates, client_ca=True))
    roots = certificates.ca.read_bytes()
    shown = TlsOptions(
        root_certificates=roots,
        certificate=certificates.client.read_bytes(),
        key=certificates.client_key.read_bytes(),
    )
    with PolicyClient(address, tls=shown) as client:
        client.list_policies()
    with PolicyClient(address, tls=TlsOptions(root_certificates=roots)) as client, pytest.raises(RetryableError):
        client.list_policies()
    assert listener.heard == [None]


@pytest.mark.parametrize(
    "address",
    [
        "gateway.example:50051",
        "10.0.0.7:50051",
        "[2001:db8::1]:50051",
        "dns:///gateway.example:50051",
        "ipv4:127.0.0.1:1,10.0.0.7:1",
        "dns://127.0.0.1/gateway.example:1",
        "localhost.example:1",
        "xds:///anything",
    ],
)
def test_a_token_beyond_this_machine_needs_tls_unless_told_otherwise(address: str) -> None:
    with pytest.raises(ValueError, match="unencrypted") as refusal:
        PolicyClient(address, token=TOKEN)
    assert TOKEN not in str(refusal.value)
    PolicyClient(address, token=TOKEN, tls=TlsOptions()).close()
    PolicyClient(address, token=TOKEN, allow_token_without_tls=True).close()
    PolicyClient(address).close()


@pytest.mark.parametrize(
    "address", ["localhost:1", "127.0.0.1:1", "127.8.0.1:1", "[::1]:1", "dns:///localhost:1", "unix:/run/premotor"]
)
def test_on_this_machine_a_token_needs_no_tls(address: str) -> None:
    PolicyClient(address, token=TOKEN).close()


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "clé"])
def test_what_cannot_be_a_token_is_refused_without_repeating_it(token: str) -> None:
    with pytest.raises(ValueError, match="the right file") as refusal:
        PolicyClient("127.0.0.1:1", token=token)
    assert token not in str(refusal.value)


def test_tls_options_are_checked_where_they_are_made_and_hide_the_key(certificates) -> None:
    certificate, key = certificates.client.read_bytes(), certificates.client_key.read_bytes()
    assert "PRIVATE KEY" not in repr(TlsOptions(certificate=certificate, key=key))
    with pytest.raises(ValueError, match="come together"):
        TlsOptions(certificate=certificate)
    with pytest.raises(ValueError, match="root_certificates hold no certificate"):
        TlsOptions(root_certificates=key)
    with pytest.raises(ValueError, match="certificate hold no certificate"):
        TlsOptions(certificate=b"\xff nonsense", key=key)
    with pytest.raises(ValueError, match="key holds no private key"):
        TlsOptions(certificate=certificate, key=certificate)


def test_the_command_line_shows_token_and_certificate(listen, listener, certificates, tmp_path: Path) -> None:
    address = listen(server_credentials(certificates, client_ca=True))
    token_file, result = tmp_path / "robot.token", tmp_path / "policies.json"
    token_file.write_text(f"{TOKEN}\n")
    command = ["policies", "--address", address, "--token-file", str(token_file), "--json", str(result)]
    command += ["--tls-ca", str(certificates.ca), "--tls-cert", str(certificates.client)]
    assert main([*command, "--tls-key", str(certificates.client_key)]) == 0
    assert listener.heard == [f"Bearer {TOKEN}"]
    assert json.loads(result.read_text()) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--token-file", "{token}"], "unencrypted"),
        (["--token-file", "{empty}"], "is empty, expected a token"),
        (["--token-file", "{missing}"], "cannot be read"),
        (["--tls-ca", "{token}"], "root_certificates hold no certificate"),
        (["--tls-cert", "{token}"], "come together"),
    ],
)
@pytest.mark.parametrize("verb", [["policies"], ["bench", "--policy", "tabletop"]])
def test_a_wrong_identity_on_the_command_line_exits_with_2(
    verb: list[str], more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {name: str(tmp_path / name) for name in ("token", "empty", "missing")}
    Path(paths["token"]).write_text(TOKEN)
    Path(paths["empty"]).write_text("\n")
    command = [*verb, "--address", "gateway.example:50051", *(each.format(**paths) for each in more)]
    try:
        status = main(command)
    except SystemExit as end:
        status = end.code
    assert status == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert TOKEN not in captured.err + captured.out
