from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from training.data.lerobot import DatasetError, LeRobotReader, LeRobotWriter
from training.data.lerobot.layout import INDEX_FEATURES

CAMERA = "observation.images.front"
FEATURES: dict[str, Any] = {
    "observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]},
    "observation.grid": {"dtype": "float64", "shape": [2, 2], "names": None},
    "reward": {"dtype": "float32", "shape": [1], "names": None},
    "contact": {"dtype": "bool", "shape": [1], "names": None},
    CAMERA: {"dtype": "video", "shape": [128, 128, 3], "names": ["height", "width", "channels"]},
}


def episode(length: int, seed: int, frames: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "observation.state": rng.normal(size=(length, 3)).astype(np.float32),
        "observation.grid": rng.normal(size=(length, 2, 2)),
        "reward": rng.normal(size=(length, 1)).astype(np.float32),
        "contact": rng.random(length) < 0.5,
        CAMERA: frames,
    }


@pytest.fixture
def episodes(rolled_frames: Callable[..., np.ndarray]) -> list[dict[str, np.ndarray]]:
    return [episode(length, seed, rolled_frames(128, 128, length, seed)) for seed, length in enumerate((30, 17, 41))]


@pytest.fixture
def written(tmp_path: Path, episodes: list[dict[str, np.ndarray]]) -> Path:
    root = tmp_path / "dataset"
    with LeRobotWriter(root, fps=80, features=FEATURES, robot_type="sawyer", annotations={"task": "push"}) as writer:
        for number, arrays in enumerate(episodes):
            writer.add_episode(arrays, ("push", "pull")[number % 2], seed=None if number == 0 else 1000 + number)
    return root


def test_numbers_come_back_exactly(written: Path, episodes: list[dict[str, np.ndarray]]):
    reader = LeRobotReader(written)
    for found, arrays in zip(reader.episodes, episodes, strict=True):
        numeric = reader.numeric(found)
        for key in ("observation.state", "observation.grid", "contact"):
            np.testing.assert_array_equal(numeric[key], arrays[key])
            assert numeric[key].dtype == arrays[key].dtype
        np.testing.assert_array_equal(numeric["reward"], arrays["reward"][:, 0])


def test_the_index_columns_count_frames_episodes_and_tasks(written: Path):
    reader = LeRobotReader(written)
    numeric = [reader.numeric(found) for found in reader.episodes]
    np.testing.assert_array_equal(np.concatenate([n["index"] for n in numeric]), np.arange(88))
    assert [n["task_index"][0] for n in numeric] == [0, 1, 0]
    np.testing.assert_array_equal(numeric[2]["frame_index"], np.arange(41))
    np.testing.assert_allclose(numeric[2]["timestamp"], np.arange(41) / 80, rtol=1e-6)
    assert reader.tasks == {0: "push", 1: "pull"}
    assert [found.tasks for found in reader.episodes] == [("push",), ("pull",), ("push",)]


def test_seeds_and_annotations_come_back(written: Path):
    reader = LeRobotReader(written)
    assert [found.seed for found in reader.episodes] == [None, 1001, 1002]
    assert reader.annotations == {"task": "push"}


def test_every_single_frame_read_is_the_right_frame(written: Path, episodes: list[dict[str, np.ndarray]]):
    """The picture moves 3 pixels a frame: the nearest original must be the frame asked for, 88 of 88."""
    reader = LeRobotReader(written)
    for found, arrays in zip(reader.episodes, episodes, strict=True):
        originals = arrays[CAMERA].astype(np.int16)
        for index in range(found.length):
            frame = reader.frames(found, CAMERA, [index])[0].astype(np.int16)
            near = range(max(index - 2, 0), min(index + 3, found.length))
            errors = {other: np.abs(originals[other] - frame).mean() for other in near}
            assert min(errors, key=errors.__getitem__) == index


def test_a_smooth_picture_survives_the_codec(tmp_path: Path):
    y, x = np.mgrid[0:128, 0:128]
    frames = np.stack([np.stack([x + k, y, np.full_like(x, 128)], -1) for k in range(12)]).astype(np.uint8)
    features = {CAMERA: FEATURES[CAMERA], "reward": FEATURES["reward"]}
    with LeRobotWriter(tmp_path / "d", fps=20, features=features, robot_type="toy") as writer:
        writer.add_episode({CAMERA: frames, "reward": np.zeros(12, np.float32)}, "look")
    reader = LeRobotReader(tmp_path / "d")
    error = np.abs(reader.frames_all(reader.episodes[0], CAMERA).astype(int) - frames)
    assert error.mean() < 2.0


