"""PredictChunk over a real gRPC server on loopback: answers, refusals, deadlines, bounds, drain."""

from __future__ import annotations

import asyncio
import json
import logging
from concurrent.futures import Executor, Future
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from premotor.v1 import policy_pb2
from premotor.wire import decode_duration, decode_tensor, read_error_metadata
from service.backend import (
    BackendDeadlineError,
    BackendFailedError,
    BackendUnavailableError,
    InstructionRefusedError,
)
from service.episodes import Episode
from service.gateway import GatewayLimits
from service.gateway.answers import ChunkAnswerer
from service.gateway.images import Frame, decode_frames
from service.gateway.metrics import GatewayMetrics
from service.logs import JsonFormatter
from service.policies import ServedPolicies, ServedPolicy
from service.revision import read_revision

TIMEOUT_S = 10.0


async def failure_of(call) -> tuple[grpc.aio.AioRpcError, policy_pb2.RequestError]:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    error = read_error_metadata(failed.value.trailing_metadata())
    assert error is not None
    assert error.code == failed.value.code().value[0]
    assert error.message == failed.value.details()
    return failed.value, error


@pytest.mark.asyncio
@pytest.mark.parametrize("embodiment", ["sawyer", "panda"])
async def test_a_chunk_comes_back_with_ids_revision_seed_and_times(kit, embodiment):
    async with kit.serve() as gateway:
        response = await gateway.stub.PredictChunk(kit.request(embodiment=embodiment), timeout=TIMEOUT_S)
    (asked,) = gateway.backend.requests
    spec = {"sawyer": kit.sawyer, "panda": kit.panda}[embodiment]
    actions = decode_tensor(
        response.actions, field="actions", dtype=np.float32, shape=(kit.action_horizon, spec.action_dim)
    )
    np.testing.assert_array_equal(actions, kit.expected_actions(asked))
    assert (response.robot_id, response.episode_id, response.request_id) == ("robot-1", "episode-1", "request-1")
    assert response.capture_time.ToMilliseconds() == 1500
    assert (response.revision, response.seed) == (kit.revision.revision, 7)
    spans = {name: decode_duration(getattr(response.timing, name), field=name) for name in ("decode", "total")}
    assert 0 < spans["decode"] < spans["total"] < TIMEOUT_S
    # What the backend reports, and what the gateway itself let it wait.
    assert 0.001 <= decode_duration(response.timing.queue, field="queue") < TIMEOUT_S
    assert response.timing.inference.ToMilliseconds() == 2


@pytest.mark.asyncio
async def test_a_chunk_says_the_schema_of_the_revision_that_answered_not_of_the_one_that_is_described(kit, tmp_path):
    directory = kit.write_checkpoint(tmp_path / "other", config={"execution_horizon": 4})
    other = read_revision(directory, policy="tabletop")
    both = type(kit)(kit.revision)
    both.policies = ServedPolicies.fixed({"tabletop": [kit.revision, other]})
    async with both.serve() as gateway:
        described = await gateway.stub.GetPolicy(policy_pb2.GetPolicyRequest(policy="tabletop"), timeout=TIMEOUT_S)
        request = kit.request()
        main = await gateway.stub.PredictChunk(request, timeout=TIMEOUT_S)
        request.revision = other.revision
        pinned = await gateway.stub.PredictChunk(request, timeout=TIMEOUT_S)
    assert main.schema_digest == described.policy.schema_digest == kit.revision.description.schema_digest
    assert pinned.schema_digest == other.description.schema_digest != main.schema_digest


def test_a_request_of_an_episode_in_progress_is_no_more_in_progress_than_that(kit):
    """A number that moved with every request would be news for every heartbeat."""
    policies = ServedPolicies.fixed({"tabletop": [kit.revision]})
    episode = Episode(policy="tabletop", robot_id="robot", episode_id="one")
    counts = []
    for episodes in ([], [episode]):
        for each in episodes:
            policies.routed(each)
        counts.append(policies.num_in_progress("tabletop", kit.revision.revision))
        with policies.using("tabletop", kit.revision):
            counts.append(policies.num_in_progress("tabletop", kit.revision.revision))
            with policies.using("tabletop", kit.revision):
                counts.append(policies.num_in_progress("tabletop", kit.revision.revision))
    assert counts == [0, 1, 2, 1, 1, 2]


