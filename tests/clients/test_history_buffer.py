"""The window is the last steps, oldest first, and nothing of an earlier episode."""

from __future__ import annotations

import numpy as np
import pytest

from premotor.client import FixRequestError, HistoryBuffer


def filled(num_steps: int) -> HistoryBuffer:
    """Step k has the state [k, k + 0.5] and the action [-k]."""
    history = HistoryBuffer(3, 2, 1)
    for step in range(num_steps):
        history.append(np.array([step, step + 0.5]), np.array([-step]))
    return history


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 10])
def test_the_window_is_the_last_steps_oldest_first_behind_zeros(num_steps: int) -> None:
    states, actions, num_valid_steps = filled(num_steps).window()
    last = np.arange(num_steps, dtype=np.float32)[-3:]
    assert num_valid_steps == len(last) == len(filled(num_steps))
    assert states.shape == (3, 2)
    assert states.dtype == actions.dtype == np.float32
    np.testing.assert_array_equal(states[3 - len(last) :], np.stack([last, last + 0.5], 1))
    np.testing.assert_array_equal(actions[3 - len(last) :, 0], -last)
    assert not states[: 3 - len(last)].any()
    assert not actions[: 3 - len(last)].any()


def test_an_empty_history_is_all_padding() -> None:
    states, actions, num_valid_steps = filled(0).window()
    assert num_valid_steps == 0
    assert not states.any()
    assert not actions.any()


def test_a_reset_leaves_nothing_of_the_episode_before() -> None:
    history = filled(5)
    history.reset()
    history.append(np.array([7.0, 7.0]), np.array([7.0]))
    states, actions, num_valid_steps = history.window()
    assert num_valid_steps == 1
    np.testing.assert_array_equal(states, [[0, 0], [0, 0], [7, 7]])
    np.testing.assert_array_equal(actions, [[0], [0], [7]])


def test_a_window_is_a_copy_in_both_directions() -> None:
    history = filled(3)
    before = history.window()
    before.states[:] = 99
    state = np.array([3.0, 3.5])
    history.append(state, np.array([-3.0]))
    state[:] = 99
    np.testing.assert_array_equal(history.window().states, [[1, 1.5], [2, 2.5], [3, 3.5]])


def test_a_policy_without_history_keeps_none() -> None:
    history = HistoryBuffer(0, 2, 1)
    history.append(np.zeros(2), np.zeros(1))
    assert history.window().states.shape == (0, 2)
    assert history.window().num_valid_steps == 0


@pytest.mark.parametrize(
    ("state", "action", "field"),
    [
        (np.zeros(3), np.zeros(1), "history.states"),
        (np.zeros((1, 2)), np.zeros(1), "history.states"),
        (np.zeros(2), np.zeros(2), "history.actions"),
        (np.array([0.0, np.nan]), np.zeros(1), "history.states"),
        (np.zeros(2), np.array([1e300]), "history.actions"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_and_changes_nothing(
    state: np.ndarray, action: np.ndarray, field: str
) -> None:
    history = filled(2)
    before = history.window()
    with pytest.raises(FixRequestError) as refusal:
        history.append(state, action)
    assert refusal.value.field == field
    after = history.window()
    np.testing.assert_array_equal(after.states, before.states)
    np.testing.assert_array_equal(after.actions, before.actions)
    assert after.num_valid_steps == before.num_valid_steps


@pytest.mark.parametrize("sizes", [(-1, 2, 1), (3, 0, 1), (3, 2, 0)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        HistoryBuffer(*sizes)
