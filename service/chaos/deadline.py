"""`chaos deadline`: a model that takes twice as long as its robots wait, and what of the expired still reaches it.

Owns a gateway in this process over a model that is slow and computes nothing, so that both ends of a deadline are read
off one clock. Robots ask on streams: there the gateway, and not gRPC on the robot's side, says that time is up.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from prometheus_client import CollectorRegistry

from premotor.v1 import policy_pb2, policy_pb2_grpc
from premotor.wire import encode_duration
from service.backend import BackendChunk, BackendDeadlineError, BackendRequest
from service.bench.requests import chunk_requests
from service.bench.served import POLICY
from service.gateway import GatewayServer
from service.policies import ServedPolicies
from service.probe import read_probe
from service.revision import read_revision

# What the gateway takes at a time: the first batch.
BATCH_SIZE = 4
# An answer that comes so much after its deadline is late: a machine with other work wakes nobody to the millisecond.
_LATE_S = 0.1
_ANSWER_TIMEOUT_S = 30.0
_Stream = grpc.aio.StreamStreamCall[policy_pb2.StreamChunksRequest, policy_pb2.StreamChunksResponse]


@dataclass(frozen=True, kw_only=True)
class DeadlineSettings:
    checkpoint: Path
    robots: int = 8
    deadline_s: float = 0.2
    rounds: int = 20

    def __post_init__(self) -> None:
        if self.robots < 1 or self.rounds < 1 or not self.deadline_s > 0:
            raise ValueError(
                f"robots is {self.robots}, rounds {self.rounds}, deadline_s {self.deadline_s}; expected more than 0"
            )


@dataclass(kw_only=True)
class _SlowModel:
    """A Backend. Requests are told apart by their seeds."""

    takes_s: float
    actions: np.ndarray
    # On the performance counter, when each request of the hurried robots stops being of use.
    deadlines_s: dict[int, float] = field(default_factory=dict)
    num_reached: int = 0
    num_reached_expired: int = 0
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    def capacity(self, revision: str) -> int:
        return BATCH_SIZE

    async def predict(self, revision: str, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        self.num_reached_expired += time.perf_counter() > self.deadlines_s.get(request.seed, float("inf"))
        async with self.arrived:
            self.num_reached += 1
            self.arrived.notify_all()
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(self.takes_s)
        except TimeoutError:
            raise BackendDeadlineError(f"no chunk within {timeout_s:.3f} s") from None
        return BackendChunk(actions=self.actions, inference_s=self.takes_s, queue_s=0.0)

    async def ready(self, revision: str) -> bool:
        return True

    async def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """How a request of a hurried robot ended, and by how much after its deadline; negative is before."""

    reason: str
    late_s: float


def measure_deadlines(settings: DeadlineSettings) -> dict[str, Any]:
    """Raises RevisionError."""
    return asyncio.run(_measure(settings))


async def _measure(settings: DeadlineSettings) -> dict[str, Any]:
    revision = read_revision(settings.checkpoint, policy=POLICY)
    case = read_probe(revision)[0]
    (request, *_) = chunk_requests(revision, case, policy=POLICY)
    model = _SlowModel(takes_s=2 * settings.deadline_s, actions=case.expected)
    gateway = GatewayServer(
        policies=ServedPolicies.fixed({POLICY: [revision]}),
        backend=model,
        metrics_registry=CollectorRegistry(),
    )
    address = f"127.0.0.1:{await gateway.start()}"
    try:
        async with (
            _robots(address, "patient", BATCH_SIZE) as patient,
            _robots(address, "hurried", settings.robots) as hurried,
        ):
            answers: list[_Answer] = []
            for number in range(settings.rounds):
                answers += await _round(settings, model, request, (patient, hurried), number)
    finally:
        await gateway.stop(0)
    return _result(settings, model, answers)


async def _round(
    settings: DeadlineSettings,
    model: _SlowModel,
    request: policy_pb2.PredictChunkRequest,
    robots: tuple[list[_Robot], list[_Robot]],
    number: int,
) -> list[_Answer]:
    """The first batch is of robots that wait for it. It runs when the others ask, and still when their time is up."""
    patient, hurried = robots
    already = model.num_reached
    first = [asyncio.create_task(robot.ask(request, number, _ANSWER_TIMEOUT_S)) for robot in patient]
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S), model.arrived:
            await model.arrived.wait_for(lambda: model.num_reached >= already + len(patient))
        return await asyncio.gather(
            *(robot.ask(request, number, settings.deadline_s, deadlines_s=model.deadlines_s) for robot in hurried)
        )
    finally:
        await asyncio.gather(*first)


class _Robot:
    """One stream."""

    def __init__(self, robot_id: str, index: int, stream: _Stream) -> None:
        self._id, self._index, self._stream = robot_id, index, stream

    async def ask(
        self,
        request: policy_pb2.PredictChunkRequest,
        number: int,
        deadline_s: float,
        *,
        deadlines_s: dict[int, float] | None = None,
    ) -> _Answer:
        message = policy_pb2.StreamChunksRequest(request=request, timeout=encode_duration(deadline_s))
        message.request.robot_id, message.request.request_id = self._id, str(number)
        message.request.seed = number * 10_000 + self._index
        ends_s = time.perf_counter() + deadline_s
        if deadlines_s is not None:
            deadlines_s[message.request.seed] = ends_s
        async with asyncio.timeout(_ANSWER_TIMEOUT_S + deadline_s):
            await self._stream.write(message)
            answer = await self._stream.read()
        assert isinstance(answer, policy_pb2.StreamChunksResponse), "the gateway closed a stream"
        reason = policy_pb2.RequestError.Reason.Name(answer.error.reason) if answer.HasField("error") else "OK"
        return _Answer(reason=reason.removeprefix("REASON_"), late_s=time.perf_counter() - ends_s)


@asynccontextmanager
async def _robots(address: str, kind: str, count: int) -> AsyncIterator[list[_Robot]]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        streams = [stub.StreamChunks() for _ in range(count)]
        first = 0 if kind == "patient" else BATCH_SIZE
        yield [_Robot(f"{kind}-{index}", first + index, stream) for index, stream in enumerate(streams)]
        for stream in streams:
            stream.cancel()


def _result(settings: DeadlineSettings, model: _SlowModel, answers: list[_Answer]) -> dict[str, Any]:
    reasons = Counter(answer.reason for answer in answers)
    late = [answer for answer in answers if answer.late_s > _LATE_S]
    return {
        "requests": len(answers),
        "reached_after_first": model.num_reached_expired,
        "expired": reasons["EXPIRED"],
        "reasons": dict(reasons),
        "late": len(late),
        "worst_late_ms": 1e3 * max(answer.late_s for answer in answers),
        # Of the hurried robots, before their deadline: none unless this machine is too slow to ask at once.
        "reached_in_time": model.num_reached - settings.rounds * BATCH_SIZE - model.num_reached_expired,
        "deadline_s": settings.deadline_s,
        "model_s": model.takes_s,
        "batch_size": BATCH_SIZE,
        "robots": settings.robots,
    }


def missed_goals(result: dict[str, Any]) -> list[str]:
    missed = []
    if result["reached_after_first"]:
        missed.append(f"{result['reached_after_first']} expired requests reached the model")
    if result["expired"] != result["requests"]:
        missed.append(f"of {result['requests']} requests {result['expired']} ended as EXPIRED: {result['reasons']}")
    if result["late"]:
        missed.append(f"{result['late']} answers came late, the last {result['worst_late_ms']:.0f} ms")
    return missed


def format_deadlines(result: dict[str, Any]) -> str:
    return (
        f"{result['requests']} requests with {1e3 * result['deadline_s']:.0f} ms to wait, before a model that takes "
        f"{1e3 * result['model_s']:.0f} ms: {result['expired']} ended as EXPIRED, {result['late']} late, the last "
        f"{result['worst_late_ms']:.1f} ms after its deadline\n"
        f"{result['reached_after_first']} expired requests reached the model after the first batch (goal 0)"
    )