async def test_a_request_that_pins_a_revision_is_in_progress_there_and_is_routed_nowhere(kit, tmp_path):
    other = read_revision(kit.write_checkpoint(tmp_path / "other", variant="no-prior"), policy="tabletop")
    both = type(kit)(kit.revision)
    both.policies = ServedPolicies.fixed({"tabletop": [kit.revision, other]})
    async with both.serve() as gateway:
        request = kit.request()
        request.revision = other.revision
        assert (await gateway.stub.PredictChunk(request, timeout=TIMEOUT_S)).revision == other.revision
        assert both.policies.num_in_progress("tabletop", other.revision) == 1
        # Nothing that came with it is remembered when its ids are none.
        request.robot_id = "r" * 129
        await failure_of(gateway.stub.PredictChunk(request, timeout=TIMEOUT_S))
        assert both.policies.num_in_progress("tabletop", other.revision) == 1
        answered = await gateway.stub.PredictChunk(kit.request(), timeout=TIMEOUT_S)
    assert answered.revision == kit.revision.revision


async def test_an_episode_goes_on_with_the_revision_that_its_robot_names_where_such_episodes_do(kit, tmp_path):
    other = read_revision(kit.write_checkpoint(tmp_path / "other", variant="no-prior"), policy="tabletop")
    serving, named = kit.revision.revision, other.revision
    both = type(kit)(kit.revision)
    both.policies = ServedPolicies()
    policy = ServedPolicy(revisions={serving: kit.revision, named: other}, shares=((serving, 1.0),))

    async def answers(episode_id: str, **said: Any) -> str:
        request = kit.request()
        request.episode_id = episode_id
        request.MergeFrom(policy_pb2.PredictChunkRequest(**said))
        return (await gateway.stub.PredictChunk(request, timeout=TIMEOUT_S)).revision

    async with both.serve() as gateway:
        both.policies.apply({"tabletop": policy}, going_on=[("tabletop", named)])
        assert await answers("1") == serving
        assert await answers("2", episode_revision=named) == named
        # Known from then on, and known better than by hearsay.
        assert await answers("2") == named
        assert await answers("3") == serving
        assert await answers("3", episode_revision=named) == serving
        assert await answers("4", episode_revision="") == serving
        assert await answers("5", episode_revision=named, revision=serving) == serving
        both.policies.apply({"tabletop": policy})
        assert await answers("6", episode_revision=named) == serving
        with pytest.raises(grpc.aio.AioRpcError, match="episode_revision: 129 bytes came, expected 0 to 128"):
            await answers("7", episode_revision="x" * 129)


@pytest.mark.asyncio
async def test_the_backend_is_asked_for_what_the_request_says(kit):
    async with kit.serve() as gateway:
        await gateway.stub.PredictChunk(kit.request(), timeout=TIMEOUT_S)
    (asked,) = gateway.backend.requests
    assert (asked.embodiment_index, asked.instruction) == (1, "lift the cube")
    assert (asked.seed, asked.num_inference_steps) == (7, 5)
    assert [image.shape for image in asked.images] == [(48, 64, 3), (24, 32, 3)]
    np.testing.assert_array_equal(asked.images[1], kit.frame(24, 32))
    np.testing.assert_array_equal(asked.state, np.linspace(0, 1, 9, dtype=np.float32))
    np.testing.assert_array_equal(asked.history_states, np.arange(27, dtype=np.float32).reshape(3, 9))
    np.testing.assert_array_equal(asked.history_actions, np.arange(24, dtype=np.float32).reshape(3, 8))


