"""Each wire against a real server on loopback that speaks it."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import msgpack
import numpy as np
import pytest
import websockets.asyncio.server

from premotor.client.asker import TIMEOUTS_BEFORE_RECONNECTING
from premotor.client.description import Camera, Embodiment, Group, PolicyDescription
from premotor.client.errors import FixRequestError, PolicyError
from premotor.client.fleet import lerobot_driver
from premotor.client.fleet.endpoint import AskError, MissingPeerError, Reconnection
from premotor.client.fleet.endpoints import openpi as openpi_wire
from premotor.client.fleet.endpoints import premotor as premotor_wire
from premotor.client.fleet.endpoints import triton as triton_wire
from premotor.client.fleet.endpoints.lerobot import LerobotEndpoint, empty_pipe_s
from premotor.client.fleet.endpoints.openpi import OpenpiEndpoint, pack_observation, unpack
from premotor.client.fleet.endpoints.premotor import PremotorTarget, StreamEndpoint, UnaryEndpoint
from premotor.client.fleet.endpoints.triton import TritonEndpoint
from premotor.client.fleet.figures import fleet_figures, robot_figures
from premotor.client.fleet.pipe import PipeProgram
from premotor.client.fleet.questions import Question, Questions
from premotor.client.fleet.robot import Robot
from premotor.client.fleet.settings import FleetSettings
from premotor.client.identity import TlsOptions
from premotor.client.sync_client import PolicyClient
from premotor.v1 import policy_pb2
from service.backend import BackendRequest
from service.openpi.limits import OpenpiLimits
from service.openpi.wire import unpack as service_unpack
from service.triton.client import describe_request, request_parts

TIMEOUT_S = 10.0


def ignored(num_bytes: int) -> None:
    """Of a test that is about something else."""


def noting_the_end(monkeypatch, module: ModuleType, name: str) -> list[float]:
    """When that function of the module returned, each time."""
    found = getattr(module, name)
    ends_s: list[float] = []

    def noted(*arguments: Any, **more: Any) -> Any:
        try:
            return found(*arguments, **more)
        finally:
            ends_s.append(time.monotonic())

    monkeypatch.setattr(module, name, noted)
    return ends_s


def question(instruction: str = "pick up the block", seed: int = 7) -> Question:
    return Question(
        images={"front": np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)},
        state=np.array([0.5, 0.25, 0.125], np.float32),
        instruction=instruction,
        history=None,
        seed=seed,
        episode=2,
        view=0,
    )


def target(address: str) -> PremotorTarget:
    with PolicyClient(address) as client:
        description = client.get_policy("tabletop")
    return PremotorTarget(
        address=address,
        description=description,
        embodiment="sawyer",
        robot_id="robot-1",
        image_encoding="raw",
        num_inference_steps=None,
        metadata=(),
        tls=None,
    )


@pytest.mark.parametrize("endpoint_class", [UnaryEndpoint, StreamEndpoint])
async def test_premotor_answers_with_a_chunk_its_timing_and_its_bytes(gateway, endpoint_class) -> None:
    endpoint = endpoint_class(await asyncio.to_thread(target, gateway.address))
    sent: list[int] = []
    await endpoint.open(timeout_s=TIMEOUT_S)
    try:
        answer = await endpoint.ask(question(), timeout_s=TIMEOUT_S, sent=sent.append)
    finally:
        await endpoint.close()
    (request,) = gateway.service.requests
    np.testing.assert_array_equal(answer.actions[1], [1.5, 1.25, 1.125])
    assert (answer.revision, request.seed, request.robot_id) == ("0123456789ab", 7, "robot-1")
    assert request.episode_id == "fleet-2"
    assert answer.server_s == {"decode": 0.001, "queue": 0.002, "inference": 0.003, "total": 0.0065}
    assert sent == [request.ByteSize()] and sent[0] > 24 * 32 * 3
    assert answer.response_bytes > answer.actions.nbytes


@pytest.mark.parametrize("endpoint_class", [UnaryEndpoint, StreamEndpoint])
async def test_premotor_says_which_revision_the_episode_is_on(gateway, endpoint_class) -> None:
    endpoint = endpoint_class(await asyncio.to_thread(target, gateway.address))
    await endpoint.open(timeout_s=TIMEOUT_S)
    try:
        for asked in (question(), question(), replace(question(), episode=3)):
            await endpoint.ask(asked, timeout_s=TIMEOUT_S, sent=ignored)
    finally:
        await endpoint.close()
    assert [request.episode_revision for request in gateway.service.requests] == ["", "0123456789ab", ""]


@pytest.mark.parametrize("endpoint_class", [UnaryEndpoint, StreamEndpoint])
async def test_premotor_failures_have_the_names_of_the_clients_errors(gateway, endpoint_class) -> None:
    endpoint = endpoint_class(await asyncio.to_thread(target, gateway.address))
    await endpoint.open(timeout_s=TIMEOUT_S)
    sent: list[int] = []
    try:
        with pytest.raises(AskError) as overloaded:
            await endpoint.ask(question("error RESOURCE_EXHAUSTED"), timeout_s=TIMEOUT_S, sent=sent.append)
        with pytest.raises(FixRequestError):
            await endpoint.ask(question("error INVALID_ARGUMENT"), timeout_s=TIMEOUT_S, sent=ignored)
        answer = await endpoint.ask(question(), timeout_s=TIMEOUT_S, sent=ignored)
    finally:
        await endpoint.close()
    assert overloaded.value.kind == "RetryableError"
    # It went out all the same.
    assert sent == [gateway.service.requests[0].ByteSize()]
    assert answer.actions.shape == (4, 3)


async def test_a_broken_stream_is_opened_again_and_counted(gateway) -> None:
    endpoint = StreamEndpoint(await asyncio.to_thread(target, gateway.address))
    await endpoint.open(timeout_s=TIMEOUT_S)
    try:
        with pytest.raises(AskError):
            await endpoint.ask(question("break"), timeout_s=TIMEOUT_S, sent=ignored)
        answer = None
        while answer is None:
            try:
                answer = await endpoint.ask(question(), timeout_s=TIMEOUT_S, sent=ignored)
            except AskError as error:
                assert error.kind == "Disconnected"
                await asyncio.sleep(0.01)
        assert endpoint.num_reconnections == 1
    finally:
        await endpoint.close()


async def test_a_stream_on_which_nothing_comes_is_given_up_as_a_player_does(gateway) -> None:
    endpoint = StreamEndpoint(await asyncio.to_thread(target, gateway.address))
    await endpoint.open(timeout_s=TIMEOUT_S)
    failures: list[str] = []
    try:
        await endpoint.ask(question(), timeout_s=TIMEOUT_S, sent=ignored)
        gateway.service.is_cut_off.set()
        first = endpoint._stream
        while "Disconnected" not in failures:
            with pytest.raises(AskError) as failed:
                await endpoint.ask(question(), timeout_s=0.05, sent=ignored)
            failures.append(failed.value.kind)
        assert failures == ["DeadlineExceededError"] * TIMEOUTS_BEFORE_RECONNECTING + ["Disconnected"]
        gateway.service.is_cut_off.clear()
        answer = None
        while answer is None:
            try:
                answer = await endpoint.ask(question(), timeout_s=TIMEOUT_S, sent=ignored)
            except AskError as error:
                assert error.kind == "Disconnected"
                await asyncio.sleep(0.01)
        assert endpoint._stream is not first
        assert endpoint.num_reconnections == 1
    finally:
        await endpoint.close()


class ClogCall:
    """A StreamChunks call whose network takes one message and no more until it is free."""

    def __init__(self) -> None:
        self.taken: asyncio.Queue[str] = asyncio.Queue()
        self.free = asyncio.Event()

    async def write(self, message: policy_pb2.StreamChunksRequest) -> None:
        self.taken.put_nowait(message.request.request_id)
        await self.free.wait()

    async def __aiter__(self) -> AsyncIterator[policy_pb2.StreamChunksResponse]:
        await asyncio.Event().wait()
        yield policy_pb2.StreamChunksResponse()

    def cancel(self) -> None: ...


async def test_what_the_network_does_not_take_makes_way_for_the_newest_and_is_not_sent_late() -> None:
    call = ClogCall()
    stream = premotor_wire._Stream(lambda: call)

    async def ask(number: int, timeout_s: float) -> str:
        try:
            await stream.ask(policy_pb2.PredictChunkRequest(request_id=f"r{number}"), timeout_s)
        except (PolicyError, asyncio.TimeoutError) as error:
            return type(error).__name__
        raise AssertionError("nobody answers")

    asked = [asyncio.create_task(ask(0, TIMEOUT_S))]
    assert await asyncio.wait_for(call.taken.get(), TIMEOUT_S) == "r0"
    asked += [asyncio.create_task(ask(number, TIMEOUT_S)) for number in (1, 2, 3)]
    assert await asyncio.wait_for(asyncio.gather(*asked[1:3]), TIMEOUT_S) == ["ObservationSupersededError"] * 2
    asked[3].cancel()
    await asyncio.gather(asked[3], return_exceptions=True)
    # It waited in vain, and what comes after it is the next to be sent.
    call.free.set()
    last = asyncio.create_task(ask(4, TIMEOUT_S))
    assert await asyncio.wait_for(call.taken.get(), TIMEOUT_S) == "r4"
    await stream.close()
    assert await asyncio.gather(asked[0], last) == ["PolicyError"] * 2


async def test_a_gateway_that_is_not_there_is_said_so() -> None:
    description = PremotorTarget(
        address="127.0.0.1:1",
        description=None,  # pyright: ignore[reportArgumentType]  # never asked
        embodiment="",
        robot_id="r",
        image_encoding="raw",
        num_inference_steps=None,
        metadata=(),
        tls=None,
    )
    endpoint = UnaryEndpoint(description)
    with pytest.raises(AskError, match="cannot be reached"):
        await endpoint.open(timeout_s=0.2)
    await endpoint.close()


Serve = Callable[[websockets.asyncio.server.ServerConnection], Awaitable[None]]


async def openpi_server(
    handler: Serve, *, tls: ssl.SSLContext | None = None
) -> tuple[websockets.asyncio.server.Server, str]:
    server = await websockets.asyncio.server.serve(handler, "127.0.0.1", 0, compression=None, ssl=tls)
    return server, f"127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"


def packed(message: object) -> bytes:
    def encode(value: object) -> object:
        assert isinstance(value, np.ndarray)
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}

    frame = msgpack.packb(message, default=encode)
    assert frame is not None
    return frame


async def test_openpi_sends_what_its_servers_read_and_reads_what_they_send() -> None:
    seen = []

    async def handler(connection: websockets.asyncio.server.ServerConnection) -> None:
        await connection.send(packed({}))
        async for frame in connection:
            assert isinstance(frame, bytes)
            seen.append(service_unpack(frame, OpenpiLimits()))
            actions = np.ones((4, 3), np.float32)
            await connection.send(packed({"actions": actions, "server_timing": {"infer_ms": 5.0}}))

    server, address = await openpi_server(handler)
    endpoint = OpenpiEndpoint(address, generator=random.Random(0))
    sent: list[int] = []
    try:
        await endpoint.open(timeout_s=TIMEOUT_S)
        answer = await endpoint.ask(question(), timeout_s=TIMEOUT_S, sent=sent.append)
    finally:
        await endpoint.close()
        server.close()
    (observation,) = seen
    np.testing.assert_array_equal(observation["observation/front"], question().images["front"])
    np.testing.assert_array_equal(observation["observation/state"], question().state)
    assert (observation["prompt"], observation["seed"]) == ("pick up the block", 7)
    assert answer.server_s == {"inference": 0.005}
    assert answer.actions.shape == (4, 3)
    assert sent == [len(pack_observation(question()))]


async def test_openpi_shows_its_token_only_to_a_server_that_is_vouched_for(certificates) -> None:
    heard = []

    async def handler(connection: websockets.asyncio.server.ServerConnection) -> None:
        assert connection.request is not None
        heard.append(connection.request.headers["Authorization"])
        await connection.send(packed({}))
        await connection.recv()
        await connection.send(packed({"actions": np.ones((4, 3), np.float32)}))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    server, address = await openpi_server(handler, tls=context)
    try:
        for roots, answers in ((certificates.ca, True), (certificates.other_ca, False)):
            tls = TlsOptions(root_certificates=roots.read_bytes())
            endpoint = OpenpiEndpoint(address, generator=random.Random(0), token="t", tls=tls)
            if answers:
                await endpoint.open(timeout_s=TIMEOUT_S)
                assert (await endpoint.ask(question(), timeout_s=TIMEOUT_S, sent=ignored)).actions.shape == (4, 3)
            else:
                with pytest.raises(AskError, match="CERTIFICATE_VERIFY_FAILED"):
                    await endpoint.open(timeout_s=TIMEOUT_S)
            await endpoint.close()
    finally:
        server.close()
    assert heard == ["Api-Key t"]


async def test_openpi_never_takes_a_late_answer_for_the_next_ones() -> None:
    numbers = []

    async def handler(connection: websockets.asyncio.server.ServerConnection) -> None:
        await connection.send(packed({}))
        async for _ in connection:
            numbers.append(len(numbers))
            if numbers[-1] == 0:
                await asyncio.sleep(0.2)
            await connection.send(packed({"actions": np.full((1, 1), numbers[-1], np.float32)}))

    server, address = await openpi_server(handler)
    endpoint = OpenpiEndpoint(address, generator=random.Random(0))
    try:
        await endpoint.open(timeout_s=TIMEOUT_S)
        sent: list[int] = []
        with pytest.raises(AskError) as late:
            await endpoint.ask(question(), timeout_s=0.05, sent=sent.append)
        assert sent == [len(pack_observation(question()))]
        answer = None
        while answer is None:
            try:
                answer = await endpoint.ask(question(), timeout_s=TIMEOUT_S, sent=ignored)
            except AskError as error:
                assert error.kind == "Disconnected"
                await asyncio.sleep(0.01)
        assert late.value.kind == "DeadlineExceededError"
        assert answer.actions[0, 0] == 1.0
        assert endpoint.num_reconnections == 1
    finally:
        await endpoint.close()
        server.close()


async def test_a_robot_of_a_wire_that_tells_no_deadline_waits_and_a_late_answer_is_a_missed_deadline() -> None:
    async def handler(connection: websockets.asyncio.server.ServerConnection) -> None:
        await connection.send(packed({}))
        async for _ in connection:
            # Longer than a chunk of the settings lasts.
            await asyncio.sleep(0.25)
            await connection.send(packed({"actions": np.zeros((4, 3), np.float32)}))

    settings = FleetSettings(
        endpoint="openpi",
        addresses=("x:1",),
        description=DESCRIPTION,
        embodiment=BODY,
        rate_hz=20.0,
        control_rate_hz=40.0,
        duration_s=0.2,
        settle_s=0.0,
    )
    assert settings.chunk_s < 0.25
    questions = Questions(DESCRIPTION, BODY, image_encoding="raw", with_history=False, seed=0)
    server, address = await openpi_server(handler)
    endpoint = OpenpiEndpoint(address, generator=random.Random(0))
    try:
        await endpoint.open(timeout_s=TIMEOUT_S)
        robot = Robot(0, endpoint, questions, start_s=time.monotonic(), timeout_s=settings.answer_timeout_s)
        log = await robot.run(np.array([0.0, 0.1]))
    finally:
        await endpoint.close()
        server.close()
    assert [ask.failure for ask in log.asks] == ["", ""]
    assert log.num_reconnections == 0
    found = fleet_figures(settings, [robot_figures(settings, log)], ())["fleet"]
    assert (found["num_answered"], found["deadline_misses"], found["failures"]) == (2, 2, {})


async def test_every_wire_is_stamped_when_the_actions_are_an_array(gateway, monkeypatch) -> None:
    async def handler(connection: websockets.asyncio.server.ServerConnection) -> None:
        await connection.send(packed({}))
        await connection.recv()
        await connection.send(packed({"actions": np.ones((4, 3), np.float32)}))

    websocket_server, websocket_address = await openpi_server(handler)
    http_server, http_address, _ = await triton_server([triton_answer(np.ones((1, 3), np.float32), 1)])
    gateway_target = await asyncio.to_thread(target, gateway.address)
    decoded_s = {
        "premotor": noting_the_end(monkeypatch, premotor_wire, "read_response"),
        "openpi": noting_the_end(monkeypatch, openpi_wire, "unpack"),
        "triton": noting_the_end(monkeypatch, triton_wire, "_read"),
    }
    for wire, endpoint in (
        ("premotor", StreamEndpoint(gateway_target)),
        ("premotor", UnaryEndpoint(gateway_target)),
        ("openpi", OpenpiEndpoint(websocket_address, generator=random.Random(0))),
        ("triton", TritonEndpoint(http_address, model="m", embodiment=BODY, embodiment_index=0, num_inference_steps=4)),
    ):
        await endpoint.open(timeout_s=TIMEOUT_S)
        try:
            answer = await endpoint.ask(question(), timeout_s=TIMEOUT_S, sent=ignored)
        finally:
            await endpoint.close()
        assert answer.received_s >= decoded_s[wire][-1]
    websocket_server.close()
    http_server.close()


async def test_an_openpi_traceback_is_a_failure_with_its_last_line() -> None:
    async def handler(connection: websockets.asyncio.server.ServerConnection) -> None:
        await connection.send(packed({}))
        await connection.recv()
        await connection.send("Traceback (most recent call last):\n  ...\nKeyError: 'state'\n")

    server, address = await openpi_server(handler)
    endpoint = OpenpiEndpoint(address, generator=random.Random(0))
    try:
        await endpoint.open(timeout_s=TIMEOUT_S)
        with pytest.raises(AskError, match="KeyError: 'state'"):
            await endpoint.ask(question(), timeout_s=TIMEOUT_S, sent=ignored)
    finally:
        await endpoint.close()
        server.close()


def test_a_frame_with_objects_in_it_is_no_answer() -> None:
    frame = msgpack.packb({b"__ndarray__": True, b"data": b"", b"dtype": "|O", b"shape": [1]})
    assert frame is not None
    with pytest.raises(AskError, match="expected numbers"):
        unpack(frame)


BODY = Embodiment(
    name="sawyer",
    cameras=(Camera(name="front", height=24, width=32),),
    state=(Group(name="arm", dim=3, kind="other", unit="m", representation="absolute"),),
    action=(Group(name="arm", dim=3, kind="other", unit="m", representation="absolute"),),
    control_rate_hz=10.0,
)
DESCRIPTION = PolicyDescription(
    name="p",
    revision="r",
    variant="",
    embodiments=(BODY,),
    history_steps=0,
    action_horizon=4,
    execution_horizon=2,
    num_inference_steps=4,
    max_inference_steps=8,
    schema_digest="d",
)


async def triton_server(answers: list[bytes]) -> tuple[asyncio.Server, str, list[tuple[bytes, bytes]]]:
    """Answers each request with the next of `answers`, and keeps head and body."""
    seen: list[tuple[bytes, bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
                seen.append((head, await reader.readexactly(int(length.split(b":")[1]))))
                writer.write(answers[len(seen) - 1])
                await writer.drain()
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, f"127.0.0.1:{server.sockets[0].getsockname()[1]}", seen


def triton_answer(actions: np.ndarray, inference_ns: int) -> bytes:
    chunk = np.array([inference_ns, 1, *actions.shape], "<i8").tobytes() + actions.astype("<f4").tobytes()
    output = {
        "name": "CHUNK",
        "datatype": "UINT8",
        "shape": [1, len(chunk)],
        "parameters": {"binary_data_size": len(chunk)},
    }
    described = json.dumps({"outputs": [output]}).encode()
    body = described + chunk
    head = (
        f"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: {len(described)}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def test_triton_is_asked_in_the_layout_of_the_services_own_model() -> None:
    actions = np.arange(6, dtype=np.float32).reshape(2, 3)
    server, address, seen = await triton_server([triton_answer(actions, 5_000_000)])
    endpoint = TritonEndpoint(address, model="m", embodiment=BODY, embodiment_index=2, num_inference_steps=4)
    try:
        await endpoint.open(timeout_s=TIMEOUT_S)
        answer = await endpoint.ask(question(), timeout_s=TIMEOUT_S, sent=ignored)
    finally:
        await endpoint.close()
        server.close()
    np.testing.assert_array_equal(answer.actions, actions)
    assert answer.server_s == {"inference": 0.005}
    asked = question()
    frame = asked.images["front"]
    assert isinstance(frame, np.ndarray)
    request = BackendRequest(
        embodiment_index=2,
        images=(frame,),
        state=asked.state,
        instruction=asked.instruction,
        history_states=np.zeros((0, 3), np.float32),
        history_actions=np.zeros((0, 3), np.float32),
        seed=asked.seed,
        num_inference_steps=4,
    )
    content = b"".join(request_parts(request))
    description = describe_request(content)
    ((head, body),) = seen
    length = int(next(line for line in head.split(b"\r\n") if line.startswith(b"inference-header")).split(b":")[1])
    assert json.loads(body[:length])["inputs"] == json.loads(description)["inputs"]
    assert body[length:] == content
    assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")


async def test_a_refusal_of_triton_leaves_the_connection_in_use() -> None:
    refused = b'HTTP/1.1 400 Bad Request\r\nContent-Length: 9\r\n\r\n{"e": 1}\n'
    server, address, seen = await triton_server([refused, triton_answer(np.ones((1, 3), np.float32), 1)])
    endpoint = TritonEndpoint(address, model="m", embodiment=BODY, embodiment_index=0, num_inference_steps=4)
    try:
        await endpoint.open(timeout_s=TIMEOUT_S)
        sent: list[int] = []
        with pytest.raises(AskError) as refusal:
            await endpoint.ask(question(), timeout_s=TIMEOUT_S, sent=sent.append)
        assert sent == [sum(map(len, seen[0]))]
        answer = await endpoint.ask(question(), timeout_s=TIMEOUT_S, sent=ignored)
    finally:
        await endpoint.close()
        server.close()
    assert refusal.value.kind == "HTTP 400"
    assert answer.actions.shape == (1, 3) and len(seen) == 2


FRAMES = """
import json, struct, sys, time
lengths = struct.Struct("<II")
def write(header, data=b""):
    text = json.dumps(header).encode()
    sys.stdout.buffer.write(lengths.pack(len(text), len(data)) + text + data)
    sys.stdout.buffer.flush()
