"""The websocket server that openpi's robots connect to: start, admit, serve, stop.

Owns the listening socket, the handshake (credential, policy, caps, health) and the connections. Does not own the
backend, the policies or the answerer, which are given to it and outlive it, nor which policy is meant (addressing.py).
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
from service.errors import DrainingError, OverloadedError, ServiceError, status_code
from service.gateway.limits import GatewayLimits
from service.openpi.addressing import Address, asked_policy, default_policy, read_address
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
    grpc.StatusCode.INVALID_ARGUMENT: 400,
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
    """Serves each policy by its map. Starts once; `stop` may be called in any state."""

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
        policy: str = "",
        first_served: Callable[[], str] = lambda: "",
        authenticator: Authenticator | None = None,
    ) -> None:
        """`stored_map` finds the map that is kept with a policy, as JSON, empty for none; it is asked for every robot.

        `observation_map` is for its policy while none is kept with it. Without either, robots use our names for the
        policy's one body. `policy` is the default of robots that do not say which they ask; when it is empty, that of
        `observation_map`, or else the one that `first_served` finds, is.
        """
        self._policies = policies
        self._backend = backend
        self._answerer = answerer
        self._gateway_limits = gateway_limits
        self._limits = limits or OpenpiLimits()
        self._given_map = observation_map
        self._stored_map = stored_map
        self._said = policy or (observation_map.policy if observation_map is not None else "")
        self._first_served = first_served
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

    def faults(self) -> dict[str, str]:
        """Of the policies that answer now, and have a map or are the default, those that refuse robots, and why.

        A policy that does not answer yet is looked at when a robot connects.
        """
        found = {}
        for name in self._policies:
            description = self._policies.serving(name).description
            try:
                if name == self._default() or self._kept_map(name) is not None:
                    check_fits(self._map_for(description), description)
            except ObservationMapError as error:
                found[name] = str(error)
        return found

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
        address = websocket.address = read_address(request.path)
        if address.path == HEALTH_PATH:
            return await self._health(websocket, address)
        try:
            websocket.authorization = request.headers.get_all("Authorization")
            # Asked for a credential first: whoever has none learns of no policy.
            policy = asked_policy(
                address,
                names=self._policies.names,
                allowed=self._authenticator.policies(websocket.authorization),
                said=self._said,
                first=self._first_served(),
            )
            websocket.holds.enter_context(self._authenticator.connection(websocket.authorization, policy))
            websocket.holds.enter_context(self._place())
            websocket.greeting = self._greeting(policy)
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

    async def _health(self, websocket: ServerConnection, address: Address) -> Response:
        """Whether robots of this address get chunks. Reading it needs no credential.

        Those of no policy in particular ask the default, or any, where there is none.
        """
        policy = address.policy or self._default()
        asked = [policy] if policy else self._policies.names
        try:
            revisions = [self._policies.serving(name).revision for name in asked]
        except ServiceError:
            revisions = []
        timeout_s = self._gateway_limits.readiness_timeout_s
        ready = await asyncio.gather(
            *(revision_ready(self._backend, revision, timeout_s=timeout_s) for revision in revisions)
        )
        if self._answerer.draining.is_set():
            return websocket.respond(503, "stopping\n")
        if not self._policies.begins_episodes:
            return websocket.respond(503, "cut off from the fleet\n")
        if not ready or not all(ready):
            return websocket.respond(503, "the policy is not ready\n")
        return websocket.respond(200, "ok\n")

    async def _serve(self, websocket: ServerConnection) -> None:
        assert isinstance(websocket, _Websocket) and websocket.address is not None and websocket.greeting is not None
        observation_map, greeting = websocket.greeting
        _let_the_kernel_watch(websocket, self._limits.lost_peer_s)
        connection = OpenpiConnection(
            websocket=websocket,
            path=websocket.address.path,
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

    def _greeting(self, policy: str) -> tuple[ObservationMap, bytes]:
        """The map and the first frame, as things stand now. Raises ServiceError, ObservationMapError."""
        description = self._policies.serving(policy).description
        observation_map = self._map_for(description)
        check_fits(observation_map, description)
        metadata: dict[str, Any] = describe(
            description, observation_map, gateway_limits=self._gateway_limits, limits=self._limits
        )
        return observation_map, pack(metadata)

    def _default(self) -> str:
        return default_policy(self._policies.names, said=self._said, first=self._first_served())

    def _map_for(self, description: policy_pb2.Policy) -> ObservationMap:
        """Raises ObservationMapError."""
        return self._kept_map(description.name) or matching_map(description)

    def _kept_map(self, policy: str) -> ObservationMap | None:
        """The one that is kept with the policy, or was given for it. Raises ObservationMapError."""
        if stored := self._stored_map(policy):
            return ObservationMap.from_json({**stored, "policy": policy})
        return self._given_map if self._given_map is not None and self._given_map.policy == policy else None


class _Websocket(ServerConnection):
    """Gives back what its handshake took once its TCP connection is gone, also when the handshake failed after that."""

    def __init__(self, open_ones: set[_Websocket], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._open_ones = open_ones
        self.address: Address | None = None
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
