"""One gateway process starts with settings that agree, and ends whatever its parts wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.artifacts import ArtifactStore
from service.backend import BackendChunk, BackendRequest
from service.credentials import TokenCache
from service.gateway.outcomes import Outcome
from service.model_settings import ModelSettings
from service.processes.gateway import GatewayProcess, Listening
from service.registry import Guard, Registry, open_database
from service.revision import Revision
from service.rollout import FollowerSettings, LeaseSettings, RolloutSettings

POLICY = "tabletop"


class IdleModels:
    """Has everything ready and does nothing."""

    async def start(self) -> None: ...

    async def load(self, revision: Revision) -> None: ...

    async def unload(self, revision: str) -> None: ...

    def capacity(self, revision: str) -> int:
        return 1

    async def predict(self, revision: str, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        raise AssertionError("nobody asks")

    async def ready(self, revision: str) -> bool:
        return True

    async def close(self) -> None: ...


@pytest.fixture
async def process_of(tmp_path: Path) -> AsyncIterator[Callable[..., GatewayProcess]]:
    registry = Registry(open_database(f"sqlite:///{tmp_path}/registry.db"))

    def make(follower_settings: FollowerSettings | None = None) -> GatewayProcess:
        return GatewayProcess(
            gateway_id="a",
            registry=registry,
            tokens=TokenCache(),
            backend=IdleModels(),
            artifacts=ArtifactStore(root=tmp_path, cache=tmp_path / "cache"),
            model=ModelSettings(),
            follower_settings=follower_settings or FollowerSettings(),
            rollout_settings=RolloutSettings(),
            own_process=False,
            loads=True,
            listening=Listening(host="127.0.0.1", port=0, openpi_port=None, shares_ports=False),
            observation_map=None,
            openpi_policy="",
            episode_idle_s=60.0,
            tls=None,
            tracing=None,
        )

    yield make
    registry.close()


async def test_robots_are_drained_whatever_the_operations_wait_for(process_of, monkeypatch):
    process = process_of()
    listening = await process.listen()
    await process.follow()
    stop, goes_on = process.rollout.stop, asyncio.Event()

    async def stop_late() -> None:
        await goes_on.wait()
        await stop()

    monkeypatch.setattr(process.rollout, "stop", stop_late)
    async with asyncio.timeout(10), grpc.aio.insecure_channel(f"127.0.0.1:{listening.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest())
        draining = asyncio.create_task(process.drain(0.0))
        # Its port is closed, and the operations are waited for.
        with pytest.raises(grpc.aio.AioRpcError):
            while True:
                await health.Check(health_pb2.HealthCheckRequest(), timeout=5.0)
        assert not draining.done()
        goes_on.set()
        await draining
    await process.leave()


async def test_a_lease_that_would_outlive_its_gateway_is_refused(process_of):
    with pytest.raises(ValueError, match="a gateway that counts as lost would begin episodes"):
        process_of(FollowerSettings(lease=LeaseSettings(lease_s=9.5)))


async def test_what_its_robots_were_answered_is_what_a_guard_undoes_a_change_by(process_of, kit, tmp_path):
    process, revisions = process_of(), []
    rollout = process.rollout
    await process.listen()
    await process.follow()
    for name in ("old", "new"):
        kit.write_checkpoint(tmp_path / name, variant=name)
        operation = await rollout.register(POLICY, name, actor="ada")
        revisions.append((await rollout.ended(operation.operation_id)).revision)
    old, new = revisions
    await rollout.ended((await rollout.promote(POLICY, old, actor="ada")).operation_id)
    guard = Guard(max_error_rate=0.1)
    await rollout.ended((await rollout.split(POLICY, {new: 0.1}, guard=guard, actor="ada")).operation_id)
    for _ in range(20):
        process.gateway.outcomes.note(POLICY, new, Outcome.FAILED, 0.03)
    async with asyncio.timeout(15):
        while process.follower.fleet.policies[POLICY].route.revisions != (old,):  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0.05)
    await process.drain(0.0)
    await process.leave()
