"""What the admin plane's routes are given.

Owns the one place where the app's parts are kept and found again. Does not own the parts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, FastAPI, Request
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from service.admin.dashboard.sessions import Sessions
from service.backend import Backend
from service.credentials import Credentials, TokenCache
from service.gateway.outcomes import Outcomes
from service.observability.recent import RecentTraffic
from service.policies import ServedPolicies
from service.readiness import revision_ready
from service.registry import Registry
from service.rollout import Follower, Rollout

READINESS_TIMEOUT_S = 2.0
_Result = TypeVar("_Result")
FurtherMetrics = Callable[[], Awaitable[Mapping[int, Iterable[Metric] | None]]]


@dataclass(frozen=True, kw_only=True)
class FleetParts:
    """What knows the fleet, and what changes it."""

    registry: Registry
    follower: Follower
    rollout: Rollout


@dataclass(frozen=True, kw_only=True)
class AdminParts:
    policies: ServedPolicies
    backend: Backend
    metrics_registry: CollectorRegistry
    fleet: FleetParts
    credentials: Credentials
    recent: RecentTraffic
    outcomes: Outcomes
    sessions: Sessions
    # Triton's own; None where no Triton is below the service.
    triton_metrics: Callable[[], Awaitable[bytes]] | None
    # Of the gateway processes beside this one, by number; None where there are none.
    further_metrics: FurtherMetrics | None


class ReadinessCheck:
    """Asks the backend about one revision."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def __call__(self, revision: str) -> bool:
        return await revision_ready(self._backend, revision, timeout_s=READINESS_TIMEOUT_S)


class RegistryReader:
    """Asks the registry in a thread: it blocks."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def ask(self, question: Callable[[Registry], _Result]) -> _Result:
        return await asyncio.to_thread(question, self._registry)


class TokenChanges:
    """Changes tokens in a thread. This process goes by a change before its answer leaves; others follow the fleet."""

    def __init__(self, registry: Registry, cache: TokenCache) -> None:
        self._registry = registry
        self._cache = cache

    async def make(self, change: Callable[[Registry], _Result]) -> _Result:
        def changed() -> _Result:
            result = change(self._registry)
            self._cache.refresh(self._registry)
            return result

        return await asyncio.to_thread(changed)


def attach_parts(app: FastAPI, parts: AdminParts) -> None:
    app.state.parts = parts


# Coroutines, though they wait for nothing: FastAPI gives what is none a turn in a thread, at ten times the cost.
async def _parts(request: Request) -> AdminParts:
    return request.app.state.parts


async def _policies(parts: Annotated[AdminParts, Depends(_parts)]) -> ServedPolicies:
    return parts.policies


async def _readiness_check(parts: Annotated[AdminParts, Depends(_parts)]) -> ReadinessCheck:
    return ReadinessCheck(parts.backend)


async def _metrics_registry(parts: Annotated[AdminParts, Depends(_parts)]) -> CollectorRegistry:
    return parts.metrics_registry


async def _registry(parts: Annotated[AdminParts, Depends(_parts)]) -> RegistryReader:
    return RegistryReader(parts.fleet.registry)


async def _rollout(parts: Annotated[AdminParts, Depends(_parts)]) -> Rollout:
    return parts.fleet.rollout


async def _token_changes(parts: Annotated[AdminParts, Depends(_parts)]) -> TokenChanges:
    return TokenChanges(parts.fleet.registry, parts.credentials.tokens)


Parts = Annotated[AdminParts, Depends(_parts)]
Policies = Annotated[ServedPolicies, Depends(_policies)]
Ready = Annotated[ReadinessCheck, Depends(_readiness_check)]
MetricsRegistry = Annotated[CollectorRegistry, Depends(_metrics_registry)]
Reader = Annotated[RegistryReader, Depends(_registry)]
Changes = Annotated[Rollout, Depends(_rollout)]
Tokens = Annotated[TokenChanges, Depends(_token_changes)]
