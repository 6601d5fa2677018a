"""`python -m service serve`: the whole service in one event loop, and Triton below it.

Owns the order of starting (check, listen, load, probe, announce) and stopping (drain, stop Triton, leave). Does not own
any part: gateway/, admin/, triton/ and local.py do their own work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client import CollectorRegistry

from service.admin import FleetParts, create_admin_app
from service.admin.server import AdminServer
from service.artifacts import ArtifactStore
from service.collection import exempt_what_is_there
from service.credentials import Credentials, ServerTls, ServingTls, Surface, TokenCache
from service.credentials.exposure import check_exposure, warn_while_exposed
from service.gateway import GatewayServer
from service.gateway.answers import ChunkAnswerer
from service.gateway.tracing import TracedAnswerer
from service.model_settings import BackendKind, ModelSettings, openmp_environment
from service.observability.fleet_metrics import FleetMetrics
from service.observability.tracing import Tracing
from service.openpi import ObservationMap, OpenpiServer, TokenAuthenticator
from service.policies import ServedPolicies
from service.registry import Fleet, Operation, Registry, open_database
from service.revision import RevisionError
from service.rollout import Fence, Follower, FollowerSettings, LeaseSettings, LoadingBackend, Rollout
from service.rollout.guard import GuardWatch
from service.rollout.tending import SERVICE_ACTOR
from service.triton.backend import TritonBackend
from service.triton.installation import find_installation
from service.triton.server import ExternalTriton, TritonProcess, TritonProcessSettings

_logger = logging.getLogger(__name__)
# What a scrape of Triton's metrics may take.
_METRICS_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What is served, by what, and where it listens. A port of 0 lets the system pick."""

    # Policy name and checkpoint directory, for policies that the registry does not serve yet. A name that comes twice
    # has two revisions; the first serves, both can be pinned.
    policies: tuple[tuple[str, Path], ...]
    model: ModelSettings
    # Where the registry is; empty is in `state`, or nowhere that outlives the process when that is None too.
    registry: str = ""
    # What the service writes: its registry and downloaded checkpoints.
    state: Path | None = None
    # The only directory that checkpoints are registered from while the service runs.
    store: Path | None = None
    # Whether this gateway stops beginning episodes when it is cut off from the registry.
    fence: Fence = "auto"
    # What all models together may take; None is what the machine has.
    memory_budget_bytes: int | None = None
    backend: BackendKind = "triton"
    host: str = "127.0.0.1"
    port: int = 50051
    admin_port: int = 8080
    # openpi's websocket wire; None leaves it out. The map is for its policy while the registry keeps none with it.
    # Without either, robots use our names.
    openpi_port: int | None = None
    openpi_map: ObservationMap | None = None
    # host:port of the HTTP and the gRPC service of a tritonserver that somebody else runs, and its model repository as
    # seen from here.
    triton_address: str | None = None
    triton_control_address: str | None = None
    triton_repository: Path | None = None
    # Of everything that listens; None listens in the clear.
    tls: ServerTls | None = None
    # Listens beyond loopback even without TLS and tokens.
    insecure_listen: bool = False
    # Records requests; None records none. Triton sends its part by itself, to a URL of its own; empty for nowhere.
    tracing: Tracing | None = None
    otlp_http_url: str = ""
    # Requests in flight get this long to end after SIGTERM.
    drain_s: float = 10.0

    def __post_init__(self) -> None:
        if not (self.policies or self.registry or self.state):
            raise ValueError("no policy to serve: name one with --policy, or a --registry or --state that has some")
        triton = (self.triton_address, self.triton_control_address, self.triton_repository)
        if len({part is None for part in triton}) > 1:
            raise ValueError("a Triton's two addresses and its model repository come together: some were not given")
        # Whether there are tokens is in the registry, which is opened later.
        check_exposure([self.host], tls=self.tls is not None, tokens=True, insecure_listen=self.insecure_listen)
        if self.openpi_map is not None and self.openpi_port is None:
            raise ValueError("an observation map came without a port for openpi's robots")
        if self.otlp_http_url and (self.tracing is None or self.backend != "triton" or self.triton_address is not None):
            raise ValueError("Triton's part of traces needs those of the gateway, and a Triton that is started here")


