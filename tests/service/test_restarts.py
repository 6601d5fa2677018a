"""A service that starts again serves what it served, or says what it needs for that."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.__main__ import main
from service.model_settings import ModelSettings
from service.serve import ServeConfig, Service
from tests.service.test_artifacts import WebServer, staged, until

ARGUMENTS = ("serve", "--backend", "local", "--port", "0", "--admin-port", "0", "--drain-s", "0")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command sets up logging for a process of its own."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@asynccontextmanager
async def starting(*policies: tuple[str, Path], **where: Any) -> AsyncIterator[asyncio.Task[dict[str, Any]]]:
    config = ServeConfig(
        policies=policies, model=ModelSettings(), backend="local", port=0, admin_port=0, drain_s=0.0, **where
    )
    service = Service(config)
    task = asyncio.create_task(service.start())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await service.stop()


@asynccontextmanager
async def running(*policies: tuple[str, Path], **where: Any) -> AsyncIterator[dict[str, Any]]:
    async with starting(*policies, **where) as task:
        yield await task


def serve_once(*policies: tuple[str, Path], **where: Any) -> None:
    async def serve() -> None:
        async with running(*policies, **where):
            pass

    asyncio.run(serve())


async def readiness(announced: dict[str, Any]) -> tuple[int, dict[str, bool]]:
    async with httpx.AsyncClient(base_url=announced["admin"], timeout=10.0) as http:
        answer = await http.get("/readyz")
    return answer.status_code, {each["policy"]: each["ready"] for each in answer.json()["policies"]}


@pytest.fixture
def checkpoint(toy_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy_checkpoint, tmp_path / "checkpoint")


async def test_a_restart_with_its_state_alone_serves_what_a_command_line_named(checkpoint, tmp_path):
    state = tmp_path / "state"
    async with running(("tabletop", checkpoint), state=state) as announced:
        served = announced["policies"]
        assert await readiness(announced) == (200, {"tabletop": True})
    for _ in range(2):
        async with running(state=state) as announced:
            assert (announced["event"], announced["policies"]) == ("ready", served)
            assert "missing" not in announced
            assert await readiness(announced) == (200, {"tabletop": True})


def test_a_start_that_would_serve_nothing_is_refused_and_says_what_is_missing(checkpoint, tmp_path, capsys):
    registry = f"sqlite:///{tmp_path}/registry.db"
    serve_once(("tabletop", checkpoint), registry=registry)
    # The registry outlives its service, and where the service kept what was named did not.
    assert main([*ARGUMENTS, "--registry", registry]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert f"policy 'tabletop': location is '{checkpoint}' and the service has no store" in said.err
    assert f"--policy NAME={checkpoint}" in said.err


def test_a_start_whose_checkpoint_is_gone_is_refused(checkpoint, tmp_path, capsys):
    state = tmp_path / "state"
    serve_once(("tabletop", checkpoint), state=state)
    shutil.rmtree(checkpoint)
    assert main([*ARGUMENTS, "--state", str(state)]) == 1
    assert f"cannot serve: policy 'tabletop': {checkpoint} is not a directory" in capsys.readouterr().err


async def test_a_restart_leaves_a_policy_that_was_retired_retired(checkpoint, tmp_path):
    state = tmp_path / "state"
    async with running(("tabletop", checkpoint), state=state) as announced:
        assert await retired(announced, "tabletop") == "succeeded"
    async with running(("tabletop", checkpoint), state=state) as announced:
        assert (announced["event"], announced["policies"]) == ("ready", {})


async def retired(announced: dict[str, Any], policy: str) -> str:
    """How that ended."""
    async with httpx.AsyncClient(base_url=announced["admin"], timeout=10.0) as http, asyncio.timeout(10):
        operation = (await http.post(f"/v1/fleet/policies/{policy}:retire")).json()
        while operation["state"] == "running":
            operation = (await http.get(f"/v1/operations/{operation['operation']}")).json()
    return operation["state"]


async def test_what_a_killed_fetch_left_goes_with_the_next_start_and_a_fetch_ends_with_its_service(kit, tmp_path):
    cache, source = tmp_path / "state" / "checkpoints", kit.write_checkpoint(tmp_path / "source")
    (cache / "fetch-dead").mkdir(parents=True)
    with WebServer(source, pause_s=0.3, num_parts=7) as url:
        async with running(state=tmp_path / "state") as announced, asyncio.timeout(20):
            assert list(cache.iterdir()) == []
            async with httpx.AsyncClient(base_url=announced["admin"], timeout=10.0) as http:
                asked = await http.post("/v1/fleet/policies/tabletop/revisions", json={"location": url})
            assert asked.status_code == 202
            await until(lambda: staged(cache))
        await until(lambda: not staged(cache))
    assert list(cache.iterdir()) == []


async def test_two_services_that_start_at_once_on_a_fresh_registry_serve_the_same(checkpoint, tmp_path):
    registry = f"sqlite:///{tmp_path}/registry.db"
    async with (
        starting(("tabletop", checkpoint), registry=registry, state=tmp_path / "a") as first,
        starting(("tabletop", checkpoint), registry=registry, state=tmp_path / "b") as second,
    ):
        announced = [await first, await second]
        (served,) = {tuple(each["policies"].items()) for each in announced}
        assert [policy for policy, _ in served] == ["tabletop"]
        assert [await readiness(each) for each in announced] == [(200, {"tabletop": True})] * 2
        async with httpx.AsyncClient(base_url=announced[0]["admin"], timeout=10.0) as http:
            entries = (await http.get("/v1/audit")).json()["entries"]
        assert [entry["outcome"] for entry in entries if entry["action"] == "promote"] == ["succeeded"]


async def test_a_policy_that_is_gone_does_not_keep_the_others_from_being_served(checkpoint, tmp_path):
    other, state = shutil.copytree(checkpoint, tmp_path / "other"), tmp_path / "state"
    async with running(("tabletop", checkpoint), ("kitchen", other), state=state) as announced:
        assert set(announced["policies"]) == {"tabletop", "kitchen"}
    shutil.rmtree(other)
    async with running(state=state) as announced:
        assert set(announced["policies"]) == {"tabletop"}
        assert announced["missing"] == {"kitchen": f"{other} is not a directory, expected a checkpoint"}
        assert await readiness(announced) == (503, {"kitchen": False, "tabletop": True})
