"""The gateway's gRPC server: start, serve, drain, stop.

Owns the listening socket, the decode threads and the health loop. Does not own the backend, the credentials or the
metrics registry, which are given to it and outlive it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from service.backend import Backend
from service.credentials import Credentials, ServingTls, Surface
from service.gateway.answers import ChunkAnswerer, draw_seed
from service.gateway.authentication import AuthenticationInterceptor
from service.gateway.health import HealthFollower
from service.gateway.limits import GatewayLimits
from service.gateway.metrics import GatewayMetrics
from service.gateway.outcomes import Outcomes
from service.gateway.servicer import SERVICE_NAME, PolicyServicer
from service.gateway.shadow import ShadowTraffic
from service.observability.recent import RecentTraffic
from service.observability.tracing import Tracing
from service.policies import ServedPolicies

# What calls that have their answer, and streams that nobody uses, get to end by themselves once nothing is in flight.
_CLOSE_GRACE_S = 0.5

_logger = logging.getLogger(__name__)


class GatewayServer:
    """Serves PolicyService, health and reflection. Starts once and stops once."""

    def __init__(
        self,
        *,
        policies: ServedPolicies,
        backend: Backend,
        metrics_registry: CollectorRegistry,
        credentials: Credentials | None = None,
        tls: ServingTls | None = None,
        limits: GatewayLimits | None = None,
        tracing: Tracing | None = None,
        draw_seed: Callable[[], int] = draw_seed,
        shares_port: bool = False,
    ) -> None:
        """Without `credentials` nobody needs any; without `tls` it listens in the clear.

        With `shares_port` other processes may listen on its port as well, and each has some of the connections.
        """
        self._shares_port = shares_port
        self._tracing = tracing
        self._limits = limits or GatewayLimits()
        self._access = (credentials or Credentials(metrics_registry=metrics_registry)).on(Surface.GRPC)
        self._tls = tls
        self._policies = policies
        self._backend = backend
        self._decode_threads = ThreadPoolExecutor(self._limits.num_decode_threads, thread_name_prefix="decode")
        self._shadow = ShadowTraffic(
            backend=backend, metrics_registry=metrics_registry, shadowed=partial(_shadowed, policies)
        )
        # How each revision does, for who judges them.
        self.outcomes = Outcomes()
        # The last hour, for who looks at it.
        self.recent = RecentTraffic()
        metrics = GatewayMetrics(metrics_registry, recent=self.recent)
        self._answerer = ChunkAnswerer(
            policies=policies,
            backend=backend,
            limits=self._limits,
            metrics=metrics,
            decode_threads=self._decode_threads,
            shadow=self._shadow,
            outcomes=self.outcomes,
            draw_seed=draw_seed,
        )
        self._health = HealthFollower(policies=policies, backend=backend, limits=self._limits, metrics=metrics)
        self._server: grpc.aio.Server | None = None
        self._health_task: asyncio.Task[None] | None = None

    @property
    def answerer(self) -> ChunkAnswerer:
        """For other wires than gRPC, whose requests are to be answered, bounded, counted and drained like its own."""
        return self._answerer

    @property
    def limits(self) -> GatewayLimits:
        return self._limits

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listens and returns the port, which the system picks for 0. Raises OSError when it cannot listen."""
        if self._server is not None:
            raise RuntimeError("the gateway has been started before, it starts once")
        self._server = self._build_server()
        address = f"[{host}]" if ":" in host else host
        try:
            if self._tls is not None:
                bound_port = self._server.add_secure_port(f"{address}:{port}", self._tls.grpc_credentials())
            else:
                bound_port = self._server.add_insecure_port(f"{address}:{port}")
        except RuntimeError:
            raise OSError(f"cannot listen on {address}:{port}: is the port taken, the address of this host?") from None
        await self._health.refresh()
        await self._server.start()
        self._health_task = asyncio.create_task(self._health.run(), name="gateway-health")
        self._shadow.start()
        _logger.info("gateway started", extra={"fields": {"host": host, "port": bound_port}})
        return bound_port

    async def stop(self, grace_s: float) -> None:
        """Refuses new requests, gives those in flight up to `grace_s` to end, then cancels them and closes."""
        if self._server is None:
            return
        deadline_s = time.perf_counter() + grace_s
        self._health.servicer.close()
        if self._health_task is not None:
            self._health_task.cancel()
            with suppress(asyncio.CancelledError):
                await self._health_task
        await self._shadow.stop()
        drained = await self._answerer.drain(timeout_s=grace_s)
        await self._server.stop(max(0.0, min(_CLOSE_GRACE_S, deadline_s - time.perf_counter())))
        self._decode_threads.shutdown(wait=False, cancel_futures=True)
        _logger.info("gateway stopped", extra={"fields": {"drained": drained}})

    def _build_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[AuthenticationInterceptor(self._access)],
            maximum_concurrent_rpcs=self._limits.max_calls,
            options=[
                ("grpc.max_concurrent_streams", self._limits.max_calls),
                ("grpc.max_receive_message_length", self._limits.max_message_bytes),
                ("grpc.max_send_message_length", self._limits.max_message_bytes),
                # Two services on one port would share its connections at random.
                ("grpc.so_reuseport", int(self._shares_port)),
                # A robot that loses power must not leave its stream behind; a robot may ask whether we are there.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ],
        )
        servicer = PolicyServicer(
            policies=self._policies,
            backend=self._backend,
            answerer=self._answerer,
            access=self._access,
            limits=self._limits,
            tracing=self._tracing,
        )
        server.add_generic_rpc_handlers((servicer.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, server)
        health_service = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((SERVICE_NAME, health_service, reflection.SERVICE_NAME), server)
        return server


def _shadowed(policies: ServedPolicies) -> set[tuple[str, str]]:
    return {(policy, shadow[1].revision) for policy in policies if (shadow := policies.shadowing(policy)) is not None}
