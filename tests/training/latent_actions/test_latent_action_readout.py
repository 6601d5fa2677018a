"""Read-outs and alignment, on numbers whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from training.latent_actions.readout import (
    NUM_BODY_DIRECTIONS,
    body_directions,
    linear_cka,
    matched,
    one_hot,
    readout_errors,
    readout_r2,
    readout_residuals,
    without,
)


def test_codes_become_one_row_with_a_one_for_each_token() -> None:
    assert one_hot(np.array([[1, 0], [2, 2]]), 3).tolist() == [[0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 1]]


def test_a_linear_target_is_read_out_and_noise_is_not() -> None:
    generator = np.random.default_rng(0)
    inputs, groups = generator.normal(size=(400, 5)), np.repeat(np.arange(20), 20)
    target = inputs @ generator.normal(size=(5, 2)) + 3
    assert readout_r2(inputs, target, groups) > 0.999
    assert readout_r2(generator.normal(size=(400, 5)), target, groups) < 0.05


def test_half_of_the_variance_is_an_r2_of_a_half() -> None:
    generator = np.random.default_rng(1)
    known, unknown = generator.normal(size=(2, 4000, 1))
    assert readout_r2(known, known + unknown, np.repeat(np.arange(40), 100)) == pytest.approx(0.5, abs=0.05)


def test_a_read_out_that_only_knows_the_clip_is_worth_nothing() -> None:
    """Each clip has its own place: within clips a split of rows would read it, across clips nothing can."""
    generator = np.random.default_rng(2)
    clip = np.repeat(np.arange(30), 20)
    place = generator.normal(size=30)
    inputs = np.eye(30)[clip]
    assert readout_r2(inputs, place[clip][:, None], clip) < 0.05


def test_too_few_clips_and_targets_without_variance_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        readout_r2(np.ones((9, 1)), np.ones((9, 1)), np.arange(9))
    with pytest.raises(ValueError, match="all the same"):
        readout_r2(np.ones((20, 1)), np.ones((20, 1)), np.arange(20))


def test_cka_sees_through_rotation_and_scale_and_not_through_noise() -> None:
    generator = np.random.default_rng(3)
    x = generator.normal(size=(500, 6))
    rotation = np.linalg.qr(generator.normal(size=(6, 6)))[0]
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    assert linear_cka(x, generator.normal(size=(500, 6))) < 0.1


def test_a_row_of_some_weight_counts_as_if_it_were_there_so_often() -> None:
    generator = np.random.default_rng(6)
    x, y = generator.normal(size=(2, 50, 4))
    y += x
    weights = generator.integers(0, 4, 50)
    assert linear_cka(x, y, weights) == pytest.approx(linear_cka(x.repeat(weights, 0), y.repeat(weights, 0)))
    assert linear_cka(x, y, weights) != pytest.approx(linear_cka(x, y), rel=1e-3)


def test_what_a_read_out_leaves_is_what_it_missed_and_no_longer_told_by_its_inputs() -> None:
    generator = np.random.default_rng(7)
    known, unknown = generator.normal(size=(2, 2000, 2))
    groups = np.repeat(np.arange(20), 100)
    left = readout_residuals(known, known + unknown, groups)
    assert np.abs(left - unknown).max() < 0.3
    np.testing.assert_allclose(np.square(left).sum(1), readout_errors(known, known + unknown, groups)[0])
    assert readout_r2(known, left, groups) < 0.02


def test_bodies_cannot_be_told_apart_once_their_directions_are_gone() -> None:
    generator = np.random.default_rng(4)
    motion = generator.normal(size=(600, 6))
    is_second = np.arange(600) >= 300
    body = np.zeros(6)
    body[2] = 4
    vectors = motion + np.where(is_second[:, None], body, 0)
    directions = body_directions(vectors, is_second)
    assert abs(directions[0, 2]) > 0.9
    np.testing.assert_allclose(directions @ directions.T, np.eye(len(directions)), atol=1e-9)
    left = without(vectors, directions)
    assert np.abs(left[is_second].mean(0) - left[~is_second].mean(0)).max() < 0.6


@pytest.mark.parametrize("apart", [0.0, 0.3, 40.0])
def test_as_many_directions_are_removed_however_far_bodies_are_apart(apart: float) -> None:
    vectors = np.random.default_rng(5).normal(size=(400, 8))
    is_second = np.arange(400) >= 200
    vectors[is_second] += apart * np.eye(8)[:3].sum(0)
    directions = body_directions(vectors, is_second)
    assert len(directions) == NUM_BODY_DIRECTIONS
    np.testing.assert_allclose(directions @ directions.T, np.eye(len(directions)), atol=1e-9)


def test_rows_are_matched_to_the_nearest() -> None:
    assert matched([[0.0, 0], [1, 1], [5, 5]], [[4.0, 4], [0.1, 0]]).tolist() == [2, 0]
