"""A whole service with its registry: what comes beside a policy, and a restart, lock none of its robots out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openpi_client import msgpack_numpy
from websockets.asyncio.client import connect

from service.model_settings import ModelSettings
from service.openpi import ObservationMap
from service.revision import read_revision
from service.serve import ServeConfig, Service

FIRST, SECOND = "kitchen", "attic"


@asynccontextmanager
async def running(state: Path, checkpoint: Path, *names: str, **changes: Any) -> AsyncIterator[tuple[Service, dict]]:
    config = ServeConfig(
        policies=tuple((name, checkpoint) for name in names),
        state=state,
        model=ModelSettings(),
        backend="local",
        port=0,
        admin_port=0,
        openpi_port=0,
        drain_s=0.0,
        **changes,
    )
    service = Service(config)
    try:
        yield service, await service.start()
    finally:
        await service.stop()


async def policy_of_a_robot(url: str) -> str:
    async with connect(url, compression=None, proxy=None) as socket:
        return msgpack_numpy.unpackb(await socket.recv())["policy"]


def map_of(checkpoint: Path, policy: str) -> dict[str, Any]:
    body = read_revision(checkpoint, policy=policy).description.embodiments[0]
    images = {camera.name: camera.name for camera in body.cameras}
    return ObservationMap(policy=policy, embodiment=body.name, images=images, state=("state",)).to_json()


async def keep_map(service: Service, checkpoint: Path, policy: str) -> None:
    """In the registry, and followed."""
    assert service._registry is not None and service._process is not None
    service._registry.set_observation_map(policy, map_of(checkpoint, policy), actor="operator")
    service._process.follower.wake()
    await service._process.follower.applied(service._registry.generation(), timeout_s=10)


async def test_a_second_policy_with_or_without_a_map_leaves_the_first_ones_robots_alone_also_after_a_restart(
    toy_checkpoint: Path, tmp_path: Path
) -> None:
    async with running(tmp_path, toy_checkpoint, FIRST) as (service, ready):
        await keep_map(service, toy_checkpoint, FIRST)
        assert await policy_of_a_robot(ready["openpi"]) == FIRST
    # SECOND comes first in the order of names, and is named by a later start.
    async with running(tmp_path, toy_checkpoint, FIRST, SECOND) as (service, ready):
        assert set(ready["policies"]) == {FIRST, SECOND}
        assert await policy_of_a_robot(ready["openpi"]) == FIRST
        await keep_map(service, toy_checkpoint, SECOND)
        assert await policy_of_a_robot(ready["openpi"]) == FIRST
        assert await policy_of_a_robot(f"{ready['openpi']}/policies/{SECOND}") == SECOND
    async with running(tmp_path, toy_checkpoint) as (service, ready):
        assert await policy_of_a_robot(ready["openpi"]) == FIRST
        assert "openpi_refused" not in ready
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            assert (await client.get(f"http{ready['openpi'].removeprefix('ws')}/healthz")).status_code == 200
    async with running(tmp_path, toy_checkpoint, openpi_policy=SECOND) as (service, ready):
        assert await policy_of_a_robot(ready["openpi"]) == SECOND


async def test_a_map_that_does_not_fit_refuses_openpis_robots_and_nobody_else(
    toy_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = ObservationMap.from_json(map_of(toy_checkpoint, FIRST) | {"embodiment": "aloha"})
    async with running(tmp_path, toy_checkpoint, FIRST, openpi_map=wrong) as (_, ready):
        assert set(ready["policies"]) == {FIRST}
        assert "'aloha' is no body" in ready["openpi_refused"][FIRST]
        assert json.dumps(ready)
    assert [record.message for record in caplog.records].count("openpi's robots are refused") == 1
