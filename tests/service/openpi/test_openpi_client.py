"""openpi's own client, as it is installed from its package, against a real server."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import InvalidStatus

# It connects in a way that newer versions of its own dependency call old.
pytestmark = pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")


@asynccontextmanager
async def stock_client(port, **options):
    """The client is synchronous: it lives in threads, the server on this loop."""
    client = await asyncio.to_thread(WebsocketClientPolicy, "127.0.0.1", port, **options)
    try:
        yield client
    finally:
        await asyncio.to_thread(client._ws.close)


async def test_it_gets_the_bytes_that_grpc_gets(kit, openpi):
    async with kit.serve() as gateway, openpi.serve(kit, gateway) as port:
        expected = await gateway.stub.PredictChunk(openpi.request(seed=7), timeout=10)
        async with stock_client(port) as client:
            reply = await asyncio.to_thread(client.infer, openpi.observation(seed=7))
    assert reply["actions"].tobytes() == expected.actions.data
    assert reply["actions"].shape == (16, 8)


async def test_it_reads_what_the_policy_is_before_it_asks(kit, openpi):
    async with kit.serve() as gateway, openpi.serve(kit, gateway) as port, stock_client(port) as client:
        metadata = client.get_server_metadata()
    assert (metadata["policy"], metadata["revision"]) == ("tabletop", kit.revision.revision)
    assert metadata["action_horizon"] == 16


async def test_its_broker_plays_a_chunk_action_by_action(kit, openpi):
    async with kit.serve() as gateway, openpi.serve(kit, gateway) as port, stock_client(port) as client:
        broker = ActionChunkBroker(client, action_horizon=8)
        steps = [await asyncio.to_thread(broker.infer, openpi.observation(seed=7)) for _ in range(9)]
    assert all(step["actions"].shape == (8,) for step in steps)
    assert len(gateway.backend.requests) == 2


async def test_a_refusal_is_an_exception_there_and_the_next_frame_is_answered(kit, openpi):
    async with kit.serve() as gateway, openpi.serve(kit, gateway) as port, stock_client(port) as client:
        with pytest.raises(RuntimeError, match=r"observation\['observation/wrist_image_left'\]: float32") as refused:
            await asyncio.to_thread(
                client.infer, openpi.observation(**{"observation/wrist_image_left": np.zeros((8, 8, 3), np.float32)})
            )
        assert "Traceback" not in str(refused.value)
        assert (await asyncio.to_thread(client.infer, openpi.observation(seed=7)))["seed"] == 7


async def test_its_key_is_checked_before_any_frame(kit, openpi):
    doorman = openpi.doorman(key="right")
    async with kit.serve() as gateway, openpi.serve(kit, gateway, authenticator=doorman) as port:
        for key in ("wrong", None):
            with pytest.raises(InvalidStatus) as refused:
                async with stock_client(port, api_key=key):
                    pass
            response = refused.value.response
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == "Api-Key"
            assert b"wrong" not in (response.body or b"")
        async with stock_client(port, api_key="right") as client:
            assert (await asyncio.to_thread(client.infer, openpi.observation(seed=7)))["seed"] == 7
    # No other got so far as to be told of a policy.
    assert doorman.shown == [(["Api-Key right"], "tabletop")]


async def test_its_host_may_be_an_address_that_names_the_policy(kit, openpi):
    async with kit.serve() as gateway, openpi.serve(kit, gateway, policy="another") as port:
        client = await asyncio.to_thread(WebsocketClientPolicy, f"ws://127.0.0.1:{port}/policies/tabletop")
        try:
            assert client.get_server_metadata()["policy"] == "tabletop"
            assert (await asyncio.to_thread(client.infer, openpi.observation(seed=7)))["seed"] == 7
        finally:
            await asyncio.to_thread(client._ws.close)


async def test_clients_are_answered_beside_one_another(kit, openpi):
    """openpi's own server answers the second client once the first has been answered."""
    held = asyncio.Event()
    async with (
        kit.serve(backend=kit.backend(holds={5: held})) as gateway,
        openpi.serve(kit, gateway) as port,
        stock_client(port) as first,
        stock_client(port) as second,
    ):
        waiting = asyncio.create_task(asyncio.to_thread(first.infer, openpi.observation(seed=5)))
        await gateway.backend.wait_for_requests(1)
        assert (await asyncio.to_thread(second.infer, openpi.observation(seed=6)))["seed"] == 6
        assert not waiting.done()
        held.set()
        assert (await waiting)["seed"] == 5
