"""`python -m service serve`: the whole service in one event loop, and Triton below it.

Owns the order of starting (check, listen, load, probe, announce) and stopping (drain, stop Triton, leave). Does not own
any part: gateway/, admin/, triton/, processes/ and local.py do their own work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from service.admin import FleetParts, create_admin_app
from service.admin.server import AdminServer
from service.artifacts import ArtifactStore
from service.collection import exempt_what_is_there
from service.credentials import ServerTls, ServingTls, TokenCache
from service.credentials.exposure import check_exposure, warn_while_exposed
from service.errors import ConflictError
from service.model_settings import BackendKind, ModelSettings, openmp_environment
from service.observability.tracing import Tracing
from service.openpi import ObservationMap
from service.processes.gateway import GatewayProcess, Listening
from service.processes.lines import FurtherGatewayConfig
from service.processes.stopping import stops_on_signals, unless
from service.processes.supervision import FurtherGateways, check_nobody_listens, check_ports_can_be_shared
from service.registry import Operation, Registry, RegistryUnavailableError, open_database
from service.revision import RevisionError
from service.rollout import (
    Fence,
    FollowerSettings,
    LeaseSettings,
    LoadingBackend,
    LoadingSettings,
    RolloutSettings,
)
from service.rollout.tending import SERVICE_ACTOR
from service.triton.backend import SupervisionSettings, TritonBackend
from service.triton.installation import find_installation
from service.triton.server import ExternalTriton, TritonProcess, TritonProcessSettings, TritonServer

_logger = logging.getLogger(__name__)
# What a scrape of Triton's metrics may take.
_METRICS_TIMEOUT_S = 5.0
# Between looks at what another gateway, which starts as well, does with a policy that both were told to serve.
_OTHERS_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What is served, by what, and where it listens. A port of 0 lets the system pick."""

    # Policy name and checkpoint directory, for policies that the registry has never served. A name that comes twice
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
    # Whom its robots ask that do not say; empty for the map's, or else the one that served first.
    openpi_policy: str = ""
    # host:port of the HTTP and the gRPC service of a tritonserver that somebody else runs, and its model repository as
    # seen from here.
    triton_address: str | None = None
    triton_control_address: str | None = None
    triton_repository: Path | None = None
    # What its gRPC service asks of who loads models, "KEY=VALUE"; empty for nothing.
    triton_control_key: str = ""
    # Of everything that listens; None listens in the clear.
    tls: ServerTls | None = None
    # Listens beyond loopback even without TLS and tokens.
    insecure_listen: bool = False
    # Records requests; None records none. Triton sends its part by itself, to a URL of its own; empty for nowhere.
    tracing: Tracing | None = None
    otlp_http_url: str = ""
    # Requests in flight get this long to end after SIGTERM.
    drain_s: float = 10.0
    # A revision gets this long to be ready on every gateway, and episodes in progress this long to end on one that
    # drains.
    load_timeout_s: float = 300.0
    drain_timeout_s: float = 600.0
    # A revision in Triton that nobody has asked for so long is probed.
    idle_probe_s: float = 5.0
    # A robot that is silent for so long has ended its episode.
    episode_idle_s: float = 60.0

    @property
    def gateways(self) -> int:
        """Processes that answer robots, all on one port."""
        return self.model.num_gateways

    @property
    def rollout(self) -> RolloutSettings:
        return RolloutSettings(load_timeout_s=self.load_timeout_s, drain_timeout_s=self.drain_timeout_s)

    def __post_init__(self) -> None:
        _ = self.rollout  # which refuses times that are none
        for name in ("episode_idle_s", "idle_probe_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        if not 0 <= self.drain_s < math.inf:
            raise ValueError(f"drain_s is {self.drain_s}, expected 0 or more, and an end")
        if self.memory_budget_bytes is not None and self.memory_budget_bytes <= 0:
            raise ValueError(f"memory_budget_bytes is {self.memory_budget_bytes}, expected more than 0")
        if not (self.policies or self.registry or self.state):
            raise ValueError("no policy to serve: name one with --policy, or a --registry or --state that has some")
        triton = (self.triton_address, self.triton_control_address, self.triton_repository)
        if len({part is None for part in triton}) > 1:
            raise ValueError("a Triton's two addresses and its model repository come together: some were not given")
        if self.triton_address is not None and self.backend == "local":
            raise ValueError("the addresses of a Triton came with --backend local, which asks none")
        if self.triton_control_key and self.triton_address is None:
            raise ValueError("a key came for a Triton that somebody else runs, and no address of one")
        # Whether there are tokens is in the registry, which is opened later.
        check_exposure([self.host], tls=self.tls is not None, tokens=True, insecure_listen=self.insecure_listen)
        if self.openpi_map is not None and self.openpi_port is None:
            raise ValueError("an observation map came without a port for openpi's robots")
        if self.openpi_policy and self.openpi_port is None:
            raise ValueError("a policy of openpi's robots came without a port for them")
        if self.otlp_http_url and (self.tracing is None or self.backend != "triton" or self.triton_address is not None):
            raise ValueError("Triton's part of traces needs those of the gateway, and a Triton that is started here")
        if self.gateways > 1:
            check_ports_can_be_shared()
            if self.backend == "local":
                raise ValueError(
                    "several gateways need --backend triton: in process each would have models, and batches, of its own"
                )


class Service:
    """Gateway, admin plane, backend and further gateway processes. Starts once; `stop` may be called in any state."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._scratch = contextlib.ExitStack()
        self._backend: LoadingBackend | None = None
        self._process: GatewayProcess | None = None
        self._further: FurtherGateways | None = None
        self._admin: AdminServer | None = None
        self._registry: Registry | None = None
        self._tls = ServingTls(config.tls) if config.tls is not None else None
        # What goes on beside serving, until it is cancelled.
        self._watches: list[asyncio.Task[None]] = []

    async def start(self) -> dict[str, Any]:
        """Returns what it announces once every revision that serves has passed its probe.

        Raises RevisionError, ConflictError, TritonNotFoundError, TritonStartError, BackendError,
        RegistryUnavailableError, WrongRegistryError, ExposedError, FurtherGatewayError or OSError; `stop` must follow.
        """
        config = self._config
        state = config.state or Path(self._scratch.enter_context(TemporaryDirectory(prefix="premotor-state-")))
        state.mkdir(parents=True, exist_ok=True)
        artifacts = ArtifactStore(root=config.store, cache=_cache(state), kept=state / "named-directories.json")
        # Before anything listens: a checkpoint that is none is the operator's mistake.
        named = [(name, artifacts.name(directory)) for name, directory in config.policies]
        await asyncio.to_thread(artifacts.forget_unfinished)
        for name, location in named:
            await artifacts.opened(name, location)
        self._registry = Registry(await asyncio.to_thread(open_database, _registry_url(config, state)))
        tokens = await self._tokens(self._registry)
        self._backend, triton = _backend(config, scratch=None if config.state else state)
        several = config.gateways > 1
        if several:
            for port in (config.port, config.openpi_port or 0):
                await asyncio.to_thread(check_nobody_listens, config.host, port)
        process = self._process = GatewayProcess(
            gateway_id=secrets.token_hex(8),
            registry=self._registry,
            tokens=tokens,
            backend=self._backend,
            artifacts=artifacts,
            model=config.model,
            follower_settings=FollowerSettings(
                loading=LoadingSettings(memory_budget_bytes=config.memory_budget_bytes),
                lease=LeaseSettings(fence=config.fence),
            ),
            rollout_settings=config.rollout,
            own_process=config.backend == "triton",
            loads=True,
            episode_idle_s=config.episode_idle_s,
            listening=Listening(
                host=config.host, port=config.port, openpi_port=config.openpi_port, shares_ports=several
            ),
            observation_map=config.openpi_map,
            openpi_policy=config.openpi_policy,
            tls=self._tls,
            tracing=config.tracing,
        )
        # Listening comes before loading: a taken port is known at once, and health answers while a large model loads.
        listening = await process.listen()
        endpoints = {"grpc": f"{config.host}:{listening.port}"}
        if listening.openpi_port is not None:
            endpoints["openpi"] = f"{'wss' if config.tls else 'ws'}://{config.host}:{listening.openpi_port}"
        if several and triton is not None:
            make_config = partial(self._further_config, listening, triton, state, artifacts)
            self._further = FurtherGateways(
                config.gateways - 1, make_config, left=self._gateway_left, model_dead=self._model_dead
            )
        app = create_admin_app(
            policies=process.policies,
            backend=self._backend,
            metrics_registry=process.metrics,
            fleet=FleetParts(registry=self._registry, follower=process.follower, rollout=process.rollout),
            credentials=process.credentials,
            recent=process.gateway.recent,
            outcomes=process.gateway.outcomes,
            triton_metrics=_triton_metrics(self._backend),
            further_metrics=self._further.metrics if self._further is not None else None,
            listen_host=config.host,
        )
        self._admin = AdminServer(app, config.host, config.admin_port, self._tls)
        if self._tls is not None:
            self._watches.append(asyncio.create_task(self._tls.follow(), name="certificates"))
        await self._backend.start()
        await process.follow()
        await self._introduce(named)
        missing = await self._settled(process, artifacts)
        refusing = process.openpi_faults()
        for policy, fault in refusing.items():
            _logger.error("openpi's robots are refused", extra={"fields": {"policy": policy, "error": fault}})
        if self._further is not None:
            await self._further.start()
        if config.backend == "triton":  # in process there are models among it, which are swapped
            exempt_what_is_there()
        return {
            "event": "ready",
            **endpoints,
            "admin": f"{'https' if config.tls else 'http'}://{config.host}:{self._admin.port}",
            "backend": config.backend,
            "policies": {name: process.policies.serving(name).revision for name in process.policies},
            # Those that should be served and are not, each with why; they are tried again.
            **({"missing": missing} if missing else {}),
            # Those whose observation map does not fit what is served, each with why; robots of gRPC are answered.
            **({"openpi_refused": refusing} if refusing else {}),
        }

    async def _settled(self, process: GatewayProcess, artifacts: ArtifactStore) -> dict[str, str]:
        """What should be served and is not, and why. Raises RevisionError where that is all that should be."""
        assert self._registry is not None
        fleet = await asyncio.to_thread(self._registry.fleet)
        policies = fleet.policies.values()
        # Another gateway may just have promoted what this one is to serve as well; who is late goes on loading.
        with contextlib.suppress(TimeoutError):
            await process.follower.applied(fleet.generation, timeout_s=self._config.rollout.apply_timeout_s)
        records = [record for policy in policies for record in policy.revisions.values()]
        artifacts.keep({record.location for record in records})
        # One is loaded after another.
        num_wanted = sum(record.state.wanted for record in records)
        await process.follower.settled(timeout_s=self._config.load_timeout_s * max(1, num_wanted))
        missing = {
            policy: error or f"not ready within {self._config.load_timeout_s:g} s"
            for policy, error in process.follower.missing().items()
        }
        if missing and len(missing) == sum(policy.route is not None for policy in policies):
            raise RevisionError("; ".join(f"policy {policy!r}: {error}" for policy, error in missing.items()))
        for policy, error in missing.items():
            _logger.error("policy is not served", extra={"fields": {"policy": policy, "error": error}})
        return missing

    def _further_config(
        self,
        listening: Listening,
        triton: TritonServer,
        state: Path,
        artifacts: ArtifactStore,
        process: int,
        gateway_id: str,
    ) -> FurtherGatewayConfig:
        config = self._config
        return FurtherGatewayConfig(
            process=process,
            gateway_id=gateway_id,
            host=listening.host,
            port=listening.port,
            openpi_port=listening.openpi_port,
            observation_map=config.openpi_map,
            openpi_policy=config.openpi_policy,
            registry=_registry_url(config, state),
            cache=_cache(state),
            store=config.store,
            named=artifacts.named,
            fence=config.fence,
            model=config.model,
            triton_address=triton.address,
            triton_control_address=triton.control_address,
            triton_repository=triton.repository,
            triton_owner=triton.owner,
            triton_shares_memory=triton.shares_memory,
            tls=config.tls.files if config.tls is not None else None,
            otlp_endpoint=config.tracing.endpoint if config.tracing is not None else "",
            drain_s=config.drain_s,
            load_timeout_s=config.load_timeout_s,
            idle_probe_s=config.idle_probe_s,
            drain_timeout_s=config.drain_timeout_s,
            episode_idle_s=config.episode_idle_s,
            log_level=logging.getLogger().getEffectiveLevel(),
        )

    async def _gateway_left(self, gateway_id: str) -> None:
        """Its process is gone, which nobody else need find out by waiting."""
        assert self._process is not None and self._registry is not None
        with contextlib.suppress(RegistryUnavailableError):
            await self._process.follower.ask(partial(self._registry.leave, gateway_id))

    def _model_dead(self, revision: str) -> None:
        if isinstance(self._backend, TritonBackend):
            self._backend.look_at(revision)

    async def _tokens(self, registry: Registry) -> TokenCache:
        """Raises ExposedError when anybody on the network would get in."""
        config, tokens = self._config, TokenCache()
        await asyncio.to_thread(tokens.refresh, registry)
        tls, required = config.tls is not None, tokens.snapshot.required
        if check_exposure([config.host], tls=tls, tokens=required, insecure_listen=config.insecure_listen):
            self._watches.append(asyncio.create_task(warn_while_exposed(tokens, tls=tls), name="insecure-listen"))
        return tokens

    async def _introduce(self, named: Sequence[tuple[str, str]]) -> None:
        """Makes the registry know what the command line names, and has it serve what never served before.

        What has, goes on as the registry says: serving what it serves, or retired.
        """
        assert self._process is not None
        rollout = self._process.rollout
        introduced = set[str]()
        for name, location in named:
            revision = (await self._carried_out(rollout.register(name, location, actor=SERVICE_ACTOR))).revision
            if name in introduced:
                await self._carried_out(rollout.load(name, revision, actor=SERVICE_ACTOR))
            elif await self._promoted_first(name, revision):
                introduced.add(name)

    async def _promoted_first(self, policy: str, revision: str) -> bool:
        """Whether it was this process that had the policy serve for the first time; waits for one that is about to.

        Raises ConflictError where that takes too long.
        """
        assert self._process is not None and self._registry is not None
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._config.load_timeout_s
        while (known := await asyncio.to_thread(self._registry.policy, policy)).first_served_at is None:
            try:
                await self._carried_out(
                    self._process.rollout.promote(policy, revision, actor=SERVICE_ACTOR, only_first=True)
                )
                return True
            except ConflictError:
                # Another gateway that starts was first, or may fail yet.
                if loop.time() >= deadline_s:
                    raise
                await asyncio.sleep(_OTHERS_POLL_S)
        if known.route is None:
            _logger.warning("policy is retired, and stays so", extra={"fields": {"policy": policy, "named": revision}})
        elif known.route.stable != revision:
            fields = {"policy": policy, "serving": known.route.stable, "named": revision}
            _logger.warning("the registry serves another revision", extra={"fields": fields})
        return False

    async def _carried_out(self, beginning: Awaitable[Operation]) -> Operation:
        assert self._process is not None
        ended = await self._process.rollout.ended((await beginning).operation_id)
        if ended.error:
            raise RevisionError(ended.error)
        return ended

    async def stop(self) -> None:
        """Drains the gateway, ends the backend and with it Triton, and closes the admin plane last."""
        ending = [part.drain(self._config.drain_s) for part in (self._process,) if part is not None]
        ending += [part.stop(self._config.drain_s) for part in (self._further,) if part is not None]
        await asyncio.gather(*ending)
        if self._process is not None:
            await self._process.leave()
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
    stopping = stops_on_signals()
    service = Service(config)
    try:
        announcement = await unless(stopping, service.start())
        if announcement is not None:
            print(json.dumps(announcement), flush=True)
            await stopping.wait()
    finally:
        _logger.info("stopping")
        await service.stop()
        _logger.info("stopped")


def _cache(state: Path) -> Path:
    return state / "checkpoints"


def _registry_url(config: ServeConfig, state: Path) -> str:
    return config.registry or f"sqlite:///{state}/registry.db"


def _backend(config: ServeConfig, *, scratch: Path | None) -> tuple[LoadingBackend, TritonServer | None]:
    """The backend, and the Triton below it if there is one. `scratch` is of no use once this process has ended."""
    if config.backend == "local":
        os.environ |= openmp_environment(config.model.threads)
        from service.local import LocalBackend  # torch in this process only when the model is

        return LocalBackend(config.model), None
    address, control, repository = config.triton_address, config.triton_control_address, config.triton_repository
    triton: TritonServer
    if address is not None and control is not None and repository is not None:
        triton = ExternalTriton(address, control, repository, control_key=config.triton_control_key)
    else:
        settings = TritonProcessSettings(threads=config.model.threads, otlp_http_url=config.otlp_http_url)
        triton = TritonProcess(find_installation(), settings, state=scratch)
    supervision = SupervisionSettings(load_timeout_s=config.load_timeout_s, heartbeat_interval_s=config.idle_probe_s)
    return TritonBackend(triton, config.model, supervision), triton


def _triton_metrics(backend: LoadingBackend) -> Callable[[], Awaitable[bytes]] | None:
    return partial(backend.metrics, timeout_s=_METRICS_TIMEOUT_S) if isinstance(backend, TritonBackend) else None
