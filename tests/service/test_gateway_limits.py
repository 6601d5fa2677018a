"""Whatever goes beyond a bound of the gateway is refused as its table says, and the next request is answered."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from premotor.v1 import policy_pb2, policy_pb2_grpc
from premotor.wire import decode_duration, encode_tensor, read_error_metadata
from service.credentials import Caps
from service.gateway import GatewayLimits, limits
from service.gateway.images import MAX_JPEG_SCANS

TIMEOUT_S = 10.0


async def ask(gateway: Any, request: Any, **options: Any) -> policy_pb2.RequestError | None:
    """Why there was no chunk; None when there was one."""
    try:
        await gateway.stub.PredictChunk(request, timeout=TIMEOUT_S, **options)
    except grpc.aio.AioRpcError as failure:
        error = read_error_metadata(failure.trailing_metadata())
        return error or policy_pb2.RequestError(code=failure.code().value[0], message=failure.details())
    return None


def invalid(field: str, change: Callable[[Any, Any], None], **small: int) -> Callable[..., Awaitable[None]]:
    """A request that `change` makes too large is refused naming the field."""

    async def go_beyond(kit: Any, desk: Any) -> None:
        request = kit.request()
        change(request, kit)
        async with kit.serve(limits=GatewayLimits(**small)) as gateway:
            error = await ask(gateway, request)
            assert error is not None and gateway.backend.requests == []
            assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], field), error.message
            assert await ask(gateway, kit.request()) is None

    return go_beyond


def overloaded(error: policy_pb2.RequestError | None) -> None:
    assert error is not None and error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert decode_duration(error.retry_delay, field="retry_delay") > 0


def many_images(request: Any, kit: Any) -> None:
    for number in range(3):
        request.observation.images[f"extra-{number}"].compressed = b""


def many_scans(request: Any, kit: Any) -> None:
    request.observation.images["front"].compressed = kit.jpeg() + b"\xff\xda" * MAX_JPEG_SCANS


def many_steps(request: Any, kit: Any) -> None:
    rows = kit.history_steps + 1
    request.history.states.CopyFrom(encode_tensor(np.zeros((rows, 9), np.float32)))
    request.history.actions.CopyFrom(encode_tensor(np.zeros((rows, 8), np.float32)))


def large_numbers(request: Any, kit: Any) -> None:
    request.history.actions.CopyFrom(encode_tensor(np.full((3, 8), 1001.0, np.float32)))


async def too_large_a_message(kit: Any, desk: Any) -> None:
    request = kit.request()
    request.observation.instruction = "x" * 60_000
    async with kit.serve(limits=GatewayLimits(max_message_bytes=50_000)) as gateway:
        error = await ask(gateway, request)
        assert error is not None and error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert await ask(gateway, kit.request()) is None


async def too_long_a_wait(kit: Any, desk: Any) -> None:
    async with kit.serve(limits=GatewayLimits(default_timeout_s=1.0, max_timeout_s=2.0)) as gateway:
        assert await ask(gateway, kit.request()) is None
        assert 1.0 < gateway.backend.timeouts_s[0] <= 2.0


async def too_many_waiting(kit: Any, desk: Any) -> None:
    backend = kit.backend(room=1, holds={1: asyncio.Event()})
    async with kit.serve(backend=backend, limits=GatewayLimits(max_queued_per_policy=1)) as gateway:

        def request_of(robot: int) -> Any:
            request = kit.request(seed=1)
            request.robot_id = f"robot-{robot}"
            return request

        first = asyncio.ensure_future(ask(gateway, request_of(1)))
        await backend.wait_for_requests(1)
        others = [asyncio.ensure_future(ask(gateway, request_of(robot))) for robot in (2, 3)]
        done, _ = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED, timeout=TIMEOUT_S)
        overloaded(done.pop().result())
        backend.holds[1].set()
        assert await first is None
        assert sorted(error is None for error in await asyncio.gather(*others)) == [False, True]


async def too_much_waiting(kit: Any, desk: Any) -> None:
    """By a stream as well as by single calls, and by no more than what came."""
    backend = kit.backend(room=1, holds={1: asyncio.Event()})
    limits = GatewayLimits(max_message_bytes=50_000, max_queued_bytes_per_policy=50_000)
    async with kit.serve(backend=backend, limits=limits) as gateway:

        def request_of(robot: int) -> Any:
            request = kit.request(seed=1)
            request.robot_id = f"robot-{robot}"
            request.observation.images["wrist"].pixels.CopyFrom(encode_tensor(kit.frame(96, 128)))
            return request

        assert 25_000 < request_of(1).ByteSize() < 50_000
        first = asyncio.ensure_future(ask(gateway, request_of(1)))
        await backend.wait_for_requests(1)
        second = asyncio.ensure_future(ask(gateway, request_of(2)))
        await gateway.until(lambda: gateway.num_requests("queued") == 1)
        overloaded(await ask(gateway, request_of(3)))
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S)
        await stream.write(policy_pb2.StreamChunksRequest(request=request_of(4)))
        overloaded((await stream.read()).error)
        small = asyncio.ensure_future(ask(gateway, kit.request(seed=1)))
        await gateway.until(lambda: gateway.num_requests("queued") == 2)
        backend.holds[1].set()
        assert await asyncio.gather(first, second, small) == [None] * 3
        stream.cancel()


async def too_many_on_a_stream(kit: Any, desk: Any) -> None:
    backend = kit.backend(holds={1: asyncio.Event()})
    async with kit.serve(backend=backend, limits=GatewayLimits(max_in_flight_per_stream=1)) as gateway:
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S)
        await stream.write(policy_pb2.StreamChunksRequest(request=kit.request(seed=1)))
        await stream.write(policy_pb2.StreamChunksRequest(request=kit.request(seed=2)))
        overloaded((await stream.read()).error)
        backend.holds[1].set()
        assert (await stream.read()).chunk.seed == 1
        stream.cancel()


async def too_many_streams(kit: Any, desk: Any) -> None:
    async with kit.serve(limits=GatewayLimits(max_streams=1)) as gateway:
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S)
        await stream.write(policy_pb2.StreamChunksRequest(request=kit.request()))
        assert (await stream.read()).HasField("chunk")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.stub.StreamChunks(timeout=TIMEOUT_S).read()
        overloaded(read_error_metadata(failed.value.trailing_metadata()))
        assert await ask(gateway, kit.request()) is None
        stream.cancel()


async def too_many_watches(kit: Any, desk: Any) -> None:
    async with kit.serve(limits=GatewayLimits(max_watches=1)) as gateway:
        health, asked = health_pb2_grpc.HealthStub(gateway.channel), health_pb2.HealthCheckRequest()
        watch = health.Watch(asked, timeout=TIMEOUT_S)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await health.Watch(asked, timeout=TIMEOUT_S).read()
        overloaded(read_error_metadata(failed.value.trailing_metadata()))
        assert (await health.Check(asked, timeout=TIMEOUT_S)).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        await gateway.until(lambda: not gateway.server._health.servicer._changed)
        again = health.Watch(asked, timeout=TIMEOUT_S)
        assert (await again.read()).status == health_pb2.HealthCheckResponse.SERVING
        again.cancel()


async def too_many_calls(kit: Any, desk: Any) -> None:
    async with kit.serve(limits=GatewayLimits(max_calls=1)) as gateway:
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S)
        await stream.write(policy_pb2.StreamChunksRequest(request=kit.request()))
        assert (await stream.read()).HasField("chunk")
        # One connection waits for its own calls to end; another is refused.
        async with grpc.aio.insecure_channel(gateway.address, options=[("grpc.use_local_subchannel_pool", 1)]) as other:
            predict = policy_pb2_grpc.PolicyServiceStub(other).PredictChunk
            with pytest.raises(grpc.aio.AioRpcError, match="limit exceeded") as failed:
                await predict(kit.request(), timeout=TIMEOUT_S)
            assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            waiting = asyncio.ensure_future(ask(gateway, kit.request()))
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
            assert await waiting is None


async def too_much_for_a_token(kit: Any, desk: Any) -> None:
    busy, other = (
        {"metadata": (("authorization", f"Bearer {desk.give('infer', caps=Caps(max_requests_per_s=1))}"),)}
        for _ in range(2)
    )
    async with kit.serve(credentials=desk.credentials) as gateway:
        assert await ask(gateway, kit.request(), **busy) is None
        overloaded(await ask(gateway, kit.request(), **busy))
        assert await ask(gateway, kit.request(), **other) is None


def front(content: Callable[[Any], bytes]) -> Callable[[Any, Any], None]:
    def change(request: Any, kit: Any) -> None:
        request.observation.images["front"].compressed = content(kit)

    return change


FRONT = "observation.images[front].compressed"
BEYOND: dict[str, Callable[..., Awaitable[None]]] = {
    "max_message_bytes": too_large_a_message,
    "max_images": invalid("observation.images", many_images, max_images=4),
    "max_compressed_image_bytes": invalid(
        FRONT, front(lambda kit: kit.jpeg() + b"\0" * 100_000), max_compressed_image_bytes=100_000
    ),
    "max_image_pixels": invalid(FRONT, front(lambda kit: kit.jpeg(64, 100)), max_image_pixels=64 * 99),
    "MAX_JPEG_SCANS": invalid(FRONT, many_scans),
    "max_instruction_bytes": invalid(
        "observation.instruction",
        lambda request, kit: setattr(request.observation, "instruction", "é" * 51),
        max_instruction_bytes=101,
    ),
    "max_id_bytes": invalid(
        "episode_id", lambda request, kit: setattr(request, "episode_id", "é" * 51), max_id_bytes=101
    ),
    "max_abs_value": invalid("history.actions", large_numbers, max_abs_value=1000),
    "Policy.history_steps": invalid("history.states", many_steps),
    "Policy.max_inference_steps": invalid(
        "num_inference_steps", lambda request, kit: setattr(request, "num_inference_steps", 33)
    ),
    "max_timeout_s": too_long_a_wait,
    "max_queued_per_policy": too_many_waiting,
    "max_queued_bytes_per_policy": too_much_waiting,
    "max_in_flight_per_stream": too_many_on_a_stream,
    "max_streams": too_many_streams,
    "max_watches": too_many_watches,
    "max_calls": too_many_calls,
    "Caps": too_much_for_a_token,
}


@pytest.mark.parametrize("bound", BEYOND)
async def test_beyond_a_bound_there_is_a_refusal_and_life_goes_on(kit, desk, bound):
    await BEYOND[bound](kit, desk)


def test_every_bound_is_in_the_table_and_the_table_has_no_others():
    rows = re.findall(r"^\| ([\w.]+)(?: \([\w./]+\))? \|", limits.__doc__ or "", re.MULTILINE)
    assert rows[0] == "bound" and set(rows[1:]) == BEYOND.keys()
    assert {field.name for field in fields(GatewayLimits) if field.name.startswith("max_")} <= BEYOND.keys()


def test_a_message_that_may_come_may_wait():
    with pytest.raises(ValueError, match="max_queued_bytes_per_policy 99 is less than max_message_bytes 100"):
        GatewayLimits(max_message_bytes=100, max_queued_bytes_per_policy=99)