def test_files_and_schemas_are_those_lerobot_writes(written: Path, lerobot_fixture: Path):
    """Compared with the dataset lerobot 0.4.4 wrote: the same tree, info keys, column names and column types."""
    ours = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    theirs = {path.relative_to(lerobot_fixture).as_posix() for path in lerobot_fixture.rglob("*") if path.is_file()}
    assert ours - theirs == {"meta/premotor.json"}
    assert theirs <= ours
    info, their_info = (json.loads((root / "meta/info.json").read_text()) for root in (written, lerobot_fixture))
    assert set(info) == set(their_info)
    assert set(info["features"][CAMERA]) == set(their_info["features"][CAMERA])
    assert set(info["features"][CAMERA]["info"]) == set(their_info["features"][CAMERA]["info"])
    assert info["fps"] == 80 and isinstance(info["fps"], int)
    assert info["data_path"] == their_info["data_path"] and info["video_path"] == their_info["video_path"]
    for key in INDEX_FEATURES:
        assert info["features"][key] == their_info["features"][key]
    data, their_data = (pq.read_schema(root / "data/chunk-000/file-000.parquet") for root in (written, lerobot_fixture))
    for name in (*INDEX_FEATURES,):
        assert data.field(name).type == their_data.field(name).type
    assert str(data.field("observation.state").type) == "fixed_size_list<element: float>[3]"
    meta, their_meta = (
        pq.read_schema(root / "meta/episodes/chunk-000/file-000.parquet") for root in (written, lerobot_fixture)
    )
    located = {name for name in their_meta.names if not name.startswith("stats/")}
    assert located <= set(meta.names)
    for name in located | {f"stats/{CAMERA}/q01", "stats/observation.state/mean", "stats/frame_index/min"}:
        assert meta.field(name).type == their_meta.field(name).type, name


def test_the_task_table_carries_the_pandas_index_lerobot_looks_tasks_up_by(written: Path, lerobot_fixture: Path):
    ours, theirs = (pq.read_table(root / "meta/tasks.parquet") for root in (written, lerobot_fixture))
    assert ours.column_names == theirs.column_names
    assert ours.to_pydict() == {"task_index": [0, 1], "__index_level_0__": ["push", "pull"]}
    pandas, their_pandas = (json.loads(table.schema.metadata[b"pandas"]) for table in (ours, theirs))
    assert pandas["index_columns"] == their_pandas["index_columns"] == ["__index_level_0__"]
    assert [column["field_name"] for column in pandas["columns"]] == ["task_index", "__index_level_0__"]
    assert pandas["columns"][1]["name"] is None


def test_statistics_are_those_of_all_frames(written: Path, episodes: list[dict[str, np.ndarray]]):
    stats = json.loads((written / "meta/stats.json").read_text())
    state = np.concatenate([arrays["observation.state"] for arrays in episodes]).astype(np.float64)
    assert set(stats["observation.state"]) == {
        "min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"
    }  # fmt: skip
    np.testing.assert_allclose(stats["observation.state"]["mean"], state.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats["observation.state"]["std"], state.std(0), rtol=1e-12)
    np.testing.assert_allclose(stats["observation.state"]["q99"], np.quantile(state, 0.99, axis=0), rtol=1e-12)
    assert stats["observation.state"]["count"] == [88]
    assert np.shape(stats["observation.grid"]["min"]) == (2, 2)
    assert np.shape(stats["reward"]["max"]) == (1,)


