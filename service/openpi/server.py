"""The websocket server that openpi's robots connect to: start, admit, serve, stop.

Owns the listening socket, the handshake (credential, caps, health) and the connections. Does not own the backend, the
policies or the answerer, which are given to it and outlive it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import grpc
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from premotor.v1 import policy_pb2
from service.backend import Backend
from service.errors import (
    DrainingError,
    NotReadyError,
    OverloadedError,
    ServiceError,
    UnknownPolicyError,
    status_code,
)
from service.gateway.limits import GatewayLimits
from service.openpi.authentication import Authenticator, OpenAccess
from service.openpi.connection import Answerer, OpenpiConnection
from service.openpi.limits import OpenpiLimits
from service.openpi.metadata import describe
from service.openpi.observation_map import ObservationMap, ObservationMapError, check_fits, matching_map
from service.openpi.wire import pack
from service.policies import ServedPolicies
from service.readiness import revision_ready

HEALTH_PATH = "/healthz"

_HTTP_STATUS = {
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
}
# The kernel's bound on unacknowledged bytes; Linux has it.
_TCP_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)
# websockets logs headers and frames when it is told to debug: neither keys nor observations belong in a log.
_websockets_logger = logging.getLogger(f"{__name__}.websockets")
_websockets_logger.setLevel(logging.WARNING)
_logger = logging.getLogger(__name__)


class OpenpiServer:
    """Serves one policy by one map. Starts once; `stop` may be called in any state."""

    def __init__(
        self,
        *,
        policies: ServedPolicies,
        backend: Backend,
        answerer: Answerer,
        gateway_limits: GatewayLimits,
        limits: OpenpiLimits | None = None,
        observation_map: ObservationMap | None = None,
        stored_map: Callable[[str], Mapping[str, Any]] = lambda policy: {},
        authenticator: Authenticator | None = None,
    ) -> None:
        """`stored_map` finds the map that is kept with a policy, as JSON, empty for none; it is asked for every robot.

        `observation_map` is for its policy while none is kept with it. Without either, robots use our names for the one
        policy and body that is served.
        """
        self._policies = policies
        self._backend = backend
        self._answerer = answerer
        self._gateway_limits = gateway_limits
        self._limits = limits or OpenpiLimits()
        self._given_map = observation_map
        self._stored_map = stored_map
        self._authenticator = authenticator or OpenAccess()
        self._decode_threads = ThreadPoolExecutor(gateway_limits.num_decode_threads, thread_name_prefix="openpi-decode")
        self._num_places_taken = 0
        # All there are, from accepted to gone; and those that were let in.
        self._open: set[_Websocket] = set()
        self._connections: set[OpenpiConnection] = set()
        self._server: Server | None = None

    async def start(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: ssl.SSLContext | None = None,
        shares_port: bool = False,
    ) -> int:
        """Listens and returns the port, which the system picks for 0. Raises OSError when it cannot listen.

        With `shares_port` other processes may listen on it as well, and each has some of the connections.
        """
        if self._server is not None:
            raise RuntimeError("the openpi server has been started before, it starts once")
        self._server = await serve(
            self._serve,
            host,
            port,
            ssl=tls,
            reuse_port=shares_port or None,
            # No web page may speak for the robots of whoever opens it; robots name no origin.
            origins=[None],
            compression=None,
            process_request=self._admit,
            server_header=None,
            open_timeout=self._limits.handshake_timeout_s,
            ping_interval=self._limits.ping_interval_s,
            ping_timeout=None,
            close_timeout=self._limits.close_timeout_s,
            max_size=self._gateway_limits.max_message_bytes,
            # A robot sends its next frame once it has its reply. Whoever does not is no longer read from.
            max_queue=1,
            logger=_websockets_logger,
            create_connection=cast("type[ServerConnection]", partial(_Websocket, self._open)),
        )
        bound_port: int = self._server.sockets[0].getsockname()[1]
        _logger.info("openpi server started", extra={"fields": {"host": host, "port": bound_port}})
        return bound_port

    def check_map(self) -> None:
        """Raises ObservationMapError when the map does not fit what is served now, or one is missing.

        A policy that is not served yet is looked at when a robot connects.
        """
        if self._given_map is None and len(self._policies.names) > 1 and len(self._meant()) != 1:
            raise ObservationMapError(f"no observation map says which of {list(self._policies.names)} is meant")
        try:
            description = self._policies.serving(self._policy()).description
        except (UnknownPolicyError, NotReadyError):
            return
        check_fits(self._map_for(description), description)

    async def stop(self, *, grace_s: float = 1.0) -> None:
        """Sends the replies that are ready within `grace_s`, then closes. The answerer is drained before."""
        if self._server is not None:
            self._server.close(close_connections=False)
            await asyncio.gather(*(connection.close(grace_s=grace_s) for connection in self._connections))
            for websocket in list(self._open):  # not yet let in, or not letting go
                websocket.transport.abort()
            await self._server.wait_closed()
            _logger.info("openpi server stopped")
        self._decode_threads.shutdown(wait=False, cancel_futures=True)

    async def _admit(self, websocket: ServerConnection, request: Request) -> Response | None:
        """None lets a robot in; anything else is the whole answer."""
        assert isinstance(websocket, _Websocket)
        if _path(request) == HEALTH_PATH:
            return await self._health(websocket)
        try:
            policy = self._policy()
            websocket.authorization = request.headers.get_all("Authorization")
            websocket.holds.enter_context(self._authenticator.connection(websocket.authorization, policy))
            websocket.holds.enter_context(self._place())
            websocket.greeting = self._greeting()
        except (ServiceError, ObservationMapError) as error:
            return _refused(websocket, error)
        return None

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._answerer.draining.is_set():
            raise DrainingError("the gateway is stopping; ask another replica")
        if self._num_places_taken >= self._limits.max_connections:
            raise OverloadedError(f"{self._num_places_taken} robots are connected, the most that are taken")
        self._num_places_taken += 1
        try:
            yield
        finally:
            self._num_places_taken -= 1

    async def _health(self, websocket: ServerConnection) -> Response:
        """Whether robots of this port get chunks. Reading it needs no credential."""
        try:
            revision = self._policies.serving(self._policy()).revision
        except ServiceError as error:
            return websocket.respond(503, f"{error.message}\n")
        ready = await revision_ready(self._backend, revision, timeout_s=self._gateway_limits.readiness_timeout_s)
        if self._answerer.draining.is_set():
            return websocket.respond(503, "stopping\n")
        if not self._policies.begins_episodes:
            return websocket.respond(503, "cut off from the fleet\n")
        return websocket.respond(200, "ok\n") if ready else websocket.respond(503, "the policy is not ready\n")

    async def _serve(self, websocket: ServerConnection) -> None:
        assert isinstance(websocket, _Websocket) and websocket.request is not None and websocket.greeting is not None
        observation_map, greeting = websocket.greeting
        _let_the_kernel_watch(websocket, self._limits.lost_peer_s)
        connection = OpenpiConnection(
            websocket=websocket,
            path=_path(websocket.request),
            observation_map=observation_map,
            answerer=self._answerer,
            admit=partial(self._authenticator.request, websocket.authorization, observation_map.policy),
            check_key=partial(self._authenticator.still_counts, websocket.authorization),
            check_interval_s=self._gateway_limits.credential_check_s,
            limits=self._limits,
            decode_threads=self._decode_threads,
        )
        self._connections.add(connection)
        try:
            await connection.run(greeting)
        finally:
            self._connections.discard(connection)

    def _greeting(self) -> tuple[ObservationMap, bytes]:
        """The map and the first frame, as things stand now. Raises ServiceError, ObservationMapError."""
        description = self._policies.serving(self._policy()).description
        observation_map = self._map_for(description)
        metadata: dict[str, Any] = describe(
            description, observation_map, gateway_limits=self._gateway_limits, limits=self._limits
        )
        return observation_map, pack(metadata)

    def _policy(self) -> str:
        """Which one robots of this port ask. Raises NotReadyError when nobody says it."""
        if self._given_map is not None:
            return self._given_map.policy
        meant = self._meant()
        if len(meant) != 1:
            raise NotReadyError(
                f"{len(self._policies.names)} policies are served, and no observation map says which of them robots ask"
            )
        return meant[0]

    def _meant(self) -> list[str]:
        """The one policy, or those that a map is kept with."""
        names = self._policies.names
        return [name for name in names if len(names) == 1 or self._stored_map(name)]

    def _map_for(self, description: policy_pb2.Policy) -> ObservationMap:
        """Raises ObservationMapError."""
        if stored := self._stored_map(description.name):
            return ObservationMap.from_json(dict(stored))
        return self._given_map or matching_map(description)


class _Websocket(ServerConnection):
    """Gives back what its handshake took once its TCP connection is gone, also when the handshake failed after that."""

    def __init__(self, open_ones: set[_Websocket], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._open_ones = open_ones
        self.authorization: list[str] = []
        self.greeting: tuple[ObservationMap, bytes] | None = None
        self.holds = ExitStack()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._open_ones.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            super().connection_lost(exc)
        finally:
            self._open_ones.discard(self)
            self.holds.close()


def _path(request: Request) -> str:
    return request.path.partition("?")[0]


def _refused(websocket: ServerConnection, error: ServiceError | ObservationMapError) -> Response:
    if isinstance(error, ObservationMapError):
        status, message = 503, "the observation map does not fit the policy that is served"
    else:
        status, message = _HTTP_STATUS.get(status_code(error), 500), error.message
    _logger.info("connection refused", extra={"fields": {"status": status, "reason": str(error)}})
    response = websocket.respond(status, f"{message}\n")
    if status == 401:
        response.headers["WWW-Authenticate"] = "Api-Key"
    return response


def _let_the_kernel_watch(websocket: ServerConnection, lost_peer_s: float) -> None:
    connected = websocket.transport.get_extra_info("socket")
    if _TCP_USER_TIMEOUT is not None and connected is not None:
        connected.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(1000 * lost_peer_s))
