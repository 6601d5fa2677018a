"""The blocking client gets the chunk it asked for, or an error that says what to do next."""

from __future__ import annotations

import io
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from PIL import Image

from premotor.client import (
    ClosedError,
    DeadlineExceededError,
    FixRequestError,
    HistoryBuffer,
    ObservationSupersededError,
    OutputViolationError,
    PolicyClient,
    PolicyError,
    ProtocolError,
    RetryableError,
    SchemaChangedError,
    ServerFailureError,
)
from premotor.client.channel import MAX_MESSAGE_BYTES
from premotor.v1 import policy_pb2
from premotor.wire import encode_duration


@pytest.fixture
def client(gateway):
    with PolicyClient(gateway.address, timeout_s=5.0) as connected:
        yield connected


def test_a_chunk_holds_the_actions_and_where_they_came_from(client, gateway, arguments) -> None:
    chunk = client.predict_chunk(**arguments, seed=11, capture_time_s=12.5, num_inference_steps=3)
    np.testing.assert_array_equal(chunk.actions, np.arange(4)[:, None] + arguments["state"][None, :])
    assert chunk.actions.dtype == np.float32
    assert chunk.actions.flags.writeable
    (request,) = gateway.service.requests
    assert chunk.request_id == request.request_id
    assert (chunk.robot_id, chunk.episode_id) == ("robot-1", "episode-1")
    assert (chunk.revision, chunk.seed, chunk.capture_time_s) == ("0123456789ab", 11, 12.5)
    timing = chunk.timing
    assert (timing.decode_s, timing.queue_s, timing.inference_s, timing.total_s) == (0.001, 0.002, 0.003, 0.0065)
    assert 0 < chunk.round_trip_s < 5
    assert request.num_inference_steps == 3


def test_what_the_caller_leaves_out_is_absent_on_the_wire(client, gateway, arguments) -> None:
    chunk = client.predict_chunk(**arguments)
    (request,) = gateway.service.requests
    for field in ("seed", "num_inference_steps", "history"):
        assert not request.HasField(field)
    assert not request.observation.HasField("capture_time")
    assert request.revision == request.embodiment == ""
    assert chunk.capture_time_s is None
    assert chunk.seed == 7


def test_request_ids_differ(client, arguments) -> None:
    chunks = [client.predict_chunk(**arguments) for _ in range(3)]
    assert len({chunk.request_id for chunk in chunks}) == 3


def test_history_sends_its_real_steps_only(client, gateway, arguments) -> None:
    history = client.history_buffer("tabletop", "sawyer")
    assert (history.history_steps, history.state_dim, history.action_dim) == (2, 3, 3)
    client.predict_chunk(**arguments, history=history)
    history.append(np.array([1, 2, 3]), np.array([4, 5, 6]))
    client.predict_chunk(**arguments, history=history)
    empty, one = (request.history for request in gateway.service.requests)
    assert list(empty.states.shape) == list(empty.actions.shape) == [0, 3]
    np.testing.assert_array_equal(np.frombuffer(one.states.data, np.float32), [1, 2, 3])
    np.testing.assert_array_equal(np.frombuffer(one.actions.data, np.float32), [4, 5, 6])
    assert not one.HasField("num_valid_steps")


def test_pixels_are_sent_raw_or_as_jpeg_and_files_as_they_are(client, gateway, arguments) -> None:
    frame = np.linspace(0, 255, 24 * 32 * 3).astype(np.uint8).reshape(24, 32, 3)[::-1]
    file = b"\x89PNG\r\n\x1a\n the caller's own"
    client.predict_chunk(**{**arguments, "images": {"front": frame}})
    client.predict_chunk(**{**arguments, "images": {"front": frame}, "image_encoding": "jpeg"})
    client.predict_chunk(**{**arguments, "images": {"front": file}, "image_encoding": "jpeg"})
    raw, jpeg, own = (request.observation.images["front"] for request in gateway.service.requests)
    assert raw.pixels.data == frame.tobytes()
    decoded = np.asarray(Image.open(io.BytesIO(jpeg.compressed))).astype(int)
    assert np.abs(decoded - frame).mean() < 2
    assert own.compressed == file


