from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.lerobot import DatasetError, LeRobotReader
from training.data.lerobot.layout import element_names
from training.data.lerobot.video import VideoEncoder

CAMERA = "observation.images.front"


@pytest.fixture
def v3_copy(lerobot_fixture: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lerobot_fixture, tmp_path / "v3"))


def edit_info(root: Path, **changes: object) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="image2pipe") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def test_numbers_written_by_lerobot_are_read_exactly(lerobot_fixture: Path, lerobot_expected: dict[str, np.ndarray]):
    reader = LeRobotReader(lerobot_fixture)
    episodes = [reader.numeric(episode) for episode in reader.episodes]
    joined = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    assert [episode.length for episode in reader.episodes] == [12, 20, 9]
    assert reader.num_frames == 41
    assert (reader.version, reader.fps, reader.robot_type) == ("v3.0", 10.0, "panda")
    np.testing.assert_array_equal(joined["observation.state"], lerobot_expected["state"])
    np.testing.assert_array_equal(joined["action"], lerobot_expected["action"])
    np.testing.assert_array_equal(joined["episode_index"], lerobot_expected["episode"])
    np.testing.assert_array_equal(joined["frame_index"], lerobot_expected["frame"])
    assert joined["observation.state"].dtype == np.float32


def test_tasks_are_read_from_the_pandas_index(lerobot_fixture: Path):
    reader = LeRobotReader(lerobot_fixture)
    assert reader.tasks == {0: "task 0", 1: "task 1"}
    assert [episode.tasks for episode in reader.episodes] == [("task 0",), ("task 1",), ("task 0",)]
    assert all(episode.seed is None for episode in reader.episodes)
    assert reader.annotations == {}


def test_tasks_are_read_from_a_named_index_too(v3_copy: Path):
    table = pq.read_table(v3_copy / "meta/tasks.parquet")
    pq.write_table(table.rename_columns(["task_index", "task"]), v3_copy / "meta/tasks.parquet")
    assert LeRobotReader(v3_copy).tasks == {0: "task 0", 1: "task 1"}


def test_frames_of_a_shared_video_file_belong_to_their_episode(lerobot_fixture: Path):
    """Frame k of episode e was R = 4y + 3k, B = 80e before a lossy codec, which blurs a frame into its neighbour."""
    reader = LeRobotReader(lerobot_fixture)
    for episode in reader.episodes:
        frames = reader.frames_all(episode, CAMERA).astype(int)
        assert frames.shape == (episode.length, 64, 64, 3)
        assert abs(frames[..., 2].mean() - 80 * episode.index) < 8
        for k, frame in enumerate(frames):
            red = [(4 * np.arange(64)[:, None] + 3 * guess) % 256 for guess in range(k - 3, k + 4)]
            errors = [np.abs(frame[..., 0] - expected).mean() for expected in red]
            assert int(np.argmin(errors)) - 3 in (-1, 0)


def test_every_way_to_read_a_frame_gives_the_same_pixels(lerobot_fixture: Path):
    reader = LeRobotReader(lerobot_fixture)
    sequential = np.stack(list(reader.iter_frames(CAMERA)))
    whole = np.concatenate([reader.frames_all(episode, CAMERA) for episode in reader.episodes])
    np.testing.assert_array_equal(sequential, whole)
    chosen = reader.frames(reader.episodes[1], CAMERA, [19, 0, 7, 7])
    np.testing.assert_array_equal(chosen, whole[12:][[19, 0, 7, 7]])


@pytest.mark.parametrize("indices", [[], [-1], [12], [3, 40]])
def test_a_frame_outside_its_episode_is_refused(lerobot_fixture: Path, indices: list[int]):
    reader = LeRobotReader(lerobot_fixture)
    with pytest.raises(IndexError, match="episode 0, which has 12"):
        reader.frames(reader.episodes[0], CAMERA, indices)


