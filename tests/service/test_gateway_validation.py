"""Every field that does not fit the published policy is refused with its name, what came and what was expected."""

from __future__ import annotations

import numpy as np
import pytest

from premotor.v1 import policy_pb2
from premotor.wire import encode_tensor
from service.errors import InvalidRequestError
from service.gateway.limits import GatewayLimits
from service.gateway.validation import RequestValidator


@pytest.fixture(scope="module")
def validator(kit) -> RequestValidator:
    return RequestValidator(kit.revision.description, GatewayLimits())


def state_of(values) -> policy_pb2.Tensor:
    return encode_tensor(np.asarray(values, np.float32))


def set_state(values):
    return lambda request: request.observation.state.CopyFrom(state_of(values))


def set_history(num_states: int, num_actions: int, *, bad: float | None = None, num_valid: int | None = None):
    def change(request):
        states, actions = np.zeros((num_states, 9), np.float32), np.zeros((num_actions, 8), np.float32)
        if bad is not None:
            actions[-1, 2] = bad
        request.history.states.CopyFrom(encode_tensor(states))
        request.history.actions.CopyFrom(encode_tensor(actions))
        if num_valid is not None:
            request.history.num_valid_steps = num_valid

    return change


def assign(**fields):
    def change(request):
        for name, value in fields.items():
            setattr(request, name, value)

    return change


def assign_instruction(text: str):
    def change(request):
        request.observation.instruction = text

    return change


def set_image(camera: str, **encoding):
    return lambda request: request.observation.images[camera].CopyFrom(policy_pb2.Image(**encoding))


