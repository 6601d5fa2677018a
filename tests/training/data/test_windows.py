from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.data.pack import Pack
from training.data.windows import gather_windows

LABEL, EXECUTED = 0.25, 0.5


def numbered(pack_of: Callable[..., Pack], lengths: list[int], *, executed: bool = True) -> Pack:
    """Frame t holds state t + 1, label t + 1.25 and executed action t + 1.5: any number says where it is from."""
    rows = np.repeat(np.arange(1, sum(lengths) + 1, dtype=np.float32)[:, None], 3, axis=1)
    action = rows + np.float32(LABEL)
    return pack_of(rows, action, lengths, executed_action=rows + np.float32(EXECUTED) if executed else action)


shared_fixtures = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@shared_fixtures
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    horizon=st.integers(1, 6),
    history_steps=st.integers(0, 6),
)
def test_windows_equal_a_walk_through_each_episode(
    pack_of: Callable[..., Pack], lengths: list[int], horizon: int, history_steps: int
):
    pack = numbered(pack_of, lengths)
    windows = gather_windows(pack, np.arange(pack.num_frames), horizon=horizon, history_steps=history_steps)
    frame = 0
    for start, length in zip(pack.episode_start.tolist(), lengths, strict=True):
        for t in range(start, start + length):
            for i in range(horizon):
                real = t + i < start + length
                source = t + i if real else start + length - 1
                assert windows.chunk_mask[frame, i] == real
                assert (windows.states[frame, i] == source + 1).all()
                assert (windows.actions[frame, i] == source + 1 + LABEL).all()
            for j in range(history_steps):
                source = t - history_steps + j
                real = source >= start
                assert windows.history_mask[frame, j] == real
                assert (windows.history_states[frame, j] == (source + 1 if real else 0)).all()
                assert (windows.history_actions[frame, j] == (source + 1 + EXECUTED if real else 0)).all()
            frame += 1


@shared_fixtures
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    horizon=st.integers(1, 6),
    history_steps=st.integers(1, 12),
    executed=st.booleans(),
)
def test_no_history_holds_a_label_of_its_chunk_masked_or_not(
    pack_of: Callable[..., Pack], lengths: list[int], horizon: int, history_steps: int, executed: bool
):
    """At every frame of every episode, also where executed actions are the labels themselves."""
    pack = numbered(pack_of, lengths, executed=executed)
    windows = gather_windows(pack, np.arange(pack.num_frames), horizon=horizon, history_steps=history_steps)
    for t in range(pack.num_frames):
        labels = set(np.unique(windows.actions[t]).tolist())
        assert labels.isdisjoint(np.unique(windows.history_actions[t]).tolist())
        at_or_after_t = windows.history_states[t] >= t + 1
        assert not at_or_after_t.any()


@shared_fixtures
@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=4), steps=st.integers(1, 12))
def test_no_window_reads_another_episode(pack_of: Callable[..., Pack], lengths: list[int], steps: int):
    pack = numbered(pack_of, lengths)
    frames = np.arange(pack.num_frames)
    windows = gather_windows(pack, frames, horizon=steps, history_steps=steps)
    own = pack.episode_of(frames)[:, None]
    assert (pack.episode_of(windows.states[..., 0].astype(np.int64) - 1) == own).all()
    before = pack.episode_of(windows.history_states[..., 0].astype(np.int64) - 1)
    assert (before == own)[windows.history_mask].all()


def test_the_first_frame_has_no_history_and_the_last_one_real_action(pack_of: Callable[..., Pack]):
    windows = gather_windows(numbered(pack_of, [5, 5]), np.array([5, 4]), horizon=3, history_steps=4)
    assert not windows.history_mask[0].any() and not windows.history_states[0].any()
    assert windows.history_mask[1].all()
    assert windows.chunk_mask.tolist() == [[True, True, True], [True, False, False]]
    assert windows.actions[1, :, 0].tolist() == [5 + LABEL] * 3


def test_history_is_what_was_executed_and_the_chunk_what_the_expert_meant(pack_of: Callable[..., Pack]):
    windows = gather_windows(numbered(pack_of, [6]), np.array([3]), horizon=2, history_steps=2)
    assert windows.history_actions[0, :, 0].tolist() == [2 + EXECUTED, 3 + EXECUTED]
    assert windows.actions[0, :, 0].tolist() == [4 + LABEL, 5 + LABEL]


def test_frames_come_in_the_order_asked_and_may_repeat(pack_of: Callable[..., Pack]):
    frames = np.array([7, 0, 7])
    windows = gather_windows(numbered(pack_of, [5, 5]), frames, horizon=1, history_steps=0)
    assert windows.states[:, 0, 0].tolist() == [8, 1, 8]
    assert windows.history_states.shape == (3, 0, 3) and windows.history_mask.shape == (3, 0)
    np.testing.assert_array_equal(windows.frames, frames)


def test_windows_are_float32_and_own_their_memory(pack_of: Callable[..., Pack]):
    pack = numbered(pack_of, [5])
    windows = gather_windows(pack, np.array([1]), horizon=2, history_steps=2)
    for array in (windows.states, windows.actions, windows.history_states, windows.history_actions):
        assert array.dtype == np.float32 and array.flags.writeable
        array[:] = 0
    assert pack.state[0, 0] == 1


@pytest.mark.parametrize("frame", [-1, 5])
def test_a_frame_outside_the_pack_is_refused(pack_of: Callable[..., Pack], frame: int):
    with pytest.raises(IndexError, match="pack of 5"):
        gather_windows(numbered(pack_of, [5]), np.array([2, frame]), horizon=2, history_steps=2)


def test_a_horizon_of_nothing_is_refused(pack_of: Callable[..., Pack]):
    with pytest.raises(ValueError, match="horizon 0"):
        gather_windows(numbered(pack_of, [5]), np.array([0]), horizon=0, history_steps=2)