def test_without_simplejpeg_pillow_encodes(client, gateway, arguments, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    frame = arguments["images"]["front"]
    client.predict_chunk(**{**arguments, "image_encoding": "jpeg"})
    compressed = gateway.service.requests[0].observation.images["front"].compressed
    assert np.abs(np.asarray(Image.open(io.BytesIO(compressed))).astype(int) - frame).max() <= 2


def test_without_a_codec_the_error_offers_raw(client, arguments, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(FixRequestError, match=r"premotor\[images\].*image_encoding='raw'"):
        client.predict_chunk(**{**arguments, "image_encoding": "jpeg"})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"policy": ""}, "policy"),
        ({"robot_id": " "}, "robot_id"),
        ({"episode_id": ""}, "episode_id"),
        ({"instruction": "\n"}, "observation.instruction"),
        ({"state": np.zeros((1, 3))}, "observation.state"),
        ({"state": np.array([np.nan])}, "observation.state"),
        ({"images": {"front": np.zeros((4, 4), np.uint8)}}, "observation.images[front]"),
        ({"images": {"front": b"GIF89a"}}, "observation.images[front]"),
        ({"images": {"front": [[0]]}}, "observation.images[front]"),
        ({"image_encoding": "webp"}, "image_encoding"),
        ({"seed": -1}, "seed"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"capture_time_s": float("nan")}, "observation.capture_time"),
    ],
)
def test_what_no_policy_could_accept_is_refused_before_it_is_sent(client, gateway, arguments, change, field) -> None:
    with pytest.raises(FixRequestError) as refusal:
        client.predict_chunk(**{**arguments, **change})
    assert refusal.value.field == field
    assert gateway.service.requests == []


@pytest.mark.parametrize(
    ("code", "error_class"),
    [
        ("INVALID_ARGUMENT", FixRequestError),
        ("NOT_FOUND", FixRequestError),
        ("PERMISSION_DENIED", FixRequestError),
        ("UNAVAILABLE", RetryableError),
        ("RESOURCE_EXHAUSTED", RetryableError),
        ("DEADLINE_EXCEEDED", DeadlineExceededError),
        ("INTERNAL", ServerFailureError),
        ("UNKNOWN", ServerFailureError),
        ("UNIMPLEMENTED", ProtocolError),
    ],
)
@pytest.mark.parametrize("verb", ["error", "plain"])
def test_a_status_becomes_the_error_that_says_what_to_do_next(
    client, gateway, arguments, verb: str, code: str, error_class: type[PolicyError]
) -> None:
    with pytest.raises(PolicyError) as failure:
        client.predict_chunk(**{**arguments, "instruction": f"{verb} {code}"})
    error = failure.value
    assert type(error) is error_class
    assert error.code is grpc.StatusCode[code]
    assert str(error).startswith(f"{code}: ")
    assert [request.request_id for request in gateway.service.requests] == [error.request_id], "sent once, never again"
    if isinstance(error, FixRequestError):
        assert error.field == ("observation.state" if verb == "error" else "")
    if isinstance(error, RetryableError):
        assert error.retry_delay_s == (0.25 if verb == "error" else None)


@pytest.mark.parametrize(
    ("code", "reason", "error_class"),
    [
        ("ABORTED", policy_pb2.RequestError.REASON_SUPERSEDED, ObservationSupersededError),
        ("INTERNAL", policy_pb2.RequestError.REASON_OUTPUT_VIOLATION, OutputViolationError),
        ("INTERNAL", policy_pb2.RequestError.REASON_FAILED, ServerFailureError),
        ("UNAVAILABLE", policy_pb2.RequestError.REASON_DRAINING, RetryableError),
        ("RESOURCE_EXHAUSTED", policy_pb2.RequestError.REASON_OVERLOADED, RetryableError),
        ("DEADLINE_EXCEEDED", policy_pb2.RequestError.REASON_EXPIRED, DeadlineExceededError),
        # Of a server younger than this client.
        ("ABORTED", 4711, RetryableError),
        ("INTERNAL", 4711, ServerFailureError),
    ],
)
def test_a_reason_says_more_than_its_code_and_an_unknown_one_leaves_it_to_the_code(
    client, arguments, code: str, reason: int, error_class: type[PolicyError]
) -> None:
    asked = {**arguments, "instruction": f"error {code} {reason}"}
    with pytest.raises(PolicyError) as failure:
        client.predict_chunk(**asked)
    with client.stream() as stream, pytest.raises(PolicyError) as streamed:
        stream.receive(stream.send(**asked))
    for error in (failure.value, streamed.value):
        assert type(error) is error_class
        assert error.code is grpc.StatusCode[code]


def test_a_chunk_that_broke_a_limit_is_a_failure_of_the_server_to_who_knows_no_more() -> None:
    assert issubclass(OutputViolationError, ServerFailureError)


@pytest.mark.parametrize(
    "spoiled",
    [
        "request_id",
        "robot_id",
        "episode_id",
        "capture_time",
        "nan",
        "no actions",
        "wrong length",
        "no timing",
        "no revision",
    ],
)
def test_an_answer_that_is_not_the_requests_own_or_not_usable_is_refused(client, arguments, spoiled: str) -> None:
    with pytest.raises(ProtocolError, match=spoiled.split()[-1].replace("length", "data").replace("nan", "actions")):
        client.predict_chunk(**{**arguments, "instruction": spoiled})


