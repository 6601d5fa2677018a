"""Who may call what: every RPC, every admin route and openpi's port, against every kind of credential.

`python -m pytest tests/service/credentials/test_table.py -s` prints the table as it was found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from premotor.v1 import policy_pb2
from service.admin.dashboard.changes import OF_POLICY as OF_POLICY_CHANGES
from service.admin.dashboard.changes import OF_REVISION as OF_REVISION_CHANGES
from service.credentials import Surface
from service.errors import AuthenticationError, NotAllowedError
from service.openpi import TokenAuthenticator

CREDENTIALS = ("none", "wrong", "expired", "revoked", "infer", "infer elsewhere", "observe", "admin")
# What becomes of each: answered, unauthenticated (401), denied (403).
OPEN = "yes yes yes yes yes yes yes yes"
ANY_TOKEN = "401 401 401 401 yes yes yes yes"
CHUNKS = "401 401 401 401 yes 403 403 403"
DESCRIBES = "401 401 401 401 yes 403 yes yes"
READS = "401 401 401 401 403 403 yes yes"
CHANGES = "401 401 401 401 403 403 403 yes"
# A form without a session is nobody's, and a header is not what it takes.
SIGNS_IN = "403 401 401 401 401 401 401 401"
SIGNS_OUT = "403 yes yes yes yes yes yes yes"
OF_REVISION = "/policies/{policy}/revisions/{revision}"

EXPECTED = {
    "gRPC PolicyService/PredictChunk": CHUNKS,
    "gRPC PolicyService/StreamChunks": CHUNKS,
    "gRPC PolicyService/GetPolicy": DESCRIBES,
    # Answered with those policies that the token is for, here none.
    "gRPC PolicyService/ListPolicies": ANY_TOKEN,
    "gRPC Health/Check": OPEN,
    "gRPC Health/Watch": OPEN,
    "gRPC ServerReflection/ServerReflectionInfo": ANY_TOKEN,
    "openpi connection": CHUNKS,
    "openpi request": CHUNKS,
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    "GET /metrics": READS,
    "GET /openapi.json": READS,
    "GET /v1/policies": READS,
    "GET /v1/policies/{policy}": READS,
    "GET /v1/policies/{policy}/revisions": READS,
    "GET /v1/fleet/policies": READS,
    "GET /v1/fleet/policies/{policy}": READS,
    "PUT /v1/fleet/policies/{policy}/observationMap": CHANGES,
    "PUT /v1/fleet/policies/{policy}/guard": CHANGES,
    "POST /v1/fleet/policies/{policy}:rollBack": CHANGES,
    "POST /v1/fleet/policies/{policy}:split": CHANGES,
    "POST /v1/fleet/policies/{policy}:retire": CHANGES,
    "DELETE /v1/fleet/policies/{policy}": CHANGES,
    "POST /v1/fleet/policies/{policy}/revisions": CHANGES,
    "GET /v1/fleet/policies/{policy}/revisions/{revision}": READS,
    "DELETE /v1/fleet/policies/{policy}/revisions/{revision}": CHANGES,
    "POST /v1/fleet/policies/{policy}/revisions/{revision}:load": CHANGES,
    "POST /v1/fleet/policies/{policy}/revisions/{revision}:probe": CHANGES,
    "POST /v1/fleet/policies/{policy}/revisions/{revision}:promote": CHANGES,
    "POST /v1/fleet/policies/{policy}/revisions/{revision}:shadow": CHANGES,
    "POST /v1/fleet/policies/{policy}/revisions/{revision}:drain": CHANGES,
    "POST /v1/fleet/policies/{policy}/revisions/{revision}:unload": CHANGES,
    "GET /v1/operations": READS,
    "GET /v1/operations/{operation}": READS,
    "POST /v1/operations/{operation}:cancel": CHANGES,
    "GET /v1/operations/{operation}/events": READS,
    "GET /v1/audit": READS,
    "GET /v1/gateways": READS,
    "GET /v1/gateways/placements": READS,
    "DELETE /v1/gateways/{gateway}": CHANGES,
    "GET /v1/tokens": READS,
    "POST /v1/tokens": CHANGES,
    "POST /v1/tokens/{token_id}:rotate": CHANGES,
    "POST /v1/tokens/{token_id}:revoke": CHANGES,
    "GET /metrics/triton": READS,
    "GET /static/{name}": OPEN,
    "GET /sign-in": OPEN,
    "POST /sign-in": SIGNS_IN,
    "POST /sign-out": SIGNS_OUT,
    "GET /": READS,
    "GET /live": READS,
    "GET /policies/{policy}": READS,
    "GET /policies/{policy}/live": READS,
    f"GET {OF_REVISION}": READS,
    "GET /gateways": READS,
    "GET /operations": READS,
    "GET /operations/live": READS,
    "GET /operations/{operation}": READS,
    "GET /operations/{operation}/live": READS,
    "POST /operations/{operation}/cancel": CHANGES,
    "GET /audit": READS,
    "GET /register": READS,
    "POST /register": CHANGES,
    **{f"GET {OF_REVISION}/{change.slug}": READS for change in OF_REVISION_CHANGES},
    **{f"POST {OF_REVISION}/{change.slug}": CHANGES for change in OF_REVISION_CHANGES},
    **{f"GET /policies/{{policy}}/{change.slug}": READS for change in OF_POLICY_CHANGES},
    **{f"POST /policies/{{policy}}/{change.slug}": CHANGES for change in OF_POLICY_CHANGES},
}
PATH_VALUES = {
    "policy": "tabletop",
    "revision": "0" * 12,
    "operation": "none",
    "gateway": "none",
    "token_id": "0" * 12,
    "name": "none",
}
TIMEOUT_S = 10.0


@pytest.fixture
def headers(desk) -> dict[str, str | None]:
    """A value of the header `authorization` for each column."""
    expired, revoked = desk.give("infer", "observe", "admin", expires_at=desk.now), desk.give("infer", "admin")
    desk.revoke(revoked)
    desk.now += timedelta(seconds=1)
    tokens = {
        "wrong": desk.give("infer", "admin")[:-6] + "wrong-",
        "expired": expired,
        "revoked": revoked,
        "infer": desk.give("infer", policies=("tabletop",)),
        "infer elsewhere": desk.give("infer", policies=("kitchen",)),
        "observe": desk.give("observe"),
        "admin": desk.give("admin"),
    }
    return {"none": None} | {name: f"Bearer {token}" for name, token in tokens.items()}


def admin_routes(routes: list[Any], prefix: str = "") -> Iterator[str]:
    """Every route that the app has, also those that its schema leaves out."""
    for route in routes:
        if (router := getattr(route, "original_router", None)) is not None:
            yield from admin_routes(router.routes, prefix + route.include_context.prefix)
        elif methods := getattr(route, "methods", None):
            yield from (f"{method} {prefix}{route.path}" for method in sorted(methods - {"HEAD"}))
        else:
            yield f"{type(route).__name__} {prefix}{getattr(route, 'path', '')}"


async def rpc_methods(channel: grpc.aio.Channel, metadata: Any) -> dict[str, str]:
    """Every method of every service that the gateway says it has, by row."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(timeout=TIMEOUT_S, metadata=metadata)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = await call.read()
    call.cancel()
    pool = descriptor_pool.Default()
    return {
        f"gRPC {name.rpartition('.')[2]}/{method.name}": f"/{name}/{method.name}"
        for name in (service.name for service in listed.list_services_response.service)
        for method in pool.FindServiceByName(name).methods
    }


