"""What one gateway process is made of, whether it is the first of a service or a further one.

Owns the parts that answer robots and follow the fleet, and the order in which they start and stop. Does not own the
registry, the backend and the tokens, which are given to it and outlive it, nor what only a service's first process has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry

from service.artifacts import ArtifactStore
from service.credentials import Credentials, ServingTls, Surface, TokenCache
from service.episodes import EpisodeTable
from service.gateway import GatewayServer
from service.gateway.answers import ChunkAnswerer
from service.gateway.tracing import TracedAnswerer
from service.model_settings import ModelSettings
from service.observability.fleet_metrics import FleetMetrics
from service.observability.tracing import Tracing
from service.openpi import ObservationMap, OpenpiServer, TokenAuthenticator
from service.policies import ServedPolicies
from service.registry import Fleet, Placement, Registry
from service.rollout import Follower, FollowerSettings, LoadingBackend, Rollout, RolloutSettings
from service.rollout.guard import GuardWatch
from service.rollout.tallies import Tallies


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where robots are answered. A port of 0 lets the system pick; openpi_port None leaves openpi's wire out."""

    host: str
    port: int
    openpi_port: int | None
    # Other processes of this service listen on the same ports.
    shares_ports: bool


class GatewayProcess:
    """`listen` and `follow` once each, in either order; `drain` and `leave` may be called in any state."""

    def __init__(
        self,
        *,
        gateway_id: str,
        registry: Registry,
        tokens: TokenCache,
        backend: LoadingBackend,
        artifacts: ArtifactStore,
        model: ModelSettings,
        follower_settings: FollowerSettings,
        rollout_settings: RolloutSettings,
        own_process: bool,
        loads: bool,
        episode_idle_s: float,
        listening: Listening,
        observation_map: ObservationMap | None,
        openpi_policy: str,
        tls: ServingTls | None,
        tracing: Tracing | None,
    ) -> None:
        """`own_process` and `loads` are Follower's; `openpi_policy` is OpenpiServer's default.

        Raises ValueError for settings of which one contradicts another.
        """
        follower_settings.check_lost_after(rollout_settings.gateway_lost_s)
        self.policies = ServedPolicies(episodes=EpisodeTable(idle_s=episode_idle_s))
        self.metrics = CollectorRegistry()
        self.credentials = Credentials(metrics_registry=self.metrics, tokens=tokens)
        self.gateway = GatewayServer(
            policies=self.policies,
            backend=backend,
            metrics_registry=self.metrics,
            credentials=self.credentials,
            tls=tls,
            tracing=tracing,
            shares_port=listening.shares_ports,
        )
        self.follower = Follower(
            registry=registry,
            backend=backend,
            policies=self.policies,
            artifacts=artifacts,
            model=model,
            gateway_id=gateway_id,
            own_process=own_process,
            loads=loads,
            tallies=Tallies(self.gateway.outcomes),
            settings=follower_settings,
        )
        self.follower.listen(partial(_refresh_tokens, tokens, registry, self.follower))
        self.rollout = Rollout(
            registry=registry, follower=self.follower, artifacts=artifacts, settings=rollout_settings
        )
        self.metrics.register(FleetMetrics(policies=self.policies, follower=self.follower))
        self._guard = GuardWatch(
            placements=partial(_placements, registry, self.follower),
            rollout=self.rollout,
            fleet=lambda: self.follower.fleet,
        )
        self._listening, self._tls = listening, tls
        self._openpi: OpenpiServer | None = None
        if listening.openpi_port is not None:
            self._openpi = OpenpiServer(
                policies=self.policies,
                backend=backend,
                answerer=_traced(self.gateway, tracing),
                gateway_limits=self.gateway.limits,
                observation_map=observation_map,
                stored_map=partial(_stored_map, self.follower),
                policy=openpi_policy,
                first_served=partial(_first_served, self.follower),
                authenticator=TokenAuthenticator(self.credentials.on(Surface.OPENPI)),
            )

    async def listen(self) -> Listening:
        """Returns the ports it has. Raises OSError."""
        asked = self._listening
        port = await self.gateway.start(asked.host, asked.port)
        self.follower.address = f"{asked.host}:{port}"
        openpi_port = asked.openpi_port
        if self._openpi is not None and openpi_port is not None:
            context = self._tls.context() if self._tls else None
            openpi_port = await self._openpi.start(asked.host, openpi_port, tls=context, shares_port=asked.shares_ports)
        return Listening(host=asked.host, port=port, openpi_port=openpi_port, shares_ports=asked.shares_ports)

    async def follow(self) -> None:
        """Becomes a gateway of the fleet. The backend has been started. Raises RegistryUnavailableError."""
        await self.follower.start()
        await self.rollout.start()
        self._guard.start()

    def openpi_faults(self) -> dict[str, str]:
        """Why openpi's robots are refused, by policy, as far as that can be known before one comes."""
        return self._openpi.faults() if self._openpi is not None else {}

    async def drain(self, drain_s: float) -> None:
        """Refuses robots, and gives requests in flight `drain_s` to end. `leave` must follow."""
        await self._guard.stop()
        # Side by side: robots are not kept waiting by a database that is away.
        await asyncio.gather(self.rollout.stop(), self.gateway.stop(drain_s))
        if self._openpi is not None:
            await self._openpi.stop()

    async def leave(self) -> None:
        """Is no gateway of the fleet any more."""
        await self.follower.stop()


async def _placements(registry: Registry, follower: Follower, policy: str, revision: str) -> tuple[Placement, ...]:
    return await follower.ask(partial(registry.placements, policy, revision))


async def _refresh_tokens(tokens: TokenCache, registry: Registry, follower: Follower, _fleet: Fleet) -> None:
    await follower.ask(partial(tokens.refresh, registry))


def _stored_map(follower: Follower, policy: str) -> Mapping[str, Any]:
    """The observation map that is kept with a policy; empty for none."""
    record = follower.fleet.policies.get(policy) if follower.fleet is not None else None
    return record.observation_map if record is not None else {}


def _first_served(follower: Follower) -> str:
    return follower.fleet.first_served if follower.fleet is not None else ""


def _traced(gateway: GatewayServer, tracing: Tracing | None) -> ChunkAnswerer | TracedAnswerer:
    """The gateway's answerer, as openpi's robots get it."""
    return gateway.answerer if tracing is None else TracedAnswerer(gateway.answerer, tracing, method="openpi")