def test_a_pinned_revision_and_seed_are_held(client, arguments) -> None:
    assert client.predict_chunk(**arguments, revision="pinned", seed=3).revision == "pinned"
    with pytest.raises(ProtocolError, match="revision: 'another' came, the request's was 'pinned'"):
        client.predict_chunk(**{**arguments, "instruction": "revision"}, revision="pinned")
    with pytest.raises(ProtocolError, match="seed: 4 came, the request's was 3"):
        client.predict_chunk(**{**arguments, "instruction": "seed"}, seed=3)


@pytest.mark.parametrize("says_schema", [True, False])
def test_actions_are_held_to_the_description_of_the_policy(client, gateway, arguments, says_schema: bool) -> None:
    gateway.service.says_schema = says_schema
    wrong = {**arguments, "instruction": "wrong shape"}
    assert client.predict_chunk(**wrong).actions.shape == (4, 2), "nothing is known of the policy yet"
    client.get_policy("tabletop")
    with pytest.raises(ProtocolError, match=r"actions.shape: \[4, 2\] came, expected \[4, 3\]"):
        client.predict_chunk(**wrong)
    if says_schema:
        with pytest.raises(ProtocolError, match=r"actions.shape: \[4, 2\] came, expected \[4, 3\]"):
            client.predict_chunk(**wrong, revision="another")
    else:
        assert client.predict_chunk(**wrong, revision="another").actions.shape == (4, 2), "not the revision described"


def test_an_answer_of_another_schema_than_was_described_is_refused_until_it_is_asked_for_again(
    client, gateway, arguments
) -> None:
    assert client.predict_chunk(**arguments).schema_digest == "digest"
    client.get_policy("tabletop")
    gateway.service.schemas["canary"] = "another"
    assert client.predict_chunk(**arguments).revision == "0123456789ab"
    refused = "revision canary, which answered, has schema another; it was described as digest"
    with pytest.raises(SchemaChangedError, match=refused) as failure:
        client.predict_chunk(**arguments, revision="canary")
    assert failure.value.request_id
    with client.stream() as stream, pytest.raises(SchemaChangedError, match=refused):
        stream.receive(stream.send(**arguments, revision="canary"))
    gateway.service.policy.schema_digest = "another"
    client.get_policy("tabletop")
    assert client.predict_chunk(**arguments, revision="canary").schema_digest == "another"


def test_actions_are_as_wide_as_the_history_of_actions(client, arguments) -> None:
    with pytest.raises(ProtocolError, match=r"actions.shape: \[4, 3\] came, expected \[any, 5\]"):
        client.predict_chunk(**arguments, history=HistoryBuffer(2, 3, 5))


def test_the_deadline_ends_a_call_and_its_late_answer_is_nobodys(client, gateway, arguments) -> None:
    started_s = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        client.predict_chunk(**{**arguments, "instruction": "hold"}, timeout_s=0.1)
    assert time.monotonic() - started_s < 2
    gateway.service.release.set()
    np.testing.assert_array_equal(client.predict_chunk(**arguments).actions[0], arguments["state"])


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
def test_no_time_left_is_not_no_limit(client, gateway, arguments, timeout_s: float) -> None:
    with pytest.raises(DeadlineExceededError):
        client.predict_chunk(**arguments, timeout_s=timeout_s)
    with pytest.raises(DeadlineExceededError):
        client.get_policy("tabletop", timeout_s=timeout_s)
    assert gateway.service.requests == []


@pytest.mark.parametrize("timeout_s", [float("nan"), float("inf")])
def test_there_is_no_way_to_wait_for_ever(client, gateway, arguments, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number of seconds"):
        PolicyClient(gateway.address, timeout_s=timeout_s)
    with pytest.raises(ValueError, match="expected a finite number of seconds"):
        client.predict_chunk(**arguments, timeout_s=timeout_s)


def test_the_default_timeout_bounds_a_call_that_names_none(gateway, arguments) -> None:
    with PolicyClient(gateway.address, timeout_s=0.1) as client, pytest.raises(DeadlineExceededError):
        client.predict_chunk(**{**arguments, "instruction": "hold"})


def test_a_description_says_what_a_robot_needs(client) -> None:
    description = client.get_policy("tabletop")
    assert (description.name, description.revision, description.variant) == ("tabletop", "0123456789ab", "history")
    assert (description.action_horizon, description.execution_horizon, description.history_steps) == (4, 2, 2)
    body = description.embodiment()
    assert body is description.embodiment("sawyer")
    assert (body.state_dim, body.action_dim, body.control_rate_hz) == (3, 3, 80.0)
    assert [group.representation for group in body.action] == ["delta", "absolute"]
    assert [group.kind for group in body.action] == ["end_effector_position", "gripper"]
    assert body.state[0].upper_limit == (1.0, 1.0, 0.5)
    with pytest.raises(FixRequestError, match="'aloha' came, policy 'tabletop' drives sawyer"):
        description.embodiment("aloha")
    assert client.list_policies() == (description,)


def test_an_unknown_policy_names_the_nearest(client) -> None:
    with pytest.raises(FixRequestError, match="the nearest is 'tabletop'") as refusal:
        client.get_policy("table")
    assert (refusal.value.field, refusal.value.code) == ("policy", grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda policy: policy.ClearField("schema_digest"), "schema_digest is empty"),
        (lambda policy: policy.ClearField("embodiments"), "embodiments is empty"),
        (lambda policy: policy.ClearField("action_horizon"), "action_horizon is 0"),
        (lambda policy: policy.embodiments[0].ClearField("control_rate_hz"), "control_rate_hz is 0"),
        (lambda policy: policy.embodiments[0].cameras[0].ClearField("width"), "camera 'front' is 24 x 0"),
        (lambda policy: policy.embodiments[0].action[0].ClearField("representation"), "expected absolute or delta"),
        (lambda policy: policy.embodiments[0].state[0].lower_limit.append(1.0), "lower_limit has 4 values"),
    ],
)
def test_a_description_no_robot_could_act_on_is_refused(client, gateway, change, message: str) -> None:
    change(gateway.service.policy)
    with pytest.raises(ProtocolError, match=message):
        client.get_policy("tabletop")


