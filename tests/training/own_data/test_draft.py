"""A draft says what the data set says, guesses the rest, and stays shut until a person has settled the guesses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind
from training.data.lerobot.layout import DatasetError
from training.own_data.draft import draft_spec, write_draft
from training.own_data.spec_file import OpenSpecError, read_spec

WriteArm = Callable[..., Path]


def test_a_draft_has_cameras_groups_rate_and_limits_of_the_data(write_arm: WriteArm) -> None:
    values = draft_spec(write_arm()).values
    assert values["name"] == "arm" and values["control_rate_hz"] == 10.0
    assert values["cameras"] == [{"name": "wrist", "height": 32, "width": 48}]
    assert [(group["name"], group["dim"]) for group in values["state"]] == [("joints", 3), ("gripper", 1)]
    joints, gripper = values["action"]
    assert joints["kind"].startswith("TODO joint_position? one of joint_position, joint_velocity")
    assert joints["unit"].startswith("TODO rad? the largest number is 0.9993;")
    assert joints["representation"].startswith("TODO absolute? the median distance")
    assert (joints["normalization"], gripper["normalization"]) == ("q01_q99", "min_max")
    assert joints["lower_limit"][0] == pytest.approx(-0.932, abs=0.01)
    assert gripper["upper_limit"][0] == pytest.approx(1.1, abs=0.05)
    assert values["state"][0]["representation"] == "absolute"


def test_units_and_representation_are_guessed_from_the_numbers(write_arm: WriteArm) -> None:
    def change(episode: int, arrays: dict[str, np.ndarray]) -> None:
        arrays["observation.state"] *= 90
        arrays["action"] *= 0.01

    values = draft_spec(write_arm(change)).values
    assert values["state"][0]["unit"].startswith("TODO deg? the largest number is 89.94;")
    assert values["state"][1]["unit"].startswith("TODO percent open?")
    assert values["action"][0]["representation"].startswith("TODO delta?")


def test_unnamed_dimensions_are_one_group(write_arm: WriteArm) -> None:
    values = draft_spec(write_arm(names=None)).values
    assert [(group["name"], group["dim"]) for group in values["state"]] == [("state", 4)]
    assert [(group["name"], group["dim"]) for group in values["action"]] == [("action", 4)]
    assert values["state"][0]["kind"].startswith("TODO other?")


def test_names_in_a_dict_are_read(write_arm: WriteArm) -> None:
    values = draft_spec(write_arm(names={"motors": ["elbow", "wrist", "x", "gripper"]})).values
    assert [group["dim"] for group in values["state"]] == [2, 1, 1]


def test_limits_of_what_never_moves_or_jumps_once_stay_open(write_arm: WriteArm) -> None:
    def change(episode: int, arrays: dict[str, np.ndarray]) -> None:
        arrays["action"][:, 1] = 0.25
        if episode == 1:
            arrays["action"][50, 2] = 4000.0

    draft = draft_spec(write_arm(change, lengths=(100, 100, 100)))
    joints = draft.values["action"][0]
    assert joints["lower_limit"][1].startswith("TODO it is 0.25 in every frame: give that twice")
    assert joints["upper_limit"][2].startswith("TODO it goes from -1 to 4000, but nearly always from -0.9996")
    assert "action[0].lower_limit[1]" in dict(draft.fields_left_open)


def test_the_groups_of_a_modality_json_are_followed(write_arm: WriteArm, tmp_path: Path) -> None:
    path = tmp_path / "modality.json"
    groups = {"single_arm": {"start": 0, "end": 3, "absolute": True}, "jaw": {"start": 3, "end": 4}}
    modality = {
        "state": groups,
        "action": groups,
        "video": {"eye": {"original_key": "observation.images.wrist"}},
        "annotation": {"human.action": {"original_key": "note"}},
    }
    path.write_text(json.dumps(modality))
    note = {"note": {"dtype": "int64", "shape": [1], "names": None}}

    def change(episode: int, arrays: dict[str, np.ndarray]) -> None:
        arrays["note"] = np.zeros(len(arrays["action"]), np.int64)

    draft = draft_spec(write_arm(change, features=note), modality_path=path)
    assert [group["name"] for group in draft.values["state"]] == ["single_arm", "jaw"]
    assert draft.values["action"][0]["representation"] == "absolute"
    assert draft.values["action"][0]["kind"].startswith("TODO joint_position?")
    assert draft.values["cameras"][0]["name"] == "wrist"
    assert any("note" in line and "--instruction-column" in line for line in draft.notes)
    path.write_text(json.dumps(modality | {"video": {"top": {}}}))
    with pytest.raises(DatasetError, match=r"names the videos \['observation\.images\.top'\]"):
        draft_spec(tmp_path / "arm-data", modality_path=path)


def test_what_a_draft_leaves_out_is_said(write_arm: WriteArm) -> None:
    extra = {"observation.effort": {"dtype": "float32", "shape": [4], "names": None}}

    def change(episode: int, arrays: dict[str, np.ndarray]) -> None:
        arrays["observation.effort"] = arrays["action"]

    assert any("observation.effort" in note for note in draft_spec(write_arm(change, features=extra)).notes)


def test_a_draft_of_what_lerobot_itself_wrote_has_its_names(tmp_path: Path) -> None:
    fixture = Path(__file__).parents[2] / "fixtures/lerobot_v30"
    values = draft_spec(fixture).values
    names = ["end_effector_position", "end_effector_rotation", "gripper"]
    assert [group["name"] for group in values["state"]] == names
    assert [group["dim"] for group in values["action"]] == [3, 3, 1]


def test_a_draft_never_replaces_a_file(write_arm: WriteArm, tmp_path: Path) -> None:
    draft = draft_spec(write_arm())
    write_draft(draft, tmp_path / "specs/arm.json")
    (tmp_path / "specs/arm.json").write_text("finished")
    with pytest.raises(FileExistsError, match="never replaces"):
        write_draft(draft, tmp_path / "specs/arm.json")
    assert (tmp_path / "specs/arm.json").read_text() == "finished"


def test_an_unfinished_draft_is_refused_naming_every_open_field(write_arm: WriteArm, tmp_path: Path) -> None:
    draft = draft_spec(write_arm())
    write_draft(draft, tmp_path / "arm.json")
    with pytest.raises(OpenSpecError) as refused:
        read_spec(tmp_path / "arm.json")
    for field in ("state[0].kind", "state[1].unit", "action[0].representation"):
        assert f"\n  {field}: TODO " in str(refused.value)
    assert len(draft.fields_left_open) == 10 == str(refused.value).count("\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: spec.pop("cameras"), "lacks 'cameras'"),
        (lambda spec: spec.update(colour="red"), "colour"),
        (lambda spec: spec["state"][0].update(kind="elbow"), "'elbow' is not a valid GroupKind"),
        (lambda spec: spec["state"][0].update(lower_limit=[1.0], upper_limit=[0.5]), r"lower_limit\[0\] 1\.0 above"),
    ],
    ids=["missing", "unknown", "kind", "limits"],
)
def test_a_spec_that_cannot_be_is_refused_with_its_file(tmp_path: Path, change: Any, message: str) -> None:
    group = (Group(name="joint", dim=1, kind=GroupKind.JOINT_POSITION, unit="rad"),)
    cameras = (Camera(name="front", height=8, width=8),)
    values = EmbodimentSpec(name="x", cameras=cameras, state=group, action=group, control_rate_hz=10).to_json()
    change(values)
    (tmp_path / "spec.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"spec\.json.*{message}"):
        read_spec(tmp_path / "spec.json")


def test_a_spec_that_is_not_there_or_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--draft"):
        read_spec(tmp_path / "spec.json")
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(ValueError, match=r"spec\.json is not JSON"):
        read_spec(tmp_path / "spec.json")
