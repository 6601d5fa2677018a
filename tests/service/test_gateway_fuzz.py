"""Ten thousand malformed requests: each is refused with a reason, none is a failure of the service, which goes on."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from prometheus_client import CollectorRegistry

from premotor.v1 import policy_pb2
from premotor.wire import read_error_metadata
from service.backend import BackendRequest
from service.gateway import GatewayLimits
from service.gateway.answers import ChunkAnswerer
from service.gateway.metrics import GatewayMetrics

TIMEOUT_S = 30.0
BATCH = 12
NUM_IN_PROCESS, NUM_UNARY, NUM_STREAMED = 9_600, 1_800, 600
STATUS_NAMES = {status.value[0]: status.name for status in grpc.StatusCode}

Request = policy_pb2.PredictChunkRequest
# From a serialised request to another.
Change = Callable[[bytes], bytes]

names = st.text(max_size=12)
# The last two are as far as float32 goes, and the first beyond what is taken.
bad_floats = st.sampled_from([float("nan"), float("inf"), float("-inf"), -3e38, 2.0**31 + 256])
int64s = st.one_of(st.integers(-3, 20), st.sampled_from([-(2**63), 2**63 - 1, 2**31, -1]))
# Where in a file or message something happens.
places = st.floats(0, 1, exclude_max=True)


def changed(change: Callable[[Request], object]) -> Change:
    def apply(content: bytes) -> bytes:
        request = Request.FromString(content)
        change(request)
        return request.SerializeToString()

    return apply


def assign(name: str, value: object) -> Change:
    return changed(lambda request: setattr(request, name, value))


def tensor(data_type: int, shape: list[int], data: bytes) -> policy_pb2.Tensor:
    return policy_pb2.Tensor(data_type=data_type, shape=shape, data=data)  # pyright: ignore[reportArgumentType]


# Mostly wrong, sometimes right: types, extents and bytes are drawn apart from each other.
tensors = st.builds(
    tensor,
    st.integers(0, 3),
    st.lists(int64s, max_size=4),
    st.one_of(st.binary(max_size=40), st.sampled_from([bytes(36), bytes(108), bytes(96)])),
)


def put_state(value: policy_pb2.Tensor) -> Change:
    return changed(lambda request: request.observation.state.CopyFrom(value))


def spoil_state(index: int, value: float) -> Change:
    state = np.zeros(9, np.float32)
    state[index] = value
    return put_state(tensor(1, [9], state.tobytes()))


def spoiled(shape: tuple[int, int], row: int, column: int, value: float) -> policy_pb2.Tensor:
    numbers = np.zeros(shape, np.float32)
    numbers[row, column] = value
    return tensor(1, list(shape), numbers.tobytes())


def spoil_history(of_states: bool, row: int, column: int, value: float) -> Change:
    bad, good = ((3, 9), (3, 8)) if of_states else ((3, 8), (3, 9))
    parts = spoiled(bad, row, column, value), spoiled(good, 0, 0, 0.0)
    return put_history(*(parts if of_states else parts[::-1]), None)


def spoil_previous_actions(row: int, column: int, value: float) -> Change:
    def change(request: Request) -> None:
        request.real_time_chunking.previous_actions.CopyFrom(spoiled((6, 8), row, column, value))

    return changed(change)


def put_history(states: policy_pb2.Tensor | None, actions: policy_pb2.Tensor | None, num_valid: int | None) -> Change:
    history = policy_pb2.History(states=states, actions=actions, num_valid_steps=num_valid)
    return changed(lambda request: request.history.CopyFrom(history))


def put_image(camera: str, image: policy_pb2.Image) -> Change:
    return changed(lambda request: request.observation.images[camera].CopyFrom(image))


def damage(content: bytes, place: float, flip: int, cut: bool) -> bytes:
    at = int(place * len(content))
    if cut:
        return content[:at]
    return content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]


def damage_message(place: float, flip: int, cut: bool) -> Change:
    return lambda content: damage(content, place, flip, cut)


def files_of(kit) -> list[bytes]:
    files = [kit.jpeg()]
    for format, options in (("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {})):
        buffer = io.BytesIO()
        Image.fromarray(kit.frame()).save(buffer, format, **options)
        files.append(buffer.getvalue())
    return files


def changes_of(kit) -> st.SearchStrategy[Change]:
    """Ways to make a request that fits into one that (nearly always) does not."""
    compressed = st.one_of(
        st.binary(max_size=64),
        st.binary(max_size=64).map(lambda tail: b"\xff\xd8\xff" + tail),
        st.binary(max_size=64).map(lambda tail: b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR" + tail),
        st.builds(damage, st.sampled_from(files_of(kit)), places, st.integers(1, 255), st.booleans()),
    )
    images = st.one_of(
        compressed.map(lambda content: policy_pb2.Image(compressed=content)),
        tensors.map(lambda pixels: policy_pb2.Image(pixels=pixels)),
        st.just(policy_pb2.Image()),
    )
    return st.one_of(
        st.builds(assign, st.sampled_from(["policy", "revision", "embodiment"]), names.filter(bool)),
        st.builds(
            assign, st.sampled_from(["robot_id", "episode_id", "request_id", "policy", "embodiment"]), st.just("")
        ),
        st.builds(assign, st.sampled_from(["robot_id", "request_id"]), st.integers(129, 400).map(lambda n: "é" * n)),
        st.builds(assign, st.just("seed"), st.integers(-(2**63), -1)),
        st.builds(
            assign, st.just("num_inference_steps"), st.one_of(st.integers(33, 2**31 - 1), st.integers(-(2**31), 0))
        ),
        st.just(changed(lambda request: request.ClearField("observation"))),
        st.one_of(st.text(alphabet=" \t\n\u2003", max_size=9), st.integers(1025, 3000).map(lambda n: "a" * n)).map(
            lambda text: changed(lambda request: setattr(request.observation, "instruction", text))
        ),
        tensors.map(put_state),
        st.builds(spoil_state, st.integers(0, 8), bad_floats),
        st.builds(spoil_history, st.booleans(), st.integers(0, 2), st.integers(0, 7), bad_floats),
        st.builds(spoil_previous_actions, st.integers(0, 5), st.integers(0, 7), bad_floats),
        st.builds(put_history, st.none() | tensors, st.none() | tensors, st.none() | st.integers(-(2**31), 2**31 - 1)),
        st.builds(put_image, st.sampled_from(["front", "wrist"]), images),
        st.builds(put_image, names, images),
        st.sampled_from(["front", "wrist"]).map(lambda camera: changed(lambda r: r.observation.images.pop(camera))),
        st.builds(damage_message, places, st.integers(1, 255), st.booleans()),
    )


def run_examples(kit, total: int, ask: Callable[[list[bytes]], None]) -> None:
    """Calls `ask` with batches of changed requests, serialised, about `total` in all, the same in each run."""
    pristine = kit.request().SerializeToString()

    @settings(
        max_examples=total // BATCH,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(changes_of(kit), min_size=BATCH, max_size=BATCH))
    def example(changes: list[Change]) -> None:
        ask([change(pristine) for change in changes])

    example()


class Outcomes:
    """What became of the requests so far."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add_status(self, code: int, message: str) -> None:
        assert message.isprintable() and len(message) < 1000
        self.counts[STATUS_NAMES[code]] += 1

    def add(self, answer: policy_pb2.PredictChunkResponse | policy_pb2.RequestError) -> None:
        if isinstance(answer, policy_pb2.RequestError):
            self.add_status(answer.code, answer.message)
        else:
            self.counts["OK"] += 1

    def check(self, total: int) -> None:
        """Every request was answered, by nothing but a reason or, where the change did no harm, a chunk."""
        assert set(self.counts) <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}, self.counts
        assert sum(self.counts.values()) >= total
        assert self.counts["OK"] < 0.1 * total, self.counts


