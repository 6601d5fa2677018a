"""StreamChunks: many requests on one stream, each answered once, whatever becomes of the others."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from premotor.v1 import policy_pb2
from service.gateway import GatewayLimits

TIMEOUT_S = 10.0


def message_of(request, timeout_ms: int | None = None) -> policy_pb2.StreamChunksRequest:
    message = policy_pb2.StreamChunksRequest(request=request)
    if timeout_ms is not None:
        message.timeout.FromMilliseconds(timeout_ms)
    return message


@pytest.mark.asyncio
async def test_answers_come_as_they_finish_with_their_ids(kit):
    backend = kit.backend(holds={1: asyncio.Event(), 2: asyncio.Event()})
    async with kit.serve(backend=backend) as gateway:
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S)
        for seed in (1, 2, 3):
            await stream.write(message_of(kit.request(request_id=f"request-{seed}", seed=seed)))
        answers = [await stream.read()]
        for seed in (2, 1):
            backend.holds[seed].set()
            answers.append(await stream.read())
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
    assert [answer.chunk.request_id for answer in answers] == ["request-3", "request-2", "request-1"]
    assert [answer.chunk.seed for answer in answers] == [3, 2, 1]


@pytest.mark.asyncio
async def test_a_stream_and_a_unary_call_give_the_same_chunk(kit):
    async with kit.serve() as gateway:
        unary = await gateway.stub.PredictChunk(kit.request(), timeout=TIMEOUT_S)
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S)
        await stream.write(message_of(kit.request()))
        streamed = (await stream.read()).chunk
        stream.cancel()
    assert streamed.actions == unary.actions
    assert (streamed.revision, streamed.seed) == (unary.revision, unary.seed)


@pytest.mark.asyncio
async def test_a_refused_request_is_answered_by_an_error_and_the_stream_goes_on(kit):
    bad = kit.request(request_id="bad")
    bad.observation.instruction = " "
    negative = message_of(kit.request(request_id="negative"), timeout_ms=-5)
    async with kit.serve() as gateway:
        raw = gateway.channel.stream_stream(
            "/premotor.v1.PolicyService/StreamChunks",
            response_deserializer=policy_pb2.StreamChunksResponse.FromString,
        )
        stream = raw(timeout=TIMEOUT_S)
        answers = []
        for content in (
            message_of(bad).SerializeToString(),
            negative.SerializeToString(),
            policy_pb2.StreamChunksRequest().SerializeToString(),
            b"\xff\xff\xff",
            message_of(kit.request(request_id="good")).SerializeToString(),
        ):
            await stream.write(content)
            answers.append(await stream.read())
        stream.cancel()
    errors = [answer.error for answer in answers[:4]]
    assert [(error.request_id, error.field) for error in errors] == [
        ("bad", "observation.instruction"),
        ("negative", "timeout"),
        ("", "request"),
        ("", ""),
    ]
    assert {error.code for error in errors} == {grpc.StatusCode.INVALID_ARGUMENT.value[0]}
    assert answers[4].chunk.request_id == "good"


@pytest.mark.asyncio
async def test_an_expired_request_is_answered_without_asking_the_backend(kit):
    async with kit.serve() as gateway:
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S)
        await stream.write(message_of(kit.request(), timeout_ms=0))
        answer = await stream.read()
        stream.cancel()
    assert answer.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert answer.error.request_id == "request-1"
    assert gateway.backend.requests == []


@pytest.mark.asyncio
async def test_a_requests_own_timeout_ends_its_wait_and_not_the_stream(kit):
    backend = kit.backend(holds={1: asyncio.Event()})
    async with kit.serve(backend=backend) as gateway:
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S)
        await stream.write(message_of(kit.request(seed=1), timeout_ms=50))
        late = await stream.read()
        await stream.write(message_of(kit.request(seed=2)))
        good = await stream.read()
        stream.cancel()
    assert late.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert good.chunk.seed == 2
    assert backend.timeouts_s[0] <= 0.05 < 5 < backend.timeouts_s[1] <= TIMEOUT_S


@pytest.mark.asyncio
async def test_a_stream_without_a_deadline_gives_each_request_the_default(kit):
    async with kit.serve(limits=GatewayLimits(default_timeout_s=5)) as gateway:
        stream = gateway.stub.StreamChunks()
        await stream.write(message_of(kit.request()))
        await stream.read()
        stream.cancel()
    assert 1 < gateway.backend.timeouts_s[0] <= 5


@pytest.mark.asyncio
async def test_requests_over_a_streams_bound_are_refused_with_a_delay(kit):
    backend = kit.backend(holds={1: asyncio.Event()})
    async with kit.serve(backend=backend, limits=GatewayLimits(max_in_flight_per_stream=1)) as gateway:
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S)
        for seed in (1, 2):
            await stream.write(message_of(kit.request(request_id=f"request-{seed}", seed=seed)))
        refused = await stream.read()
        backend.holds[1].set()
        first = await stream.read()
        stream.cancel()
    assert (refused.error.request_id, refused.error.code) == (
        "request-2",
        grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
    )
    assert refused.error.HasField("retry_delay")
    assert first.chunk.request_id == "request-1"
    assert [request.seed for request in backend.requests] == [1]


@pytest.mark.asyncio
async def test_a_drain_answers_what_is_in_flight_and_then_ends_the_stream(kit):
    backend = kit.backend(holds={1: asyncio.Event()})
    async with kit.serve(backend=backend) as gateway:
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S)
        await stream.write(message_of(kit.request(seed=1)))
        await backend.wait_for_requests(1)
        stopping = asyncio.create_task(gateway.server.stop(grace_s=TIMEOUT_S))
        backend.holds[1].set()
        answer = await stream.read()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await stream.read()
        async with asyncio.timeout(5):
            await stopping
    assert answer.chunk.seed == 1
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.asyncio
async def test_a_robot_that_leaves_ends_its_requests(kit):
    backend = kit.backend(holds={1: asyncio.Event()})
    async with kit.serve(backend=backend) as gateway:
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S)
        await stream.write(message_of(kit.request(seed=1)))
        await backend.wait_for_requests(1)
        stream.cancel()
        await asyncio.wait_for(backend.cancelled.wait(), 5)
        assert gateway.count(policy="tabletop", status="CANCELLED") == 1
        assert (await gateway.stub.PredictChunk(kit.request(seed=2), timeout=TIMEOUT_S)).seed == 2


@pytest.mark.asyncio
async def test_a_robot_that_sends_and_never_reads_is_not_read_from_and_holds_up_nobody(kit):
    refused = message_of(kit.request(request_id="r" * 128))
    refused.request.observation.ClearField("state")
    async with kit.serve(limits=GatewayLimits(max_in_flight_per_stream=4)) as gateway:
        stream = gateway.stub.StreamChunks()

        async def send() -> None:
            while True:
                await asyncio.wait_for(stream.write(refused), 0.5)

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send(), 30)
        assert gateway.count(policy="tabletop", status="INVALID_ARGUMENT") < 50_000
        assert (await gateway.stub.PredictChunk(kit.request(), timeout=TIMEOUT_S)).seed == 7
        await asyncio.wait_for(gateway.server.stop(grace_s=0.1), 5)
