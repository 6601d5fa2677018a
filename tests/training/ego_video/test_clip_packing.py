from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from training.__main__ import main
from training.data.lerobot import LeRobotWriter
from training.ego_video.mp4_folder import mp4_folder_clips
from training.ego_video.pack import ClipPack, FramePairs
from training.ego_video.packing import format_pack, pack_clips
from training.ego_video.sources import FoundClip, PictureForm, ReadClip, refused
from training.latent_actions.settings import LatentActionSettings

FORM = PictureForm(image_size=32, max_rate_hz=10)
Video = Callable[..., Path]
Frames = Callable[..., np.ndarray]


def found(name: str, num_frames: int = 20, rate_hz: float = 10, read: Callable | None = None) -> FoundClip:
    frames = np.full((num_frames, 32, 32, 3), len(name), np.uint8)
    clip = ReadClip(frames=frames, rate_hz=rate_hz, instruction=f"do {name}")
    return FoundClip(name=name, source="test", body="hand", read=read or (lambda form: clip))


def pack(clips: list[FoundClip], directory: Path, **options: object) -> ClipPack:
    return pack_clips(clips, directory, **{"form": FORM, "gap_s": 0.5, "report": lambda line: None, **options})


@pytest.fixture
def folder(tmp_path: Path, make_video: Video, make_frames: Frames, half_turned: Callable[[Path], Path]) -> Path:
    """Two good clips and one of every kind that cannot be used."""
    root = tmp_path / "clips"
    for name in ("good/1.mp4", "good/2.mp4"):
        make_video(root / name, make_frames(60))
    make_video(root / "bad/short.mp4", make_frames(20))
    make_video(root / "bad/slow.mp4", make_frames(6), rate_hz=0.5)
    make_video(root / "bad/varying.mp4", make_frames(60), times_ms=[33 * k + k % 2 * 8 for k in range(60)])
    half_turned(root / "bad/turned.mp4")
    cut = make_video(root / "bad/cut.mp4", make_frames(60), faststart=True)
    cut.write_bytes(cut.read_bytes()[:-40])
    (root / "bad/empty.mp4").touch()
    (root / "captions.json").write_text('{"good/1.mp4": "push it", "gone.mp4": "lift it"}')
    return root


EXPECTED_REASONS = {
    "clips/bad/short.mp4": "too short",
    "clips/bad/slow.mp4": "too slow",
    "clips/bad/varying.mp4": "its rate varies",
    "clips/bad/turned.mp4": "turned by -45 degrees, only multiples of 90 are undone",
    "clips/bad/cut.mp4": "cut short",
    "clips/bad/empty.mp4": "does not decode",
    "clips/gone.mp4": "captions.json names it and it is not there",
}


def test_every_kind_of_bad_clip_is_skipped_by_name_and_the_good_ones_are_packed(tmp_path: Path, folder: Path) -> None:
    said: list[str] = []
    packed = pack(mp4_folder_clips(folder), tmp_path / "pack", report=said.append)
    assert [(clip.name, clip.num_frames, clip.instruction) for clip in packed.clips] == [
        ("clips/good/1.mp4", 20, "push it"),
        ("clips/good/2.mp4", 20, ""),
    ]
    assert {clip.name: clip.reason.split(":")[0] for clip in packed.skipped} == EXPECTED_REASONS
    assert said == [f"skipped {clip.name}: {clip.reason}" for clip in packed.skipped]
    assert len(FramePairs(packed, 0.5)) == 2 * 15


