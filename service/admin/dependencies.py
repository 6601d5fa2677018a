"""What the admin plane's routes are given.

Owns the one place where the app's parts are kept and found again. Does not own the parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from prometheus_client import CollectorRegistry

from service.backend import Backend
from service.policies import ServedPolicies
from service.readiness import revision_ready

READINESS_TIMEOUT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class AdminParts:
    policies: ServedPolicies
    backend: Backend
    metrics_registry: CollectorRegistry


class ReadinessCheck:
    """Asks the backend about one revision."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def __call__(self, revision: str) -> bool:
        return await revision_ready(self._backend, revision, timeout_s=READINESS_TIMEOUT_S)


def attach_parts(app: FastAPI, parts: AdminParts) -> None:
    app.state.parts = parts


def _parts(request: Request) -> AdminParts:
    return request.app.state.parts


def _policies(parts: Annotated[AdminParts, Depends(_parts)]) -> ServedPolicies:
    return parts.policies


def _readiness_check(parts: Annotated[AdminParts, Depends(_parts)]) -> ReadinessCheck:
    return ReadinessCheck(parts.backend)


def _metrics_registry(parts: Annotated[AdminParts, Depends(_parts)]) -> CollectorRegistry:
    return parts.metrics_registry


Policies = Annotated[ServedPolicies, Depends(_policies)]
Ready = Annotated[ReadinessCheck, Depends(_readiness_check)]
MetricsRegistry = Annotated[CollectorRegistry, Depends(_metrics_registry)]