def messages(kit) -> dict[str, bytes]:
    """What is sent, where an empty message says too little."""
    return {
        "gRPC PolicyService/PredictChunk": kit.request().SerializeToString(),
        "gRPC PolicyService/StreamChunks": policy_pb2.StreamChunksRequest(request=kit.request()).SerializeToString(),
        "gRPC PolicyService/GetPolicy": policy_pb2.GetPolicyRequest(policy="tabletop").SerializeToString(),
    }


async def rpc_outcome(channel: grpc.aio.Channel, path: str, message: bytes, metadata: Any) -> str:
    # On the wire a unary call is a stream with one message each way.
    call = channel.stream_stream(path)(timeout=TIMEOUT_S, metadata=metadata)
    try:
        await call.write(message)
        answer = await call.read()
        if answer is not grpc.aio.EOF:
            return "yes"
        code = await call.code()
    except grpc.aio.AioRpcError as error:
        code = error.code()
    finally:
        call.cancel()
    assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE), code
    return {grpc.StatusCode.UNAUTHENTICATED: "401", grpc.StatusCode.PERMISSION_DENIED: "403"}.get(code, "yes")


async def stream_outcome(channel: grpc.aio.Channel, path: str, message: bytes, metadata: Any) -> str:
    """A stream that may be opened still says no to a request for a policy of others."""
    call = channel.stream_stream(path, response_deserializer=policy_pb2.StreamChunksResponse.FromString)(
        timeout=TIMEOUT_S, metadata=metadata
    )
    try:
        await call.write(message)
        answer = await call.read()
        refused = isinstance(answer, policy_pb2.StreamChunksResponse) and answer.HasField("error")
        return {16: "401", 7: "403"}[answer.error.code] if refused else "yes"
    except grpc.aio.AioRpcError as error:
        return {grpc.StatusCode.UNAUTHENTICATED: "401", grpc.StatusCode.PERMISSION_DENIED: "403"}[error.code()]
    finally:
        call.cancel()


