"""What codes must say of a pair: closed forms on a square of known motion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from training.ego_video.pack import ClipPack, FramePairs
from training.latent_actions.moments import PairMotions, mirrored_motions, motion_scale

MakeClips = Callable[..., ClipPack]


def test_motion_is_the_difference_of_places_and_the_sum_of_steps(clips: ClipPack) -> None:
    assert clips.masks is not None and clips.effector is not None
    steps = np.random.default_rng(0).normal(size=(clips.num_frames, 4)).astype(np.float32)
    motions = PairMotions(replace(clips, flow_steps=steps))
    between = motions.between(np.array([[1, 5], [8, 10]]))
    moved = clips.effector[[5, 10]] - clips.effector[[1, 8]]
    np.testing.assert_allclose(between[:, :2], moved, atol=1e-5)  # the whole
    np.testing.assert_allclose(between[:, 2:4], moved, atol=1e-4)  # a square's tip goes with it
    np.testing.assert_allclose(between[:, 4:], [steps[1:5].sum(0), steps[8:10].sum(0)], atol=1e-5)


def test_what_a_pack_does_not_say_is_not_known(clips: ClipPack, make_clips: MakeClips) -> None:
    assert clips.masks is not None
    masks = np.array(clips.masks)
    masks[3] = 0
    between = PairMotions(replace(clips, masks=masks)).between(np.array([[0, 3], [1, 4]]))
    assert np.isnan(between).tolist() == [[True] * 8, [False] * 4 + [True] * 4]
    with pytest.raises(ValueError, match="no masks"):
        PairMotions(make_clips(num_clips=2, masks=False))


def test_each_motion_is_scaled_by_what_is_known_of_it(clips: ClipPack) -> None:
    pairs = FramePairs(clips, 1.0)
    motions = PairMotions(clips)
    scale = motion_scale([motions, motions], [pairs, pairs])
    between = motions.between(pairs.places(np.arange(len(pairs)))[1])
    np.testing.assert_allclose(scale[:4], np.sqrt(np.square(between[:, :4]).mean(0)), rtol=1e-5)
    np.testing.assert_array_equal(scale[4:], 1)


def test_in_a_mirror_right_is_left_and_down_stays_down() -> None:
    motions = torch.arange(1.0, 9.0).repeat(2, 1)
    motions[1, 3] = torch.nan
    seen = mirrored_motions(motions, torch.tensor([False, True]))
    torch.testing.assert_close(seen[0], motions[0])
    torch.testing.assert_close(seen[1], torch.tensor([-1, 2, -3, torch.nan, -5, 6, -7, 8]), equal_nan=True)