def test_unknown_keys_name_what_there_is(lerobot_fixture: Path):
    reader = LeRobotReader(lerobot_fixture)
    with pytest.raises(KeyError, match=r"observation\.images\.front"):
        reader.frames(reader.episodes[0], "observation.images.side", [0])
    with pytest.raises(KeyError, match=r"observation\.state"):
        reader.numeric(reader.episodes[0], ["observation.velocity"])


def test_a_feature_of_shape_one_is_a_scalar_per_frame(lerobot_fixture: Path):
    reader = LeRobotReader(lerobot_fixture)
    timestamp = reader.numeric(reader.episodes[1], ["timestamp"])["timestamp"]
    assert timestamp.shape == (20,)
    np.testing.assert_allclose(timestamp, np.arange(20) / 10, atol=1e-6)


def test_names_may_be_null_a_list_or_a_dict(lerobot_fixture: Path):
    features = LeRobotReader(lerobot_fixture).features
    assert element_names(features["timestamp"]) is None
    assert element_names(features["observation.state"]) == ("x", "y", "z", "rx", "ry", "rz", "g0", "g1")
    assert element_names(features["action"]) == ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    assert element_names({"names": {"axes": ["x"], "motors": ["m"]}}) == ("x", "m")


def test_episode_statistics_are_not_loaded(lerobot_fixture: Path):
    assert not any(name.startswith("stats/") for name in LeRobotReader(lerobot_fixture).episodes[0].row)


def test_a_lance_dataset_is_refused_by_name(v3_copy: Path):
    edit_info(v3_copy, storage_format="lance")
    with pytest.raises(DatasetError, match="storage_format is 'lance'"):
        LeRobotReader(v3_copy)


@pytest.mark.parametrize("version", ["v1.6", "v3.1", "v4.0", "3.0"])
def test_an_unknown_version_is_refused_with_those_that_are_read(v3_copy: Path, version: str):
    edit_info(v3_copy, codebase_version=version)
    with pytest.raises(DatasetError, match=rf"'{version}'.*v2\.0, v2\.1, v3\.0"):
        LeRobotReader(v3_copy)


@pytest.mark.parametrize(
    "path",
    [
        "meta/info.json",
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
        "videos/observation.images.front/chunk-000/file-000.mp4",
    ],
)
def test_a_missing_file_is_named_when_the_dataset_is_opened(v3_copy: Path, path: str):
    (v3_copy / path).unlink()
    named = "meta/episodes/" if "episodes" in path else path
    with pytest.raises(FileNotFoundError, match=named):
        LeRobotReader(v3_copy)


def test_episodes_that_do_not_add_up_to_the_totals_are_refused(v3_copy: Path):
    edit_info(v3_copy, total_frames=42)
    with pytest.raises(DatasetError, match=r"adds up to 41, info\.json says total_frames 42"):
        LeRobotReader(v3_copy)


def test_rows_that_belong_to_another_episode_are_refused(v3_copy: Path):
    path = v3_copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    order = np.roll(np.arange(41), 1)
    pq.write_table(table.take(order).set_column(5, "index", table.column("index")), path)
    reader = LeRobotReader(v3_copy)
    with pytest.raises(DatasetError, match="episode 1 are not where the metadata says"):
        reader.numeric(reader.episodes[1])


def test_a_truncated_data_file_is_refused(v3_copy: Path):
    path = v3_copy / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 30), path)
    reader = LeRobotReader(v3_copy)
    assert len(reader.numeric(reader.episodes[0])["action"]) == 12
    with pytest.raises(DatasetError, match="30 rows do not hold episode 1 of 20"):
        reader.numeric(reader.episodes[1])


def test_a_null_in_the_data_is_refused(v3_copy: Path):
    path = v3_copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    rows = table.column("action").to_pylist()
    rows[3][2] = None
    column = pa.array(rows, pa.list_(pa.float32(), 7))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), path)
    reader = LeRobotReader(v3_copy)
    with pytest.raises(DatasetError, match=r"'action' in episode 0 holds 84 values \(1 null\)"):
        reader.numeric(reader.episodes[0])