write({"id": "ready"})
while len(found := sys.stdin.buffer.read(8)) == 8:
    header_bytes, data_bytes = lengths.unpack(found)
    header = json.loads(sys.stdin.buffer.read(header_bytes))
    data = sys.stdin.buffer.read(data_bytes)
    answer = {"id": header["id"]}
"""
PROGRAM = (
    FRAMES
    + """
    if header["verb"] == "fail":
        write({**answer, "kind": "Broken", "problem": "as asked"})
    elif header["verb"] == "end":
        sys.exit("the end")
    else:
        write({**answer, "verb": header["verb"]}, data)
"""
)
DRIVER = (
    FRAMES
    + """
    if header["verb"] == "empty":
        write({**answer, "received_s": time.monotonic()})
    elif header["instruction"] == "fail":
        write({**answer, "kind": "UNAVAILABLE", "problem": "as asked", "request_bytes": 99})
    else:
        told = {"shape": [2, 1], "received_s": 0.0, "request_bytes": 100, "response_bytes": 10}
        write({**answer, **told}, struct.pack("<ff", 1, 2))
"""
)


async def test_a_program_on_a_pipe_answers_fails_and_ends() -> None:
    program = PipeProgram((sys.executable, "-c", PROGRAM), remedy="")
    try:
        await program.start([question().images])
        told, content = await program.call({"verb": "echo"}, b"numbers", timeout_s=TIMEOUT_S)
        assert (told["verb"], content) == ("echo", b"numbers")
        with pytest.raises(AskError, match="as asked"):
            await program.call({"verb": "fail"}, b"", timeout_s=TIMEOUT_S)
        with pytest.raises(AskError, match="ended"):
            await program.call({"verb": "end"}, b"", timeout_s=TIMEOUT_S)
    finally:
        await program.close()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("/nowhere/python",), "run `make peers`"),
        ((sys.executable, "-c", "import sys; sys.exit('no lerobot')"), "no lerobot"),
    ],
)
async def test_a_program_that_does_not_start_is_a_missing_peer(command: tuple[str, ...], said: str) -> None:
    program = PipeProgram(command, remedy="run `make peers`")
    with pytest.raises(MissingPeerError, match=said):
        await program.start([])
    await program.close()


async def test_lerobots_questions_are_counted_as_they_go_out_and_the_pipe_is_measured_empty() -> None:
    program = PipeProgram((sys.executable, "-c", DRIVER), remedy="")
    endpoint = LerobotEndpoint(program, "x:1", robot=0)
    sent: list[int] = []
    try:
        await program.start([])
        pipe_s = await empty_pipe_s(program, question())
        answer = await endpoint.ask(question(), timeout_s=TIMEOUT_S, sent=sent.append)
        with pytest.raises(AskError, match="as asked"):
            await endpoint.ask(question("fail"), timeout_s=TIMEOUT_S, sent=sent.append)
    finally:
        await program.close()
    assert answer.actions.tolist() == [[1.0], [2.0]]
    assert sent == [100, 99]
    assert 0 < pipe_s < 1


async def test_the_lerobot_driver_does_nothing_with_an_empty_question(monkeypatch) -> None:
    written = []
    monkeypatch.setattr(lerobot_driver, "_write_frame", lambda header, data: written.append((header, data)))
    before_s = time.monotonic()
    await lerobot_driver.Driver()._obey({"id": "7", "verb": "empty"}, b"")
    ((header, data),) = written
    assert (header["id"], data) == ("7", b"")
    assert before_s <= header["received_s"] <= time.monotonic()


def test_a_lost_connection_is_left_alone_longer_each_time_and_counted_once() -> None:
    reconnection = Reconnection(random.Random(0))
    assert reconnection.may_try(0.0)
    reconnection.lost(0.0)
    assert not reconnection.may_try(0.04)
    reconnection.lost(1.0)
    reconnection.lost(2.0)
    assert reconnection.may_try(3.1)
    reconnection.found()
    reconnection.found()
    assert reconnection.count == 1
    assert reconnection.may_try(0.0)


def test_the_lerobot_driver_is_shipped_beside_its_endpoint() -> None:
    from premotor.client.fleet.endpoints import lerobot

    assert Path(lerobot._DRIVER).is_file()
