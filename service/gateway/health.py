"""grpc.health.v1 over the backend's readiness.

Owns the health of the whole gateway and of each policy, and the loop that follows the backend. Does not own probing.
The servicer that ships with grpcio-health-checking is not used: when one of two watchers of a name leaves, the other is
never told of a change again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.backend import Backend
from service.errors import OverloadedError, ServiceError
from service.gateway.limits import GatewayLimits
from service.gateway.metrics import GatewayMetrics
from service.gateway.refusal import abort, refuse
from service.gateway.servicer import SERVICE_NAME
from service.policies import ServedPolicies
from service.readiness import revision_ready

_Status = health_pb2.HealthCheckResponse


def policy_service(policy: str) -> str:
    """The name under which one policy's health is asked for."""
    return f"{SERVICE_NAME}/{policy}"


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Answers Check and Watch for names whose state is set from inside."""

    def __init__(self, limits: GatewayLimits) -> None:
        self._limits = limits
        self._serving: dict[str, bool] = {}
        self._changed: set[asyncio.Event] = set()
        self._closed = False

    def set(self, serving: Mapping[str, bool]) -> None:
        """Replaces all states and wakes watchers. After `close` nothing serves any more."""
        self._serving = {service: one and not self._closed for service, one in serving.items()}
        self._wake()

    def close(self) -> None:
        """Reports everything as not serving, for good, and ends the watches."""
        self._closed = True
        self._serving = dict.fromkeys(self._serving, False)
        self._wake()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return _Status(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext) -> None:
        """Needs no credential, so that all of them together are bounded."""
        most = self._limits.max_watches
        if len(self._changed) >= most:
            error = OverloadedError(
                f"{most} watches are open, the most that are taken", retry_after_s=self._limits.overload_retry_s
            )
            await abort(context, refuse(error, None))
        changed, last = asyncio.Event(), None
        self._changed.add(changed)
        try:
            while True:
                changed.clear()
                status = self._status(request.service)
                if status != last:
                    await context.write(_Status(status=status))
                    last = status
                if self._closed:
                    return
                await changed.wait()
        finally:
            self._changed.discard(changed)

    def _status(self, service: str) -> _Status.ServingStatus:
        if service not in self._serving:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if self._serving[service] else _Status.NOT_SERVING

    def _wake(self) -> None:
        for changed in self._changed:
            changed.set()


class HealthFollower:
    """Keeps a HealthServicer in step with the backend."""

    def __init__(
        self, *, policies: ServedPolicies, backend: Backend, limits: GatewayLimits, metrics: GatewayMetrics
    ) -> None:
        self._policies = policies
        self._backend = backend
        self._limits = limits
        self._metrics = metrics
        # As the metrics say it.
        self._ready_policies: dict[str, bool] | None = None
        self.servicer = HealthServicer(limits)

    async def refresh(self) -> None:
        """Asks the backend once. The whole is serving when there are policies and every one of them is.

        None is for a balancer while no episode may begin here.
        """
        policies = self._policies.names
        ready = await asyncio.gather(*(self._ready(policy) for policy in policies))
        by_policy = dict(zip(policies, ready, strict=True))
        if by_policy != self._ready_policies:
            self._ready_policies = by_policy
            self._metrics.set_ready(by_policy)
        self._metrics.forget_unloaded(self._policies.loaded, known=self._policies.known)
        serving = [one and self._policies.begins_episodes for one in ready]
        whole = dict.fromkeys(("", SERVICE_NAME), bool(policies) and all(serving))
        self.servicer.set(whole | {policy_service(policy): one for policy, one in zip(policies, serving, strict=True)})

    async def run(self) -> None:
        """Refreshes until it is cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._limits.readiness_interval_s)

    async def _ready(self, policy: str) -> bool:
        try:
            revision = self._policies.serving(policy).revision
        except ServiceError:
            return False
        return await revision_ready(self._backend, revision, timeout_s=self._limits.readiness_timeout_s)
