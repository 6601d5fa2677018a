"""Fields of info.json that no reader can use are refused with the file, the field, what came and the remedy."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policy.embodiment import EmbodimentSpec
from tests.training.own_data.test_older_formats import to_v21
from training.__main__ import main
from training.own_data.draft import draft_spec
from training.own_data.importing import Words, check_dataset
from training.own_data.info_file import read_checked_info
from training.own_data.problems import ImportRefusedError, Problems

WriteArm = Callable[..., Path]
FPS = ("fps", "expected a finite number above 0", "frames a second")
TOTAL = ("expected a whole number", "write what the episodes listed in meta/ add up to")
STATE = ("features", "observation.state")
CAMERA = ("features", "observation.images.front")
# What LeRobot wrote. What is refused is refused before any other file is looked at.
INFO = Path(__file__).parents[2] / "fixtures/lerobot_v30/meta/info.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data/meta").mkdir(parents=True)
    shutil.copy(INFO, tmp_path / "data/meta")
    return tmp_path / "data"


def set_field(root: Path, place: tuple[str, ...], value: Any) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    part = info
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    path.write_text(json.dumps(info))


def refusals(root: Path) -> list[str]:
    problems = Problems()
    assert read_checked_info(root, problems) is None
    return [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("place", "value", "parts"),
    [
        (("fps",), None, ("fps: null", *FPS)),
        (("fps",), "abc", ('fps: "abc"', *FPS)),
        (("fps",), "10", ('fps: "10"', *FPS)),
        (("fps",), 0, ("fps: 0;", *FPS)),
        (("fps",), -10.0, ("fps: -10.0", *FPS)),
        (("fps",), float("nan"), ("fps: NaN", *FPS)),
        (("fps",), float("inf"), ("fps: Infinity", *FPS)),
        (("fps",), 10**400, ("fps: 1000", "0...;", *FPS)),
        (("fps",), True, ("fps: true", *FPS)),
        (("total_frames",), None, ("total_frames: null", *TOTAL)),
        (("total_frames",), "28", ('total_frames: "28"', *TOTAL)),
        (("total_episodes",), -1, ("total_episodes: -1", *TOTAL)),
        (("robot_type",), ["arm"], ('robot_type: ["arm"]', "the robot's name, or null")),
        (("data_path",), None, ("data_path: null", "{chunk_index}, {file_index}", "files of data lie")),
        (("data_path",), "data/{episode_index}", ("data_path: ", "{chunk_index}, {file_index}")),
        (("video_path",), None, ("video_path: null", "files of video lie")),
        (("features",), ["action"], ('features: ["action"]', "an object with every feature", "restore the file")),
        (STATE, None, ("feature 'observation.state': null", "dtype and shape")),
        ((*STATE, "dtype"), 5, ("feature 'observation.state'", "dtype and shape")),
        ((*STATE, "dtype"), "floaty", ('"floaty"', "a dtype of numbers, such as float32")),
        ((*STATE, "shape"), 4, ('"shape": 4', "a shape of whole numbers above 0")),
        ((*STATE, "shape"), ["4"], ('"shape": ["4"]', "a shape of whole numbers above 0")),
        ((*STATE, "shape"), [None], ('"shape": [null]', "a shape of whole numbers above 0")),
        ((*STATE, "names"), 7, ("feature 'observation.state'", "names in a list or an object, or null")),
        ((*STATE, "names"), "abcd", ("feature 'observation.state'", "names in a list or an object, or null")),
        ((*CAMERA, "shape"), [32, 48], ("feature 'observation.images.front'", "three dimensions for a camera")),
        ((*CAMERA, "shape"), 32, ("feature 'observation.images.front'", "a shape of whole numbers above 0")),
        ((*CAMERA, "info"), ["depth"], ("feature 'observation.images.front'", "an object as its info")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) and len(value) < 4 else repr(value)[:12],
)
def test_a_field_of_the_wrong_kind_is_one_problem(
    root: Path, spec: EmbodimentSpec, place: tuple[str, ...], value: Any, parts: tuple[str, ...]
) -> None:
    set_field(root, place, value)
    (problem,) = refusals(root)
    for part in ("meta/info.json, ", *parts, "Remedy: "):
        assert part in problem
    with pytest.raises(ImportRefusedError, match="Problems found: 1\n"):
        check_dataset(root, spec, words=Words())
    with pytest.raises(ImportRefusedError, match="Problems found: 1\n"):
        draft_spec(root)


def test_all_fields_of_the_wrong_kind_are_listed_together(root: Path) -> None:
    for place in (("fps",), ("total_frames",), (*STATE, "shape"), ("features", "action")):
        set_field(root, place, None)
    assert [problem.split(": ")[0].partition(", ")[2] for problem in refusals(root)] == [
        "fps",
        "total_frames",
        "feature 'observation.state'",
        "feature 'action'",
    ]


@pytest.mark.parametrize("value", [None, 0, "1000"])
def test_an_older_data_set_needs_a_size_of_its_chunks(root: Path, value: Any) -> None:
    places = "{episode_chunk:03d}/{video_key}-{episode_index:06d}"
    for name, new in (("codebase_version", "v2.1"), ("data_path", places), ("video_path", places)):
        set_field(root, (name,), new)
    set_field(root, ("chunks_size",), value)
    (problem,) = refusals(root)
    assert f"chunks_size: {json.dumps(value)}; expected a whole number above 0" in problem


def test_what_lerobot_leaves_open_may_be_left_open(write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path) -> None:
    root = to_v21(write_arm(), tmp_path / "v21")
    info = json.loads((root / "meta/info.json").read_text())
    open_ = copy.deepcopy(info) | {"robot_type": None, "fps": 10}
    del open_["chunks_size"]
    open_["features"]["action"]["names"] = None
    open_["features"]["observation.state"]["names"] = {"motors": ["a", "b", "c", "d"]}
    (root / "meta/info.json").write_text(json.dumps(open_))
    assert len(check_dataset(root, spec, words=Words()).episodes) == 3


@pytest.mark.parametrize("verb", ["--draft", "--embodiment"])
def test_a_rate_that_is_no_number_ends_the_verb_with_a_sentence(
    root: Path, spec: EmbodimentSpec, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "arm.json"
    set_field(root, ("fps",), None)
    if verb == "--embodiment":
        path.write_text(json.dumps(spec.to_json()))
    assert main(["import", "--lerobot", str(root), verb, str(path), "--run", str(tmp_path / "run")]) == 1
    assert "meta/info.json, fps: null; expected a finite number above 0. Remedy: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists() and path.exists() == (verb == "--embodiment")