@pytest.mark.asyncio
async def test_an_absent_seed_and_capture_time_are_drawn_and_left_out(kit):
    async with kit.serve(draw_seed=lambda: 12345) as gateway:
        request = kit.request(seed=None)
        request.observation.ClearField("capture_time")
        response = await gateway.stub.PredictChunk(request, timeout=TIMEOUT_S)
    assert response.seed == gateway.backend.requests[0].seed == 12345
    assert not response.HasField("capture_time")


@pytest.mark.asyncio
async def test_large_frames_are_decoded_in_a_thread_to_the_same_pixels(kit):
    request = kit.request()
    request.observation.images["front"].compressed = kit.jpeg(480, 640)
    async with kit.serve() as gateway:
        await gateway.stub.PredictChunk(request, timeout=TIMEOUT_S)
    frame = Frame(field="front", height=480, width=640, file=kit.jpeg(480, 640), format="jpeg")
    np.testing.assert_array_equal(gateway.backend.requests[0].images[0], decode_frames((frame,))[0])


@pytest.mark.asyncio
async def test_a_refusal_names_the_field_in_status_and_details_and_reaches_no_backend(kit):
    request = kit.request()
    request.observation.images["front"].compressed = kit.jpeg(480, 640)[:-100]
    async with kit.serve() as gateway:
        failed, error = await failure_of(gateway.stub.PredictChunk(request, timeout=TIMEOUT_S))
    assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.field == "observation.images[front].compressed"
    assert (error.robot_id, error.episode_id, error.request_id) == ("robot-1", "episode-1", "request-1")
    assert not error.HasField("retry_delay")
    assert gateway.backend.requests == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "code", "field", "says"),
    [
        ({"policy": ""}, grpc.StatusCode.INVALID_ARGUMENT, "policy", "required"),
        ({"policy": "tablecloth"}, grpc.StatusCode.NOT_FOUND, "policy", "the nearest name is 'tabletop'"),
        ({"revision": "0" * 12}, grpc.StatusCode.NOT_FOUND, "revision", "is not loaded; loaded: "),
    ],
)
async def test_an_unknown_name_is_refused(kit, changes, code, field, says):
    request = kit.request()
    for name, value in changes.items():
        setattr(request, name, value)
    async with kit.serve() as gateway:
        failed, error = await failure_of(gateway.stub.PredictChunk(request, timeout=TIMEOUT_S))
    assert (failed.code(), error.field) == (code, field)
    assert says in error.message
    assert gateway.backend.requests == []


@pytest.mark.asyncio
async def test_a_pin_to_the_loaded_revision_is_answered_by_it(kit):
    request = kit.request()
    request.revision = kit.revision.revision
    async with kit.serve() as gateway:
        response = await gateway.stub.PredictChunk(request, timeout=TIMEOUT_S)
    assert response.revision == kit.revision.revision


@pytest.mark.asyncio
async def test_bytes_that_are_no_message_are_invalid_and_name_no_class(kit):
    async with kit.serve() as gateway:
        for method in ("PredictChunk", "GetPolicy"):
            call = gateway.channel.unary_unary(f"/premotor.v1.PolicyService/{method}")
            failed, error = await failure_of(call(b"\xff\xff\xff", timeout=TIMEOUT_S))
            assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "DecodeError" not in error.message


@pytest.mark.asyncio
async def test_a_message_over_the_cap_is_refused_and_the_next_one_answered(kit):
    request = kit.request()
    request.observation.images["wrist"].compressed = bytes(2_000_000)
    async with kit.serve(limits=GatewayLimits(max_message_bytes=1_000_000)) as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.stub.PredictChunk(request, timeout=TIMEOUT_S)
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await gateway.stub.PredictChunk(kit.request(), timeout=TIMEOUT_S)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("failure", "code", "retry_s"),
    [
        (BackendUnavailableError("triton at /opt/x is gone", retry_after_s=0.5), grpc.StatusCode.UNAVAILABLE, 0.5),
        (BackendFailedError("Traceback: /opt/x/model.py line 3"), grpc.StatusCode.INTERNAL, None),
        (BackendDeadlineError("waited at /opt/x"), grpc.StatusCode.DEADLINE_EXCEEDED, None),
        (RuntimeError("Traceback: /opt/x/model.py"), grpc.StatusCode.INTERNAL, None),
    ],
)
async def test_a_backends_failure_becomes_its_status_and_tells_nothing_of_the_machine(kit, failure, code, retry_s):
    async with kit.serve(backend=kit.backend(failure=failure)) as gateway:
        failed, error = await failure_of(gateway.stub.PredictChunk(kit.request(), timeout=TIMEOUT_S))
    assert failed.code() is code
    told = f"{failed.details()} {error} {failed.trailing_metadata()}"
    assert "/opt" not in told and "Traceback" not in told and "Error" not in failed.details()
    if retry_s is None:
        assert not error.HasField("retry_delay")
    else:
        assert decode_duration(error.retry_delay, field="retry_delay") == retry_s