class Service:
    """Gateway, admin plane and backend. Starts once; `stop` may be called in any state."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._scratch = contextlib.ExitStack()
        self._backend: LoadingBackend | None = None
        self._gateway: GatewayServer | None = None
        self._openpi: OpenpiServer | None = None
        self._admin: AdminServer | None = None
        self._registry: Registry | None = None
        self._follower: Follower | None = None
        self._rollout: Rollout | None = None
        self._guard: GuardWatch | None = None
        self._tls = ServingTls(config.tls) if config.tls is not None else None
        # What goes on beside serving, until it is cancelled.
        self._watches: list[asyncio.Task[None]] = []

    async def start(self) -> dict[str, Any]:
        """Returns what it announces once every revision that serves has passed its probe.

        Raises RevisionError, TritonNotFoundError, TritonStartError, BackendError, RegistryUnavailableError,
        ObservationMapError, ExposedError or OSError; `stop` must follow.
        """
        config = self._config
        state = config.state or Path(self._scratch.enter_context(TemporaryDirectory(prefix="premotor-state-")))
        state.mkdir(parents=True, exist_ok=True)
        artifacts = ArtifactStore(root=config.store, cache=state / "checkpoints")
        # Before anything listens: a checkpoint that is none is the operator's mistake.
        named = [(name, artifacts.name(directory)) for name, directory in config.policies]
        for name, location in named:
            await asyncio.to_thread(artifacts.open, name, location)
        database = await asyncio.to_thread(open_database, config.registry or f"sqlite:///{state}/registry.db")
        self._registry = Registry(database)
        tokens = await self._tokens(self._registry)
        served = ServedPolicies()
        self._backend = _backend(config)
        metrics = CollectorRegistry()
        credentials = Credentials(metrics_registry=metrics, tokens=tokens)
        self._follower = Follower(
            registry=self._registry,
            backend=self._backend,
            policies=served,
            artifacts=artifacts,
            model=config.model,
            gateway_id=secrets.token_hex(8),
            own_process=config.backend == "triton",
            settings=FollowerSettings(
                memory_budget_bytes=config.memory_budget_bytes, lease=LeaseSettings(fence=config.fence)
            ),
        )
        self._follower.listen(partial(_refresh_tokens, tokens, self._registry, self._follower))
        self._rollout = Rollout(registry=self._registry, follower=self._follower, artifacts=artifacts)
        # Listening comes before loading: a taken port is known at once, and health answers while a large model loads.
        self._gateway = GatewayServer(
            policies=served,
            backend=self._backend,
            metrics_registry=metrics,
            credentials=credentials,
            tls=self._tls,
            tracing=config.tracing,
        )
        follower = self._follower
        metrics.register(FleetMetrics(policies=served, follower=follower))
        self._guard = GuardWatch(outcomes=self._gateway.outcomes, rollout=self._rollout, fleet=lambda: follower.fleet)
        port = await self._gateway.start(config.host, config.port)
        endpoints = {"grpc": f"{config.host}:{port}"}
        self._follower.address = f"{config.host}:{port}"
        if config.openpi_port is not None:
            self._openpi = OpenpiServer(
                policies=served,
                backend=self._backend,
                answerer=_traced(self._gateway, config.tracing),
                gateway_limits=self._gateway.limits,
                observation_map=config.openpi_map,
                stored_map=partial(_stored_map, self._follower),
                authenticator=TokenAuthenticator(credentials.on(Surface.OPENPI)),
            )
            context = self._tls.context() if self._tls else None
            openpi_port = await self._openpi.start(config.host, config.openpi_port, tls=context)
            endpoints["openpi"] = f"{'wss' if config.tls else 'ws'}://{config.host}:{openpi_port}"
        app = create_admin_app(
            policies=served,
            backend=self._backend,
            metrics_registry=metrics,
            fleet=FleetParts(registry=self._registry, follower=self._follower, rollout=self._rollout),
            credentials=credentials,
            recent=self._gateway.recent,
            triton_metrics=_triton_metrics(self._backend),
            listen_host=config.host,
        )
        self._admin = AdminServer(app, config.host, config.admin_port, self._tls)
        if self._tls is not None:
            self._watches.append(asyncio.create_task(self._tls.follow(), name="certificates"))
        await self._backend.start()
        await self._follower.start()
        await self._rollout.start()
        self._guard.start()
        await self._introduce(named)
        await self._follower.settled()
        if self._openpi is not None:
            self._openpi.check_map()
        if config.backend == "triton":  # in process there are models among it, which are swapped
            exempt_what_is_there()
        return {
            "event": "ready",
            **endpoints,
            "admin": f"{'https' if config.tls else 'http'}://{config.host}:{self._admin.port}",
            "backend": config.backend,
            "policies": {name: served.serving(name).revision for name in served},
        }

    async def _tokens(self, registry: Registry) -> TokenCache:
        """Raises ExposedError when anybody on the network would get in."""
        config, tokens = self._config, TokenCache()
        await asyncio.to_thread(tokens.refresh, registry)
        tls, required = config.tls is not None, tokens.snapshot.required
        if check_exposure([config.host], tls=tls, tokens=required, insecure_listen=config.insecure_listen):
            self._watches.append(asyncio.create_task(warn_while_exposed(tokens, tls=tls), name="insecure-listen"))
        return tokens

    async def _introduce(self, named: Sequence[tuple[str, str]]) -> None:
        """Makes the registry know what the command line names; what it serves already, it goes on serving."""
        assert self._rollout is not None and self._registry is not None
        known = (await asyncio.to_thread(self._registry.fleet)).policies
        serving = {name for name, policy in known.items() if policy.route is not None}
        for name, location in named:
            revision = (await self._carried_out(self._rollout.register(name, location, actor=SERVICE_ACTOR))).revision
            if name in known and name in serving:
                if (route := known[name].route) is not None and route.stable != revision:
                    fields = {"policy": name, "serving": route.stable, "named": revision}
                    _logger.warning("the registry serves another revision", extra={"fields": fields})
                continue
            begin = self._rollout.load if name in serving else self._rollout.promote
            serving.add(name)
            await self._carried_out(begin(name, revision, actor=SERVICE_ACTOR))

    async def _carried_out(self, beginning: Awaitable[Operation]) -> Operation:
        assert self._rollout is not None
        ended = await self._rollout.ended((await beginning).operation_id)
        if ended.error:
            raise RevisionError(ended.error)
        return ended

    async def stop(self) -> None:
        """Drains the gateway, ends the backend and with it Triton, and closes the admin plane last."""
        if self._guard is not None:
            await self._guard.stop()
        if self._rollout is not None:
            await self._rollout.stop()
        if self._gateway is not None:
            await self._gateway.stop(self._config.drain_s)
        if self._openpi is not None:
            await self._openpi.stop()
        if self._follower is not None:
            await self._follower.stop()
        if self._backend is not None:
            await self._backend.close()
        if self._admin is not None:
            await self._admin.stop()
        if self._config.tracing is not None:
            await self._config.tracing.close()
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        if self._registry is not None:
            self._registry.close()
        self._scratch.close()


async def serve(config: ServeConfig) -> None:
    """Serves until SIGTERM or SIGINT; prints a line of JSON on stdout when ready. Raises what `Service.start` does."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        _on_signal(loop, number, stopping.set)
    service = Service(config)
    try:
        announcement = await _unless(stopping, service.start())
        if announcement is not None:
            print(json.dumps(announcement), flush=True)
            await stopping.wait()
    finally:
        _logger.info("stopping")
        await service.stop()
        _logger.info("stopped")


