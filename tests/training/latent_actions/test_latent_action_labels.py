"""Labels: of pairs, of a whole clip pack, of a robot's pack; kept beside the pack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policy.visual_features import FrozenEyes
from training.corpus import open_corpus
from training.data.pack import Pack
from training.ego_video.pack import ClipPack
from training.latent_actions.label import UNLABELLED, label_frames, label_pack
from training.latent_actions.model import LatentActionModel
from training.latent_actions.settings import LatentActionSettings
from training.latent_actions.train import train_latent_actions
from training.recipe import Recipe, RunDirectory

Trained = tuple[LatentActionModel, Path]


@pytest.fixture(scope="module")
def robot(toy_recipe: Recipe, toy_run: RunDirectory) -> Pack:
    return open_corpus(toy_recipe, toy_run).packs[0]


def test_labels_of_pairs_are_codes_latents_and_the_backgrounds(trained: Trained, clips: ClipPack) -> None:
    labels = label_frames(trained[0], clips.frames[:5], clips.frames[1:6])
    assert labels.codes.shape == labels.background_codes.shape == (5, 2)
    assert labels.codes.dtype == np.int64
    assert labels.latents.shape == (5, 2, 8)
    assert labels.codes.min() >= 0 and labels.codes.max() < 8


def test_a_pair_alone_has_the_label_it_has_among_others(trained: Trained, clips: ClipPack) -> None:
    together = label_frames(trained[0], clips.frames[:7], clips.frames[1:8], batch_size=3)
    alone = label_frames(trained[0], clips.frames[4:5], clips.frames[5:6])
    np.testing.assert_allclose(alone.latents, together.latents[4:5], atol=1e-5)
    assert alone.codes.tolist() == together.codes[4:5].tolist()


def test_a_frame_of_a_clip_is_labelled_with_the_frame_a_gap_later_and_the_last_ones_not_at_all(
    trained: Trained, clips: ClipPack
) -> None:
    labels = label_pack(trained[0], clips, gap_s=0.5)  # two frames at 4 Hz
    for clip in clips.clips:
        start, stop = clip.first_frame, clip.first_frame + clip.num_frames
        expected = label_frames(trained[0], clips.frames[start : stop - 2], clips.frames[start + 2 : stop])
        assert labels.codes[start : stop - 2].tolist() == expected.codes.tolist()
        assert (labels.codes[stop - 2 : stop] == UNLABELLED).all()


def test_labels_are_kept_beside_the_pack_for_each_model_and_gap(
    trained: Trained, make_clips: Callable[..., ClipPack]
) -> None:
    pack = make_clips(num_clips=2)
    first = label_pack(trained[0], pack, gap_s=0.5)
    (cache,) = pack.directory.glob("latent_actions_*.npz")
    written = cache.stat().st_mtime_ns
    again = label_pack(trained[0], pack, gap_s=0.5)
    assert cache.stat().st_mtime_ns == written
    assert again.codes.tolist() == first.codes.tolist()
    np.testing.assert_array_equal(again.latents, first.latents)
    label_pack(trained[0], pack, gap_s=1.0)
    assert len(list(pack.directory.glob("latent_actions_*"))) == 2


def test_a_clip_shorter_than_the_gap_has_no_labels(trained: Trained, make_clips: Callable[..., ClipPack]) -> None:
    pack = make_clips(num_clips=2, num_frames=3)
    assert (label_pack(trained[0], pack, gap_s=1.0).codes == UNLABELLED).all()


def test_a_robots_pack_is_labelled_by_episode_and_stays_readable(trained: Trained, robot: Pack) -> None:
    labels = label_pack(trained[0], robot, gap_s=0.5)  # five frames at 10 Hz
    assert labels.codes.shape == (robot.num_frames, 2)
    for start, length in zip(robot.episode_start, robot.episode_length, strict=True):
        episode = labels.codes[start : start + length]
        assert (episode[: length - 5] != UNLABELLED).all()
        assert (episode[length - 5 :] == UNLABELLED).all()
    frames = robot.images["front"]
    np.testing.assert_array_equal(labels.codes[3:4], label_frames(trained[0], frames[3:4], frames[8:9]).codes)


@pytest.mark.parametrize(
    ("gap_s", "camera", "message"), [(0.01, None, "half a frame"), (0.5, "wrist", "was asked for")]
)
def test_what_cannot_be_labelled_is_refused(
    trained: Trained, robot: Pack, gap_s: float, camera: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        label_pack(trained[0], robot, gap_s=gap_s, camera=camera)


def test_continuous_latents_have_no_codes(
    clips: ClipPack, eyes: FrozenEyes, settings: LatentActionSettings, tmp_path: Path
) -> None:
    model = train_latent_actions([clips], eyes, replace(settings, num_codes=0), tmp_path, seed=0, until=2)
    labels = label_frames(model, clips.frames[:3], clips.frames[1:4])
    assert labels.codes.shape == (3, 0)
    assert labels.latents.shape == (3, 2, 8)
