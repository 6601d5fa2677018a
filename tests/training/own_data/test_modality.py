"""modality.json gives the groups; what it leaves out is not lost, what no vector can have is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.data.lerobot.layout import DatasetError
from training.own_data.modality import read_modality

MODALITY: dict[str, Any] = {
    "state": {"gripper": {"start": 6, "end": 7}, "left_arm": {"start": 0, "end": 5}},
    "action": {
        "left_arm": {"start": 0, "end": 5, "absolute": False},
        "wrist": {"start": 5, "end": 8, "rotation_type": "axis_angle"},
    },
    "video": {"ego_view": {"original_key": "observation.images.ego"}, "top": {}},
    "annotation": {"human.task_description": {"original_key": "task_index"}, "human.validity": {}},
}


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "modality.json"
    path.write_text(json.dumps(MODALITY | changes))
    return path


def test_groups_follow_their_columns_and_gaps_are_groups_too(tmp_path: Path) -> None:
    modality = read_modality(written(tmp_path), state_dim=9, action_dim=8)
    assert [(group.name, group.start, group.stop) for group in modality.state] == [
        ("left_arm", 0, 5),
        ("unassigned_5_6", 5, 6),
        ("gripper", 6, 7),
        ("unassigned_7_9", 7, 9),
    ]
    assert [(group.absolute, group.is_rotation) for group in modality.action] == [(False, None), (None, True)]
    assert modality.camera_keys == ("observation.images.ego", "observation.images.top")
    assert modality.instruction_columns == ("task_index", "annotation.human.validity")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"start": 0, "end": 5}, "b": {"start": 4, "end": 9}}, r"state\.b has start 4.*groups may not overlap"),
        ({"a": {"start": 0, "end": 10}}, r"state\.a has start 0 and end 10, expected 0 <= start < end <= 9"),
        ({"a": {"start": 3, "end": 3}}, r"state\.a has start 3 and end 3"),
        ({"a": {"start": 0, "end": 9, "original_key": "joints"}}, r"state\.a reads column 'joints'.*Join the columns"),
    ],
    ids=["overlap", "too wide", "empty", "another column"],
)
def test_groups_that_no_vector_can_have_are_refused(tmp_path: Path, state: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_modality(written(tmp_path, state=state), state_dim=9, action_dim=8)


def test_a_file_that_is_no_modality_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modality.json").write_text('{"state": {}}')
    with pytest.raises(DatasetError, match="expected the keys state, action and video"):
        read_modality(tmp_path / "modality.json", state_dim=9, action_dim=8)
