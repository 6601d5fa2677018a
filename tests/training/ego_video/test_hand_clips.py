"""Simulated clips of a hand: functions of their seeds, what is said is done, and what is privileged is right."""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is first imported

from dataclasses import fields, replace

import cv2
import numpy as np
import pytest

from training.ego_video.flow_masks import flow_masks
from training.ego_video.mask_scores import mean_iou, moving_frames
from training.simulation.hand_clips import (
    SOURCE,
    WANDERER_SOURCE,
    FilmedClip,
    FilmSettings,
    film,
)
from training.simulation.hand_scene import draw_scene
from training.simulation.hand_script import draw_script
from training.simulation.hand_seeds import TESTING_SEEDS, TRAINING_SEEDS

SETTINGS = FilmSettings(min_s=1.5, max_s=2.0)
STILL = replace(SETTINGS, sway=0.0, noise=0.0)


@pytest.fixture(scope="module")
def clip() -> FilmedClip:
    return film(3, SETTINGS)


def test_a_clip_is_a_function_of_its_seed(clip: FilmedClip) -> None:
    again = film(3, SETTINGS)

    for field in fields(FilmedClip):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(clip, field.name))
    assert not np.array_equal(film(4, SETTINGS).frames[0], clip.frames[0])


def test_a_clip_has_one_row_of_everything_for_each_frame_and_no_action(clip: FilmedClip) -> None:
    count, size = len(clip.frames), SETTINGS.image_size

    assert 15 <= count <= 20
    assert clip.frames.shape == (count, size, size, 3)
    assert clip.truth.shape == clip.hand.shape == (count, size, size)
    assert clip.effector.shape == clip.scenery.shape == (count, 2)
    assert {field.name for field in fields(clip)} == {"clip", "frames", "truth", "hand", "effector", "scenery"}
    assert clip.clip.body == "hand"


def test_seeds_for_training_and_for_testing_have_none_in_common() -> None:
    assert len(TRAINING_SEEDS) and len(TESTING_SEEDS)
    assert TRAINING_SEEDS.stop <= TESTING_SEEDS.start


def test_the_effector_lies_on_the_hand(clip: FilmedClip) -> None:
    seen = 0
    for hand, place in zip(clip.hand, clip.effector, strict=True):
        if np.isfinite(place).all():
            column, row = np.clip((place + 1) / 2 * SETTINGS.image_size, 0, SETTINGS.image_size - 1).astype(int)
            assert hand[max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4].max() == 255
            seen += 1
    assert seen > len(clip.frames) / 2


def test_the_truth_is_the_hand_and_what_it_moves() -> None:
    moved = [film(seed, STILL) for seed in range(4)]

    for each in moved:
        assert (each.truth >= each.hand).all()
        assert each.hand.any(axis=(1, 2)).all()
    assert any((each.truth > each.hand).any() for each in moved)


def test_under_a_head_held_still_only_what_is_in_the_truth_changes() -> None:
    clip = film(11, replace(STILL, wanderer_fraction=0.0))

    assert not clip.scenery.any()
    assert clip.clip.source == SOURCE
    changed = np.abs(np.diff(clip.frames.astype(int), axis=0)).max(axis=-1) > 8
    # A thing that moves less than 3 mm is not in the truth, and casts a pixel or two.
    outside = changed & (np.maximum(clip.truth[1:], clip.truth[:-1]) == 0)
    assert changed.sum() > 500
    assert outside.sum() < 0.01 * changed.sum()


def test_a_wanderer_moves_without_being_in_the_truth() -> None:
    clip = film(11, replace(STILL, wanderer_fraction=1.0))

    assert clip.clip.source == WANDERER_SOURCE
    changed = np.abs(np.diff(clip.frames.astype(int), axis=0)).max(axis=-1) > 8
    assert (changed & (np.maximum(clip.truth[1:], clip.truth[:-1]) == 0)).sum() > 20


def test_the_scenerys_shift_is_that_of_the_pictures(clip: FilmedClip) -> None:
    half, last = SETTINGS.image_size / 2, 8
    grey = [
        cv2.resize(cv2.cvtColor(clip.frames[at], cv2.COLOR_RGB2GRAY), None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        for at in (0, last)
    ]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(grey[0], grey[1], None)[::4, ::4] / 4  # type: ignore[call-overload]
    background = (clip.truth[0] == 0) & (clip.truth[last] == 0)

    assert np.abs(clip.scenery[last]).max() * half > 1.0
    np.testing.assert_allclose(np.median(flow[background], axis=0), clip.scenery[last] * half, atol=0.75)


def test_words_say_what_is_done() -> None:
    rng = np.random.default_rng(0)
    words = set()
    for _ in range(40):
        scene = draw_scene(rng, 0.0)
        script = draw_script(rng, scene, 3.0)
        assert scene.target.words in script.instruction
        assert sum(thing.words == scene.target.words for thing in scene.things) == 1
        words.add(script.instruction.split()[0])
        stays = np.zeros((30, 3))
        assert script.came_true(stays) == script.instruction.startswith("touch")
    assert words == {"push", "pull", "lift", "move", "touch"}


def test_a_script_that_says_left_came_true_only_where_the_thing_went_left() -> None:
    rng = np.random.default_rng(1)
    scripts = [draw_script(rng, draw_scene(rng, 0.0), 3.0) for _ in range(40)]
    to_the_left = np.linspace([0.0, 0.0, 0.0], [-0.1, 0.0, 0.0], 30)

    sides = [script for script in scripts if script.instruction.endswith(("left", "right"))]
    assert len({script.instruction.split()[-1] for script in sides}) == 2
    for script in sides:
        assert script.came_true(to_the_left) == script.instruction.endswith("left")


def test_flow_masks_fit_the_truth_under_a_moving_head() -> None:
    scores = []
    for seed in TESTING_SEEDS[:3]:
        clip = film(seed, FilmSettings(min_s=2.0, max_s=2.0))
        moves = moving_frames(clip.effector, clip.scenery, clip.clip.rate_hz)
        scores.append(mean_iou(flow_masks(clip.frames, clip.clip.rate_hz), clip.truth, moves))

    assert np.mean(scores) > 0.6


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"image_size": 8}, "image_size is 8"),
        ({"rate_hz": 0.0}, "rate_hz is 0"),
        ({"min_s": 4.0, "max_s": 3.0}, "min_s is 4"),
        ({"wanderer_fraction": 1.5}, "wanderer_fraction 1.5"),
    ],
)
def test_settings_that_cannot_be_filmed_are_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FilmSettings(**wrong)  # type: ignore[arg-type]
