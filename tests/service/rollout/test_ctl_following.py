"""`ctl` waits for an operation however long it takes and however often the way to it breaks, and not for ever."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry

from service.admin import FleetParts, create_admin_app, operations
from service.ctl.admin_client import AdminAddress, AdminClient, AdminError
from service.registry import Registry, RegistryUnavailableError

RUNNING = {"operation": "cafe", "kind": "promote", "state": "running", "steps": [], "error": ""}
ADDRESS = AdminAddress(url="http://admin")


def event(**changes) -> bytes:
    return f"event: progress\ndata: {json.dumps(RUNNING | changes)}\n\n".encode()


class BrokenStream(httpx.SyncByteStream):
    """Says something, then nothing more."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[bytes]:
        yield from self._parts
        raise httpx.ReadTimeout("nothing came")


def client(*answers: Callable[[], httpx.Response], patience_s: float = 60.0) -> AdminClient:
    """The last answer is given again and again."""
    told = itertools.chain(answers, itertools.repeat(answers[-1]))

    def answer(request: httpx.Request) -> httpx.Response:
        return next(told)()

    return AdminClient(ADDRESS, transport=httpx.MockTransport(answer), patience_s=patience_s, retry_s=0.01)


def away() -> httpx.Response:
    raise httpx.ConnectError("nobody listens")


def test_a_stream_that_breaks_is_taken_up_again_and_every_step_is_seen_once():
    loading, ready = ["loading"], ["loading", "probed, ready"]
    steps: list[str] = []
    with client(
        lambda: httpx.Response(200, stream=BrokenStream(event(steps=loading))),
        away,
        lambda: httpx.Response(503, json={"message": "the registry's database does not answer"}),
        lambda: httpx.Response(429, json={"message": "too many at a time"}),
        lambda: httpx.Response(200, stream=BrokenStream(b": it goes on\n\n", event(steps=loading))),
        lambda: httpx.Response(200, content=event(steps=ready) + event(steps=ready, state="succeeded")),
    ) as admin:
        ended = admin.follow(RUNNING, steps.append)
    assert (ended["state"], steps) == ("succeeded", ready)


def test_an_admin_plane_that_stays_away_ends_the_wait_and_says_how_to_go_on():
    with client(away, patience_s=0.05) as admin, pytest.raises(AdminError, match=r"ConnectError.*ctl follow cafe"):
        admin.follow(RUNNING, lambda step: None)


def test_what_will_not_be_otherwise_is_not_asked_again():
    asked: list[int] = []

    def refuse() -> httpx.Response:
        asked.append(1)
        return httpx.Response(401, json={"message": "this needs a token"})

    with client(refuse) as admin, pytest.raises(AdminError, match="this needs a token"):
        admin.follow(RUNNING, lambda step: None)
    assert len(asked) == 1


async def test_a_stream_says_that_it_lives_and_outlives_a_registry_that_is_away(fleet, monkeypatch):
    monkeypatch.setattr(operations, "_POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(operations, "_SILENCE_S", 0.05)
    process = fleet.process("a")
    await process.start()
    app = create_admin_app(
        policies=process.policies,
        backend=process.models,
        metrics_registry=CollectorRegistry(),
        fleet=FleetParts(registry=process.registry, follower=process.follower, rollout=process.rollout),
    )
    process.registry.beat("b", address="", generation=0, placements=[])
    begun = process.registry.start_operation(kind="load", policy="tabletop", actor="ada", gateway_id="b")
    look, looks = Registry.operation, itertools.count()

    def looking(registry: Registry, operation_id: str):
        number = next(looks)
        if 10 <= number < 30:
            raise RegistryUnavailableError("the database went away")
        if number == 40:
            registry.end_operation(operation_id)
        return look(registry, operation_id)

    monkeypatch.setattr(Registry, "operation", looking)
    async with (
        asyncio.timeout(10),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://admin") as http,
    ):
        stream = await http.get(f"/v1/operations/{begun.operation_id}/events")
    lines = [line for line in stream.text.splitlines() if line]
    assert lines[0] == "event: progress" and lines[-2] == "event: ended"
    comments = [line for line in lines if line.startswith(":")]
    assert len(comments) >= 4
    assert json.loads(lines[-1].removeprefix("data: "))["state"] == "succeeded"
