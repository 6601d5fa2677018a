"""The probes' questions, asked of a model that knows the answer and of one that does not; and the verb."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.__main__ import main
from training.ego_video.pack import ClipPack, ClipPackWriter, FramePairs
from training.latent_actions.label import label_frames
from training.latent_actions.model import LatentActionModel
from training.latent_actions.probes import displacements, format_figures, probe, readouts
from training.latent_actions.settings import EyesSettings, LatentActionSettings

MakeClips = Callable[..., ClipPack]
Trained = tuple[LatentActionModel, Path]
# As many as there were: another number would sum in another order in the tests that come after.
THREADS = ("--threads", str(torch.get_num_threads()))


@pytest.fixture(scope="module")
def tested(make_clips: MakeClips) -> ClipPack:
    return make_clips(num_clips=12, seed=9, bodies=("hand", "robot"))


def test_displacements_are_between_a_pairs_frames_and_unknown_where_the_pack_does_not_know(tested: ClipPack) -> None:
    frame = np.array([[0, 4], [1, 5]])
    moved = displacements(tested, frame)
    assert tested.effector is not None and tested.scenery is not None
    np.testing.assert_allclose(moved["effector"], tested.effector[[4, 5]] - tested.effector[[0, 1]])
    np.testing.assert_allclose(moved["effector_in_scene"], moved["effector"] - moved["scenery"], atol=1e-6)
    assert displacements(replace(tested, effector=None, scenery=None), frame) == {}


def test_codes_that_say_the_motion_are_read_out_and_codes_that_do_not_are_not(
    trained: Trained, tested: ClipPack
) -> None:
    pairs = FramePairs(tested, 1.0)
    clip, frame = pairs.places(np.arange(len(pairs)))
    moved = displacements(tested, frame)["effector"]
    labels = label_frames(trained[0], tested.frames[frame[:, 0]], tested.frames[frame[:, 1]])
    rightwards = np.digitize(moved[:, 0], np.quantile(moved[:, 0], np.arange(1, 8) / 8))
    downwards = np.digitize(moved[:, 1], np.quantile(moved[:, 1], np.arange(1, 8) / 8))
    told = replace(labels, codes=np.stack([rightwards, downwards], 1), background_codes=np.zeros_like(labels.codes))
    r2 = readouts(trained[0], told, moved, clip)
    assert r2["action_codes"] > 0.7
    assert r2["background_codes"] < 0.05


def test_all_figures_are_there_and_can_be_written(trained: Trained, tested: ClipPack) -> None:
    figures = json.loads(json.dumps(probe(trained[0], tested)))
    assert set(figures["r2"]) == {"effector", "scenery", "effector_in_scene", "effector_place"}
    for use in figures["codes"].values():
        assert 0 < use["usage"] <= 1
        assert 1 <= use["perplexity"] <= 8
    between = figures["bodies"]["hand to robot"]
    assert set(between["transfer"]) == {"own", "transferred", "shuffled", "none"}
    assert all(error > 0 for error in between["transfer"].values())
    assert 0 <= between["cka"]["without_body"]["mean"] <= 1
    text = format_figures({**figures, "held_out": True})
    assert "R2 of effector: action_codes" in text
    assert "CKA" in text


def test_a_pack_without_privileged_arrays_still_tells_of_its_codes(trained: Trained, tested: ClipPack) -> None:
    figures = probe(trained[0], replace(tested, effector=None, scenery=None))
    assert figures["r2"] == {}
    assert "bodies" not in figures
    assert "usage" in format_figures({**figures, "held_out": True})


def test_the_verb_trains_probes_and_writes_and_a_second_call_trains_nothing(
    clips: ClipPack,
    tested: ClipPack,
    eyes_settings: EyesSettings,
    settings: LatentActionSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"eyes": eyes_settings.to_json(), "latent_actions": settings.to_json()}))
    call = [
        *("latent-actions", "--clips", str(clips.directory), "--test-clips", str(tested.directory), "--codes", "4"),
        *("--run", str(tmp_path / "run"), "--settings", str(file), "--json", str(tmp_path / "out.json")),
        *THREADS,
    ]  # fmt: skip
    assert main(call) == 0
    printed = capsys.readouterr()
    assert "action codes: usage" in printed.out
    assert "step 9/10" in printed.err
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures == json.loads((tmp_path / "run" / "probes.json").read_text())
    assert figures["settings"]["num_codes"] == 4
    assert figures["held_out"] is True and "clips, held out\n" in printed.out
    assert main(call) == 0
    assert "step" not in capsys.readouterr().err
    assert json.loads((tmp_path / "out.json").read_text()) == figures


def test_figures_of_clips_that_were_trained_on_are_called_so_and_clips_without_a_pair_are_named(
    make_clips: MakeClips,
    eyes_settings: EyesSettings,
    settings: LatentActionSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"eyes": eyes_settings.to_json(), "latent_actions": settings.to_json()}))
    long, short = make_clips(num_clips=10), make_clips(num_clips=1, num_frames=4)
    both = ClipPackWriter(tmp_path / "both", long.image_size)
    for pack, named in ((long, "long"), (short, "short")):
        for clip in pack.clips:
            rows, stored = pack.frames_of(clip), replace(clip, name=f"{named}-{clip.name}")
            both.add(stored, pack.frames[rows], pack.masks[rows], effector=pack.effector[rows])  # type: ignore[index]
    both.close()
    call = [
        "latent-actions",
        "--clips",
        str(tmp_path / "both"),
        "--run",
        str(tmp_path / "run"),
        "--settings",
        str(file),
    ]
    assert main([*call, *THREADS]) == 0
    printed = capsys.readouterr()
    assert "clips, clips it was trained on (--test-clips names others)" in printed.out.splitlines()[0]
    assert f"{tmp_path / 'both'}: short-clip-0 has no two frames 1 s apart, unused" in printed.err
    assert "long-clip-0 has no" not in printed.err


def test_the_verb_refuses_settings_it_does_not_know(
    clips: ClipPack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"latent_action": {}}')
    assert main(["latent-actions", "--clips", str(clips.directory), "--settings", str(file), *THREADS]) == 1
    assert "unknown keys" in capsys.readouterr().err
