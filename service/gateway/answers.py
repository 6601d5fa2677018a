"""From a request to its one answer: a chunk, or why there is none.

Owns the order of a request's life in the gateway (route, checks, turn, decoding, backend, output check), its deadline
and its timing. Does not own transport (servicer.py, stream.py), fields (validation.py), whose turn it is (queue.py) or
the model. Keeps nothing between requests but counts.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

import grpc

from premotor.v1 import policy_pb2
from service.backend import (
    Backend,
    BackendChunk,
    BackendRequest,
    BackendUnavailableError,
    InstructionRefusedError,
)
from service.episodes import Episode
from service.errors import (
    DeadlineExpiredError,
    DrainingError,
    InvalidRequestError,
    OutputViolationError,
    Reason,
    ServiceError,
    SupersededError,
    reason_name,
    status,
)
from service.gateway.checks import ChecksByRevision
from service.gateway.images import decode_frames, decodes_quickly
from service.gateway.limits import GatewayLimits
from service.gateway.metrics import UNKNOWN_POLICY, GatewayMetrics, PolicyMetrics
from service.gateway.outcomes import Outcome, Outcomes
from service.gateway.outputs import OutputCheck
from service.gateway.queue import RequestQueue
from service.gateway.refusal import refuse
from service.gateway.response import Spans, chunk_response
from service.gateway.shadow import ShadowTraffic
from service.gateway.validation import CheckedRequest, check_ids
from service.observability.request_trace import current_trace
from service.policies import ServedPolicies
from service.revision import Revision

Answer = policy_pb2.PredictChunkResponse | policy_pb2.RequestError

_logger = logging.getLogger(__name__)
# gRPC's clock for a deadline and ours agree within this.
_DEADLINE_SLACK_S = 0.01


def draw_seed() -> int:
    """A seed that nobody can foresee, 0 to 2^63 - 1."""
    return secrets.randbits(63)


class ChunkAnswerer:
    """Answers chunk requests of every policy, any number at a time."""

    def __init__(
        self,
        *,
        policies: ServedPolicies,
        backend: Backend,
        limits: GatewayLimits,
        metrics: GatewayMetrics,
        decode_threads: Executor,
        shadow: ShadowTraffic | None = None,
        outcomes: Outcomes | None = None,
        draw_seed: Callable[[], int] = draw_seed,
    ) -> None:
        self._policies = policies
        self._backend = backend
        self._limits = limits
        self._metrics = metrics
        self._decode_threads = decode_threads
        self._shadow = shadow
        self._outcomes = outcomes or Outcomes()
        self._draw_seed = draw_seed
        self._queue = RequestQueue(
            capacity=backend.capacity,
            max_queued=limits.max_queued_per_policy,
            max_queued_bytes=limits.max_queued_bytes_per_policy,
            overload_retry_s=limits.overload_retry_s,
        )
        self._checks = ChecksByRevision(limits)
        self._num_in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = asyncio.Event()

    @property
    def draining(self) -> asyncio.Event:
        """Set once the gateway takes no new requests."""
        return self._draining

    async def drain(self, *, timeout_s: float) -> bool:
        """Refuses new requests from now on and waits for those in flight; False when some are left."""
        self._draining.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def answer(
        self,
        request: policy_pb2.PredictChunkRequest | None,
        *,
        timeout_s: float | None,
        caller: str = "",
        num_bytes: int = 0,
    ) -> Answer:
        """The one answer to a request; raises nothing but CancelledError.

        `request` is None when the bytes that came are not a request. `timeout_s` is how long the caller still waits,
        None when the caller did not say. `caller` tells robots of one id apart by whose credential they hold.
        `num_bytes` is what came over the wire, all of which is kept while the request waits.
        """
        arrived_s = time.perf_counter()
        try:
            response = await self._chunk(request, arrived_s, timeout_s, caller, num_bytes)
        except asyncio.CancelledError:
            # gRPC cancels a call both when its caller leaves and when its deadline passes.
            if timeout_s is not None and time.perf_counter() - arrived_s >= timeout_s - _DEADLINE_SLACK_S:
                ended = grpc.StatusCode.DEADLINE_EXCEEDED, Reason.REASON_EXPIRED
            else:
                ended = grpc.StatusCode.CANCELLED, Reason.REASON_UNSPECIFIED
            self._metrics.count(self._policy_label(request), *ended)
            raise
        except Exception as error:  # the edge: whatever went wrong, the caller gets a status and the process lives on
            return self.refuse(error, request)
        self._metrics.count(self._policy_label(request), grpc.StatusCode.OK, Reason.REASON_UNSPECIFIED)
        return response

    def refuse(self, error: Exception, request: policy_pb2.PredictChunkRequest | None) -> policy_pb2.RequestError:
        """Counts and logs a failure, and says of it what the caller may read."""
        code, reason = status(error)
        self._metrics.count(self._policy_label(request), code, reason)
        answer = refuse(error, request)
        internal = code is grpc.StatusCode.INTERNAL
        # A robot that asks faster than it is answered is no event, and would fill the log.
        level = logging.DEBUG if isinstance(error, SupersededError) else logging.INFO
        _logger.log(
            logging.ERROR if internal else level,
            "request failed" if internal else "request refused",
            extra={
                "fields": {
                    "policy": self._policy_label(request),
                    "robot_id": answer.robot_id,
                    "episode_id": answer.episode_id,
                    "request_id": answer.request_id,
                    "status": code.name,
                    "reason": reason_name(reason),
                    "field": answer.field,
                    "error": error.detail if isinstance(error, OutputViolationError) else str(error),
                }
            },
            exc_info=error if internal and not isinstance(error, ServiceError) else None,
        )
        return answer

    async def _chunk(
        self,
        request: policy_pb2.PredictChunkRequest | None,
        arrived_s: float,
        timeout_s: float | None,
        caller: str,
        num_bytes: int,
    ) -> policy_pb2.PredictChunkResponse:
        if request is None:
            raise InvalidRequestError("", "the bytes that came are not the message that this method takes")
        if self._draining.is_set():
            raise DrainingError(
                "the gateway is stopping; ask another replica", retry_after_s=self._limits.unavailable_retry_s
            )
        wait_s = self._limits.default_timeout_s if timeout_s is None else timeout_s
        deadline_s = asyncio.get_running_loop().time() + min(wait_s, self._limits.max_timeout_s)
        robot = f"{caller}/{request.robot_id}" if caller else request.robot_id
        revision = self._revision(request, robot)
        checks = self._checks.of(request.policy, revision)
        checked = checks.request.check(request)
        if checked.num_underruns:
            self._metrics_of(request.policy).note_underruns(checked.num_underruns)
        checked_s = time.perf_counter()
        trace = current_trace()
        if trace is not None:
            trace.stage("check", arrived_s, checked_s)
        with self._in_flight(request.policy), self._policies.using(request.policy, revision):
            timeout = asyncio.timeout_at(deadline_s)
            try:
                # Nothing is awaited between arrival and here: requests line up in the order in which they came.
                async with (
                    timeout,
                    self._queue.turn(
                        policy=request.policy,
                        robot_id=robot,
                        revision=revision.revision,
                        deadline_s=deadline_s,
                        num_bytes=num_bytes,
                    ),
                ):
                    turn_s = time.perf_counter()
                    if trace is not None:
                        trace.stage("queue", checked_s, turn_s)
                    # Not before its turn: what expires or is superseded is never decoded, and what waits stays small.
                    backend_request = await self._decoded(checked)
                    decoded_s = time.perf_counter()
                    if trace is not None:
                        trace.stage("decode", turn_s, decoded_s)
                    chunk = await self._predict(request.policy, revision.revision, backend_request, deadline_s)
            except TimeoutError:
                if not timeout.expired():
                    raise
                raise DeadlineExpiredError("the deadline passed before the chunk was ready") from None
        if trace is not None:
            trace.stage(
                "inference",
                decoded_s,
                time.perf_counter(),
                {"premotor.forward_s": chunk.inference_s, "premotor.batch_size": chunk.batch_size},
            )
        self._check_output(checks.outputs[checked.embodiment_index], chunk, request.policy, revision.revision)
        self._outcomes.note(request.policy, revision.revision, Outcome.ANSWERED, time.perf_counter() - arrived_s)
        self._copy_to_shadow(request.policy, revision, backend_request, chunk)
        spans = Spans(decode_s=checked_s - arrived_s + decoded_s - turn_s, wait_s=turn_s - checked_s)
        stages_s = spans.stages(chunk, time.perf_counter() - arrived_s)
        self._metrics_of(request.policy).note_chunk(revision.revision, stages_s, batch_size=chunk.batch_size)
        return chunk_response(request, revision=revision, asked=backend_request, chunk=chunk, stages_s=stages_s)

    async def _predict(self, policy: str, revision: str, request: BackendRequest, deadline_s: float) -> BackendChunk:
        remaining_s = deadline_s - asyncio.get_running_loop().time()
        if remaining_s <= 0:
            raise DeadlineExpiredError("the deadline passed before the model was asked")
        try:
            return await self._backend.predict(revision, request, timeout_s=remaining_s)
        except asyncio.CancelledError:
            # A deadline that passes ends this wait from outside, and the model was too slow for it. A robot that hangs
            # up before blames nobody.
            if asyncio.get_running_loop().time() >= deadline_s - _DEADLINE_SLACK_S:
                self._blame(policy, revision, Outcome.FAILED, remaining_s)
            raise
        except InstructionRefusedError as error:
            # The robot's words, which the model alone can measure: no fault of the revision.
            raise InvalidRequestError(error.field, error.found) from error
        except Exception as error:
            self._blame(policy, revision, Outcome.FAILED, remaining_s)
            if isinstance(error, BackendUnavailableError):
                self._queue.dismiss(revision, error)
            raise

    def _copy_to_shadow(self, policy: str, revision: Revision, request: BackendRequest, chunk: BackendChunk) -> None:
        shadowing = self._policies.shadowing(policy)
        if shadowing is not None and self._shadow is not None:
            shadow, other = shadowing
            embodiment = revision.description.embodiments[request.embodiment_index]
            self._shadow.offer(policy, shadow, (revision, other), embodiment, request, chunk)

    def _check_output(self, check: OutputCheck, chunk: BackendChunk, policy: str, revision: str) -> None:
        try:
            check.check(chunk.actions)
        except OutputViolationError as error:
            self._blame(policy, revision, Outcome.VIOLATION, 0.0, group=error.group)
            raise

    def _blame(self, policy: str, revision: str, outcome: Outcome, latency_s: float, *, group: str = "") -> None:
        """What a guard judges by and what is published are told of the same."""
        self._outcomes.note(policy, revision, outcome, latency_s)
        self._metrics_of(policy).note_fault(revision, outcome, group=group)

    def _revision(self, request: policy_pb2.PredictChunkRequest, robot: str) -> Revision:
        if not request.policy:
            raise InvalidRequestError("policy", "none came, it is required")
        # Before an episode is remembered by them.
        check_ids(request, self._limits)
        episode = Episode(policy=request.policy, robot_id=robot, episode_id=request.episode_id)
        if request.revision:
            return self._policies.pinned(episode, request.revision)
        return self._policies.routed(episode, began_on=request.episode_revision)

    def _metrics_of(self, policy: str) -> PolicyMetrics:
        """Of a policy that is served, so that no caller chooses a label."""
        return self._metrics.of_policy(policy, num_queued=self._queue.num_waiting)

    @contextmanager
    def _in_flight(self, policy: str) -> Iterator[None]:
        self._num_in_flight += 1
        in_flight = self._metrics_of(policy).in_flight
        in_flight.inc()
        self._idle.clear()
        try:
            yield
        finally:
            self._num_in_flight -= 1
            in_flight.dec()
            if not self._num_in_flight:
                self._idle.set()

    async def _decoded(self, checked: CheckedRequest) -> BackendRequest:
        if decodes_quickly(checked.frames):
            images = decode_frames(checked.frames)
        else:
            loop = asyncio.get_running_loop()
            images = await loop.run_in_executor(self._decode_threads, decode_frames, checked.frames)
        return BackendRequest(
            embodiment_index=checked.embodiment_index,
            images=images,
            state=checked.state,
            instruction=checked.instruction,
            history_states=checked.history_states,
            history_actions=checked.history_actions,
            seed=self._draw_seed() if checked.seed is None else checked.seed,
            num_inference_steps=checked.num_inference_steps,
            real_time_chunking=checked.real_time_chunking,
        )

    def _policy_label(self, request: policy_pb2.PredictChunkRequest | None) -> str:
        return request.policy if request is not None and request.policy in self._policies else UNKNOWN_POLICY
