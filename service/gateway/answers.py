"""From a request to its one answer: a chunk, or why there is none.

Owns the order of a request's life in the gateway (admission, checks, decoding, deadline, backend, output check), its
timing and its bound on requests in flight. Does not own transport (servicer.py, stream.py), fields (validation.py) or
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
import numpy as np

from premotor.v1 import policy_pb2
from premotor.wire import encode_duration, encode_tensor
from service.backend import Backend, BackendChunk, BackendRequest
from service.errors import (
    DeadlineExpiredError,
    DrainingError,
    InvalidChunkError,
    InvalidRequestError,
    OverloadedError,
    ServiceError,
    status_code,
)
from service.gateway.images import decode_frames, decodes_quickly
from service.gateway.limits import GatewayLimits
from service.gateway.metrics import UNKNOWN_POLICY, GatewayMetrics
from service.gateway.refusal import refuse
from service.gateway.validation import CheckedRequest, RequestValidator
from service.policies import ServedPolicies
from service.revision import Revision

Answer = policy_pb2.PredictChunkResponse | policy_pb2.RequestError

_logger = logging.getLogger(__name__)


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
        draw_seed: Callable[[], int] = draw_seed,
    ) -> None:
        self._policies = policies
        self._backend = backend
        self._limits = limits
        self._metrics = metrics
        self._decode_threads = decode_threads
        self._draw_seed = draw_seed
        self._validators = {
            (policy, revision.revision): RequestValidator(revision.description, limits)
            for policy in policies
            for revision in policies.revisions(policy)
        }
        self._num_in_flight = dict.fromkeys(policies, 0)
        self._policy_metrics = {policy: metrics.of_policy(policy) for policy in policies}
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

    async def answer(self, request: policy_pb2.PredictChunkRequest | None, *, timeout_s: float | None) -> Answer:
        """The one answer to a request; raises nothing but CancelledError.

        `request` is None when the bytes that came are not a request. `timeout_s` is how long the caller still
        waits, None when the caller did not say.
        """
        arrived_s = time.perf_counter()
        try:
            response = await self._chunk(request, arrived_s, timeout_s)
        except asyncio.CancelledError:
            # gRPC cancels a call both when its caller leaves and when its deadline passes.
            expired = timeout_s is not None and time.perf_counter() - arrived_s >= timeout_s
            code = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
            self._metrics.count(self._policy_label(request), code)
            raise
        except Exception as error:  # the edge: whatever went wrong, the caller gets a status and the process lives on
            return self.refuse(error, request)
        self._metrics.count(self._policy_label(request), grpc.StatusCode.OK)
        return response

    def refuse(self, error: Exception, request: policy_pb2.PredictChunkRequest | None) -> policy_pb2.RequestError:
        """Counts and logs a failure, and says of it what the caller may read."""
        code = status_code(error)
        self._metrics.count(self._policy_label(request), code)
        answer = refuse(error, request)
        internal = code is grpc.StatusCode.INTERNAL
        _logger.log(
            logging.ERROR if internal else logging.INFO,
            "request failed" if internal else "request refused",
            extra={
                "fields": {
                    "policy": self._policy_label(request),
                    "robot_id": answer.robot_id,
                    "episode_id": answer.episode_id,
                    "request_id": answer.request_id,
                    "status": code.name,
                    "field": answer.field,
                    "reason": error.detail if isinstance(error, InvalidChunkError) else str(error),
                }
            },
            exc_info=error if internal and not isinstance(error, ServiceError) else None,
        )
        return answer

    async def _chunk(
        self, request: policy_pb2.PredictChunkRequest | None, arrived_s: float, timeout_s: float | None
    ) -> policy_pb2.PredictChunkResponse:
        if request is None:
            raise InvalidRequestError("", "the bytes that came are not the message that this method takes")
        if self._draining.is_set():
            raise DrainingError(
                "the gateway is stopping; ask another replica", retry_after_s=self._limits.unavailable_retry_s
            )
        revision = self._revision(request)
        wait_s = self._limits.default_timeout_s if timeout_s is None else timeout_s
        deadline_s = arrived_s + min(wait_s, self._limits.max_timeout_s)
        with self._admitted(request.policy):
            timeout = asyncio.timeout(_remaining_s(deadline_s))
            try:
                async with timeout:
                    checked = self._validators[request.policy, revision.revision].check(request)
                    backend_request = await self._decoded(checked)
                    decoded_s = time.perf_counter()
                    chunk = await self._backend.predict(
                        revision.revision, backend_request, timeout_s=_remaining_s(deadline_s)
                    )
            except TimeoutError:
                if not timeout.expired():
                    raise
                raise DeadlineExpiredError("the deadline passed before the chunk was ready") from None
        _check_chunk(chunk, (revision.description.action_horizon, checked.action_dim))
        return self._response(request, revision, backend_request.seed, chunk, arrived_s, decoded_s)

    def _revision(self, request: policy_pb2.PredictChunkRequest) -> Revision:
        if not request.policy:
            raise InvalidRequestError("policy", "none came, it is required")
        if request.revision:
            return self._policies.pinned(request.policy, request.revision)
        return self._policies.serving(request.policy)

    @contextmanager
    def _admitted(self, policy: str) -> Iterator[None]:
        most = self._limits.max_in_flight_per_policy
        if self._num_in_flight[policy] >= most:
            raise OverloadedError(
                f"{most} requests of policy {policy!r} are in flight, the most that are taken",
                retry_after_s=self._limits.overload_retry_s,
            )
        self._num_in_flight[policy] += 1
        self._policy_metrics[policy].in_flight.inc()
        self._idle.clear()
        try:
            yield
        finally:
            self._num_in_flight[policy] -= 1
            self._policy_metrics[policy].in_flight.dec()
            if not any(self._num_in_flight.values()):
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
        )

    def _response(
        self,
        request: policy_pb2.PredictChunkRequest,
        revision: Revision,
        seed: int,
        chunk: BackendChunk,
        arrived_s: float,
        decoded_s: float,
    ) -> policy_pb2.PredictChunkResponse:
        response = policy_pb2.PredictChunkResponse(
            robot_id=request.robot_id,
            episode_id=request.episode_id,
            request_id=request.request_id,
            actions=encode_tensor(chunk.actions),
            revision=revision.revision,
            seed=seed,
        )
        if request.observation.HasField("capture_time"):
            response.capture_time.CopyFrom(request.observation.capture_time)
        decode_s, total_s = decoded_s - arrived_s, time.perf_counter() - arrived_s
        timing = response.timing
        timing.decode.CopyFrom(encode_duration(decode_s))
        timing.queue.CopyFrom(encode_duration(chunk.queue_s))
        timing.inference.CopyFrom(encode_duration(chunk.inference_s))
        timing.total.CopyFrom(encode_duration(total_s))
        metrics = self._policy_metrics[request.policy]
        metrics.decode.observe(decode_s)
        metrics.queue.observe(chunk.queue_s)
        metrics.inference.observe(chunk.inference_s)
        metrics.total.observe(total_s)
        return response

    def _policy_label(self, request: policy_pb2.PredictChunkRequest | None) -> str:
        return request.policy if request is not None and request.policy in self._num_in_flight else UNKNOWN_POLICY


def _remaining_s(deadline_s: float) -> float:
    """Seconds left until `deadline_s` on the performance counter. Raises DeadlineExpiredError when there are none."""
    remaining_s = deadline_s - time.perf_counter()
    if remaining_s <= 0:
        raise DeadlineExpiredError("the deadline passed before the model was asked")
    return remaining_s


def _check_chunk(chunk: BackendChunk, expected: tuple[int, int]) -> None:
    actions = chunk.actions
    if actions.dtype != np.float32 or actions.shape != expected:
        raise InvalidChunkError(f"{actions.dtype} {list(actions.shape)} came, expected float32 {list(expected)}")
    if not np.isfinite(actions).all():
        num_bad = int(actions.size - np.count_nonzero(np.isfinite(actions)))
        raise InvalidChunkError(f"{num_bad} of {actions.size} actions are not finite")
