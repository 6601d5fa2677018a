"""Requests in front of a busy model, from the gateway's outside: expired, superseded, dismissed, and all the others."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import grpc
import pytest
from prometheus_client import CollectorRegistry

from premotor.v1 import policy_pb2
from premotor.wire import decode_duration, read_error_metadata
from service.backend import BackendChunk, BackendRequest, BackendUnavailableError
from service.gateway import GatewayLimits
from service.gateway.answers import ChunkAnswerer
from service.gateway.metrics import GatewayMetrics

Error = policy_pb2.RequestError
TIMEOUT_S = 10.0


def request_of(kit, robot: str, request_id: str, **options):
    request = kit.request(request_id=request_id, **options)
    request.robot_id = robot
    return request


def answerer_of(kit, backend, threads: Executor, **limits) -> ChunkAnswerer:
    return ChunkAnswerer(
        policies=kit.policies,
        backend=backend,
        limits=GatewayLimits(**limits),
        metrics=GatewayMetrics(CollectorRegistry()),
        decode_threads=threads,
    )


class IdleExecutor(Executor):
    """Takes work, counts it and never does it."""

    def __init__(self) -> None:
        self.num_submitted = 0

    def submit(self, fn, /, *args, **kwargs):
        self.num_submitted += 1
        return Future()


@pytest.fixture
def threads():
    with ThreadPoolExecutor(1) as executor:
        yield executor


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_before_a_stuck_model_everybody_is_told_in_time_and_nothing_expired_follows_the_first(kit, threads):
    backend = kit.backend(room=1, holds={1: asyncio.Event()})
    answerer = answerer_of(kit, backend, threads)
    stuck = asyncio.create_task(answerer.answer(request_of(kit, "first", "first", seed=1), timeout_s=TIMEOUT_S))
    await backend.wait_for_requests(1)
    started_s = time.perf_counter()
    timeouts_s = [0.05 + 0.01 * number for number in range(20)]
    answers = await asyncio.gather(
        *(
            answerer.answer(request_of(kit, f"robot-{number}", f"{number}", seed=2), timeout_s=timeout_s)
            for number, timeout_s in enumerate(timeouts_s)
        )
    )
    # Half a second for a slow machine: the model itself never answers.
    assert time.perf_counter() - started_s < timeouts_s[-1] + 0.5
    assert [(answer.code, answer.reason) for answer in answers] == [
        (grpc.StatusCode.DEADLINE_EXCEEDED.value[0], Error.REASON_EXPIRED)
    ] * len(answers)
    assert [answer.request_id for answer in answers] == [str(number) for number in range(20)]
    backend.holds[1].set()
    assert (await stuck).seed == 1
    await settle()
    assert [request.seed for request in backend.requests] == [1]


class SlowBackend:
    """One request at a time, each `inference_s` long; notes what it was asked when the deadline had passed."""

    def __init__(self, kit, inference_s: float) -> None:
        self._kit = kit
        self._inference_s = inference_s
        self.num_asked = self.num_late = 0
        self._running = asyncio.Lock()

    def capacity(self, revision: str) -> int:
        return 2

    async def predict(self, revision: str, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        self.num_asked += 1
        self.num_late += timeout_s <= 0
        async with self._running:
            await asyncio.sleep(self._inference_s)
        return BackendChunk(actions=self._kit.expected_actions(request), inference_s=self._inference_s, queue_s=0.0)

    async def ready(self, revision: str) -> bool:
        return True

    async def close(self) -> None: ...


async def test_a_model_slowed_to_twice_the_deadline_is_asked_for_nothing_that_has_expired(kit, threads):
    deadline_s = 0.05
    backend = SlowBackend(kit, 2 * deadline_s)
    answerer = answerer_of(kit, backend, threads)

    async def robot(name: str) -> list[tuple[int, float]]:
        ends = []
        for number in range(5):
            started_s = time.perf_counter()
            answer = await answerer.answer(request_of(kit, name, str(number)), timeout_s=deadline_s)
            assert isinstance(answer, Error)
            ends.append((answer.reason, time.perf_counter() - started_s))
        return ends

    ends = [end for ends in await asyncio.gather(*(robot(f"robot-{n}") for n in range(8))) for end in ends]
    assert {reason for reason, _ in ends} == {Error.REASON_EXPIRED}
    assert max(elapsed_s for _, elapsed_s in ends) < deadline_s + 0.25
    assert backend.num_late == 0
    # Two at a time, for as long as their own deadlines: what waited meanwhile expired where it was.
    assert backend.num_asked < len(ends)


async def test_a_superseded_request_ends_as_aborted_with_its_reason_on_both_ways(kit):
    backend = kit.backend(room=1, holds={1: asyncio.Event()})
    async with kit.serve(backend=backend) as gateway:
        inside = asyncio.ensure_future(
            gateway.stub.PredictChunk(request_of(kit, "quick", "inside", seed=1), timeout=TIMEOUT_S)
        )
        await backend.wait_for_requests(1)
        queued = asyncio.ensure_future(
            gateway.stub.PredictChunk(request_of(kit, "quick", "queued", seed=2), timeout=TIMEOUT_S)
        )
        await gateway.until(lambda: gateway.num_requests("queued") == 1)
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S)
        for name in ("streamed", "newest"):
            await stream.write(
                policy_pb2.StreamChunksRequest(
                    request=request_of(kit, "quick", name, seed=3 if name == "newest" else 2)
                )
            )
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await queued
        superseded = (await stream.read()).error
        backend.holds[1].set()
        newest = (await stream.read()).chunk
        await inside
        stream.cancel()
        assert gateway.count(policy="tabletop", status="ABORTED", reason="SUPERSEDED") == 2
    assert failed.value.code() is grpc.StatusCode.ABORTED
    unary = read_error_metadata(failed.value.trailing_metadata())
    assert unary is not None
    for error, request_id in ((unary, "queued"), (superseded, "streamed")):
        assert (error.code, error.reason) == (grpc.StatusCode.ABORTED.value[0], Error.REASON_SUPERSEDED)
        assert (error.robot_id, error.request_id) == ("quick", request_id)
        assert not error.HasField("retry_delay")
    assert (newest.request_id, newest.seed) == ("newest", 3)
    assert [request.seed for request in backend.requests] == [1, 3]


async def test_what_is_superseded_is_never_decoded(kit):
    threads, backend = IdleExecutor(), kit.backend(room=1, holds={1: asyncio.Event()})
    answerer = answerer_of(kit, backend, threads)
    inside = asyncio.create_task(answerer.answer(request_of(kit, "first", "inside", seed=1), timeout_s=TIMEOUT_S))
    await backend.wait_for_requests(1)
    asks = []
    for number in range(5):
        request = request_of(kit, "quick", str(number))
        request.observation.images["front"].compressed = kit.jpeg(480, 640)
        asks.append(asyncio.create_task(answerer.answer(request, timeout_s=TIMEOUT_S)))
    await settle()
    assert threads.num_submitted == 0
    backend.holds[1].set()
    await inside
    await settle()
    assert threads.num_submitted == 1
    asks[-1].cancel()
    ends = await asyncio.gather(*asks, return_exceptions=True)
    assert [end.reason for end in ends[:-1]] == [Error.REASON_SUPERSEDED] * 4


async def test_a_request_that_is_refused_supersedes_nothing(kit, threads):
    backend = kit.backend(room=1, holds={1: asyncio.Event()})
    answerer = answerer_of(kit, backend, threads)
    inside = asyncio.create_task(answerer.answer(request_of(kit, "first", "inside", seed=1), timeout_s=TIMEOUT_S))
    await backend.wait_for_requests(1)
    good = asyncio.create_task(answerer.answer(request_of(kit, "quick", "good"), timeout_s=TIMEOUT_S))
    await settle()
    bad = request_of(kit, "quick", "bad")
    bad.observation.ClearField("state")
    assert (await answerer.answer(bad, timeout_s=TIMEOUT_S)).reason == Error.REASON_INVALID
    assert (await answerer.answer(request_of(kit, "quick", "late"), timeout_s=0.0)).reason == Error.REASON_EXPIRED
    backend.holds[1].set()
    assert (await good).request_id == "good"
    await inside


async def test_a_caller_who_leaves_while_waiting_frees_its_place(kit):
    backend = kit.backend(room=1, holds={1: asyncio.Event()})
    async with kit.serve(backend=backend, limits=GatewayLimits(max_queued_per_policy=1)) as gateway:

        def ask(robot: str, seed: int):
            return gateway.stub.PredictChunk(request_of(kit, robot, robot, seed=seed), timeout=TIMEOUT_S)

        inside = asyncio.ensure_future(ask("first", 1))
        await backend.wait_for_requests(1)
        leaves = ask("leaves", 2)
        await gateway.until(lambda: gateway.num_requests("queued") == 1)
        leaves.cancel()
        await gateway.until(lambda: gateway.num_requests("queued") == 0)
        stays = asyncio.ensure_future(ask("stays", 3))
        await gateway.until(lambda: gateway.num_requests("queued") == 1)
        backend.holds[1].set()
        await asyncio.gather(inside, stays)
    assert [request.seed for request in backend.requests] == [1, 3]


async def test_when_a_revision_becomes_unavailable_those_who_wait_for_it_are_told_so_at_once(kit, threads):
    backend = kit.backend(room=1, holds={1: asyncio.Event()})
    answerer = answerer_of(kit, backend, threads)
    asks = [
        asyncio.create_task(answerer.answer(request_of(kit, f"robot-{n}", str(n), seed=n), timeout_s=TIMEOUT_S))
        for n in range(1, 9)
    ]
    await backend.wait_for_requests(1)
    backend.failure = BackendUnavailableError("triton has died", retry_after_s=0.5)
    backend.holds[1].set()
    async with asyncio.timeout(5):
        errors = await asyncio.gather(*asks)
    assert [error.reason for error in errors] == [Error.REASON_UNAVAILABLE] * 8
    assert {decode_duration(error.retry_delay, field="retry_delay") for error in errors} == {0.5}
    assert len(backend.requests) == 1
    backend.failure = None
    again = await answerer.answer(request_of(kit, "robot-1", "again"), timeout_s=TIMEOUT_S)
    assert again.request_id == "again"


async def test_a_drain_waits_for_those_who_wait(kit, threads):
    backend = kit.backend(room=1, holds={1: asyncio.Event()})
    answerer = answerer_of(kit, backend, threads)
    asks = [
        asyncio.create_task(answerer.answer(request_of(kit, f"robot-{n}", str(n), seed=n), timeout_s=TIMEOUT_S))
        for n in (1, 2, 3)
    ]
    await backend.wait_for_requests(1)
    await settle()
    draining = asyncio.create_task(answerer.drain(timeout_s=TIMEOUT_S))
    await settle()
    refused = await answerer.answer(request_of(kit, "late", "late"), timeout_s=TIMEOUT_S)
    assert (refused.reason, draining.done()) == (Error.REASON_DRAINING, False)
    backend.holds[1].set()
    assert await draining
    assert [answer.seed for answer in await asyncio.gather(*asks)] == [1, 2, 3]


async def test_the_time_spent_waiting_is_reported_as_queue_and_not_as_decoding(kit, threads):
    backend = kit.backend(room=1, holds={1: asyncio.Event()})
    answerer = answerer_of(kit, backend, threads)
    inside = asyncio.create_task(answerer.answer(request_of(kit, "first", "inside", seed=1), timeout_s=TIMEOUT_S))
    await backend.wait_for_requests(1)
    waits = asyncio.create_task(answerer.answer(request_of(kit, "second", "waits"), timeout_s=TIMEOUT_S))
    await settle()
    waiting_since_s = time.perf_counter()
    await asyncio.to_thread(time.sleep, 0.1)
    backend.holds[1].set()
    timing = (await waits).timing
    await inside
    spans = {name: decode_duration(getattr(timing, name), field=name) for name in ("decode", "queue")}
    assert 0.1 <= spans["queue"] <= time.perf_counter() - waiting_since_s + 0.05
    assert spans["decode"] < 0.1


async def test_64_at_a_time_each_get_their_own_ids_and_seed_while_newer_ones_supersede_older(kit):
    """Twelve robots, more requests each than may wait, answered out of order by a model that lags."""
    rng = random.Random(0)
    backend = kit.backend(room=4)
    lags = [asyncio.Event(), asyncio.Event()]
    backend.holds = {seed: lags[seed // 32] for seed in range(0, 64, 3)}
    async with kit.serve(backend=backend) as gateway:
        asked = [
            (f"robot-{rng.randrange(12)}", f"episode-{rng.randrange(3)}", f"request-{seed}", seed) for seed in range(64)
        ]

        async def ask(robot: str, episode: str, request_id: str, seed: int):
            request = request_of(kit, robot, request_id, seed=seed, embodiment=rng.choice(["panda", "sawyer"]))
            request.episode_id = episode
            try:
                chunk = await gateway.stub.PredictChunk(request, timeout=TIMEOUT_S)
            except grpc.aio.AioRpcError as failed:
                error = read_error_metadata(failed.trailing_metadata())
                assert error is not None
                return (error.robot_id, error.episode_id, error.request_id, seed), error.reason, b"", b""
            expected = next(kit.expected_actions(request) for request in backend.requests if request.seed == chunk.seed)
            ids = chunk.robot_id, chunk.episode_id, chunk.request_id, chunk.seed
            return ids, None, chunk.actions.data, expected.tobytes()

        asks: list[asyncio.Task] = []

        def all_arrived() -> bool:
            return gateway.count() + (gateway.num_requests("in_flight") or 0) == len(asks)

        for half, lag in zip((asked[:32], asked[32:]), lags, strict=True):
            asks += [asyncio.create_task(ask(*one)) for one in half]
            await gateway.until(all_arrived)
            lag.set()
        answers = await asyncio.gather(*asks)
    assert [ids for ids, *_ in answers] == asked
    reasons = [reason for _, reason, *_ in answers]
    assert set(reasons) == {None, Error.REASON_SUPERSEDED}
    assert all(actions == expected for _, _, actions, expected in answers)
    assert len(backend.requests) == reasons.count(None)
