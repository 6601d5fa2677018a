"""The first frame: everything a robot can check itself against, in the words of each dialect."""

from __future__ import annotations

from dataclasses import replace

import pytest
from openpi_client import msgpack_numpy

from premotor.v1 import policy_pb2
from service.gateway import GatewayLimits
from service.openpi import ObservationMapError, OpenpiLimits
from service.openpi.metadata import describe
from service.openpi.wire import pack


def described(kit, openpi, *, description=None, **changes):
    metadata = describe(
        description or kit.revision.description,
        replace(openpi.panda_map, **changes),
        gateway_limits=GatewayLimits(),
        limits=OpenpiLimits(),
    )
    return msgpack_numpy.unpackb(pack(metadata))


def test_it_says_what_the_policy_is_and_what_its_actions_mean(kit, openpi):
    metadata = described(kit, openpi)
    description = kit.revision.description
    assert (metadata["policy"], metadata["embodiment"]) == ("tabletop", "panda")
    assert metadata["revision"] == kit.revision.revision
    assert metadata["schema_digest"] == description.schema_digest
    assert (metadata["action_horizon"], metadata["execution_horizon"], metadata["action_dim"]) == (16, 8, 8)
    assert metadata["control_rate_hz"] == 20
    assert metadata["actions"] == [
        {
            "name": "arm",
            "dim": 8,
            "unit": "rad",
            "kind": "joint_position",
            "representation": "absolute",
            "lower_limit": [],
            "upper_limit": [],
        }
    ]
    assert [(group["name"], group["dim"]) for group in metadata["state"]] == [("arm", 9)]


def test_it_says_under_which_keys(kit, openpi):
    metadata = described(kit, openpi, actions="action", instruction="task")
    assert metadata["image_keys"] == ["observation/exterior_image_1_left", "observation/wrist_image_left"]
    assert metadata["images"]["observation/wrist_image_left"] == {"camera": "wrist", "height": 96, "width": 96}
    assert metadata["state_keys"] == ["observation/joint_position", "observation/gripper_position"]
    assert (metadata["actions_key"], metadata["instruction_key"]) == ("action", "task")


def test_it_says_that_silence_closes_nothing_and_how_large_a_frame_may_be(kit, openpi):
    metadata = described(kit, openpi)
    assert metadata["idle_policy"] == {"closes_when_idle": False, "ping_interval_s": 20.0, "lost_peer_s": 60.0}
    assert metadata["max_message_bytes"] == 64 * 1024 * 1024


def test_droid_robots_learn_what_to_send_and_starvlas_their_chunk_size(kit, openpi):
    metadata = described(kit, openpi)
    assert metadata["image_resolution"] == [96, 96]
    assert (metadata["n_external_cameras"], metadata["needs_wrist_camera"]) == (1, True)
    assert (metadata["needs_stereo_camera"], metadata["needs_session_id"]) == (False, False)
    assert (metadata["action_chunk_size"], metadata["available_unnorm_keys"]) == (16, ["panda"])
    two = described(
        kit,
        openpi,
        images={"front": "observation/exterior_image_1_left", "wrist": "observation/exterior_image_2_left"},
    )
    assert (two["n_external_cameras"], two["needs_wrist_camera"]) == (2, False)


def test_cameras_of_several_sizes_ask_for_frames_as_they_are(kit, openpi):
    description = policy_pb2.Policy()
    description.CopyFrom(kit.revision.description)
    description.embodiments[1].cameras[0].height = 48
    assert described(kit, openpi, description=description)["image_resolution"] is None


@pytest.mark.parametrize(
    ("kind", "representation", "space"),
    [
        ("KIND_JOINT_POSITION", "REPRESENTATION_ABSOLUTE", "joint_position"),
        ("KIND_JOINT_VELOCITY", "REPRESENTATION_ABSOLUTE", "joint_velocity"),
        ("KIND_END_EFFECTOR_POSITION", "REPRESENTATION_ABSOLUTE", "cartesian_position"),
        ("KIND_JOINT_POSITION", "REPRESENTATION_DELTA", "joint_position_delta"),
        ("KIND_BASE", "REPRESENTATION_ABSOLUTE", "base_absolute"),
    ],
)
def test_no_droid_robot_takes_a_delta_for_a_position(kit, openpi, kind, representation, space):
    description = policy_pb2.Policy()
    description.CopyFrom(kit.revision.description)
    group = description.embodiments[1].action[0]
    group.kind = policy_pb2.Group.Kind.Value(kind)
    group.representation = policy_pb2.Group.Representation.Value(representation)
    assert described(kit, openpi, description=description)["action_space"] == space


def test_a_body_that_the_policy_lacks_is_not_described(kit, openpi):
    with pytest.raises(ObservationMapError, match="'aloha' is no body"):
        described(kit, openpi, embodiment="aloha")
