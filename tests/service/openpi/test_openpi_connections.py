"""Robots of every dialect over real sockets: the same chunks as gRPC's, ids, order, and what harms nobody."""

from __future__ import annotations

import asyncio
import json
import logging

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.exceptions import ConnectionClosed

from premotor.v1 import policy_pb2
from premotor.wire import decode_tensor, encode_tensor
from service.backend import BackendFailedError, BackendUnavailableError
from service.gateway import GatewayLimits
from service.logs import JsonFormatter
from service.openpi import OpenpiLimits
from service.openpi.connection import INLINE_MAX_BYTES
from service.openpi.dialects import VLLM_OMNI_PATH

TIMEOUT_S = 10.0


async def grpc_bytes(gateway, request):
    response = await gateway.stub.PredictChunk(request, timeout=TIMEOUT_S)
    assert decode_tensor(response.actions, field="actions", dtype=np.float32, shape=(16, 8)).dtype == np.float32
    return response.actions.data


def unlike_any_other(request):
    """float32 [horizon, action_dim] that depends on everything a request holds."""
    pixels = sum(float(image.sum()) for image in request.images)
    noise = np.random.default_rng(request.seed).normal(size=(16, 8))
    return (noise + pixels + request.state.sum() + len(request.instruction)).astype(np.float32)


async def test_every_dialect_gets_the_bytes_that_grpc_gets(kit, openpi):
    observation = openpi.observation()
    async with (
        kit.serve(backend=kit.backend(make_actions=unlike_any_other)) as gateway,
        openpi.serve(kit, gateway) as port,
    ):
        expected = await grpc_bytes(gateway, openpi.request(seed=7))
        async with openpi.robot(port) as robot:
            flat = await robot.ask({**observation, "seed": 7})
            roboarena = await robot.ask({**observation, "seed": 7, "endpoint": "infer", "session_id": "s"})
            starvla = await robot.ask({"type": "infer", "request_id": "r", "payload": {**observation, "seed": 7}})
            other = await robot.ask({**observation, "seed": 8})
        async with openpi.robot(port, VLLM_OMNI_PATH) as robot:
            vllm_omni = await robot.ask({**observation, "seed": 7})
    assert starvla["data"]["actions"].shape == (1, 16, 8)
    for actions in (flat["actions"], roboarena["actions"], starvla["data"]["actions"], vllm_omni):
        assert (actions.dtype, actions.shape[-2:]) == (np.float32, (16, 8))
        assert actions.tobytes() == expected
    assert other["actions"].tobytes() != expected
    assert (flat["seed"], flat["revision"]) == (7, kit.revision.revision)


async def test_the_model_is_asked_for_what_the_robot_sent_without_history(kit, openpi):
    observation = openpi.observation()
    async with kit.serve() as gateway, openpi.serve(kit, gateway) as port, openpi.robot(port) as robot:
        reply = await robot.ask({**observation, "endpoint": "infer", "mode": "x"})
    (asked,) = gateway.backend.requests
    assert (asked.embodiment_index, asked.instruction, asked.num_inference_steps) == (1, "lift the cube", 5)
    np.testing.assert_array_equal(asked.images[0], observation["observation/exterior_image_1_left"])
    np.testing.assert_array_equal(asked.images[1], observation["observation/wrist_image_left"])
    assert asked.state.dtype == np.float32
    np.testing.assert_array_equal(asked.state[7:], [0.25, 0.5])
    assert len(asked.history_states) == 0
    assert reply["seed"] == asked.seed == 11  # what the gateway draws


async def test_a_large_frame_is_read_in_a_thread_to_the_same_request(kit, openpi):
    frame = np.random.default_rng(0).integers(0, 256, (3, 480, 640), np.uint8)
    assert frame.nbytes > INLINE_MAX_BYTES
    async with kit.serve() as gateway, openpi.serve(kit, gateway) as port, openpi.robot(port) as robot:
        await robot.ask(openpi.observation(**{"observation/wrist_image_left": frame}))
    np.testing.assert_array_equal(gateway.backend.requests[0].images[1], frame.transpose(1, 2, 0))


