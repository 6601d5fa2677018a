"""The server around the connections: who is let in, health, caps, and how it stops."""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import replace

import httpx
import pytest
from openpi_client import msgpack_numpy
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from premotor.v1 import policy_pb2
from service.credentials import TlsFiles, read_tls
from service.openpi import OpenpiLimits
from service.openpi.dialects import VLLM_OMNI_PATH
from service.policies import ServedPolicies, ServedPolicy
from service.revision import schema_digest


async def get(port, path, **options):
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        return await client.get(f"http://127.0.0.1:{port}{path}", **options)


async def refusal(openpi, port, **options):
    """The HTTP answer to a robot that is not let in."""
    with pytest.raises(InvalidStatus) as refused:
        async with openpi.robot(port, **options):
            pass
    return refused.value.response


def one_body(kit, name="tabletop"):
    """A policy that drives sawyer alone."""
    description = policy_pb2.Policy()
    description.CopyFrom(kit.revision.description)
    description.name = name
    del description.embodiments[1]
    description.schema_digest = schema_digest(description)
    return replace(kit.revision, description=description)


def both_bodies(kit, name):
    description = policy_pb2.Policy()
    description.CopyFrom(kit.revision.description)
    description.name = name
    return replace(kit.revision, description=description)


async def test_health_answers_while_a_robot_waits_for_its_chunk(kit, openpi):
    held = asyncio.Event()
    async with (
        kit.serve(backend=kit.backend(holds={5: held})) as gateway,
        openpi.serve(kit, gateway) as port,
        openpi.robot(port) as robot,
    ):
        await robot.socket.send(msgpack_numpy.packb(openpi.observation(seed=5)))
        await gateway.backend.wait_for_requests(1)
        healthy = await get(port, "/healthz?from=probe")
        held.set()
        await robot.hear()
    assert (healthy.status_code, healthy.text) == (200, "ok\n")
    assert healthy.headers["content-type"].startswith("text/plain")


async def test_health_says_when_robots_would_get_no_chunks(kit, openpi):
    async with kit.serve() as gateway, openpi.serve(kit, gateway) as port:
        gateway.backend.is_ready = False
        assert (await get(port, "/healthz")).status_code == 503
        gateway.backend.is_ready = True
        assert (await get(port, "/healthz")).status_code == 200
        await gateway.server.answerer.drain(timeout_s=1)
        assert (await get(port, "/healthz")).status_code == 503
    async with kit.serve() as gateway, openpi.serve(kit, gateway, policies=ServedPolicies()) as port:
        assert (await get(port, "/healthz")).status_code == 503


async def test_health_needs_no_key_and_everything_else_does(kit, openpi):
    doorman = openpi.doorman(key="right")
    async with kit.serve() as gateway, openpi.serve(kit, gateway, authenticator=doorman) as port:
        assert (await get(port, "/healthz")).status_code == 200
        for path in ("/", "/v1/realtime/robot/openpi", "/healthz/", "/metrics"):
            assert (await get(port, path)).status_code == 401
        response = await refusal(openpi, port, additional_headers=[("Authorization", "Api-Key right")] * 2)
        assert response.status_code == 401


async def test_a_key_ends_where_it_is_revoked(kit, openpi):
    doorman = openpi.doorman(key="right")
    async with (
        kit.serve() as gateway,
        openpi.serve(kit, gateway, authenticator=doorman) as port,
        openpi.robot(port, additional_headers={"Authorization": "Api-Key right"}) as robot,
    ):
        assert (await robot.ask(openpi.observation(seed=7)))["seed"] == 7
        doorman.key = "another"
        refused = await robot.ask(openpi.observation(seed=8))
    assert refused == "UNAUTHENTICATED: the credential is not a valid one"
    assert len(gateway.backend.requests) == 1


async def test_a_connection_gives_back_what_its_handshake_took(kit, openpi):
    doorman = openpi.doorman(max_connections=1)
    async with kit.serve() as gateway, openpi.serve(kit, gateway, authenticator=doorman) as port:
        # Refused after it was let in: a web page, and what speaks no websocket at all.
        assert (await refusal(openpi, port, origin="http://evil.example")).status_code == 403
        assert (await get(port, "/")).status_code == 426
        async with openpi.robot(port):
            assert (await refusal(openpi, port)).status_code == 429
        async with asyncio.timeout(5):
            while doorman.num_connected:
                doorman.left.clear()
                await doorman.left.wait()
        async with openpi.robot(port):
            pass


