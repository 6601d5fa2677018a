"""v2.1 files, pictures in the table, channels first, a lone `observation.image`: imported and checked just the same."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policy.embodiment import Camera, EmbodimentSpec
from training.data.lerobot.reader import LeRobotReader
from training.data.lerobot.video import VideoEncoder
from training.data.pack import Pack, build_pack
from training.own_data.draft import draft_spec
from training.own_data.importing import Words, import_dataset
from training.own_data.problems import ImportRefusedError
from training.recipe import RunDirectory

WriteArm = Callable[..., Path]
CAMERA = "observation.images.wrist"


def to_v21(root: Path, target: Path) -> Path:
    """A file an episode, JSON lines, statistics an episode, as lerobot 0.3 left them."""
    reader = LeRobotReader(root)
    info = reader.info | {
        "codebase_version": "v2.1",
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (target / "meta").mkdir(parents=True)
    (target / "data/chunk-000").mkdir(parents=True)
    (target / "videos/chunk-000" / CAMERA).mkdir(parents=True)
    (target / "meta/info.json").write_text(json.dumps(info))
    tasks = [{"task_index": index, "task": task} for index, task in reader.tasks.items()]
    (target / "meta/tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    table, start = pq.read_table(root / "data/chunk-000/file-000.parquet"), 0
    episodes, stats = [], []
    for episode in reader.episodes:
        name = f"episode_{episode.index:06d}"
        pq.write_table(table.slice(start, episode.length), target / f"data/chunk-000/{name}.parquet")
        write_video(target / f"videos/chunk-000/{CAMERA}/{name}.mp4", reader.frames_all(episode, CAMERA))
        episodes.append({"episode_index": episode.index, "tasks": list(episode.tasks), "length": episode.length})
        stats.append({"episode_index": episode.index, "stats": episode_stats(reader.numeric(episode))})
        start += episode.length
    (target / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in episodes))
    (target / "meta/episodes_stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stats))
    return target


def episode_stats(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    names = ("min", "max", "mean", "std")
    return {
        key: {name: getattr(columns[key], name)(axis=0).tolist() for name in names}
        for key in ("observation.state", "action")
    }


def write_video(path: Path, frames: np.ndarray) -> None:
    encoder = VideoEncoder(path, fps=10, height=frames.shape[1], width=frames.shape[2])
    encoder.append(frames)
    encoder.close()


def to_pictures(root: Path, key: str) -> Path:
    """The camera as PNG bytes in the table, declared channels first under another name."""
    reader = LeRobotReader(root)
    cells = [{"bytes": png(frame), "path": None} for frame in reader.iter_frames(CAMERA)]
    path = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).append_column(key, pa.array(cells)), path)
    info = reader.info
    del info["features"][CAMERA]
    info["features"][key] = {"dtype": "image", "shape": [3, 32, 48], "names": ["channels", "height", "width"]}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="image2pipe") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def imported(root: Path, spec: EmbodimentSpec, tmp_path: Path) -> Pack:
    run = RunDirectory(root=tmp_path / "run")
    import_dataset(root, spec, run, task="cube", words=Words())
    return build_pack(run.dataset("cube"), tmp_path / "pack", image_size=16)


def refusal(root: Path, spec: EmbodimentSpec, tmp_path: Path) -> list[str]:
    with pytest.raises(ImportRefusedError) as refused:
        imported(root, spec, tmp_path)
    return [str(problem) for problem in refused.value.problems]


def test_a_v21_data_set_imports(write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path) -> None:
    pack = imported(to_v21(write_arm(), tmp_path / "v21"), spec, tmp_path)
    assert (pack.num_frames, pack.instructions) == (28, ("pick the cube", "place the cube"))


def test_v21_statistics_that_are_missing_or_of_other_data_are_refused(
    write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path
) -> None:
    root = to_v21(write_arm(), tmp_path / "v21")
    path = root / "meta/episodes_stats.jsonl"
    lines = path.read_text().splitlines()
    path.write_text(lines[1])
    assert any("as the data set's own statistics say" in problem for problem in refusal(root, spec, tmp_path))
    path.unlink()
    [problem] = refusal(root, spec, tmp_path)
    assert "meta/episodes_stats.jsonl: no such file" in problem


@pytest.mark.parametrize(("num_frames", "found"), [(17, "17 frames of video"), (5, "5 frames of video")])
def test_a_v21_video_longer_or_shorter_than_its_table_is_refused(
    write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path, num_frames: int, found: str
) -> None:
    root = to_v21(write_arm(), tmp_path / "v21")
    path = root / f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    write_video(path, np.zeros((num_frames, 32, 48, 3), np.uint8))
    [problem] = refusal(root, spec, tmp_path)
    assert f"{path}, {CAMERA}, episode 1" in problem and f"{found}; expected 12, one for each row" in problem


def test_pictures_in_the_table_import_whatever_the_order_of_their_dimensions(
    write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path
) -> None:
    root = to_pictures(write_arm(), "observation.image")
    assert draft_spec(root).values["cameras"] == [{"name": "image", "height": 32, "width": 48}]
    pack = imported(root, replace(spec, cameras=(Camera(name="image", height=32, width=48),)), tmp_path)
    assert pack.images["image"].shape == (28, 16, 16, 3) and pack.images["image"].std() > 10


def test_a_picture_that_is_none_is_refused(write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path) -> None:
    root = to_pictures(write_arm(), CAMERA)
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    cells = table.column(CAMERA).to_pylist()
    cells[9] = {"bytes": b"no picture", "path": None}
    place = table.column_names.index(CAMERA)
    pq.write_table(table.set_column(place, CAMERA, pa.array(cells)), path)
    [problem] = refusal(root, spec, tmp_path)
    assert "episode 1 frame 0: not decodable" in problem


def test_what_lerobot_itself_wrote_imports_with_a_settled_draft(tmp_path: Path) -> None:
    fixture = Path(__file__).parents[2] / "fixtures/lerobot_v30"
    values = draft_spec(fixture).values
    for group in values["state"] + values["action"]:
        group |= {"kind": "other", "unit": "none", "representation": "absolute"}
    pack = imported(fixture, EmbodimentSpec.from_json(values), tmp_path)
    assert (pack.num_frames, pack.instructions) == (41, ("task 0", "task 1"))