async def test_replies_say_where_the_time_went(kit, openpi):
    async with kit.serve() as gateway, openpi.serve(kit, gateway) as port, openpi.robot(port) as robot:
        first, second = [await robot.ask(openpi.observation()) for _ in range(2)]
    assert first["policy_timing"] == {"infer_ms": 2.0}
    assert set(first["server_timing"]) == {"infer_ms"}
    assert 0 < first["server_timing"]["infer_ms"] <= second["server_timing"]["prev_total_ms"] < 1000 * TIMEOUT_S


class Recorder:
    """Notes each request on its way to the answerer."""

    def __init__(self, answerer):
        self.requests, self._answerer = [], answerer

    @property
    def draining(self):
        return self._answerer.draining

    def refuse(self, error, request):
        return self._answerer.refuse(error, request)

    async def answer(self, request, **options):
        self.requests.append(request)
        return await self._answerer.answer(request, **options)


async def recorded(kit, openpi, *conversations, path="/"):
    """The requests that each connection's messages became."""
    found = []
    async with kit.serve() as gateway:
        recorder = Recorder(gateway.server.answerer)
        async with openpi.serve(kit, gateway, answerer=recorder) as port:
            for messages in conversations:
                async with openpi.robot(port, path) as robot:
                    for message in messages:
                        await robot.ask(message)
                found.append(recorder.requests)
                recorder.requests = []
    return found


async def test_a_connection_is_a_robot_and_a_reset_begins_an_episode(kit, openpi):
    ask, reset = openpi.observation(), {"endpoint": "reset"}
    first, second = await recorded(kit, openpi, [ask, ask, reset, ask], [ask])
    assert len({request.robot_id for request in first}) == 1
    assert first[0].episode_id == first[1].episode_id != first[2].episode_id
    assert [request.request_id for request in first] == ["1", "2", "3"]
    assert second[0].robot_id != first[0].robot_id
    assert {request.policy for request in first} == {"tabletop"}


async def test_a_session_is_a_robot_on_any_connection_and_another_session_another_episode(kit, openpi):
    asks = [openpi.observation(endpoint="infer", session_id=name) for name in ("a", "a", "b")]
    unnamed = openpi.observation(endpoint="infer")
    first, second = await recorded(kit, openpi, [*asks, unnamed], asks[:1])
    robots = [request.robot_id for request in first]
    assert robots[0] == robots[1] == second[0].robot_id
    assert robots[2] == robots[3] != robots[0]
    episodes = [request.episode_id for request in first]
    assert episodes[0] == episodes[1] != episodes[2] == episodes[3]


@pytest.mark.parametrize(
    ("path", "message", "reply"),
    [
        ("/", {"endpoint": "reset"}, "reset successful"),
        (VLLM_OMNI_PATH, {"endpoint": "reset"}, {"status": "reset successful"}),
        ("/", {"type": "ping", "request_id": 1}, {"status": "ok", "ok": True, "type": "ping", "request_id": 1}),
        ("/", {"type": "reset"}, {"status": "ok", "ok": True, "type": "reset", "request_id": "default"}),
    ],
)
async def test_what_asks_for_no_chunk_reaches_no_model(kit, openpi, path, message, reply):
    async with kit.serve() as gateway, openpi.serve(kit, gateway) as port, openpi.robot(port, path) as robot:
        assert await robot.ask(message) == reply
    assert gateway.backend.requests == []


