from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.lerobot import DatasetError, LeRobotReader
from training.ego_video.egodex import egodex_clips
from training.ego_video.lerobot_video import lerobot_clips
from training.ego_video.mp4_folder import mp4_folder_clips
from training.ego_video.sources import FoundClip, PictureForm, UnusableClipError

FORM = PictureForm(image_size=32, max_rate_hz=10)
FIXTURES = Path(__file__).parents[2] / "fixtures"
Video = Callable[..., Path]
Frames = Callable[..., np.ndarray]


@pytest.fixture
def video(tmp_path: Path, make_video: Video, make_frames: Frames) -> bytes:
    return make_video(tmp_path / "template.mp4", make_frames(12)).read_bytes()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def reason(clip: FoundClip) -> str:
    with pytest.raises(UnusableClipError) as raised:
        clip.read(FORM)
    return str(raised.value)


def test_a_folder_is_searched_to_the_bottom_and_hidden_files_are_left(tmp_path: Path, video: bytes) -> None:
    root = tmp_path / "clips"
    for name in ("b.mp4", "a/c.MP4", "a/deep/d.mov", "._b.mp4", ".cache/e.mp4", "notes.md"):
        put(root / name, video)
    found = mp4_folder_clips(root, body="hand")
    assert [clip.name for clip in found] == ["clips/a/c.MP4", "clips/a/deep/d.mov", "clips/b.mp4"]
    assert {(clip.source, clip.body) for clip in found} == {("folder:clips", "hand")}


def test_words_come_from_the_captions_or_else_from_the_text_beside(tmp_path: Path, video: bytes) -> None:
    root = tmp_path / "clips"
    for name in ("a/1.mp4", "a/2.mp4", "a/3.mp4"):
        put(root / name, video)
    put(root / "captions.json", json.dumps({"a/1.mp4": " open the lid "}))
    put(root / "a/1.txt", "not this")
    put(root / "a/2.txt", "close the lid\n")
    assert [clip.read(FORM).instruction for clip in mp4_folder_clips(root)] == ["open the lid", "close the lid", ""]


def test_a_caption_without_a_video_is_named(tmp_path: Path, video: bytes) -> None:
    root = tmp_path / "clips"
    put(root / "a.mp4", video)
    put(root / "captions.json", json.dumps({"b.mp4": "lift"}))
    missing = mp4_folder_clips(root)[-1]
    assert missing.name == "clips/b.mp4" and "not there" in reason(missing)


@pytest.mark.parametrize("captions", ["{", "[]", '{"a.mp4": 3}'])
def test_captions_that_are_no_captions_are_an_error(tmp_path: Path, captions: str) -> None:
    put(tmp_path / "captions.json", captions)
    with pytest.raises(ValueError, match=r"captions\.json"):
        mp4_folder_clips(tmp_path)


def test_text_that_is_none_makes_its_clip_unusable(tmp_path: Path, video: bytes) -> None:
    put(tmp_path / "a" / "1.mp4", video)
    put(tmp_path / "a" / "1.txt", b"\xff\xfe\x00")
    assert "1.txt" in reason(mp4_folder_clips(tmp_path / "a")[0])


def write_annotations(path: Path, **attributes: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["transforms/rightHand"] = np.zeros((12, 4, 4), np.float32)
        for name, value in attributes.items():
            file.attrs[name] = value


def test_an_egodex_episode_is_its_video_with_the_description_of_what_it_shows(tmp_path: Path, video: bytes) -> None:
    root = tmp_path / "part1"
    both = {"llm_description": "Open the lid.", "llm_description2": "Close the lid."}
    for number in range(5):
        put(root / f"lids/{number}.mp4", video)
    write_annotations(root / "lids/0.hdf5", **both, which_llm_description="1")
    write_annotations(root / "lids/1.hdf5", **both, which_llm_description="2")
    write_annotations(root / "lids/2.hdf5", llm_description=b"Wipe.")
    write_annotations(root / "lids/3.hdf5")
    write_annotations(root / "lids/4.hdf5", llm_description="Wipe.", which_llm_description="2")
    found = egodex_clips(root)
    assert [clip.name for clip in found] == [f"part1/lids/{number}" for number in range(5)]
    assert {(clip.source, clip.body) for clip in found} == {("egodex:part1", "hand")}
    read = [clip.read(FORM) for clip in found]
    assert [clip.instruction for clip in read] == ["Open the lid.", "Close the lid.", "Wipe.", "", "Wipe."]
    assert read[0].frames.shape == (4, 32, 32, 3)


def test_half_an_egodex_episode_and_a_damaged_one_are_unusable(tmp_path: Path, video: bytes) -> None:
    root = tmp_path / "part1"
    put(root / "0.mp4", video)
    write_annotations(root / "1.hdf5")
    put(root / "2.mp4", video)
    put(root / "2.hdf5", "not hdf5")
    assert [reason(clip).split(":")[0] for clip in egodex_clips(root)] == [
        "no 0.hdf5 beside it",
        "no video beside it",
        "2.hdf5 beside it cannot be read",
    ]


def test_without_h5py_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"premotor\[egodex\]"):
        egodex_clips(tmp_path)