def test_image_statistics_are_per_channel_in_unit_range(written: Path, episodes: list[dict[str, np.ndarray]]):
    stats = json.loads((written / "meta/stats.json").read_text())[CAMERA]
    pixels = np.concatenate([arrays[CAMERA] for arrays in episodes]).reshape(-1, 3) / 255
    assert np.shape(stats["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(stats["mean"]), pixels.mean(0), rtol=1e-9)
    np.testing.assert_allclose(np.ravel(stats["std"]), pixels.std(0), rtol=1e-9)
    np.testing.assert_allclose(np.ravel(stats["q10"]), np.quantile(pixels, 0.1, axis=0, method="lower"), rtol=1e-9)
    np.testing.assert_allclose(np.ravel(stats["max"]), pixels.max(0), rtol=1e-9)
    assert stats["count"] == [88]


def test_episode_statistics_are_kept_per_episode(written: Path, episodes: list[dict[str, np.ndarray]]):
    rows = pq.read_table(written / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for row, arrays in zip(rows, episodes, strict=True):
        np.testing.assert_allclose(row["stats/observation.state/min"], arrays["observation.state"].min(0), rtol=1e-12)
        assert row["stats/reward/count"] == [len(arrays["reward"])]
    assert rows[1][f"videos/{CAMERA}/from_timestamp"] == pytest.approx(30 / 80)
    assert rows[1][f"videos/{CAMERA}/to_timestamp"] == pytest.approx(47 / 80)
    assert (rows[1]["dataset_from_index"], rows[1]["dataset_to_index"]) == (30, 47)


def test_a_fractional_rate_keeps_every_frame_in_place(tmp_path: Path, rolled_frames: Callable[..., np.ndarray]):
    frames = rolled_frames(128, 128, 25, 3)
    with LeRobotWriter(tmp_path / "d", fps=12.5, features={CAMERA: FEATURES[CAMERA]}, robot_type="toy") as writer:
        for _ in range(3):
            writer.add_episode({CAMERA: frames}, "look")
    reader = LeRobotReader(tmp_path / "d")
    assert reader.fps == 12.5
    whole = np.stack(list(reader.iter_frames(CAMERA)))
    assert len(whole) == 75
    np.testing.assert_array_equal(reader.frames(reader.episodes[2], CAMERA, [24])[0], whole[-1])


def test_nothing_has_the_datasets_name_before_close(tmp_path: Path):
    writer = LeRobotWriter(tmp_path / "d", fps=10, features={"reward": FEATURES["reward"]}, robot_type="toy")
    writer.add_episode({"reward": np.zeros(4, np.float32)}, "wait")
    assert not (tmp_path / "d").exists()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_an_error_while_recording_leaves_nothing(tmp_path: Path, episodes: list[dict[str, np.ndarray]]):
    with (
        pytest.raises(RuntimeError, match="simulator"),
        LeRobotWriter(tmp_path / "d", fps=10, features=FEATURES, robot_type="toy") as writer,
    ):
        writer.add_episode(episodes[0], "push")
        raise RuntimeError("simulator")
    assert list(tmp_path.iterdir()) == []


def test_what_an_interrupted_run_left_is_replaced(tmp_path: Path):
    (tmp_path / "d.tmp/data").mkdir(parents=True)
    (tmp_path / "d.tmp/data/stale").write_text("half an episode")
    with LeRobotWriter(tmp_path / "d", fps=10, features={"reward": FEATURES["reward"]}, robot_type="toy") as writer:
        writer.add_episode({"reward": np.zeros(4, np.float32)}, "wait")
    assert not (tmp_path / "d/data/stale").exists()


def test_an_existing_dataset_is_never_written_over(written: Path):
    with pytest.raises(FileExistsError, match="dataset"):
        LeRobotWriter(written, fps=10, features=FEATURES, robot_type="toy")


def test_an_empty_dataset_is_refused(tmp_path: Path):
    writer = LeRobotWriter(tmp_path / "d", fps=10, features=FEATURES, robot_type="toy")
    with pytest.raises(DatasetError, match="no episode"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": None}, "episode has features"),
        ({"extra": np.zeros(30)}, "episode has features"),
        ({"reward": np.zeros(29, np.float32)}, r"'reward' has shape \(29,\)"),
        ({"observation.state": np.zeros((30, 4), np.float32)}, r"\(30, 4\), expected \(30, 3\)"),
        ({"reward": np.full(30, np.nan, np.float32)}, "'reward' is not finite at frame 0"),
        ({CAMERA: np.zeros((30, 128, 128, 3), np.float32)}, "is float32, expected uint8"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused_by_field(
    tmp_path: Path, episodes: list[dict[str, np.ndarray]], change: dict[str, Any], message: str
):
    arrays = {key: values for key, values in (episodes[0] | change).items() if values is not None}
    writer = LeRobotWriter(tmp_path / "d", fps=10, features=FEATURES, robot_type="toy")
    with pytest.raises(DatasetError, match=message):
        writer.add_episode(arrays, "push")


def test_an_episode_without_an_instruction_is_refused(tmp_path: Path, episodes: list[dict[str, np.ndarray]]):
    writer = LeRobotWriter(tmp_path / "d", fps=10, features=FEATURES, robot_type="toy")
    with pytest.raises(DatasetError, match="task is empty"):
        writer.add_episode(episodes[0], "")


def test_odd_sized_video_is_refused_by_size(tmp_path: Path):
    features = {CAMERA: {"dtype": "video", "shape": [33, 64, 3], "names": None}}
    writer = LeRobotWriter(tmp_path / "d", fps=10, features=features, robot_type="toy")
    with pytest.raises(DatasetError, match="33 x 64"):
        writer.add_episode({CAMERA: np.zeros((2, 33, 64, 3), np.uint8)}, "push")
