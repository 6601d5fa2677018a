"""The map from a robot's keys to a policy's inputs: a value, strict JSON, and whether it fits."""

from __future__ import annotations

import json

import pytest

from premotor.v1 import policy_pb2
from service.openpi import ObservationMap, ObservationMapError, read_observation_map
from service.openpi.observation_map import check_fits, find_body, matching_map

CONTENT = {
    "policy": "tabletop",
    "embodiment": "panda",
    "images": {"front": "observation/image", "wrist": "observation/wrist_image"},
    "state": ["observation/joint_position", "observation/gripper_position"],
    "instruction": "task",
    "actions": "action",
}


def test_json_and_back_is_the_same_map():
    observation_map = ObservationMap.from_json(CONTENT)
    assert observation_map.to_json() == CONTENT
    assert ObservationMap.from_json(json.loads(json.dumps(observation_map.to_json()))) == observation_map
    assert observation_map.state == ("observation/joint_position", "observation/gripper_position")


def test_what_is_left_out_has_openpis_names():
    short = {key: CONTENT[key] for key in ("policy", "images", "state")}
    observation_map = ObservationMap.from_json(short)
    assert (observation_map.embodiment, observation_map.instruction, observation_map.actions) == (
        "",
        "prompt",
        "actions",
    )


def changed(**changes):
    return {**CONTENT, **changes}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "expected an object"),
        ({}, "policy is missing"),
        ({key: value for key, value in CONTENT.items() if key != "images"}, "images is missing"),
        ({key: value for key, value in CONTENT.items() if key != "state"}, "state is missing"),
        (changed(instructions="prompt"), "there is no 'instructions'; the nearest name is 'instruction'"),
        (changed(policy=1), "policy is not a text"),
        (changed(policy=""), "policy is empty"),
        (changed(embodiment=None), "embodiment is not a text"),
        (changed(instruction=""), "instruction is empty"),
        (changed(actions=["actions"]), "actions is not a text"),
        (changed(actions="server_timing"), "which a reply holds already"),
        (changed(images={}), "images has the keys"),
        (changed(images=["front"]), "images is not an object of texts"),
        (changed(images={"front": 1}), "images is not an object of texts"),
        (changed(images={"front": ""}), "images has the keys"),
        (changed(images={"": "a"}), "a camera without a name"),
        (changed(images={"front": "same", "wrist": "same"}), "each once"),
        (changed(state="observation/state"), "state is not a list of texts"),
        (changed(state=[]), "state has the keys"),
        (changed(state=["a", "a"]), "each once"),
        (changed(state=["a", 1]), "state is not a list of texts"),
        (changed(state=["session_id"]), "'session_id' cannot be mapped"),
        (changed(instruction="mode"), "'mode' cannot be mapped"),
    ],
)
def test_what_is_no_map_is_refused_saying_why(content, said):
    with pytest.raises(ObservationMapError) as refused:
        ObservationMap.from_json(content)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "panda.json is no observation map"),
        ('{"policy": "a", "policy": "b"}', "a key repeats"),
        ("[" * 100_000, "panda.json is no observation map"),
        ('{"policy": ""}', "images is missing"),
    ],
)
def test_a_file_that_holds_none_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "panda.json"
    path.write_text(text)
    with pytest.raises(ObservationMapError) as refused:
        read_observation_map(path)
    assert said in str(refused.value)


def test_a_map_is_read_from_a_file(tmp_path):
    path = tmp_path / "panda.json"
    path.write_text(json.dumps(CONTENT))
    assert read_observation_map(path) == ObservationMap.from_json(CONTENT)


def one_body(description):
    alone = policy_pb2.Policy()
    alone.CopyFrom(description)
    del alone.embodiments[0]
    return alone


def test_robots_that_use_our_names_need_no_map(kit):
    observation_map = matching_map(one_body(kit.revision.description))
    assert observation_map.to_json() == {
        "policy": "tabletop",
        "embodiment": "panda",
        "images": {"front": "observation/front", "wrist": "observation/wrist"},
        "state": ["observation/state"],
        "instruction": "prompt",
        "actions": "actions",
    }


def test_a_policy_of_several_bodies_needs_a_map_that_names_one(kit):
    with pytest.raises(ObservationMapError, match=r"names no body of policy 'tabletop'.*'sawyer', 'panda'"):
        matching_map(kit.revision.description)
    with pytest.raises(ObservationMapError, match="'pandda' is no body"):
        find_body(kit.revision.description, "pandda")
    assert find_body(one_body(kit.revision.description), "").name == "panda"


def test_a_map_fits_with_exactly_the_cameras_of_its_body(kit):
    description = kit.revision.description
    check_fits(ObservationMap.from_json(CONTENT), description)
    for images in ({"front": "a"}, {"front": "a", "wrist": "b", "third": "c"}, {"front": "a", "rist": "b"}):
        with pytest.raises(ObservationMapError, match=r"the cameras of 'panda' are \['front', 'wrist'\]"):
            check_fits(ObservationMap.from_json(changed(images=images)), description)