def largest_number(request: BackendRequest) -> float:
    """That a model is asked to compute with; NaN where there is one."""
    arrays = [request.state, request.history_states, request.history_actions]
    if request.real_time_chunking is not None:
        arrays.append(request.real_time_chunking.previous_actions)
    return float(np.abs(np.concatenate([array.ravel() for array in arrays])).max())


def parsed(content: bytes) -> Request | None:
    try:
        return Request.FromString(content)
    except DecodeError:
        return None


def as_stream_message(content: bytes) -> bytes:
    """A StreamChunksRequest whose field 1 holds `content`, whatever that is."""
    length, prefix = len(content), b"\x0a"
    while length > 0x7F:
        prefix, length = prefix + bytes([length & 0x7F | 0x80]), length >> 7
    return prefix + bytes([length]) + content


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all examples of a test."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def gateway(kit, runner):
    """A gateway that serves while the runner runs."""
    serving = kit.serve()
    yield runner.run(serving.__aenter__())
    runner.run(serving.__aexit__(None, None, None))


def test_malformed_requests_are_refused_and_valid_ones_still_answered(kit, runner):
    outcomes, backend = Outcomes(), kit.backend()
    with ThreadPoolExecutor(2) as threads:
        answerer = ChunkAnswerer(
            policies=kit.policies,
            backend=backend,
            limits=GatewayLimits(),
            metrics=GatewayMetrics(CollectorRegistry()),
            decode_threads=threads,
        )

        async def ask(contents: list[bytes]) -> None:
            for content in contents:
                outcomes.add(await answerer.answer(parsed(content), timeout_s=TIMEOUT_S))

        run_examples(kit, NUM_IN_PROCESS, lambda contents: runner.run(ask(contents)))
        outcomes.check(NUM_IN_PROCESS)
        assert len(backend.requests) == outcomes.counts["OK"]
        assert max(largest_number(request) for request in backend.requests) <= GatewayLimits().max_abs_value
        valid = runner.run(answerer.answer(kit.request(), timeout_s=TIMEOUT_S))
    assert isinstance(valid, policy_pb2.PredictChunkResponse)


