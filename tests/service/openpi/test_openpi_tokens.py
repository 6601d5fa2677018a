"""The service's own tokens are openpi's API keys: for scope infer and the policy, with their caps."""

from __future__ import annotations

import asyncio

import pytest
from openpi_client import msgpack_numpy
from prometheus_client import CollectorRegistry
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from service.credentials import Caps, Surface
from service.gateway import GatewayLimits
from service.openpi import TokenAuthenticator


def key(token: str) -> dict[str, str]:
    return {"Authorization": f"Api-Key {token}"}


@pytest.fixture
def authenticator(desk) -> TokenAuthenticator:
    return TokenAuthenticator(desk.credentials(CollectorRegistry()).on(Surface.OPENPI))


async def refused_with(openpi, port: int, headers: dict[str, str]) -> int:
    with pytest.raises(InvalidStatus) as refused:
        async with openpi.robot(port, additional_headers=headers):
            pass
    return refused.value.response.status_code


async def test_a_key_is_a_token_of_scope_infer_for_the_policy(kit, openpi, desk, authenticator):
    robot = desk.give("infer", policies=("tabletop",))
    async with kit.serve() as gateway, openpi.serve(kit, gateway, authenticator=authenticator) as port:
        statuses = [
            await refused_with(openpi, port, headers)
            for headers in (
                {},
                key(robot[:-6] + "wrong-"),
                key(desk.give("admin")),
                key(desk.give("infer", policies=("kitchen",))),
            )
        ]
        async with openpi.robot(port, additional_headers=key(robot)) as connected:
            assert (await connected.ask(openpi.observation(seed=7)))["seed"] == 7
            desk.revoke(robot)
            assert await connected.ask(openpi.observation(seed=8)) == "UNAUTHENTICATED: the token has been revoked"
        assert await refused_with(openpi, port, key(robot)) == 401
    assert statuses == [401, 401, 403, 403]
    assert len(gateway.backend.requests) == 1


async def test_one_session_of_two_keys_is_two_robots(kit, openpi, desk, authenticator):
    """They would take each other's turns otherwise, and move each other's episodes."""
    backend = kit.backend(room=1, holds={1: asyncio.Event()})
    ours, theirs = key(desk.give("infer")), key(desk.give("infer"))

    def ask(seed: int) -> bytes:
        return msgpack_numpy.packb(openpi.observation(endpoint="infer", session_id="0", seed=seed))

    async with (
        kit.serve(backend=backend) as gateway,
        openpi.serve(kit, gateway, authenticator=authenticator) as port,
        openpi.robot(port, additional_headers=ours) as busy,
        openpi.robot(port, additional_headers=ours) as waiting,
        openpi.robot(port, additional_headers=ours) as newer,
        openpi.robot(port, additional_headers=theirs) as other,
    ):
        await busy.socket.send(ask(1))
        await backend.wait_for_requests(1)
        await waiting.socket.send(ask(2))
        await gateway.until(lambda: gateway.num_requests("queued") == 1)
        await other.socket.send(ask(3))
        await gateway.until(lambda: gateway.num_requests("queued") == 2)
        # Only a key's own session supersedes.
        await newer.socket.send(ask(4))
        assert (await waiting.hear()).startswith("ABORTED: a newer request of this robot")
        backend.holds[1].set()
        assert [(await robot.hear())["seed"] for robot in (busy, newer, other)] == [1, 4, 3]


async def test_a_key_for_one_policy_is_all_that_a_robot_has_to_know(kit, openpi, desk, authenticator):
    async with (
        kit.serve() as gateway,
        openpi.serve(kit, gateway, authenticator=authenticator, policy="another") as port,
        openpi.robot(port, additional_headers=key(desk.give("infer", policies=("tabletop",)))) as robot,
    ):
        assert robot.metadata["policy"] == "tabletop"
        assert (await robot.ask(openpi.observation(seed=7)))["seed"] == 7
        assert await refused_with(openpi, port, key(desk.give("infer"))) == 404


async def test_a_silent_connection_ends_soon_after_its_key(kit, openpi, desk, authenticator):
    token = desk.give("infer")
    limits = GatewayLimits(credential_check_s=0.02)
    async with (
        kit.serve(limits=limits) as gateway,
        openpi.serve(kit, gateway, authenticator=authenticator) as port,
        openpi.robot(port, additional_headers=key(token)) as robot,
    ):
        assert (await robot.ask(openpi.observation(seed=7)))["seed"] == 7
        desk.revoke(token)
        with pytest.raises(ConnectionClosedError) as ended:
            await robot.hear()
    assert ended.value.rcvd is not None
    assert (ended.value.rcvd.code, ended.value.rcvd.reason) == (1008, "UNAUTHENTICATED: the token has been revoked")


async def test_a_key_keeps_its_caps_on_connections_and_requests(kit, openpi, desk, authenticator):
    headers = key(desk.give("infer", caps=Caps(max_streams=1, max_requests_per_s=1)))
    async with (
        kit.serve() as gateway,
        openpi.serve(kit, gateway, authenticator=authenticator) as port,
        openpi.robot(port, additional_headers=headers) as robot,
    ):
        assert await refused_with(openpi, port, headers) == 429
        assert (await robot.ask(openpi.observation(seed=7)))["seed"] == 7
        assert "1 requests a second of this token" in await robot.ask(openpi.observation(seed=8))
        desk.clock_s += 1.0
        assert (await robot.ask(openpi.observation(seed=9)))["seed"] == 9