def test_the_verb_packs_a_folder_and_says_what_it_left_out(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ego-pack", "--folder", str(folder), "--out", str(tmp_path / "pack"), "--image-size", "32"]) == 0
    out, err = capsys.readouterr()
    assert "folder:clips: 2 clips, 40 frames, 4.0 s at 10 Hz, 1 with an instruction, body unknown" in out
    for name, why in EXPECTED_REASONS.items():
        assert f"  {name}: {why}" in out and f"skipped {name}: {why}" in err
    packed = ClipPack.open(tmp_path / "pack")
    assert packed.image_size == 32 and not FramePairs(packed, LatentActionSettings().gap_s).clips_without


def test_without_a_gap_the_verb_skips_by_name_what_latent_actions_could_not_pair(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--folder", str(folder / "good"), "--rate-hz", "10", "--image-size", "16", "--out", str(tmp_path / "pack")]
    assert main(["ego-pack", *short, "--gap-s", "1.01"]) == 1
    assert "skipped good/1.mp4: too short: 2.00 s" in capsys.readouterr().err
    assert main(["ego-pack", *short]) == 0


def test_the_verb_fails_when_no_clip_remains_and_leaves_no_pack(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ego-pack", "--folder", str(folder / "bad"), "--out", str(tmp_path / "pack")]) == 1
    assert "no clip for" in capsys.readouterr().err
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("arguments", [[], ["--folder", "no/such/place"], ["--folder", ".", "--masks", "guess"]])
def test_a_wrong_call_exits_with_2(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["ego-pack", "--out", str(tmp_path / "pack"), *arguments])
    assert raised.value.code == 2
    assert "ego-pack: error" in capsys.readouterr().err


def test_a_lerobot_data_set_and_a_folder_go_into_one_pack(
    tmp_path: Path, folder: Path, write_dataset: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data_set = write_dataset(tmp_path / "slide")
    arguments = ["--folder", str(folder / "good"), "--lerobot", str(data_set), "--cameras", "front", "--body", "hand"]
    assert main(["ego-pack", *arguments, "--gap-s", "0.5", "--out", str(tmp_path / "pack")]) == 0
    clips = ClipPack.open(tmp_path / "pack").clips
    assert [(clip.name, clip.body) for clip in clips] == [
        ("good/1.mp4", "hand"),
        ("good/2.mp4", "hand"),
        ("slide/front/000000", "slider"),
        ("slide/front/000001", "slider"),
    ]
    assert "digest" in capsys.readouterr().out


def test_masks_are_made_of_a_clips_kept_frames_and_rate(tmp_path: Path) -> None:
    asked: list[tuple[tuple[int, ...], float]] = []

    def masks(frames: np.ndarray, rate_hz: float) -> np.ndarray:
        asked.append((frames.shape, rate_hz))
        return frames[..., 0] * 2

    packed = pack([found("ab"), found("abc", 30, 20)], tmp_path / "pack", masks=masks)
    assert asked == [((20, 32, 32, 3), 10), ((30, 32, 32, 3), 20)]
    assert packed.masks is not None
    assert packed.masks[:, 0, 0].tolist() == [4] * 20 + [6] * 30
    assert packed.flow_steps is not None and packed.flow_steps.shape == (50, 4)


def test_a_clip_of_which_no_masks_can_be_made_is_skipped_by_name(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")

    def masks(frames: np.ndarray, rate_hz: float) -> np.ndarray:
        if rate_hz == 10:
            return frames[..., 0]
        if rate_hz == 20:
            raise ValueError("frames are odd")
        raise cv2.error("the assertion of a flow failed")

    packed = pack([found("a", 60, 30), found("b"), found("c", 40, 20)], tmp_path / "pack", masks=masks)
    assert [clip.name for clip in packed.clips] == ["b"]
    assert {clip.name: clip.reason for clip in packed.skipped} == {
        "a": "no masks can be made of it: the assertion of a flow failed",
        "c": "no masks can be made of it: frames are odd",
    }


def test_without_opencv_no_clip_is_read_where_masks_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(form: PictureForm) -> ReadClip:
        raise AssertionError("it was read")

    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"premotor\[sim\]"):
        pack([found("a", read=never)], tmp_path / "pack", form=replace(FORM, with_masks=True))
    assert not list(tmp_path.iterdir())
    assert len(pack([found("a")], tmp_path / "pack").clips) == 1


def test_masks_of_a_channel_are_taken_and_tell_the_hand_in_those_of_flow(tmp_path: Path) -> None:
    frames = np.full((20, 32, 32, 3), 7, np.uint8)
    channel = np.zeros((20, 32, 32), np.uint8)
    channel[:, :, :10] = 255
    told = ReadClip(frames=frames, rate_hz=10, masks=channel)
    clips = [found("a", read=lambda form: told), found("b")]
    form = replace(FORM, with_masks=True)
    packed = pack(clips, tmp_path / "channel", form=form)
    assert packed.masks is not None and packed.flow_steps is not None
    np.testing.assert_array_equal(packed.masks, channel)
    assert [(clip.name, clip.reason) for clip in packed.skipped] == [("b", "it has no mask channel")]

    def flow(frames: np.ndarray, rate_hz: float) -> np.ndarray:
        masks = np.zeros(frames.shape[:3], np.uint8)
        masks[:, :5] = 255
        return masks

    hand = pack(clips, tmp_path / "hand", form=form, masks=flow).masks
    assert hand is not None
    assert hand[:, :5, :10].min() == 255 and np.count_nonzero(hand) == 20 * 5 * 10


def test_the_verb_reads_masks_that_lie_beside_videos_and_in_data_sets(
    tmp_path: Path, make_video: Video, make_frames: Frames, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = np.zeros((60, 48, 80, 3), np.uint8)
    masks[:, :, 40:] = 255
    root = tmp_path / "clips"
    for name in ("told", "untold", "longer"):
        make_video(root / f"{name}.mp4", make_frames(60))
    make_video(root / "told.mask.mp4", masks)
    make_video(root / "longer.mask.mp4", np.concatenate([masks, masks[:9]]))
    features = {key: {"dtype": "video", "shape": [48, 80, 3], "names": ["height", "width", "channels"]}
                for key in ("observation.images.front", "observation.masks.front")}  # fmt: skip
    features["action"] = {"dtype": "float32", "shape": [1], "names": ["x"]}
    with LeRobotWriter(tmp_path / "arm", fps=10.0, features=features, robot_type="arm") as writer:
        episode = {"observation.images.front": make_frames(20), "observation.masks.front": masks[:20]}
        writer.add_episode({**episode, "action": np.zeros((20, 1), np.float32)}, "push", seed=0)
    sources = ["--folder", str(root), "--lerobot", str(tmp_path / "arm")]
    asked = ["ego-pack", *sources, "--image-size", "32", "--masks", "channel", "--out", str(tmp_path / "pack")]
    assert main(asked) == 0
    packed = ClipPack.open(tmp_path / "pack")
    assert [clip.name for clip in packed.clips] == ["clips/told.mp4", "arm/front/000000"]
    assert {clip.name: clip.reason for clip in packed.skipped} == {
        "clips/longer.mp4": "longer.mask.mp4 beside it has 23 frames at 10 Hz, it has 20 at 10 Hz",
        "clips/untold.mp4": "it has no mask channel",
    }
    assert packed.masks is not None
    # The right half of the picture, and so of the square at its centre.
    assert packed.masks[:, :, 17:].min() == 255 and packed.masks[:, :, :15].max() == 0
    with pytest.raises(SystemExit):
        main([*asked, "--hand-only"])
    assert "needs --masks flow" in capsys.readouterr().err


@pytest.mark.parametrize(("num_frames", "rate_hz"), [(1, 1.0), (2, 1.0), (1, 2.0)])
def test_a_clip_without_two_frames_a_gap_apart_is_skipped(tmp_path: Path, num_frames: int, rate_hz: float) -> None:
    packed = pack([found("a", num_frames, rate_hz), found("b")], tmp_path / "pack", gap_s=0.5)
    assert [clip.name for clip in packed.skipped] == ["a"]
    assert len(FramePairs(packed, 0.5)) == 15


def test_the_verb_makes_masks_by_flow_when_it_is_asked_to(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = ModuleType("training.ego_video.flow_masks")
    vars(flow)["flow_masks"] = lambda frames, rate_hz: np.full(frames.shape[:3], round(rate_hz), np.uint8)
    monkeypatch.setitem(sys.modules, flow.__name__, flow)
    good = ["ego-pack", "--folder", str(folder / "good"), "--image-size", "16"]
    assert main([*good, "--masks", "flow", "--out", str(tmp_path / "with")]) == 0
    assert main([*good, "--out", str(tmp_path / "without")]) == 0
    masks = ClipPack.open(tmp_path / "with").masks
    assert masks is not None and np.unique(masks).tolist() == [10]
    assert ClipPack.open(tmp_path / "without").masks is None


def test_names_that_two_clips_share_are_refused_before_any_is_read(tmp_path: Path) -> None:
    def unread(form: PictureForm) -> ReadClip:
        raise AssertionError("read")

    with pytest.raises(ValueError, match="'b'"):
        pack([found("a", read=unread), found("b", read=unread), found("b", read=unread)], tmp_path / "pack")
    assert list(tmp_path.iterdir()) == []


def test_a_packing_that_was_killed_is_done_again_without_a_trace(tmp_path: Path) -> None:
    expected = pack([found("a"), found("b")], tmp_path / "whole").digest
    (tmp_path / "pack.tmp").mkdir()
    (tmp_path / "pack.tmp/frames.npy").write_bytes(b"half a frame")
    (tmp_path / "pack.tmp/masks.npy").write_bytes(b"")
    packed = pack([found("a"), found("b")], tmp_path / "pack")
    assert packed.digest == expected
    assert sorted(path.name for path in packed.directory.iterdir()) == ["clips.json", "frames.npy"]
    assert not (tmp_path / "pack.tmp").exists()


def test_an_interrupted_packing_leaves_the_pack_that_was_there(tmp_path: Path) -> None:
    def interrupt(form: PictureForm) -> ReadClip:
        raise KeyboardInterrupt

    before = pack([found("a")], tmp_path / "pack").digest
    with pytest.raises(KeyboardInterrupt):
        pack([found("b"), found("c", read=interrupt)], tmp_path / "pack")
    assert ClipPack.open(tmp_path / "pack").digest == before
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_a_clip_of_exactly_two_gaps_is_long_enough(tmp_path: Path) -> None:
    packed = pack([found("two gaps", 10), found("less", 9)], tmp_path / "pack")
    assert [clip.name for clip in packed.clips] == ["two gaps"]


def test_a_pack_where_all_was_skipped_names_no_clip(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 were skipped"):
        pack([refused("a", "test", "gone")], tmp_path / "pack")


def test_the_summary_has_a_line_for_each_source(tmp_path: Path) -> None:
    text = format_pack(pack([found("a"), found("b"), refused("c", "test", "gone")], tmp_path / "pack"))
    assert text.splitlines()[:3] == [
        "test: 2 clips, 40 frames, 4.0 s at 10 Hz, 2 with an instruction, body hand",
        "skipped 1:",
        "  c: gone",
    ]