@pytest.mark.asyncio
async def test_an_instruction_that_only_the_model_can_measure_is_refused_as_any_other_field(kit):
    failure = InstructionRefusedError("an instruction of 129 tokens came, expected at most 128")
    async with kit.serve(backend=kit.backend(failure=failure)) as gateway:
        failed, error = await failure_of(gateway.stub.PredictChunk(kit.request(), timeout=TIMEOUT_S))
    assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.field, error.reason) == ("observation.instruction", policy_pb2.RequestError.REASON_INVALID)
    assert "129 tokens came, expected at most 128" in error.message
    # Who asks wrongly is no revision's fault.
    record = gateway.server.outcomes.record("tabletop", kit.revision.revision, since_s=0.0, window_s=60.0)
    assert record.num_requests == 0


def one_nan(request) -> np.ndarray:
    actions = np.zeros((16, 8), np.float32)
    actions[3, 2] = np.nan
    return actions


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "make_actions",
    [
        one_nan,
        lambda request: np.full((16, 8), np.inf, np.float32),
        lambda request: np.zeros((16, 4), np.float32),
        lambda request: np.zeros((15, 8), np.float32),
        lambda request: np.zeros((0,), np.float32),
        lambda request: np.zeros((16, 8), np.float64),
    ],
)
async def test_a_chunk_that_fails_the_output_check_is_not_sent(kit, make_actions):
    async with kit.serve(backend=kit.backend(make_actions=make_actions)) as gateway:
        failed, error = await failure_of(gateway.stub.PredictChunk(kit.request(), timeout=TIMEOUT_S))
    assert failed.code() is grpc.StatusCode.INTERNAL
    assert "output check" in error.message
    assert gateway.count(policy="tabletop", status="INTERNAL") == 1


@pytest.mark.asyncio
async def test_the_backend_is_given_the_time_that_is_left(kit):
    async with kit.serve(limits=GatewayLimits(default_timeout_s=5, max_timeout_s=20)) as gateway:
        for timeout in (8.0, None, 1000.0):
            await gateway.stub.PredictChunk(kit.request(), timeout=timeout)
    with_deadline, without, too_long = gateway.backend.timeouts_s
    # gRPC deadlines travel with a resolution of 10 ms.
    assert 4 < with_deadline <= 8.02
    assert 1 < without < 5
    assert 16 < too_long < 20


class NeverExecutor(Executor):
    """Takes work and never does it."""

    def submit(self, fn, /, *args, **kwargs):
        return Future()


def answerer_of(kit, backend, executor: Executor) -> ChunkAnswerer:
    return ChunkAnswerer(
        policies=kit.policies,
        backend=backend,
        limits=GatewayLimits(),
        metrics=GatewayMetrics(CollectorRegistry()),
        decode_threads=executor,
    )


@pytest.mark.asyncio
@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 1e-9])
async def test_a_request_that_comes_expired_is_never_sent_to_the_backend(kit, timeout_s):
    backend = kit.backend()
    answer = await answerer_of(kit, backend, NeverExecutor()).answer(kit.request(), timeout_s=timeout_s)
    assert isinstance(answer, policy_pb2.RequestError)
    assert answer.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert backend.requests == []


