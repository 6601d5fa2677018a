"""The asyncio client and its stream keep the same promises, and never hold the event loop."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from premotor.client import (
    AsyncPolicyClient,
    ClosedError,
    DeadlineExceededError,
    FixRequestError,
    PolicyError,
    ProtocolError,
    RetryableError,
    ServerFailureError,
)

pytestmark = pytest.mark.asyncio


def asking(arguments: dict, instruction: str, first: float = 0.0) -> dict:
    return {**arguments, "instruction": instruction, "state": np.array([first, 0, 0], np.float32)}


async def test_a_chunk_and_a_description_come_back(gateway, arguments) -> None:
    async with AsyncPolicyClient(gateway.address) as client:
        description = await client.get_policy("tabletop")
        history = await client.history_buffer("tabletop")
        history.append(np.zeros(3), np.zeros(3))
        chunk = await client.predict_chunk(**{**arguments, "image_encoding": "jpeg"}, history=history, seed=5)
        assert await client.list_policies() == (description,)
    np.testing.assert_array_equal(chunk.actions, np.arange(4)[:, None] + arguments["state"][None, :])
    assert (chunk.revision, chunk.seed) == (description.revision, 5)


async def test_concurrent_calls_each_get_their_own_chunk(gateway, arguments) -> None:
    async with AsyncPolicyClient(gateway.address) as client:
        calls = [client.predict_chunk(**asking(arguments, "now", robot)) for robot in range(16)]
        chunks = await asyncio.gather(*calls)
    assert [chunk.actions[0, 0] for chunk in chunks] == list(range(16))


@pytest.mark.parametrize(
    ("instruction", "error_class"),
    [
        ("error INVALID_ARGUMENT", FixRequestError),
        ("error UNAVAILABLE", RetryableError),
        ("plain RESOURCE_EXHAUSTED", RetryableError),
        ("plain INTERNAL", ServerFailureError),
        ("request_id", ProtocolError),
        ("nan", ProtocolError),
    ],
)
async def test_failures_say_what_to_do_next(
    gateway, arguments, instruction: str, error_class: type[PolicyError]
) -> None:
    async with AsyncPolicyClient(gateway.address) as client:
        with pytest.raises(PolicyError) as failure:
            await client.predict_chunk(**asking(arguments, instruction))
    error = failure.value
    assert type(error) is error_class
    assert [request.request_id for request in gateway.service.requests] == [error.request_id], "sent once, never again"
    if isinstance(error, FixRequestError):
        assert (error.field, error.code) == ("observation.state", grpc.StatusCode.INVALID_ARGUMENT)


async def test_deadlines_hold_and_no_time_left_is_not_no_limit(gateway, arguments) -> None:
    async with AsyncPolicyClient(gateway.address, timeout_s=0.1) as client:
        with pytest.raises(DeadlineExceededError):
            await client.predict_chunk(**asking(arguments, "hold"))
        with pytest.raises(DeadlineExceededError):
            await client.get_policy("tabletop", timeout_s=0.0)
        with pytest.raises(ValueError, match="finite"):
            await client.predict_chunk(**arguments, timeout_s=float("inf"))


async def test_cancelling_the_caller_cancels_the_call_and_not_the_client(gateway, arguments) -> None:
    async with AsyncPolicyClient(gateway.address) as client:
        task = asyncio.create_task(client.predict_chunk(**asking(arguments, "hold")))
        assert await asyncio.to_thread(gateway.service.arrived.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await client.predict_chunk(**arguments)


async def test_closing_ends_calls_in_flight(gateway, arguments) -> None:
    client = AsyncPolicyClient(gateway.address)
    task = asyncio.create_task(client.predict_chunk(**asking(arguments, "hold")))
    assert await asyncio.to_thread(gateway.service.arrived.wait, 5)
    await client.close()
    with pytest.raises(ClosedError):
        await task
    with pytest.raises(ClosedError):
        await client.predict_chunk(**arguments)
    with pytest.raises(ClosedError):
        client.stream()


async def test_answers_out_of_order_reach_their_requests(gateway, arguments) -> None:
    async with AsyncPolicyClient(gateway.address) as client, client.stream() as stream:
        first = await stream.send(**asking(arguments, "later", 1))
        waiting = asyncio.create_task(stream.receive(first))
        second = await stream.send(**asking(arguments, "later", 2))
        third = await stream.send(**asking(arguments, "now", 3))
        assert (await stream.receive()).request_id == third
        assert (await stream.receive(second)).actions[0, 0] == 2
        assert (await waiting).actions[0, 0] == 1


async def test_a_failed_request_has_its_own_error_and_the_stream_goes_on(gateway, arguments) -> None:
    async with AsyncPolicyClient(gateway.address) as client, client.stream() as stream:
        bad = await stream.send(**asking(arguments, "error INVALID_ARGUMENT"))
        good = await stream.send(**asking(arguments, "now", 5))
        assert (await stream.receive(good)).actions[0, 0] == 5
        with pytest.raises(FixRequestError) as refusal:
            await stream.receive(bad)
        assert (refusal.value.field, refusal.value.request_id) == ("observation.state", bad)


async def test_a_late_answer_is_dropped(gateway, arguments) -> None:
    async with AsyncPolicyClient(gateway.address) as client, client.stream() as stream:
        late = await stream.send(**asking(arguments, "later", 1), timeout_s=0.1)
        with pytest.raises(DeadlineExceededError):
            await stream.receive(late)
        prompt = await stream.send(**asking(arguments, "now", 2))
        assert (await stream.receive(prompt)).actions[0, 0] == 2
        following = await stream.send(**asking(arguments, "now", 3))
        assert (await stream.receive()).request_id == following


async def test_cancelling_a_receiver_leaves_its_answer_to_the_next(gateway, arguments) -> None:
    async with AsyncPolicyClient(gateway.address) as client, client.stream() as stream:
        first = await stream.send(**asking(arguments, "later", 1))
        receiver = asyncio.create_task(stream.receive(first))
        assert await asyncio.to_thread(gateway.service.arrived.wait, 5)
        receiver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiver
        await stream.send(**asking(arguments, "now", 2))
        assert (await stream.receive(first)).actions[0, 0] == 1


@pytest.mark.parametrize(
    ("instruction", "error_class"), [("end", RetryableError), ("break", RetryableError), ("request_id", ProtocolError)]
)
async def test_when_the_stream_ends_every_pending_request_learns_why(
    gateway, arguments, instruction: str, error_class: type[PolicyError]
) -> None:
    async with AsyncPolicyClient(gateway.address) as client, client.stream() as stream:
        pending = await stream.send(**asking(arguments, "later"))
        await stream.send(**asking(arguments, instruction))
        with pytest.raises(error_class) as failure:
            await stream.receive(pending)
        assert failure.value.request_id == pending
        with pytest.raises(error_class):
            await stream.send(**arguments)


async def test_closing_a_stream_or_its_client_ends_every_wait(gateway, arguments) -> None:
    client = AsyncPolicyClient(gateway.address)
    async with client.stream() as stream:
        waiting = asyncio.create_task(stream.receive(await stream.send(**asking(arguments, "later"))))
        assert await asyncio.to_thread(gateway.service.arrived.wait, 5)
    with pytest.raises(ClosedError):
        await waiting
    async with client.stream() as stream:
        pending = await stream.send(**asking(arguments, "later"))
        await client.close()
        with pytest.raises(ClosedError):
            await stream.receive(pending)


async def test_misuse_is_named(gateway, arguments) -> None:
    async with AsyncPolicyClient(gateway.address) as client:
        stream = client.stream()
        with pytest.raises(RuntimeError, match="`async with` block"):
            await stream.send(**arguments)
        async with stream:
            with pytest.raises(RuntimeError, match="entered once"):
                await stream.__aenter__()


async def test_an_async_client_is_not_made_outside_a_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        await asyncio.to_thread(AsyncPolicyClient, "127.0.0.1:1")
