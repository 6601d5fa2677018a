"""The admin plane on a registry of its own, with a fleet in which nothing is served."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from service.admin import FleetParts, create_admin_app
from service.artifacts import ArtifactStore
from service.model_settings import ModelSettings
from service.policies import ServedPolicies
from service.registry import Registry, open_database
from service.rollout import Follower, Rollout


class IdleBackend:
    """Has everything ready and does nothing."""

    async def start(self) -> None: ...

    async def load(self, revision: Any) -> None: ...

    async def unload(self, revision: str) -> None: ...

    async def ready(self, revision: str) -> bool:
        return True

    async def close(self) -> None: ...


@pytest.fixture
def registry(tmp_path: Path):
    registry = Registry(open_database(f"sqlite:///{tmp_path}/registry.db"))
    yield registry
    registry.close()


@pytest.fixture
async def admin(kit, desk, registry: Registry, tmp_path: Path) -> AsyncIterator[FastAPI]:
    """What is allowed on it answers that there is no such thing."""
    metrics, backend = CollectorRegistry(), IdleBackend()
    artifacts = ArtifactStore(root=tmp_path, cache=tmp_path / "cache")
    follower = Follower(
        registry=registry,
        backend=backend,  # pyright: ignore[reportArgumentType]
        policies=ServedPolicies(),
        artifacts=artifacts,
        model=ModelSettings(),
        gateway_id="a",
        own_process=False,
    )
    rollout = Rollout(registry=registry, follower=follower, artifacts=artifacts)
    yield create_admin_app(
        policies=kit.policies,
        backend=backend,  # pyright: ignore[reportArgumentType]
        metrics_registry=metrics,
        fleet=FleetParts(registry=registry, follower=follower, rollout=rollout),
        credentials=desk.credentials(metrics),
    )
    await follower.stop()


@pytest.fixture
async def http(admin: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    # A failure is an answer like another here.
    transport = httpx.ASGITransport(admin, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://admin", timeout=10.0) as client:
        yield client