@pytest.mark.asyncio
async def test_a_request_that_expires_while_it_is_decoded_is_never_sent_to_the_backend(kit):
    backend, request = kit.backend(), kit.request()
    request.observation.images["front"].compressed = kit.jpeg(480, 640)
    answer = await answerer_of(kit, backend, NeverExecutor()).answer(request, timeout_s=0.05)
    assert isinstance(answer, policy_pb2.RequestError)
    assert answer.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert backend.requests == []


@pytest.mark.asyncio
async def test_a_callers_deadline_ends_the_wait_for_the_backend(kit):
    backend = kit.backend(holds={7: asyncio.Event()})
    async with kit.serve(backend=backend) as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.stub.PredictChunk(kit.request(), timeout=0.2)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await gateway.stub.PredictChunk(kit.request(seed=8), timeout=TIMEOUT_S)


@pytest.mark.asyncio
async def test_one_request_over_the_bound_is_refused_with_a_delay_and_a_free_place_is_taken_again(kit):
    backend = kit.backend(room=1, holds={1: asyncio.Event()})
    async with kit.serve(backend=backend, limits=GatewayLimits(max_queued_per_policy=1)) as gateway:

        def ask(seed: int):
            request = kit.request(seed=seed)
            request.robot_id = f"robot-{seed}"
            return asyncio.ensure_future(gateway.stub.PredictChunk(request, timeout=TIMEOUT_S))

        inside = ask(1)
        await backend.wait_for_requests(1)
        waiting = ask(2)
        await gateway.until(lambda: gateway.num_requests("queued") == 1)
        in_flight = gateway.num_requests("in_flight")
        failed, error = await failure_of(ask(3))
        backend.holds[1].set()
        await asyncio.gather(inside, waiting)
        await ask(4)
    assert in_flight == 2
    assert failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == policy_pb2.RequestError.REASON_OVERLOADED
    assert decode_duration(error.retry_delay, field="retry_delay") > 0
    assert [request.seed for request in backend.requests] == [1, 2, 4]
    assert (gateway.num_requests("queued"), gateway.num_requests("in_flight")) == (0, 0)


@pytest.mark.asyncio
async def test_a_caller_who_leaves_frees_its_place(kit):
    backend = kit.backend(room=1, holds={1: asyncio.Event()})
    async with kit.serve(backend=backend) as gateway:
        call = gateway.stub.PredictChunk(kit.request(seed=1), timeout=TIMEOUT_S)
        await backend.wait_for_requests(1)
        call.cancel()
        await asyncio.wait_for(backend.cancelled.wait(), 5)
        assert gateway.count(policy="tabletop", status="CANCELLED") == 1
        await gateway.stub.PredictChunk(kit.request(seed=2), timeout=TIMEOUT_S)


def judged(gateway, kit) -> tuple[int, float]:
    """How many requests a guard would judge the revision by, and how many of them failed."""
    record = gateway.server.outcomes.record("tabletop", kit.revision.revision, since_s=0.0, window_s=60.0)
    return record.num_requests, record.error_rate


@pytest.mark.asyncio
async def test_a_robot_that_hangs_up_is_counted_as_cancelled_and_held_against_no_revision(kit):
    backend = kit.backend(holds={1: asyncio.Event()})
    async with kit.serve(backend=backend) as gateway:
        call = gateway.stub.PredictChunk(kit.request(seed=1), timeout=TIMEOUT_S)
        await backend.wait_for_requests(1)
        call.cancel()
        await asyncio.wait_for(backend.cancelled.wait(), 5)
        await gateway.until(lambda: gateway.count(policy="tabletop", status="CANCELLED") == 1)
        assert judged(gateway, kit) == (0, 0.0)