async def test_no_more_robots_than_the_cap_are_connected(kit, openpi):
    limits = OpenpiLimits(max_connections=2)
    async with (
        kit.serve() as gateway,
        openpi.serve(kit, gateway, limits=limits) as port,
        openpi.robot(port),
        openpi.robot(port) as second,
    ):
        response = await refusal(openpi, port)
        assert (response.status_code, response.body) == (429, b"2 robots are connected, the most that are taken\n")
        assert (await second.ask(openpi.observation(seed=7)))["seed"] == 7


async def test_over_tls_it_is_the_same_wire(kit, openpi, certificates):
    tls = read_tls(TlsFiles(certificate=certificates.server, key=certificates.server_key))
    trusting = ssl.create_default_context(cafile=certificates.ca)
    async with kit.serve() as gateway:
        server = openpi.server(kit, gateway)
        port = await server.start(tls=tls.context)
        try:
            async with openpi.robot(port, scheme="wss", ssl=trusting) as robot:
                assert (await robot.ask(openpi.observation(seed=7)))["seed"] == 7
            with pytest.raises(InvalidMessage):
                async with openpi.robot(port):
                    pass
        finally:
            await server.stop()


async def test_nothing_is_compressed(kit, openpi):
    async with (
        kit.serve() as gateway,
        openpi.serve(kit, gateway) as port,
        openpi.robot(port, compression="deflate") as robot,
    ):
        assert robot.socket.response is not None
        assert "Sec-WebSocket-Extensions" not in robot.socket.response.headers


async def test_a_handshake_that_does_not_come_is_not_waited_for(kit, openpi):
    limits = OpenpiLimits(handshake_timeout_s=0.05)
    async with kit.serve() as gateway, openpi.serve(kit, gateway, limits=limits) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_robots_that_use_our_names_need_no_map(kit, openpi):
    policies = ServedPolicies.fixed({"tabletop": [one_body(kit)]})
    # The gateway of the kit drives both bodies; this server is told of the first alone.
    async with (
        kit.serve(backend=kit.backend()) as gateway,
        openpi.serve(kit, gateway, policies=policies, observation_map=None) as port,
        openpi.robot(port) as robot,
    ):
        assert robot.metadata["image_keys"] == ["observation/corner"]
        frame = kit.frame(24, 32)
        reply = await robot.ask(
            {"observation/corner": frame, "observation/state": [0.0] * 4, "prompt": "go", "seed": 7}
        )
    assert reply["actions"].shape == (16, 4)


async def test_a_map_that_does_not_fit_is_said_at_the_start_and_to_whoever_connects(kit, openpi, caplog):
    caplog.set_level(logging.INFO)
    policies = ServedPolicies.fixed({"tabletop": [one_body(kit)], "two-bodies": [both_bodies(kit, "two-bodies")]})
    async with kit.serve() as gateway:
        server = openpi.server(kit, gateway, policies=policies)
        # Nobody said that openpi's robots ask the other one, which has no map and needs one.
        assert server.faults() == {"tabletop": "'panda' is no body of policy 'tabletop', which drives ['sawyer']"}
        await server.stop()
        async with openpi.serve(kit, gateway, policies=policies) as port:
            response = await refusal(openpi, port)
    assert response.status_code == 503
    assert response.body == b"the observation map does not fit the policy that is served\n"
    refused = [record.fields["reason"] for record in caplog.records if record.message == "connection refused"]
    assert len(refused) == 1 and "'panda' is no body" in refused[0]


@pytest.mark.parametrize(
    "images", [{"corner": "eye", "wrist": "hand"}, {"front": "eye"}], ids=["one too many", "another"]
)
async def test_a_map_of_other_cameras_lets_no_robot_in_only_to_refuse_its_frames(kit, openpi, images):
    policies = ServedPolicies.fixed({"tabletop": [one_body(kit)]})
    of_others = {"policy": "tabletop", "images": images, "state": ["joints"]}
    options = {"policies": policies, "observation_map": None, "stored_map": lambda policy: of_others}
    async with kit.serve() as gateway, openpi.serve(kit, gateway, **options) as port:
        response = await refusal(openpi, port)
    assert (response.status_code, response.body) == (
        503,
        b"the observation map does not fit the policy that is served\n",
    )


