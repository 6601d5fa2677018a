"""Robots that ask without a pause, and check every answer: the load under which something is broken.

Owns the asking and its tally. Does not own what is broken meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np

from premotor.v1 import policy_pb2, policy_pb2_grpc
from premotor.wire import decode_tensor, read_error_metadata
from service.probe import TOLERANCE

REQUESTS_PER_EPISODE = 12


@dataclass(kw_only=True)
class Tally:
    """What all robots saw."""

    latencies_s: list[float] = field(default_factory=list)
    # When each answer of `latencies_s` came, on the performance counter.
    ended_s: list[float] = field(default_factory=list)
    # By status: requests that got no chunk, and those among them that came too late to be an answer.
    failures: Counter[str] = field(default_factory=Counter)
    # Of these, by status, those that the service did not say itself while it was there to say it: silence until the
    # robot's own gRPC gave up, for one.
    untyped: Counter[str] = field(default_factory=Counter)
    late: int = 0
    # Answers with another revision than they may have, or with actions that are not that revision's.
    wrong_revision: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    # Episodes that had an answer, and the revision of the first.
    episodes: dict[str, str] = field(default_factory=dict)

    @property
    def num_requests(self) -> int:
        return len(self.latencies_s) + self.failures.total()


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One request, and what each revision must answer it with: float32 [action_horizon, action_dim]."""

    request: policy_pb2.PredictChunkRequest
    expected: Mapping[str, np.ndarray]


class Robots:
    """`num_robots` robots over one channel each. `start`, break something, `stop`."""

    def __init__(
        self, address: str, questions: Sequence[Question], *, num_robots: int, timeout_s: float, pause_s: float = 0.0
    ) -> None:
        self._address, self._questions, self._num_robots = address, questions, num_robots
        self._timeout_s, self._pause_s = timeout_s, pause_s
        self.tally = Tally()
        # Revisions that an episode which begins now may be answered by; None allows any that is expected.
        self.allowed: frozenset[str] | None = None
        # Whether nobody is there to answer, as after a kill and until the next start.
        self.gateway_is_down = False
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._episodes = itertools.count(1)

    def start(self) -> None:
        """At first, or after a stop."""
        self._stopping.clear()
        self._tasks = [asyncio.create_task(self._work(number)) for number in range(self._num_robots)]

    async def stop(self) -> Tally:
        """Lets every robot end its request."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        return self.tally

    async def _work(self, number: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            while not self._stopping.is_set():
                await self._episode(stub, f"robot-{number}", f"{number}-{next(self._episodes)}")

    async def _episode(self, stub: policy_pb2_grpc.PolicyServiceStub, robot_id: str, episode_id: str) -> None:
        allowed, first = self.allowed, ""
        for step in range(REQUESTS_PER_EPISODE):
            if self._stopping.is_set():
                return
            question = self._questions[(hash(robot_id) + step) % len(self._questions)]
            revision = await self._ask(stub, question, robot_id, episode_id, f"{episode_id}-{step}")
            if revision and first and revision != first:
                self.tally.wrong_revision.append(f"episode {episode_id} began on {first}, {revision} answered")
            if revision and not first and allowed is not None and revision not in allowed:
                self.tally.wrong_revision.append(f"episode {episode_id} began on {revision}, after another took over")
            if revision and not first:
                first = self.tally.episodes[episode_id] = revision
            if self._pause_s:
                await asyncio.sleep(self._pause_s)

    async def _ask(
        self,
        stub: policy_pb2_grpc.PolicyServiceStub,
        question: Question,
        robot_id: str,
        episode_id: str,
        request_id: str,
    ) -> str:
        """The revision that answered; empty when none did."""
        request = policy_pb2.PredictChunkRequest()
        request.CopyFrom(question.request)
        request.robot_id, request.episode_id, request.request_id = robot_id, episode_id, request_id
        started_s, was_down = time.perf_counter(), self.gateway_is_down
        try:
            response = await stub.PredictChunk(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            status, fault = grpc_status(error)
            self.tally.failures[status] += 1
            self.tally.untyped[status] += bool(fault) and not (was_down or self.gateway_is_down)
            # An error is an answer as well, and must come in time.
            self.tally.late += time.perf_counter() - started_s > self._timeout_s * 1.1 + 0.1
            await asyncio.sleep(0.02)
            return ""
        now_s = time.perf_counter()
        self.tally.latencies_s.append(now_s - started_s)
        self.tally.ended_s.append(now_s)
        self.tally.answers[response.revision] += 1
        self._check(question, request, response)
        return response.revision

    def _check(
        self,
        question: Question,
        request: policy_pb2.PredictChunkRequest,
        response: policy_pb2.PredictChunkResponse,
    ) -> None:
        if (response.robot_id, response.request_id) != (request.robot_id, request.request_id):
            self.tally.wrong_revision.append(f"request {request.request_id} got the answer of {response.request_id}")
            return
        expected = question.expected.get(response.revision)
        if expected is None:
            self.tally.wrong_revision.append(f"revision {response.revision} answered, which nobody serves")
            return
        actions = decode_tensor(response.actions, field="actions", dtype=np.float32, shape=(None, None))
        worst = float(np.max(np.abs(actions - expected) / (1 + np.abs(expected))))
        if not worst <= TOLERANCE["fp32"]:
            self.tally.wrong_revision.append(
                f"request {request.request_id} has actions {worst:.3g} away from those of revision {response.revision}"
            )


def grpc_status(failed: grpc.aio.AioRpcError) -> tuple[str, str]:
    """The status, and what is wrong with it as an answer: "hang", "untyped" or nothing."""
    code = failed.code()
    error = read_error_metadata(failed.trailing_metadata())
    if error is not None and error.code == code.value[0] and code is not grpc.StatusCode.UNKNOWN:
        return code.name, ""
    # Without the service's own error this is the robot's side giving up.
    return code.name, "hang" if code is grpc.StatusCode.DEADLINE_EXCEEDED else "untyped"