@pytest.mark.asyncio
async def test_a_model_too_slow_for_a_deadline_is_held_against_its_revision(kit):
    backend = kit.backend(holds={1: asyncio.Event()})
    async with kit.serve(backend=backend) as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.stub.PredictChunk(kit.request(seed=1), timeout=0.2)
        await asyncio.wait_for(backend.cancelled.wait(), 5)
        await gateway.until(lambda: judged(gateway, kit) == (1, 1.0))
        assert gateway.count(policy="tabletop", status="DEADLINE_EXCEEDED") == 1
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.asyncio
async def test_a_drain_refuses_new_requests_and_lets_those_in_flight_end(kit):
    backend = kit.backend(holds={1: asyncio.Event()})
    async with kit.serve(backend=backend) as gateway:
        held = asyncio.ensure_future(gateway.stub.PredictChunk(kit.request(seed=1), timeout=TIMEOUT_S))
        await backend.wait_for_requests(1)
        stopping = asyncio.create_task(gateway.server.stop(grace_s=TIMEOUT_S))
        failed, error = await failure_of(gateway.stub.PredictChunk(kit.request(seed=2), timeout=TIMEOUT_S))
        assert not held.done() and not stopping.done()
        backend.holds[1].set()
        response = await held
        await stopping
    assert response.seed == 1
    assert failed.code() is grpc.StatusCode.UNAVAILABLE
    assert decode_duration(error.retry_delay, field="retry_delay") > 0
    assert [request.seed for request in backend.requests] == [1]


@pytest.mark.asyncio
async def test_a_stop_without_grace_ends_what_is_in_flight(kit):
    backend = kit.backend(holds={1: asyncio.Event()})
    async with kit.serve(backend=backend) as gateway:
        held = asyncio.ensure_future(gateway.stub.PredictChunk(kit.request(seed=1), timeout=TIMEOUT_S))
        await backend.wait_for_requests(1)
        async with asyncio.timeout(5):
            await gateway.server.stop(grace_s=0)
        with pytest.raises(grpc.aio.AioRpcError):
            await held


@pytest.mark.asyncio
async def test_a_taken_port_is_an_os_error(kit):
    async with kit.serve() as gateway, kit.serve() as other:
        del other
        port = int(gateway.address.rpartition(":")[2])
        taken = type(gateway.server)(policies=kit.policies, backend=kit.backend(), metrics_registry=CollectorRegistry())
        with pytest.raises(OSError, match="cannot listen"):
            await taken.start(port=port)


@pytest.mark.asyncio
async def test_requests_are_counted_by_policy_and_status_and_no_label_comes_from_a_caller(kit):
    async with kit.serve() as gateway:
        await gateway.stub.PredictChunk(kit.request(), timeout=TIMEOUT_S)
        request = kit.request()
        request.policy = "chosen-by-a-caller"
        await failure_of(gateway.stub.PredictChunk(request, timeout=TIMEOUT_S))
    assert gateway.count(policy="tabletop", status="OK") == 1
    assert gateway.count(policy="", status="NOT_FOUND") == 1
    revision = {"revision": kit.revision.revision}
    for span, more in (("decode", {}), ("queue", {}), ("inference", {}), ("total", revision)):
        labels = {"policy": "tabletop", **more}
        assert gateway.registry.get_sample_value(f"premotor_{span}_seconds_count", labels) == 1
    labels = [sample.labels for metric in gateway.registry.collect() for sample in metric.samples]
    assert all(label.get("policy", "") in ("", "tabletop") for label in labels)


@pytest.mark.asyncio
async def test_a_refusal_is_logged_as_one_json_object_without_the_observation(kit, caplog):
    request = kit.request()
    request.observation.instruction = "a secret errand"
    request.seed = -1
    with caplog.at_level(logging.INFO, logger="service"):
        async with kit.serve() as gateway:
            await failure_of(gateway.stub.PredictChunk(request, timeout=TIMEOUT_S))
    (record,) = [record for record in caplog.records if record.getMessage() == "request refused"]
    line = json.loads(JsonFormatter().format(record))
    assert line["event"] == "request refused"
    assert (line["policy"], line["request_id"], line["status"], line["field"]) == (
        "tabletop",
        "request-1",
        "INVALID_ARGUMENT",
        "seed",
    )
    assert "secret" not in json.dumps(line)