REFUSALS = {
    "no robot id": (assign(robot_id=""), "robot_id", "0 bytes came, expected 1 to 128"),
    "no episode id": (assign(episode_id=""), "episode_id", "0 bytes came"),
    "no request id": (assign(request_id=""), "request_id", "0 bytes came"),
    "long id": (assign(robot_id="r" * 129), "robot_id", "129 bytes came, expected 1 to 128"),
    "long id in bytes": (assign(request_id="é" * 65), "request_id", "130 bytes came"),
    "long episode revision": (
        assign(episode_revision="r" * 129),
        "episode_revision",
        "129 bytes came, expected 0 to 128",
    ),
    "no embodiment": (assign(embodiment=""), "embodiment", "none came, the policy drives 'sawyer', 'panda'"),
    "unknown embodiment": (assign(embodiment="pandas"), "embodiment", "the nearest name is 'panda'"),
    "no observation": (lambda r: r.ClearField("observation"), "observation", "it is required"),
    "no instruction": (assign_instruction(""), "observation.instruction", "empty or blank"),
    "blank instruction": (assign_instruction(" \t\n "), "observation.instruction", "empty or blank"),
    "long instruction": (
        assign_instruction("a" * 1025),
        "observation.instruction",
        "1025 bytes came, expected at most 1024",
    ),
    "bad capture time": (
        lambda r: setattr(r.observation.capture_time, "nanos", -1),
        "observation.capture_time",
        "expected parts of one sign",
    ),
    "no state": (lambda r: r.observation.ClearField("state"), "observation.state", "expected float32 [9]"),
    "short state": (set_state([0.0] * 8), "observation.state.shape", "[8] came, expected [9]"),
    "NaN state": (set_state([0, 0, 0, np.nan, 0, 0, 0, 0, 0]), "observation.state", "element [3] is nan"),
    "infinite state": (set_state([np.inf] + [0.0] * 8), "observation.state", "element [0] is inf"),
    "state of an unfilled buffer": (
        set_state([0, 0, -3e38, 0, 0, 1e12, 0, 0, 0]),
        "observation.state",
        "element [2] is -3e+38 (2 in all), expected -2147483648 to 2147483648",
    ),
    "matrix state": (set_state([[0.0] * 9]), "observation.state.shape", "2 dimensions came"),
    "byte state": (
        lambda r: r.observation.state.CopyFrom(encode_tensor(np.zeros(9, np.uint8))),
        "observation.state.data_type",
        "DATA_TYPE_UINT8 came, expected DATA_TYPE_FLOAT32",
    ),
    "state without bytes": (
        lambda r: setattr(r.observation.state, "data", b""),
        "observation.state.data",
        "0 bytes came",
    ),
    "missing camera": (
        lambda r: r.observation.images.pop("wrist"),
        "observation.images[wrist]",
        "none came, the cameras are 'front', 'wrist'",
    ),
    "unknown camera": (
        set_image("wrist2", compressed=b"x"),
        "observation.images[wrist2]",
        "an unknown camera came, the cameras are 'front', 'wrist'; the nearest name is 'wrist'",
    ),
    "no image": (set_image("wrist"), "observation.images[wrist]", "no encoding came"),
    "no JPEG": (set_image("wrist", compressed=b"GIF89a"), "observation.images[wrist].compressed", "JPEG or PNG"),
    "cut JPEG header": (
        set_image("wrist", compressed=b"\xff\xd8\xff"),
        "observation.images[wrist].compressed",
        "not a decodable JPEG",
    ),
    "float pixels": (
        set_image("wrist", pixels=encode_tensor(np.zeros((4, 4, 3), np.float32))),
        "observation.images[wrist].pixels.data_type",
        "expected DATA_TYPE_UINT8",
    ),
    "long history": (set_history(9, 9), "history.states", "9 steps came, expected at most 8"),
    "long history, few valid": (set_history(9, 9, num_valid=1), "history.states", "9 steps came"),
    "mismatched history": (set_history(3, 4), "history.actions", "4 steps came, expected as many as history.states"),
    "history of states alone": (lambda r: r.history.ClearField("actions"), "history.actions", "0 steps came"),
    "history of another width": (
        lambda r: r.history.states.CopyFrom(encode_tensor(np.zeros((3, 8), np.float32))),
        "history.states.shape",
        "[3, 8] came, expected [any, 9]",
    ),
    "NaN history": (set_history(3, 3, bad=np.nan), "history.actions", "element [2, 2] is nan"),
    "history of an unfilled buffer": (
        set_history(3, 3, bad=3e38),
        "history.actions",
        "element [2, 2] is 3e+38 (1 in all), expected -2147483648 to 2147483648",
    ),
    "history of states beyond any counter": (
        lambda r: r.history.states.CopyFrom(encode_tensor(np.full((3, 9), 2.0**31 + 256, np.float32))),
        "history.states",
        "element [0, 0] is 2.14748e+09 (27 in all), expected -2147483648 to 2147483648",
    ),
    "too many valid steps": (set_history(3, 3, num_valid=4), "history.num_valid_steps", "4 came, expected 0 to 3"),
    "negative valid steps": (set_history(3, 3, num_valid=-1), "history.num_valid_steps", "-1 came"),
    "valid steps of no history": (set_history(0, 0, num_valid=1), "history.num_valid_steps", "1 came, expected 0 to 0"),
    "negative seed": (assign(seed=-1), "seed", f"-1 came, expected 0 to {2**63 - 1}"),
    "no steps": (assign(num_inference_steps=0), "num_inference_steps", "0 came, expected 1 to 32"),
    "too many steps": (assign(num_inference_steps=33), "num_inference_steps", "33 came, expected 1 to 32"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_field_that_does_not_fit_is_refused_by_name(kit, validator, name):
    change, field, says = REFUSALS[name]
    request = kit.request()
    change(request)
    with pytest.raises(InvalidRequestError) as refused:
        validator.check(request)
    assert refused.value.field == field
    assert refused.value.message.startswith(f"{field}: ")
    assert says in refused.value.message


@pytest.mark.parametrize("embodiment", ["panda", "sawyer"])
def test_a_request_that_fits_is_read_as_it_was_sent(kit, validator, embodiment):
    spec = {"panda": kit.panda, "sawyer": kit.sawyer}[embodiment]
    checked = validator.check(kit.request(embodiment=embodiment))
    assert checked.embodiment_index == ("sawyer", "panda").index(embodiment)
    assert len(checked.frames) == len(spec.cameras)
    np.testing.assert_array_equal(checked.state, np.linspace(0, 1, spec.state_dim, dtype=np.float32))
    assert checked.instruction == "lift the cube"
    assert (checked.seed, checked.num_inference_steps) == (7, 5)


def test_frames_come_in_the_order_of_the_embodiments_cameras(kit, validator):
    front, wrist = validator.check(kit.request()).frames
    assert front.format == "jpeg" and wrist.pixels is not None


def test_absent_history_and_zero_valid_steps_are_the_same_as_none(kit, validator):
    absent = kit.request()
    absent.ClearField("history")
    masked = kit.request()
    masked.history.num_valid_steps = 0
    for request in (absent, masked):
        checked = validator.check(request)
        assert checked.history_states.shape == (0, 9)
        assert checked.history_actions.shape == (0, 8)


def test_padding_rows_of_the_history_are_dropped_and_never_read(kit, validator):
    request = kit.request()
    states = np.full((4, 9), np.nan, np.float32)
    states[2:] = [[1.0] * 9, [2.0] * 9]
    actions = np.full((4, 8), np.inf, np.float32)
    actions[2:] = [[3.0] * 8, [4.0] * 8]
    request.history.states.CopyFrom(encode_tensor(states))
    request.history.actions.CopyFrom(encode_tensor(actions))
    request.history.num_valid_steps = 2
    checked = validator.check(request)
    np.testing.assert_array_equal(checked.history_states, states[2:])
    np.testing.assert_array_equal(checked.history_actions, actions[2:])


def test_the_largest_numbers_that_a_counter_reaches_are_taken(kit, validator):
    request = kit.request()
    set_state([2.0**31, -(2.0**31), *[1.2e8] * 7])(request)
    set_history(3, 3, bad=-(2.0**31))(request)
    assert validator.check(request).state.tolist() == [2.0**31, -(2.0**31), *[1.2e8] * 7]


def test_the_longest_history_ids_and_instruction_are_taken(kit, validator):
    request = kit.request()
    set_history(8, 8)(request)
    request.robot_id = request.episode_revision = "r" * 128
    request.observation.instruction = "a" * 1024
    request.num_inference_steps = 32
    request.seed = 2**63 - 1
    checked = validator.check(request)
    assert (len(checked.history_states), checked.num_inference_steps, checked.seed) == (8, 32, 2**63 - 1)


def test_an_absent_embodiment_is_allowed_when_the_policy_drives_one_body(kit):
    description = policy_pb2.Policy()
    description.CopyFrom(kit.revision.description)
    del description.embodiments[1]
    request = kit.request(embodiment="sawyer")
    request.embodiment = ""
    assert RequestValidator(description, GatewayLimits()).check(request).embodiment_index == 0


def test_a_callers_names_are_quoted_and_cut_in_messages(kit, validator):
    request = kit.request()
    request.embodiment = "p\n\x1b[31m" + "x" * 10_000
    with pytest.raises(InvalidRequestError) as refused:
        validator.check(request)
    assert refused.value.message.isprintable() and len(refused.value.message) < 300
