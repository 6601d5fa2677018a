"""`python -m training ego-clips`: a pack, its masks' score, and films that ego-pack reads."""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is first imported

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from training.__main__ import main
from training.ego_video.motion_moments import flow_steps
from training.ego_video.mp4_folder import mp4_folder_clips
from training.ego_video.pack import ClipPack
from training.ego_video.sources import PictureForm


def run(*arguments: str | Path) -> int:
    return main(["ego-clips", *map(str, arguments)])


def test_a_pack_its_score_and_its_films_come_from_one_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, films, scores = tmp_path / "pack", tmp_path / "films", tmp_path / "scores.json"

    assert run("--out", out, "--clips", "1", "--seeds", "testing", "--videos", films, "--json", scores) == 0

    pack = ClipPack.open(out)
    pack.verify()
    assert [clip.name for clip in pack.clips] == ["hand-1000000"]
    assert all(clip.instruction and clip.body == "hand" for clip in pack.clips)
    arrays = ("frames", "masks", "flow_steps", "truth", "truth_steps", "effector", "scenery")
    assert set(pack.sha256) == {f"{name}.npy" for name in arrays}
    assert pack.truth is not None and pack.truth_steps is not None
    np.testing.assert_array_equal(pack.truth_steps, flow_steps(np.asarray(pack.frames), np.asarray(pack.truth)))
    assert json.loads(scores.read_text())["num_frames"] == pack.num_frames
    assert "mean IoU" in capsys.readouterr().out
    for found, clip in zip(mp4_folder_clips(films, "hand"), pack.clips, strict=True):
        read = found.read(PictureForm(image_size=64, max_rate_hz=10.0))
        assert read.instruction == clip.instruction
        assert read.rate_hz == pytest.approx(clip.rate_hz)
        filmed = pack.frames[pack.frames_of(clip)].astype(int)
        assert read.frames.shape == filmed.shape
        assert np.abs(read.frames - filmed).mean() < 8


def test_the_hand_alone_leaves_out_what_it_holds(tmp_path: Path) -> None:
    for name, options in {"whole": (), "hand": ("--hand-only",)}.items():
        assert run("--out", tmp_path / name, "--clips", "1", "--image-size", "32", *options) == 0
    whole, hand = ClipPack.open(tmp_path / "whole"), ClipPack.open(tmp_path / "hand")

    np.testing.assert_array_equal(whole.frames, hand.frames)
    for name in ("masks", "truth"):
        assert (getattr(hand, name) <= getattr(whole, name)).all()
        assert (getattr(hand, name) < getattr(whole, name)).any()


def test_a_wrong_call_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("--clips", "0"), ("--masks", "none", "--json", tmp_path / "scores.json")):
        with pytest.raises(SystemExit) as ended:
            run("--out", tmp_path / "pack", *arguments)
        assert ended.value.code == 2
    assert "--clips is 0" in capsys.readouterr().err
    assert not (tmp_path / "pack").exists()


def test_settings_that_cannot_be_filmed_end_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--out", tmp_path / "pack", "--image-size", "8") == 1
    assert "image_size is 8" in capsys.readouterr().err


def test_without_the_simulator_the_error_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "training.simulation.hand_clips", None)

    assert run("--out", tmp_path / "pack") == 1
    assert "premotor[sim]" in capsys.readouterr().err