async def test_replies_come_in_the_order_of_the_frames_one_at_a_time(kit, openpi):
    held = asyncio.Event()
    async with (
        kit.serve(backend=kit.backend(holds={0: held})) as gateway,
        openpi.serve(kit, gateway) as port,
        openpi.robot(port) as robot,
    ):
        for seed in range(4):
            await robot.socket.send(msgpack_numpy.packb(openpi.observation(seed=seed)))
        await gateway.backend.wait_for_requests(1)
        async with openpi.robot(port) as other:  # whose frame arrives after those, and is answered before
            assert (await other.ask(openpi.observation(seed=9)))["seed"] == 9
        assert [request.seed for request in gateway.backend.requests] == [0, 9]
        held.set()
        assert [(await robot.hear())["seed"] for _ in range(4)] == [0, 1, 2, 3]


async def test_frames_that_wait_are_bounded_by_their_bytes(kit, openpi):
    backend = kit.backend(room=1, holds={5: asyncio.Event()})
    size = len(msgpack_numpy.packb(openpi.observation(seed=5)))
    limits = GatewayLimits(max_message_bytes=2 * size - 1, max_queued_bytes_per_policy=2 * size - 1)
    async with (
        kit.serve(backend=backend, limits=limits) as gateway,
        openpi.serve(kit, gateway) as port,
        openpi.robot(port) as inside,
        openpi.robot(port) as waiting,
        openpi.robot(port) as refused,
    ):
        await inside.socket.send(msgpack_numpy.packb(openpi.observation(seed=5)))
        await backend.wait_for_requests(1)
        await waiting.socket.send(msgpack_numpy.packb(openpi.observation(seed=6)))
        await gateway.until(lambda: gateway.num_requests("queued") == 1)
        said = await refused.ask(openpi.observation(seed=7))
        assert said.startswith(f"RESOURCE_EXHAUSTED: {size} of {2 * size - 1} bytes in requests of policy")
        backend.holds[5].set()
        assert [(await robot.hear())["seed"] for robot in (inside, waiting)] == [5, 6]


async def test_a_ping_is_answered_during_a_long_inference(kit, openpi):
    held = asyncio.Event()
    async with (
        kit.serve(backend=kit.backend(holds={5: held})) as gateway,
        openpi.serve(kit, gateway) as port,
        openpi.robot(port) as robot,
    ):
        await robot.socket.send(msgpack_numpy.packb(openpi.observation(seed=5)))
        await gateway.backend.wait_for_requests(1)
        async with asyncio.timeout(5):
            await (await robot.socket.ping())
        held.set()
        assert (await robot.hear())["seed"] == 5


async def test_a_robot_that_leaves_gives_its_place_up(kit, openpi):
    backend = kit.backend(holds={5: asyncio.Event()})
    async with kit.serve(backend=backend) as gateway, openpi.serve(kit, gateway) as port:
        async with openpi.robot(port) as robot:
            await robot.socket.send(msgpack_numpy.packb(openpi.observation(seed=5)))
            await backend.wait_for_requests(1)
            robot.socket.transport.abort()
        async with asyncio.timeout(5):
            await backend.cancelled.wait()
        async with openpi.robot(port) as robot:
            assert (await robot.ask(openpi.observation(seed=6)))["seed"] == 6
    assert gateway.count(policy="tabletop", status="CANCELLED") == 1


ARRAY = {b"__ndarray__": True, b"data": bytes(12), b"dtype": "<f4", b"shape": [3]}
HOSTILE = {
    "empty": b"",
    "no msgpack": b"\xc1",
    "truncated": msgpack_numpy.packb({"prompt": "go", "state": np.zeros(9)})[:-4],
    "not a map": msgpack.packb([1, 2]),
    "objects": msgpack.packb({"a": {**ARRAY, b"dtype": "|O"}}),
    "a shape bomb": msgpack.packb({"a": {**ARRAY, b"shape": [2**40, 2**40]}}),
    "an array bomb": b"\xdd\xff\xff\xff\xff",
    "deep nesting": b"\x81\xa1a" * 200_000,
    "many entries": msgpack.packb({"a": [[0] * 4000] * 2}),
    "an extension": msgpack.packb({"a": msgpack.ExtType(5, b"x")}),
    "a text": "infer, please",
}