def _on_signal(loop: asyncio.AbstractEventLoop, number: signal.Signals, act: Callable[[], None]) -> None:
    try:
        loop.add_signal_handler(number, act)
    except NotImplementedError:  # Windows, whose event loops know no signals
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(act))


async def _unless(stopping: asyncio.Event, work: Any) -> dict[str, Any] | None:
    """What `work` returns, or None when it was cut short because the service is to stop."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for pending in (task, stopped):
            pending.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


async def _refresh_tokens(tokens: TokenCache, registry: Registry, follower: Follower, _fleet: Fleet) -> None:
    await follower.ask(partial(tokens.refresh, registry))


def _stored_map(follower: Follower, policy: str) -> Mapping[str, Any]:
    """The observation map that is kept with a policy; empty for none."""
    record = follower.fleet.policies.get(policy) if follower.fleet is not None else None
    return record.observation_map if record is not None else {}


def _backend(config: ServeConfig) -> LoadingBackend:
    if config.backend == "local":
        os.environ |= openmp_environment(config.model.threads)
        from service.local import LocalBackend  # torch in this process only when the model is

        return LocalBackend(config.model)
    address, control, repository = config.triton_address, config.triton_control_address, config.triton_repository
    if address is not None and control is not None and repository is not None:
        return TritonBackend(ExternalTriton(address, control, repository), config.model)
    settings = TritonProcessSettings(threads=config.model.threads, otlp_http_url=config.otlp_http_url)
    return TritonBackend(TritonProcess(find_installation(), settings), config.model)


def _traced(gateway: GatewayServer, tracing: Tracing | None) -> ChunkAnswerer | TracedAnswerer:
    """The gateway's answerer, as openpi's robots get it."""
    return gateway.answerer if tracing is None else TracedAnswerer(gateway.answerer, tracing, method="openpi")


def _triton_metrics(backend: LoadingBackend) -> Callable[[], Awaitable[bytes]] | None:
    return partial(backend.metrics, timeout_s=_METRICS_TIMEOUT_S) if isinstance(backend, TritonBackend) else None