def test_frames_beyond_grpcs_own_cap_pass_and_beyond_64_mib_are_the_callers_to_fix(client, arguments) -> None:
    large = np.zeros((1500, 2000, 3), np.uint8)
    client.predict_chunk(**{**arguments, "images": {"front": large}})
    too_large = np.zeros((MAX_MESSAGE_BYTES // 3 + 1, 1, 3), np.uint8)
    with pytest.raises(FixRequestError, match=r"RESOURCE_EXHAUSTED: .*larger than max"):
        client.predict_chunk(**{**arguments, "images": {"front": too_large}})


def test_an_absent_gateway_fails_at_once_and_can_be_retried(arguments) -> None:
    with PolicyClient("127.0.0.1:1", timeout_s=30.0) as client:
        started_s = time.monotonic()
        with pytest.raises(RetryableError):
            client.predict_chunk(**arguments)
        assert time.monotonic() - started_s < 10


def test_a_call_in_flight_when_the_gateway_stops_can_be_retried_and_the_client_finds_it_again(
    client, gateway, arguments
) -> None:
    errors: list[Exception] = []

    def call() -> None:
        try:
            client.predict_chunk(**{**arguments, "instruction": "hold"})
        except PolicyError as error:
            errors.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    assert gateway.service.arrived.wait(5)
    gateway.stop()
    caller.join(5)
    assert [type(error) for error in errors] == [RetryableError]
    gateway.start()
    for _ in range(100):
        try:
            chunk = client.predict_chunk(**arguments)
            break
        except RetryableError:
            threading.Event().wait(0.05)
    np.testing.assert_array_equal(chunk.actions[0], arguments["state"])


def test_threads_share_a_client_and_each_gets_its_own_chunk(client, arguments) -> None:
    wrong: list[int] = []

    def ask(robot: int) -> None:
        for step in range(20):
            state = np.array([robot, step, 0], np.float32)
            chunk = client.predict_chunk(**{**arguments, "robot_id": f"robot-{robot}", "state": state})
            if not np.array_equal(chunk.actions[0], state):
                wrong.append(robot)

    threads = [threading.Thread(target=ask, args=(robot,)) for robot in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


def test_a_closed_client_says_so_and_closing_ends_calls_in_flight(gateway, arguments) -> None:
    client = PolicyClient(gateway.address, timeout_s=30.0)
    errors: list[Exception] = []

    def call() -> None:
        try:
            client.predict_chunk(**{**arguments, "instruction": "hold"})
        except PolicyError as error:
            errors.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    assert gateway.service.arrived.wait(5)
    client.close()
    client.close()
    caller.join(5)
    assert [type(error) for error in errors] == [ClosedError]
    for attempt in (lambda: client.predict_chunk(**arguments), client.list_policies, client.stream):
        with pytest.raises(ClosedError):
            attempt()


def test_a_retry_delay_that_cannot_be_is_a_protocol_error() -> None:
    from premotor.client.errors import error_from_details
    from premotor.v1 import policy_pb2

    details = policy_pb2.RequestError(code=14, message="restarting")
    details.retry_delay.CopyFrom(encode_duration(2.0))
    assert error_from_details(details).retry_delay_s == 2.0
    details.retry_delay.nanos = -1
    assert type(error_from_details(details)) is ProtocolError
    assert type(error_from_details(policy_pb2.RequestError(code=0))) is ProtocolError
    assert type(error_from_details(policy_pb2.RequestError(code=99))) is ProtocolError