@pytest.mark.parametrize("frame", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("path", ["/", VLLM_OMNI_PATH])
async def test_a_hostile_frame_is_refused_and_the_connection_goes_on(kit, openpi, frame, path):
    async with kit.serve() as gateway, openpi.serve(kit, gateway) as port, openpi.robot(port, path) as robot:
        await robot.socket.send(frame)
        refused = await robot.hear()
        answered = await robot.ask(openpi.observation(seed=7))
    code, message = (refused["code"], refused["message"]) if path != "/" else refused.split(": ", 1)
    assert code == "INVALID_ARGUMENT"
    assert " came" in message and len(message) < 400
    assert (answered if path != "/" else answered["actions"]).shape == (16, 8)
    assert gateway.count(policy="tabletop", status="INVALID_ARGUMENT") == 1
    assert len(gateway.backend.requests) == 1


async def test_a_frame_beyond_the_cap_ends_its_connection_and_no_other(kit, openpi):
    limits = GatewayLimits(max_message_bytes=100_000)
    async with (
        kit.serve(limits=limits) as gateway,
        openpi.serve(kit, gateway) as port,
        openpi.robot(port) as other,
        openpi.robot(port) as robot,
    ):
        await robot.socket.send(bytes(100_001))
        with pytest.raises(ConnectionClosed) as closed:
            await robot.socket.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
        assert (await other.ask(openpi.observation(seed=7)))["seed"] == 7


@pytest.mark.parametrize("number", [3e38, -1e300, 2.0**31 + 256])
async def test_a_number_that_no_body_has_is_refused_and_no_model_is_asked(kit, openpi, number):
    async with kit.serve() as gateway, openpi.serve(kit, gateway) as port, openpi.robot(port) as robot:
        unfilled = openpi.observation(**{"observation/gripper_position": np.array([0.25, number])})
        assert (await robot.ask(unfilled)).startswith("INVALID_ARGUMENT: observation.state: element [8] is ")
        assert (await robot.ask(openpi.observation(seed=7)))["seed"] == 7
    assert len(gateway.backend.requests) == 1


async def test_starvlas_garbage_is_refused_in_band_once_it_has_spoken(kit, openpi):
    async with kit.serve() as gateway, openpi.serve(kit, gateway) as port, openpi.robot(port) as robot:
        await robot.ask({"type": "ping", "request_id": "r1"})
        await robot.socket.send(b"\xc1")
        refused = await robot.hear()
    assert (refused["ok"], refused["error"]["code"]) == (False, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": " "}, "INVALID_ARGUMENT: observation.instruction: an empty or blank text came"),
        ({"prompt": None}, "INVALID_ARGUMENT: observation['prompt']: none came, expected a text"),
        ({"observation/gripper_position": np.zeros(3)}, "INVALID_ARGUMENT: observation.state.shape: [10] came"),
        ({"observation/gripper_position": np.array([np.nan, 0])}, "INVALID_ARGUMENT: observation.state: element [7]"),
        ({"seed": -1}, "INVALID_ARGUMENT: seed: -1 came"),
        ({"endpoint": "kill"}, "INVALID_ARGUMENT: endpoint: 'kill' came"),
    ],
)
async def test_what_does_not_fit_is_refused_as_grpc_refuses_it(kit, openpi, changes, said):
    async with kit.serve() as gateway, openpi.serve(kit, gateway) as port, openpi.robot(port) as robot:
        assert (await robot.ask(openpi.observation(**changes))).startswith(said)
    assert gateway.backend.requests == []


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (RuntimeError("/secret/place"), "INTERNAL: the gateway failed on this request"),
        (BackendFailedError("/secret/place"), "INTERNAL: the backend failed on this request"),
        (BackendUnavailableError("/secret/place"), "UNAVAILABLE: the backend is starting or restarting"),
    ],
)
async def test_no_traceback_and_no_path_leaves_the_process(kit, openpi, failure, said):
    async with kit.serve(backend=kit.backend(failure=failure)) as gateway, openpi.serve(kit, gateway) as port:
        async with openpi.robot(port) as robot:
            refused = await robot.ask(openpi.observation())
        async with openpi.robot(port, VLLM_OMNI_PATH) as robot:
            in_band = await robot.ask(openpi.observation())
    assert refused.startswith(said)
    assert refused == f"{in_band['code']}: {in_band['message']}"
    assert "Traceback" not in refused and "secret" not in refused and "\n" not in refused


