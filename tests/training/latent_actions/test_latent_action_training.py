"""Training: resumes exactly, is saved whole, refuses what it cannot do, and learns what it is told to learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from policy.visual_features import FrozenEyes
from training.ego_video.pack import ClipPack
from training.latent_actions.model import LatentActionModel
from training.latent_actions.settings import EyesSettings, LatentActionSettings
from training.latent_actions.train import (
    eyes_digest,
    model_digest,
    read_eyes,
    read_latent_actions,
    train_eyes,
    train_latent_actions,
)

MakeClips = Callable[..., ClipPack]


def losses(directory: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["gradient_norm"]) for line in lines]


def test_eyes_that_were_interrupted_end_as_if_they_had_not_been(
    clips: ClipPack, eyes_settings: EyesSettings, eyes: FrozenEyes, tmp_path: Path
) -> None:
    train_eyes([clips], eyes_settings, tmp_path, seed=0, until=5)
    assert not (tmp_path / "eyes.json").exists()
    resumed = train_eyes([clips], eyes_settings, tmp_path, seed=0)
    assert eyes_digest(resumed) == eyes_digest(eyes) == eyes_digest(read_eyes(tmp_path))


def test_latent_actions_that_were_interrupted_end_as_if_they_had_not_been(
    clips: ClipPack,
    eyes: FrozenEyes,
    settings: LatentActionSettings,
    trained: tuple[LatentActionModel, Path],
    tmp_path: Path,
) -> None:
    # After the first revival and in the middle of counting: both must come back.
    train_latent_actions([clips], eyes, settings, tmp_path, seed=0, until=6)
    resumed = train_latent_actions([clips], eyes, settings, tmp_path, seed=0)
    assert losses(tmp_path) == losses(trained[1])
    assert model_digest(resumed) == model_digest(trained[0])


def test_what_is_read_back_is_what_was_trained(trained: tuple[LatentActionModel, Path], clips: ClipPack) -> None:
    model, directory = trained
    read = read_latent_actions(directory)
    assert model_digest(read) == model_digest(model)
    frames = torch.from_numpy(np.array(clips.frames[:2]))
    torch.testing.assert_close(read.see(frames), model.see(frames))
    assert not any(parameter.requires_grad for parameter in read.parameters())


def test_what_has_ended_is_opened_without_measuring_how_everything_moved(
    clips: ClipPack,
    eyes: FrozenEyes,
    settings: LatentActionSettings,
    trained: tuple[LatentActionModel, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(pack: ClipPack) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr("training.latent_actions.train.PairMotions", never)
    again = train_latent_actions([clips], eyes, settings, trained[1], seed=0)
    assert model_digest(again) == model_digest(trained[0])


def test_codes_begin_after_the_part_of_training_that_is_continuous(
    clips: ClipPack, eyes: FrozenEyes, settings: LatentActionSettings, tmp_path: Path
) -> None:
    train_latent_actions([clips], eyes, replace(settings, continuous_part=0.4), tmp_path, seed=0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["quantization"] > 0 for line in lines] == [False] * 4 + [True] * 6


def test_another_seed_and_other_clips_give_another_model(
    clips: ClipPack,
    make_clips: MakeClips,
    eyes: FrozenEyes,
    settings: LatentActionSettings,
    trained: tuple[LatentActionModel, Path],
    tmp_path: Path,
) -> None:
    short = replace(settings, schedule=replace(settings.schedule, num_steps=2))
    digests = {
        model_digest(train_latent_actions(packs, eyes, short, tmp_path / name, seed=seed))
        for name, packs, seed in (
            ("a", [clips], 0),
            ("b", [clips], 1),
            ("c", [clips, make_clips(num_clips=2, seed=5)], 0),
        )
    }
    assert len(digests) == 3
    with pytest.raises(ValueError, match="clips differ"):
        train_latent_actions([make_clips(num_clips=2, seed=5)], eyes, short, tmp_path / "a", seed=0)


def test_eyes_in_bfloat16_teach_nearly_the_same_and_stay_as_they_are(
    clips: ClipPack,
    eyes: FrozenEyes,
    settings: LatentActionSettings,
    trained: tuple[LatentActionModel, Path],
    tmp_path: Path,
) -> None:
    model = train_latent_actions([clips], eyes, replace(settings, eyes_in_bfloat16=True), tmp_path, seed=0)
    first, plain = losses(tmp_path)[0], losses(trained[1])[0]
    assert first != plain
    assert first == pytest.approx(plain, rel=0.02)
    assert eyes_digest(model.eyes) == eyes_digest(eyes)
    read = read_latent_actions(tmp_path)
    assert read.settings.eyes_in_bfloat16 and eyes_digest(read.eyes) == eyes_digest(eyes)


def test_masks_that_a_pack_lacks_are_refused(
    make_clips: MakeClips, eyes: FrozenEyes, settings: LatentActionSettings, tmp_path: Path
) -> None:
    bare = make_clips(num_clips=2, masks=False)
    with pytest.raises(ValueError, match="no flow masks"):
        train_latent_actions([bare], eyes, settings, tmp_path, seed=0)
    train_latent_actions([bare], eyes, replace(settings, masks="truth"), tmp_path / "truth", seed=0, until=1)
    train_latent_actions([bare], eyes, replace(settings, masks="none"), tmp_path / "none", seed=0, until=1)


def test_nothing_of_the_truth_arm_is_made_of_flow_s_masks(
    clips: ClipPack, eyes: FrozenEyes, settings: LatentActionSettings, tmp_path: Path
) -> None:
    told, short = replace(settings, masks="truth"), replace(settings.schedule, num_steps=2)
    noise = np.random.default_rng(0)
    steps = noise.normal(size=(clips.num_frames, 4)).astype(np.float32)
    told = replace(told, schedule=short)
    trained = {
        name: model_digest(train_latent_actions([pack], eyes, told, tmp_path / name, seed=0))
        for name, pack in {
            "as it is": replace(clips, truth_steps=steps),
            "other masks": replace(
                clips,
                masks=noise.integers(0, 256, clips.frames.shape[:3], np.uint8),
                flow_steps=noise.normal(size=steps.shape).astype(np.float32),
                truth_steps=steps,
            ),
            "other truth": replace(clips, truth_steps=2 * np.roll(steps, 1, 0)),
        }.items()
    }
    assert trained["as it is"] == trained["other masks"] != trained["other truth"]


def test_packs_of_different_sizes_are_refused(
    clips: ClipPack, make_clips: MakeClips, eyes_settings: EyesSettings, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="different image_size"):
        train_eyes([clips, make_clips(num_clips=2, size=48)], eyes_settings, tmp_path, seed=0)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="train it first"):
        read_latent_actions(tmp_path)
    with pytest.raises(OSError, match="save_pretrained"):
        read_eyes(tmp_path)