def test_every_view_of_a_lerobot_episode_is_a_clip_at_the_data_sets_rate(
    tmp_path: Path, write_dataset: Callable[..., Path], numbers: Callable[[np.ndarray], list[int]]
) -> None:
    found = lerobot_clips(write_dataset(tmp_path / "slide", lengths=(24, 140)))
    names = ["slide/front/000000", "slide/front/000001", "slide/wrist/000000", "slide/wrist/000001"]
    assert [clip.name for clip in found] == names
    assert [clip.source for clip in found] == ["lerobot:slide/front"] * 2 + ["lerobot:slide/wrist"] * 2
    assert {clip.body for clip in found} == {"slider"}
    clip = found[0].read(FORM)
    assert (clip.rate_hz, clip.instruction, numbers(clip.frames)) == (10, "slide it", list(range(0, 24, 2)))
    # More than are read at once; grey wraps round after 64 frames.
    long = found[3].read(PictureForm(image_size=16))
    assert (long.rate_hz, numbers(long.frames)) == (20, [k % 64 for k in range(140)])


def test_only_the_cameras_asked_for_are_read(tmp_path: Path, write_dataset: Callable[..., Path]) -> None:
    root = write_dataset(tmp_path / "slide")
    assert {clip.source for clip in lerobot_clips(root, ["wrist"], body="arm")} == {"lerobot:slide/wrist"}
    assert {clip.body for clip in lerobot_clips(root, ["wrist"], body="arm")} == {"arm"}
    with pytest.raises(DatasetError, match="no camera 'top'"):
        lerobot_clips(root, ["top"])


def test_a_data_set_written_by_lerobot_itself_is_read() -> None:
    root = FIXTURES / "lerobot_v30"
    reader = LeRobotReader(root)
    found = lerobot_clips(root)
    assert len(found) == len(reader.episodes) * len(reader.camera_keys)
    clip = found[1].read(PictureForm(image_size=32))
    assert (len(clip.frames), clip.rate_hz) == (reader.episodes[1].length, reader.fps)
    assert clip.instruction == reader.episodes[1].tasks[0]
    middle = reader.frames_all(reader.episodes[1], reader.camera_keys[0]).mean((1, 2))
    np.testing.assert_allclose(np.diff(clip.frames.mean((1, 2)), axis=0), np.diff(middle, axis=0), atol=25)


def test_a_damaged_camera_file_makes_its_episodes_unusable_and_no_others(
    tmp_path: Path, write_dataset: Callable[..., Path]
) -> None:
    root = write_dataset(tmp_path / "slide")
    (path,) = (root / "videos/observation.images.front").rglob("*.mp4")
    path.write_bytes(b"nothing")
    front, wrist = lerobot_clips(root)[:2], lerobot_clips(root)[2:]
    assert all("does not decode" in reason(clip) for clip in front)
    assert [len(clip.read(FORM).frames) for clip in wrist] == [12, 15]


def test_a_spoilt_or_turned_camera_file_and_one_of_sound_alone_say_so(
    tmp_path: Path,
    write_dataset: Callable[..., Path],
    make_video: Video,
    sound_alone: Callable[[Path], Path],
    scatter_damage: Callable[[Path], None],
    half_turned: Callable[[Path], Path],
    turned_quadrants: Video,
) -> None:
    root = write_dataset(tmp_path / "slide", lengths=(20,))
    (path,) = (root / "videos/observation.images.front").rglob("*.mp4")
    front = lerobot_clips(root)[0]
    sound_alone(path)
    assert "it has no video" in reason(front)
    make_video(path, np.random.default_rng(0).integers(0, 256, (20, 48, 80, 3), np.uint8), 20, faststart=True)
    assert len(front.read(FORM).frames) == 10
    scatter_damage(path)
    assert "damaged: frame " in reason(front)
    half_turned(path)
    assert "turned by" in reason(front)
    turned_quadrants(path, 1)
    assert "turned by" in reason(front)


def test_a_data_set_that_does_not_open_is_one_unusable_clip(tmp_path: Path, write_dataset: Callable[..., Path]) -> None:
    root = write_dataset(tmp_path / "slide")
    shutil.rmtree(root / "videos")
    (clip,) = lerobot_clips(root)
    assert clip.name == "slide" and "files of the data set are missing" in reason(clip)


@pytest.mark.parametrize(("stretch", "expected"), [([1.0, 3.0], "varies"), ([2.0, 2.0], "10.00 Hz")])
def test_an_episode_recorded_at_another_rate_is_unusable(
    tmp_path: Path, write_dataset: Callable[..., Path], stretch: list[float], expected: str
) -> None:
    root = write_dataset(tmp_path / "slide", lengths=(24,))
    (path,) = (root / "data").rglob("*.parquet")
    table = pq.read_table(path)
    apart_s = np.resize(stretch, 24) / 20
    index = table.schema.get_field_index("timestamp")
    pq.write_table(table.set_column(index, "timestamp", pa.array(np.cumsum(apart_s), pa.float32())), path)
    assert expected in reason(lerobot_clips(root)[0])