def two_policies(kit, **options):
    policies = ServedPolicies.fixed({name: [one_body(kit, name)] for name in ("drawer", "tabletop")})
    return {"policies": policies, "observation_map": None, **options}


async def test_where_several_policies_could_be_meant_the_refusal_says_which_and_how_to_say_it(kit, openpi):
    async with kit.serve() as gateway, openpi.serve(kit, gateway, **two_policies(kit)) as port:
        response = await refusal(openpi, port)
        assert response.status_code == 400
        said = response.body.decode()
        assert "which of the policies 'drawer', 'tabletop' is asked?" in said
        assert "/policies/NAME" in said and "--openpi-policy NAME" in said
        # Robots that say which they ask get chunks.
        assert (await get(port, "/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("options", "asked"),
    [({"first_served": lambda: "tabletop"}, "tabletop"), ({"policy": "drawer"}, "drawer")],
    ids=["the one that served first", "the one that was said"],
)
async def test_a_second_policy_and_its_map_change_nothing_for_robots_that_say_no_policy(kit, openpi, options, asked):
    stored: dict[str, dict] = {}
    options = two_policies(kit, stored_map=lambda policy: stored.get(policy, {}), **options)
    async with kit.serve() as gateway, openpi.serve(kit, gateway, **options) as port:
        for with_map in ((), ("drawer",), ("tabletop",), ("drawer", "tabletop")):
            stored |= {name: {"policy": name, "images": {"corner": "eye"}, "state": ["hand"]} for name in with_map}
            async with openpi.robot(port) as robot:
                assert robot.metadata["policy"] == asked
            assert (await get(port, "/healthz")).status_code == 200


async def test_what_served_first_and_was_retired_gives_its_robots_to_nobody(kit, openpi):
    options = two_policies(kit, first_served=lambda: "retired")
    async with kit.serve() as gateway, openpi.serve(kit, gateway, **options) as port:
        assert (await refusal(openpi, port)).status_code == 400


async def test_the_path_says_which_policy_is_asked(kit, openpi):
    names = ("drawer", "a b/c")
    options = {
        "policies": ServedPolicies.fixed({name: [one_body(kit, name)] for name in names}),
        "observation_map": None,
        "policy": "drawer",
    }
    async with kit.serve() as gateway, openpi.serve(kit, gateway, **options) as port:
        for path, policy in {
            "/policies/drawer": "drawer",
            "/policies/drawer/": "drawer",
            "/policies/a%20b%2Fc?x=1": "a b/c",
            f"/policies/a%20b%2Fc{VLLM_OMNI_PATH}": "a b/c",
            "/anything": "drawer",
        }.items():
            async with openpi.robot(port, path) as robot:
                assert robot.metadata["policy"] == policy
                refused = await robot.ask({"endpoint": "kill"})
                # The rest of the path says in which dialect, as it does alone.
                assert isinstance(refused, dict) is path.endswith(VLLM_OMNI_PATH)
        assert (await get(port, "/policies/drawer/healthz")).status_code == 200
        assert (await get(port, "/policies/tabel/healthz")).status_code == 503
        response = await refusal(openpi, port, path="/policies/drawr")
    assert (response.status_code, response.body) == (
        404,
        b"policy: there is no policy 'drawr'; the nearest name is 'drawer'\n",
    )


async def test_a_key_for_one_policy_says_which_is_asked(kit, openpi):
    doorman = openpi.doorman(key_policies=("tabletop", "kitchen"))
    options = two_policies(kit, authenticator=doorman, policy="drawer")
    async with kit.serve() as gateway, openpi.serve(kit, gateway, **options) as port:
        async with openpi.robot(port) as robot:
            assert robot.metadata["policy"] == "tabletop"
        doorman.key_policies = ("tabletop", "drawer")
        async with openpi.robot(port) as robot:
            assert robot.metadata["policy"] == "drawer"
    assert [policy for _, policy in doorman.shown] == ["tabletop", "drawer"]


async def test_whoever_has_no_key_learns_of_no_policy(kit, openpi):
    options = two_policies(kit, authenticator=openpi.doorman(key="right"))
    async with kit.serve() as gateway, openpi.serve(kit, gateway, **options) as port:
        for path in ("/", "/policies/drawr"):
            response = await refusal(openpi, port, path=path)
            assert response.status_code == 401 and b"drawer" not in response.body


async def test_a_map_that_is_kept_with_the_policy_goes_before_the_given_one_for_robots_that_connect_from_then_on(
    kit, openpi
):
    stored: dict[str, dict] = {}
    kept = replace(openpi.panda_map, actions="deltas").to_json()

    async def actions_key(robot) -> str:
        reply = await robot.ask(openpi.observation(seed=7))
        return next(name for name in ("actions", "deltas") if name in reply)

    async with (
        kit.serve() as gateway,
        openpi.serve(kit, gateway, stored_map=lambda policy: stored.get(policy, {})) as port,
        openpi.robot(port) as before,
    ):
        stored["tabletop"] = kept
        async with openpi.robot(port) as after:
            assert (after.metadata["actions_key"], await actions_key(after)) == ("deltas", "deltas")
            assert await actions_key(before) == "actions"
        stored["tabletop"] = {}
        async with openpi.robot(port) as again:
            assert await actions_key(again) == "actions"


async def test_a_policy_that_is_not_served_yet_is_waited_for_by_robots_not_by_the_start(kit, openpi):
    policies = ServedPolicies()
    async with kit.serve() as gateway:
        openpi_server = openpi.server(kit, gateway, policies=policies)
        assert openpi_server.faults() == {}
        port = await openpi_server.start()
        try:
            assert (await refusal(openpi, port)).status_code == 503
            revision = kit.revision.revision
            policies.apply({"tabletop": ServedPolicy(revisions={revision: kit.revision}, shares=((revision, 1.0),))})
            assert openpi_server.faults() == {}
            async with openpi.robot(port) as robot:
                assert robot.metadata["policy"] == "tabletop"
        finally:
            await openpi_server.stop()


async def test_a_drain_sends_what_is_ready_refuses_the_rest_and_then_says_goodbye(kit, openpi):
    held = asyncio.Event()
    async with kit.serve(backend=kit.backend(holds={5: held})) as gateway:
        server = openpi.server(kit, gateway)
        port = await server.start()
        async with openpi.robot(port) as waiting, openpi.robot(port) as idle:
            await waiting.socket.send(msgpack_numpy.packb(openpi.observation(seed=5)))
            await gateway.backend.wait_for_requests(1)
            drained = asyncio.create_task(gateway.server.answerer.drain(timeout_s=5))
            await gateway.server.answerer.draining.wait()
            refused = await idle.ask(openpi.observation(seed=6))
            late = await refusal(openpi, port)
            held.set()
            assert await drained
            stopped = asyncio.create_task(server.stop())
            assert (await waiting.hear())["seed"] == 5
            for robot in (waiting, idle):
                with pytest.raises(ConnectionClosed) as closed:
                    await robot.hear()
                assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
            await stopped
    assert refused == "UNAVAILABLE: the gateway is stopping; ask another replica"
    assert (late.status_code, late.body) == (503, b"the gateway is stopping; ask another replica\n")


async def test_stopping_waits_neither_for_inferences_nor_for_silent_peers(kit, openpi):
    backend = kit.backend(holds={5: asyncio.Event()})
    async with kit.serve(backend=backend) as gateway:
        server = openpi.server(kit, gateway, limits=OpenpiLimits(close_timeout_s=0.05))
        port = await server.start()
        _, never_asks = await asyncio.open_connection("127.0.0.1", port)
        async with openpi.robot(port) as robot:
            await robot.socket.send(msgpack_numpy.packb(openpi.observation(seed=5)))
            await backend.wait_for_requests(1)
            robot.socket.transport.pause_reading()  # and so will not agree to close
            async with asyncio.timeout(5):
                await server.stop(grace_s=0.05)
                await backend.cancelled.wait()
            robot.socket.transport.abort()
        never_asks.close()


async def test_a_taken_port_is_said_at_once(kit, openpi):
    async with kit.serve() as gateway, openpi.serve(kit, gateway) as port:
        server = openpi.server(kit, gateway)
        with pytest.raises(OSError):
            await server.start(port=port)
        await server.stop()


async def test_it_starts_once(kit, openpi):
    async with kit.serve() as gateway:
        server = openpi.server(kit, gateway)
        await server.start()
        with pytest.raises(RuntimeError, match="it starts once"):
            await server.start()
        await server.stop()