def test_a_video_shorter_than_its_episodes_is_refused(v3_copy: Path):
    path = v3_copy / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    encoder = VideoEncoder(path, fps=10, height=64, width=64)
    encoder.append(np.zeros((36, 64, 64, 3), np.uint8))
    encoder.close()
    reader = LeRobotReader(v3_copy)
    with pytest.raises(DatasetError, match="ends before frame 4 of the 9"):
        list(reader.iter_frames(CAMERA))


def test_episodes_spread_over_several_files_are_found(v3_copy: Path, rolled_frames: Callable[..., np.ndarray]):
    """Episode 0 in its own data file; the videos in file 2 with gaps between, the last episode first."""
    data = v3_copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(data)
    (v3_copy / "data/chunk-001").mkdir()
    pq.write_table(table.slice(12), v3_copy / "data/chunk-001/file-003.parquet")
    pq.write_table(table.slice(0, 12), data)
    expected = [rolled_frames(64, 64, length, seed) for seed, length in enumerate((12, 20, 9))]
    gap = rolled_frames(64, 64, 5, 9)
    (v3_copy / f"videos/{CAMERA}/chunk-000/file-000.mp4").unlink()
    encoder = VideoEncoder(v3_copy / f"videos/{CAMERA}/chunk-000/file-002.mp4", fps=10, height=64, width=64)
    for run in (expected[2], gap, expected[0], gap, expected[1]):
        encoder.append(run)
    encoder.close()
    meta = v3_copy / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(meta).to_pylist()
    for row, chunk, file, start in zip(rows, (0, 1, 1), (0, 3, 3), (1.4, 3.1, 0.0), strict=True):
        row |= {"data/chunk_index": chunk, "data/file_index": file}
        row |= {f"videos/{CAMERA}/file_index": 2, f"videos/{CAMERA}/from_timestamp": start}
    (v3_copy / "meta/episodes/chunk-001").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[1:]), v3_copy / "meta/episodes/chunk-001/file-000.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:1]), meta)

    reader = LeRobotReader(v3_copy)
    states = np.concatenate([reader.numeric(e, ["observation.state"])["observation.state"] for e in reader.episodes])
    np.testing.assert_array_equal(
        states, table.column("observation.state").combine_chunks().flatten().to_numpy().reshape(41, 8)
    )
    sequential = np.stack(list(reader.iter_frames(CAMERA))).astype(int)
    wanted = np.concatenate(expected).astype(int)
    errors = np.abs(sequential - wanted).mean((1, 2, 3))
    shifted = np.abs(sequential - np.roll(wanted, 3, 2)).mean((1, 2, 3))
    assert (errors < 0.5 * shifted).all()
    whole = np.concatenate([reader.frames_all(episode, CAMERA) for episode in reader.episodes])
    np.testing.assert_array_equal(sequential, whole)