def test_malformed_calls_on_the_wire_are_refused_and_a_valid_one_still_answered(kit, runner, gateway):
    outcomes = Outcomes()
    predict = gateway.channel.unary_unary(
        "/premotor.v1.PolicyService/PredictChunk", response_deserializer=policy_pb2.PredictChunkResponse.FromString
    )

    async def ask(content: bytes) -> None:
        try:
            outcomes.add(await predict(content, timeout=TIMEOUT_S))
        except grpc.aio.AioRpcError as failed:
            error = read_error_metadata(failed.trailing_metadata())
            assert error is not None, failed
            assert error.code == failed.code().value[0]
            outcomes.add(error)

    async def ask_all(contents: list[bytes]) -> None:
        await asyncio.gather(*(ask(content) for content in contents))

    run_examples(kit, NUM_UNARY, lambda contents: runner.run(ask_all(contents)))
    outcomes.check(NUM_UNARY)
    assert runner.run(call(gateway.stub.PredictChunk, kit.request())).request_id == "request-1"


def test_malformed_messages_on_one_stream_are_answered_each_and_a_valid_one_still_by_a_chunk(kit, runner, gateway):
    outcomes = Outcomes()
    open_stream = gateway.channel.stream_stream(
        "/premotor.v1.PolicyService/StreamChunks", response_deserializer=policy_pb2.StreamChunksResponse.FromString
    )

    async def start():
        return open_stream()

    stream = runner.run(start())

    async def ask_all(contents: list[bytes]) -> None:
        for content in contents:
            await stream.write(as_stream_message(content))
        for _ in contents:
            answer = await stream.read()
            outcomes.add(answer.error if answer.HasField("error") else answer.chunk)

    run_examples(kit, NUM_STREAMED, lambda contents: runner.run(ask_all(contents)))
    outcomes.check(NUM_STREAMED)
    outcomes.counts.clear()
    runner.run(ask_all([kit.request().SerializeToString()]))
    assert outcomes.counts == {"OK": 1}
    stream.cancel()


async def call(method, request):
    return await method(request, timeout=TIMEOUT_S)
