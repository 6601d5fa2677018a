"""A robot's observation to a request: what is taken, from where, and how a refusal names the robot's own key."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from premotor.v1 import policy_pb2
from premotor.wire import decode_image, decode_tensor
from service.errors import InvalidRequestError
from service.openpi.observations import fill_observation

WRIST = "observation/wrist_image_left"
GRIPPER = "observation/gripper_position"


def filled(openpi, entries, **changes):
    request = policy_pb2.PredictChunkRequest()
    fill_observation(request, entries, replace(openpi.panda_map, **changes))
    return request.observation


def image(observation, camera):
    return decode_image(observation.images[camera], field=camera)


def state(observation):
    return decode_tensor(observation.state, field="state", dtype=np.float32, shape=(None,))


def test_images_state_and_instruction_come_from_the_mapped_keys(openpi):
    entries = openpi.observation()
    observation = filled(openpi, entries)
    assert set(observation.images) == {"front", "wrist"}
    np.testing.assert_array_equal(image(observation, "front"), entries["observation/exterior_image_1_left"])
    np.testing.assert_array_equal(image(observation, "wrist"), entries[WRIST])
    expected = np.concatenate([np.linspace(0, 1, 7), [0.25, 0.5]]).astype(np.float32)
    np.testing.assert_array_equal(state(observation), expected)
    assert observation.instruction == "lift the cube"
    assert not observation.HasField("capture_time")


def test_channels_first_gives_the_same_pixels(openpi):
    frame = openpi.observation()[WRIST]
    observation = filled(openpi, openpi.observation(**{WRIST: np.ascontiguousarray(frame.transpose(2, 0, 1))}))
    np.testing.assert_array_equal(image(observation, "wrist"), frame)


def test_three_rows_of_pixels_are_three_rows(openpi):
    frame = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    np.testing.assert_array_equal(image(filled(openpi, openpi.observation(**{WRIST: frame})), "wrist"), frame)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (np.zeros((16, 16, 3), np.float32), "float32 [16, 16, 3] came, expected uint8 [height, width, 3]"),
        (np.zeros((1, 16, 16, 3), np.uint8), "uint8 [1, 16, 16, 3] came"),
        (np.zeros((16, 16, 4), np.uint8), "uint8 [16, 16, 4] came"),
        (np.zeros((16, 16), np.uint8), "uint8 [16, 16] came"),
        (np.zeros((16, 16, 3), np.int8), "int8 [16, 16, 3] came"),
        (b"\xff\xd8\xff", "bytes came"),
        (None, "none came"),
        ([[[0, 0, 0]]], "list came"),
    ],
)
def test_any_other_frame_is_refused_by_the_robots_key(openpi, frame, said):
    with pytest.raises(InvalidRequestError) as refused:
        filled(openpi, openpi.observation(**{WRIST: frame}))
    assert refused.value.field == "observation['observation/wrist_image_left']"
    assert said in refused.value.message
    assert "or [3, height, width]" in refused.value.message
    assert "convert_to_uint8" in refused.value.message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([1, 2], np.int32), [1, 2]),
        (np.array([[1.0, 2.0]], np.float32), [1, 2]),
        (np.array([1.0, 2.0], ">f8"), [1, 2]),
        (np.array(3.0), [3]),
        (3, [3]),
        (0.5, [0.5]),
        ([1, 0.5], [1, 0.5]),
    ],
)
def test_numbers_of_every_form_are_joined_to_the_state(openpi, value, expected):
    observation = filled(openpi, openpi.observation(**{GRIPPER: value}))
    np.testing.assert_array_equal(state(observation)[7:], np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros((2, 2)), "float64 [2, 2] came, expected numbers [num_dimensions]"),
        (np.zeros((1, 1, 2)), "float64 [1, 1, 2] came"),
        (np.zeros(2, bool), "bool [2] came"),
        ("0.5", "str came"),
        ([], "list came"),
        ([True], "list came"),
        ([0.5, "0.5"], "list came"),
        (True, "bool came"),
        (None, "none came"),
    ],
)
def test_what_is_no_vector_of_numbers_is_refused(openpi, value, said):
    with pytest.raises(InvalidRequestError) as refused:
        filled(openpi, openpi.observation(**{GRIPPER: value}))
    assert refused.value.field == "observation['observation/gripper_position']"
    assert said in refused.value.message


def test_numbers_beyond_float32_become_infinite_for_the_gateway_to_refuse(openpi):
    assert np.isinf(state(filled(openpi, openpi.observation(**{GRIPPER: [1e300, 0.0]})))[7])


@pytest.mark.parametrize("prompt", [b"lift", 3, ["lift"], None, np.zeros(1)])
def test_an_instruction_is_a_text(openpi, prompt):
    with pytest.raises(InvalidRequestError, match=r"observation\['prompt'\]: .* came, expected a text"):
        filled(openpi, openpi.observation(prompt=prompt))


def test_a_key_may_lead_through_maps_and_lists(openpi):
    """ALOHA's robots nest their images, starVLA's list them."""
    entries = openpi.observation()
    nested = {
        "images": {"cam_high": entries[WRIST], "cam/low": entries[WRIST]},
        "image": [entries[WRIST], entries["observation/exterior_image_1_left"]],
        "state": entries["observation/joint_position"],
        "lang": {"task": "go"},
    }
    keys = {"state": ("state",), "instruction": "lang/task"}
    for front, wrist in (("image/1", "images/cam_high"), ("image/0", "images/cam/low")):
        observation = filled(openpi, nested, images={"front": front, "wrist": wrist}, **keys)
        np.testing.assert_array_equal(image(observation, "wrist"), entries[WRIST])
        assert observation.instruction == "go"


@pytest.mark.parametrize("key", ["image/2", "image/-1", "image/x", "image/", "image/0/0", "images", "images/cam", "/"])
def test_a_key_that_leads_nowhere_is_missing(openpi, key):
    entries = openpi.observation(image=[np.zeros(1), np.zeros(1)])
    with pytest.raises(InvalidRequestError, match="none came; the nearest key that came is"):
        filled(openpi, entries, state=(key,))


def test_a_missing_key_is_named_with_the_nearest_that_came(openpi):
    entries = openpi.observation()
    entries["observation/wrist_image"] = entries.pop(WRIST)
    with pytest.raises(InvalidRequestError) as refused:
        filled(openpi, entries)
    assert refused.value.message == (
        "observation['observation/wrist_image_left']: none came; the nearest key that came is 'observation/wrist_image'"
    )
    with pytest.raises(InvalidRequestError, match=r"none came$"):
        filled(openpi, {b"bytes": 1})


def test_keys_of_any_length_and_number_cost_no_time(openpi):
    entries = {"x" * 1_000_000 + str(i): i for i in range(40)}
    with pytest.raises(InvalidRequestError) as refused:
        filled(openpi, entries)
    assert len(refused.value.message) < 300