def write_v2(root: Path, version: str, pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The v2 layout by hand: a file an episode, chunks of two, JSON lines, lists that are not of fixed size."""
    rng = np.random.default_rng(5)
    (root / "meta").mkdir(parents=True)
    state = [rng.normal(size=(len(frames), 3)).astype(np.float32) for frames in pictures]
    grid = [rng.normal(size=(len(frames), 2, 3)) for frames in pictures]
    start = 0
    for index, frames in enumerate(pictures):
        length, chunk = len(frames), f"chunk-{index // 2:03d}"
        table = pa.table(
            {
                "observation.state": pa.array(state[index].tolist(), pa.list_(pa.float32())),
                "observation.grid": pa.array(grid[index].tolist(), pa.list_(pa.list_(pa.float64()))),
                "note": pa.array(["text"] * length),
                "done": pa.array([k == length - 1 for k in range(length)]),
                "observation.images.still": pa.array([{"bytes": png(frame), "path": None} for frame in frames]),
                "timestamp": pa.array(np.arange(length, dtype=np.float32) / 15),
                "frame_index": np.arange(length),
                "episode_index": np.full(length, index),
                "index": start + np.arange(length),
                "task_index": np.full(length, index % 2),
            }
        )
        (root / "data" / chunk).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / "data" / chunk / f"episode_{index:06d}.parquet")
        videos = root / "videos" / chunk / "observation.images.top"
        videos.mkdir(parents=True, exist_ok=True)
        encoder = VideoEncoder(videos / f"episode_{index:06d}.mp4", fps=15, height=64, width=64)
        encoder.append(frames)
        encoder.close()
        start += length
    tasks = ["open", "close"]
    episodes = [
        {"episode_index": i, "tasks": [tasks[i % 2]], "length": len(frames)} for i, frames in enumerate(pictures)
    ]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in episodes))
    (root / "meta/tasks.jsonl").write_text(
        "".join(json.dumps({"task_index": i, "task": task}) + "\n" for i, task in enumerate(tasks)) + "\n"
    )

    def feature(dtype: str, *shape: int) -> dict[str, object]:
        return {"dtype": dtype, "shape": list(shape), "names": None}

    info = {
        "codebase_version": version,
        "robot_type": None,
        "total_episodes": len(pictures),
        "total_frames": start,
        "chunks_size": 2,
        "fps": 15,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "observation.state": feature("float32", 3),
            "observation.grid": feature("float64", 2, 3),
            "observation.images.top": feature("video", 64, 64, 3),
            "observation.images.still": feature("image", 64, 64, 3),
            "note": feature("string", 1),
            "done": feature("bool", 1),
            "timestamp": feature("float32", 1),
            **{key: feature("int64", 1) for key in ("frame_index", "episode_index", "index", "task_index")},
        },
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return {"observation.state": np.concatenate(state), "observation.grid": np.concatenate(grid)}


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_a_v2_dataset_is_read_file_by_file(tmp_path: Path, rolled_frames: Callable[..., np.ndarray], version: str):
    pictures = [rolled_frames(64, 64, length, seed) for seed, length in enumerate((6, 4, 9))]
    expected = write_v2(tmp_path / "v2", version, pictures)
    reader = LeRobotReader(tmp_path / "v2")
    assert reader.version == version
    assert reader.robot_type == "unknown"
    assert reader.tasks == {0: "open", 1: "close"}
    assert [episode.tasks for episode in reader.episodes] == [("open",), ("close",), ("open",)]
    episodes = [reader.numeric(episode) for episode in reader.episodes]
    for key, values in expected.items():
        found = np.concatenate([episode[key] for episode in episodes])
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)
    assert episodes[1]["done"].tolist() == [False, False, False, True]
    np.testing.assert_array_equal(np.concatenate([episode["index"] for episode in episodes]), np.arange(19))
    top = np.stack(list(reader.iter_frames("observation.images.top"))).astype(int)
    wanted = np.concatenate(pictures).astype(int)
    errors = np.abs(top - wanted).mean((1, 2, 3))
    assert (errors < 0.5 * np.abs(top - np.roll(wanted, 3, 2)).mean((1, 2, 3))).all()
    np.testing.assert_array_equal(reader.frames(reader.episodes[2], "observation.images.top", [8, 3]), top[10:][[8, 3]])


def test_png_columns_are_read_without_loss_and_strings_are_skipped(
    tmp_path: Path, rolled_frames: Callable[..., np.ndarray]
):
    pictures = [rolled_frames(64, 64, length, seed) for seed, length in enumerate((3, 4))]
    write_v2(tmp_path / "v2", "v2.1", pictures)
    reader = LeRobotReader(tmp_path / "v2")
    assert "note" not in reader.numeric_keys
    assert reader.camera_keys == ("observation.images.top", "observation.images.still")
    still = np.stack(list(reader.iter_frames("observation.images.still")))
    np.testing.assert_array_equal(still, np.concatenate(pictures))
    chosen = reader.frames(reader.episodes[1], "observation.images.still", [3, 1])
    np.testing.assert_array_equal(chosen, pictures[1][[3, 1]])
