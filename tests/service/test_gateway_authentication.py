"""The gateway knows who calls before it reads what they say, and again for each request of a stream."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from premotor.v1 import policy_pb2, policy_pb2_grpc
from premotor.wire import decode_duration, read_error_metadata
from service.credentials import Caps, ServingTls, TlsFiles, read_tls
from service.gateway import GatewayLimits, GatewayServer

TIMEOUT_S = 10.0


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def refused(call) -> policy_pb2.RequestError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return details_of(failed.value)


def details_of(failure: grpc.aio.AioRpcError) -> policy_pb2.RequestError:
    error = read_error_metadata(failure.trailing_metadata())
    assert error is not None and error.code == failure.code().value[0]
    return error


def refused_calls(gateway, reason: str) -> float | None:
    labels = {"surface": "grpc", "reason": reason}
    return gateway.registry.get_sample_value("premotor_refused_calls_total", labels)


def message_of(request) -> policy_pb2.StreamChunksRequest:
    return policy_pb2.StreamChunksRequest(request=request)


async def test_a_stranger_is_refused_before_a_byte_of_the_message_is_read(kit, desk):
    desk.give("infer")
    limits = GatewayLimits(max_message_bytes=4096)
    request = kit.request()
    request.observation.instruction = "x" * 100_000
    async with kit.serve(credentials=desk.credentials, limits=limits) as gateway:
        error = await refused(gateway.stub.PredictChunk(request, timeout=TIMEOUT_S))
        known = gateway.stub.PredictChunk(request, timeout=TIMEOUT_S, metadata=bearer(desk.give("infer")))
        with pytest.raises(grpc.aio.AioRpcError, match="larger than max"):
            await known
    assert error.code == grpc.StatusCode.UNAUTHENTICATED.value[0]
    assert error.reason == policy_pb2.RequestError.REASON_UNAUTHENTICATED
    assert gateway.backend.requests == [] and refused_calls(gateway, "missing") == 1


async def test_a_token_asks_for_chunks_and_what_it_may_not_ask_for_has_its_own_status(kit, desk):
    robot, admin = desk.give("infer", policies=("tabletop",)), desk.give("admin")
    elsewhere = kit.request(request_id="elsewhere")
    elsewhere.policy = "kitchen"
    async with kit.serve(credentials=desk.credentials) as gateway:
        ask = gateway.stub.PredictChunk
        assert (await ask(kit.request(), timeout=TIMEOUT_S, metadata=bearer(robot))).request_id == "request-1"
        errors = [
            await refused(ask(kit.request(), timeout=TIMEOUT_S, metadata=bearer(admin))),
            await refused(ask(elsewhere, timeout=TIMEOUT_S, metadata=bearer(robot))),
        ]
    assert {error.reason for error in errors} == {policy_pb2.RequestError.REASON_PERMISSION_DENIED}
    assert errors[1].request_id == "elsewhere"
    assert len(gateway.backend.requests) == 1
    assert (refused_calls(gateway, "scope"), refused_calls(gateway, "policy")) == (1, 1)


async def test_policies_are_shown_to_those_who_may_ask_them(kit, desk):
    here, elsewhere = desk.give("infer", policies=("tabletop",)), desk.give("infer", policies=("kitchen",))
    async with kit.serve(credentials=desk.credentials) as gateway:

        async def seen(token: str) -> list[str]:
            listed = gateway.stub.ListPolicies(policy_pb2.ListPoliciesRequest(), metadata=bearer(token))
            return [policy.name for policy in (await listed).policies]

        assert [await seen(token) for token in (here, elsewhere, desk.give("observe"))] == [
            ["tabletop"],
            [],
            ["tabletop"],
        ]
        request = policy_pb2.GetPolicyRequest(policy="tabletop")
        error = await refused(gateway.stub.GetPolicy(request, metadata=bearer(elsewhere)))
    assert error.reason == policy_pb2.RequestError.REASON_PERMISSION_DENIED


async def test_a_revoked_tokens_stream_gets_what_it_was_promised_and_ends(kit, desk):
    token = desk.give("infer")
    backend = kit.backend(holds={1: asyncio.Event()})
    async with kit.serve(credentials=desk.credentials, backend=backend) as gateway:
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S, metadata=bearer(token))
        await stream.write(message_of(kit.request(request_id="before", seed=1)))
        await backend.wait_for_requests(1)
        desk.revoke(token)
        late = kit.request(request_id="after", seed=2)
        late.robot_id = "robot-2"
        await stream.write(message_of(late))
        refusal = (await stream.read()).error
        backend.holds[1].set()
        answer = (await stream.read()).chunk
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await stream.read()
    assert (refusal.request_id, refusal.reason) == ("after", policy_pb2.RequestError.REASON_UNAUTHENTICATED)
    assert answer.request_id == "before"
    assert details_of(ended.value).message == "the token has been revoked"
    assert len(backend.requests) == 1


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_silent_stream_ends_soon_after_its_token(kit, desk, how):
    token = desk.give("infer", expires_at=desk.now + timedelta(hours=1))
    limits = GatewayLimits(credential_check_s=0.02)
    async with kit.serve(credentials=desk.credentials, limits=limits) as gateway:
        stream = await opened(gateway.stub.StreamChunks(timeout=TIMEOUT_S, metadata=bearer(token)), kit)
        if how == "revoked":
            desk.revoke(token)
        else:
            desk.now += timedelta(hours=2)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await stream.read()
        assert refused_calls(gateway, how) == 1
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert details_of(ended.value).reason == policy_pb2.RequestError.REASON_UNAUTHENTICATED


async def test_each_request_of_a_stream_is_for_a_policy_of_the_token_and_the_stream_goes_on(kit, desk):
    elsewhere = kit.request(request_id="elsewhere")
    elsewhere.policy = "kitchen"
    async with kit.serve(credentials=desk.credentials) as gateway:
        metadata = bearer(desk.give("infer", policies=("tabletop",)))
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S, metadata=metadata)
        await stream.write(message_of(elsewhere))
        refusal = (await stream.read()).error
        await stream.write(message_of(kit.request()))
        answer = await stream.read()
        stream.cancel()
    assert (refusal.request_id, refusal.reason) == ("elsewhere", policy_pb2.RequestError.REASON_PERMISSION_DENIED)
    assert answer.chunk.request_id == "request-1"


async def opened(stream, kit):
    """A stream is open once it has answered."""
    await stream.write(message_of(kit.request()))
    assert (await stream.read()).HasField("chunk")
    return stream


async def test_streams_are_bounded_per_gateway_and_a_place_is_free_again_when_one_ends(kit):
    async with kit.serve(limits=GatewayLimits(max_streams=2)) as gateway:
        first, second = [await opened(gateway.stub.StreamChunks(timeout=TIMEOUT_S), kit) for _ in range(2)]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.stub.StreamChunks(timeout=TIMEOUT_S).read()
        error = details_of(failed.value)
        assert error.reason == policy_pb2.RequestError.REASON_OVERLOADED
        assert decode_duration(error.retry_delay, field="retry_delay") > 0
        assert gateway.count(policy="", status="RESOURCE_EXHAUSTED") == 1
        await first.done_writing()
        assert await first.read() is grpc.aio.EOF
        await opened(gateway.stub.StreamChunks(timeout=TIMEOUT_S), kit)
        second.cancel()


async def test_a_tokens_caps_are_kept_on_calls_and_streams(kit, desk):
    metadata = bearer(desk.give("infer", caps=Caps(max_in_flight=1, max_streams=1)))
    backend = kit.backend(holds={1: asyncio.Event()})
    async with kit.serve(credentials=desk.credentials, backend=backend) as gateway:
        held = asyncio.ensure_future(
            gateway.stub.PredictChunk(kit.request(seed=1), timeout=TIMEOUT_S, metadata=metadata)
        )
        await backend.wait_for_requests(1)
        over = await refused(gateway.stub.PredictChunk(kit.request(), timeout=TIMEOUT_S, metadata=metadata))
        backend.holds[1].set()
        await held
        await opened(gateway.stub.StreamChunks(timeout=TIMEOUT_S, metadata=metadata), kit)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.stub.StreamChunks(timeout=TIMEOUT_S, metadata=metadata).read()
        assert refused_calls(gateway, "cap") == 2
    for error in (over, details_of(failed.value)):
        assert error.reason == policy_pb2.RequestError.REASON_OVERLOADED
        assert decode_duration(error.retry_delay, field="retry_delay") > 0
    assert len(backend.requests) == 2


async def test_reflection_is_one_of_a_tokens_streams_while_it_is_open(kit, desk):
    metadata = bearer(desk.give("observe", caps=Caps(max_streams=1)))
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    async with kit.serve(credentials=desk.credentials) as gateway:
        reflect = reflection_pb2_grpc.ServerReflectionStub(gateway.channel).ServerReflectionInfo

        async def listing():
            call = reflect(timeout=TIMEOUT_S, metadata=metadata)
            await call.write(asked)
            assert (await call.read()).list_services_response.service
            return call

        first = await listing()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await reflect(timeout=TIMEOUT_S, metadata=metadata).read()
        assert details_of(failed.value).reason == policy_pb2.RequestError.REASON_OVERLOADED
        await first.done_writing()
        assert await first.read() is grpc.aio.EOF
        (await listing()).cancel()


async def begun(gateway, metadata=(), method: str = "PredictChunk"):
    """A call whose message is still to come."""
    ask = gateway.channel.stream_unary(
        f"/premotor.v1.PolicyService/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=policy_pb2.PredictChunkResponse.FromString,
    )
    call = ask(timeout=TIMEOUT_S, metadata=metadata)
    await call.wait_for_connection()
    return call


@pytest.mark.parametrize("method", ["PredictChunk", "GetPolicy", "ListPolicies"])
async def test_a_message_that_is_still_coming_has_a_place_and_beyond_the_cap_none_is_read(kit, desk, method):
    metadata = bearer(desk.give("infer", caps=Caps(max_in_flight=1)))
    request = kit.request()
    request.observation.instruction = "x" * 100_000
    async with kit.serve(credentials=desk.credentials, limits=GatewayLimits(max_message_bytes=4096)) as gateway:
        slow = await begun(gateway, metadata, method)
        over = await refused(gateway.stub.PredictChunk(request, timeout=TIMEOUT_S, metadata=metadata))
        assert over.reason == policy_pb2.RequestError.REASON_OVERLOADED
        assert refused_calls(gateway, "cap") == 1
        slow.cancel()
        async with asyncio.timeout(TIMEOUT_S):
            # Now it is read, and too large.
            with pytest.raises(grpc.aio.AioRpcError, match="larger than max"):
                while True:
                    call = gateway.stub.PredictChunk(request, timeout=TIMEOUT_S, metadata=metadata)
                    if read_error_metadata(await call.trailing_metadata()) is None:
                        await call


async def test_a_message_that_comes_late_is_answered(kit, desk):
    async with kit.serve(credentials=desk.credentials) as gateway:
        call = await begun(gateway, bearer(desk.give("infer")))
        await call.write(kit.request(request_id="late"))
        assert (await call).request_id == "late"


async def test_a_call_that_ends_without_its_message_is_refused_as_one_that_says_nothing(kit, desk):
    async with kit.serve(credentials=desk.credentials) as gateway:
        call = await begun(gateway, bearer(desk.give("infer")))
        await call.done_writing()
        error = await refused(call)
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "policy")


async def test_a_tokens_rate_is_told_with_the_time_to_wait(kit, desk):
    metadata = bearer(desk.give("infer", caps=Caps(max_requests_per_s=2)))
    async with kit.serve(credentials=desk.credentials) as gateway:
        for _ in range(2):
            await gateway.stub.PredictChunk(kit.request(), timeout=TIMEOUT_S, metadata=metadata)
        error = await refused(gateway.stub.PredictChunk(kit.request(), timeout=TIMEOUT_S, metadata=metadata))
        assert decode_duration(error.retry_delay, field="retry_delay") == pytest.approx(0.5)
        desk.clock_s += 0.5
        await gateway.stub.PredictChunk(kit.request(), timeout=TIMEOUT_S, metadata=metadata)


@pytest.mark.parametrize("mutual", [False, True])
async def test_the_port_is_encrypted_and_asks_for_a_certificate_where_told(kit, certificates, mutual):
    files = TlsFiles(
        certificate=certificates.server,
        key=certificates.server_key,
        client_ca=certificates.ca if mutual else None,
    )
    server = GatewayServer(
        policies=kit.policies,
        backend=kit.backend(),
        metrics_registry=CollectorRegistry(),
        tls=ServingTls(read_tls(files)),
    )
    address = f"127.0.0.1:{await server.start()}"
    ca = certificates.ca.read_bytes()
    shown = grpc.ssl_channel_credentials(ca, certificates.client_key.read_bytes(), certificates.client.read_bytes())

    async def answered(channel: grpc.aio.Channel) -> bool:
        async with channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            try:
                await stub.ListPolicies(policy_pb2.ListPoliciesRequest(), timeout=TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                return False
            return True

    try:
        assert await answered(grpc.aio.secure_channel(address, shown))
        nothing_shown = grpc.ssl_channel_credentials(ca)
        assert await answered(grpc.aio.secure_channel(address, nothing_shown)) is not mutual
        assert not await answered(grpc.aio.insecure_channel(address))
    finally:
        await server.stop(0)