def openpi_outcome(admit: Callable[..., Any], header: str | None) -> str:
    authorization = [header.replace("Bearer", "Api-Key")] if header else []
    try:
        with admit(authorization, "tabletop"):
            return "yes"
    except AuthenticationError:
        return "401"
    except NotAllowedError:
        return "403"


async def http_outcome(http: httpx.AsyncClient, row: str, header: str | None) -> str:
    method, path = row.split(" ", 1)
    answer = await http.request(method, path.format(**PATH_VALUES), headers={"authorization": header} if header else {})
    return str(answer.status_code) if answer.status_code in (401, 403) else "yes"


async def test_every_rpc_and_every_route_answers_each_credential_as_the_table_says(kit, desk, headers, admin, http):
    found: dict[str, list[str]] = {}
    async with kit.serve(credentials=desk.credentials) as gateway:
        channel = gateway.channel
        metadata = {name: (("authorization", header),) if header else () for name, header in headers.items()}
        sent = messages(kit)
        for row, path in (await rpc_methods(channel, metadata["admin"])).items():
            ask = stream_outcome if path.endswith("/StreamChunks") else rpc_outcome
            found[row] = [await ask(channel, path, sent.get(row, b""), metadata[name]) for name in CREDENTIALS]
        robots = TokenAuthenticator(desk.credentials(CollectorRegistry()).on(Surface.OPENPI))
        for row, admit in (("openpi connection", robots.connection), ("openpi request", robots.request)):
            found[row] = [openpi_outcome(admit, headers[name]) for name in CREDENTIALS]
        for row in admin_routes(admin.routes):
            async with asyncio.timeout(TIMEOUT_S):
                found[row] = [await http_outcome(http, row, headers[name]) for name in CREDENTIALS]
    print_table(found)
    assert found == {row: outcomes.split() for row, outcomes in EXPECTED.items()}


def print_table(found: dict[str, list[str]]) -> None:
    width = max(len(row) for row in found)
    print(f"\n{'':<{width}}  " + "  ".join(CREDENTIALS))
    for row, outcomes in found.items():
        cells = (outcome.rjust(len(name)) for outcome, name in zip(outcomes, CREDENTIALS, strict=True))
        print(f"{row:<{width}}  " + "  ".join(cells))


async def test_a_route_that_is_added_without_an_entry_is_missed(admin):
    assert set(admin_routes(admin.routes)) <= EXPECTED.keys()
    admin.add_api_route("/v1/backdoor", lambda: "open")
    assert set(admin_routes(admin.routes)) - EXPECTED.keys() == {"GET /v1/backdoor"}


async def test_without_tokens_everything_is_open(kit, desk, admin, http):
    async with kit.serve(credentials=desk.credentials) as gateway:
        methods = await rpc_methods(gateway.channel, ())
        sent = messages(kit)
        outcomes = {
            row: await rpc_outcome(gateway.channel, path, sent.get(row, b""), ()) for row, path in methods.items()
        }
        for row in admin_routes(admin.routes):
            outcomes[row] = await http_outcome(http, row, None)
    # A form changes nothing unless it comes from a page of ours, whoever sends it.
    forms = {row for row in outcomes if row.startswith("POST /") and not row.startswith("POST /v1/")}
    assert len(forms) > 10
    assert {outcomes[row] for row in forms} == {"403"}
    assert {outcomes[row] for row in outcomes.keys() - forms} == {"yes"}


async def test_openapi_says_which_scope_each_route_needs(admin):
    schema = admin.openapi()
    assert schema["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    scopes = {OPEN: None, READS: [{"token": ["observe"]}], CHANGES: [{"token": ["admin"]}]}
    said = {
        f"{method.upper()} {path}": operation.get("security")
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    }
    assert said == {row: scopes[EXPECTED[row]] for row in said}
    assert len(said) > 25