class Broken(Recorder):
    async def answer(self, request, **options):
        raise RuntimeError("/secret/place")


async def test_a_failure_nobody_foresaw_is_one_more_refusal(kit, openpi):
    async with (
        kit.serve() as gateway,
        openpi.serve(kit, gateway, answerer=Broken(gateway.server.answerer)) as port,
        openpi.robot(port) as robot,
    ):
        for _ in range(2):
            said = await robot.ask(openpi.observation())
            assert said == "INTERNAL: the gateway failed on this request"


async def test_a_deadline_is_kept_although_openpis_client_names_none(kit, openpi):
    limits = GatewayLimits(default_timeout_s=0.05)
    backend = kit.backend(holds={5: asyncio.Event()})
    async with (
        kit.serve(limits=limits, backend=backend) as gateway,
        openpi.serve(kit, gateway) as port,
        openpi.robot(port) as robot,
    ):
        assert (await robot.ask(openpi.observation(seed=5))).startswith("DEADLINE_EXCEEDED: ")


async def test_chunks_and_refusals_are_counted_where_grpcs_are(kit, openpi):
    async with kit.serve() as gateway, openpi.serve(kit, gateway) as port, openpi.robot(port) as robot:
        await robot.ask(openpi.observation())
        await robot.ask(openpi.observation(prompt=""))
    assert gateway.count(policy="tabletop", status="OK") == 1
    assert gateway.count(policy="tabletop", status="INVALID_ARGUMENT") == 1
    labels = {"policy": "tabletop", "revision": kit.revision.revision}
    assert gateway.registry.get_sample_value("premotor_total_seconds_count", labels) == 1


class Verbose(Recorder):
    """Answers with more than the buffers between two processes hold."""

    async def answer(self, request, **options):
        return policy_pb2.PredictChunkResponse(actions=encode_tensor(np.zeros((16, 400_000), np.float32)))


async def test_a_robot_that_does_not_take_its_reply_is_cut_off(kit, openpi):
    doorman, limits = openpi.doorman(), OpenpiLimits(send_timeout_s=0.05)
    async with kit.serve() as gateway:
        options = {"answerer": Verbose(gateway.server.answerer), "limits": limits, "authenticator": doorman}
        async with openpi.serve(kit, gateway, **options) as port, openpi.robot(port) as robot:
            robot.socket.transport.pause_reading()
            await robot.socket.send(msgpack_numpy.packb(openpi.observation()))
            async with asyncio.timeout(5):
                await doorman.left.wait()
            robot.socket.transport.resume_reading()
            with pytest.raises(ConnectionClosed):
                await robot.hear()


async def test_no_key_and_no_observation_is_logged(kit, openpi, caplog):
    caplog.set_level(logging.DEBUG)
    async with (
        kit.serve() as gateway,
        openpi.serve(kit, gateway) as port,
        openpi.robot(port, additional_headers={"Authorization": "Api-Key pm_s3cret"}) as robot,
    ):
        await robot.ask(openpi.observation(prompt="unheard words"))
        await robot.ask(openpi.observation(prompt="unheard words", seed=-1))
    servers = [record for record in caplog.records if not record.name.startswith("websockets.client")]
    text = "\n".join(JsonFormatter().format(record) for record in servers)
    assert "pm_s3cret" not in text and "unheard" not in text
    assert json.loads(text.splitlines()[-1])
