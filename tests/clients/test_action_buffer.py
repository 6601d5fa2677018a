"""An action is played at its own step or not at all, and chunks that overlap are merged by the rule."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premotor.client import ActionBuffer, RealTimeChunkingRule, Replace, TemporalEnsemble
from premotor.client.description import Group
from premotor.client.playback import HeldSteps


def group(name: str, dim: int, kind: str = "joint_position", representation: str = "absolute") -> Group:
    return Group(name=name, dim=dim, kind=kind, unit="rad", representation=representation)


JOINTS = (group("arm", 2),)


def chunk(first: float, horizon: int = 4, dim: int = 2) -> np.ndarray:
    """Row i holds first + i, so that a number says which chunk and row it is of."""
    return (first + np.arange(horizon, dtype=np.float32))[:, None].repeat(dim, 1)


def test_a_row_is_for_the_step_of_the_observation_plus_its_place() -> None:
    buffer = ActionBuffer(JOINTS, Replace(), start_step=5)
    buffer.insert(chunk(0), for_step=5, now_step=5)
    played = [buffer.action(step) for step in range(5, 10)]
    assert [planned.action[0] for planned in played[:4] if planned] == [0, 1, 2, 3]
    assert played[4] is None


def test_rows_that_passed_while_waiting_are_dropped_and_counted() -> None:
    buffer = ActionBuffer(JOINTS, Replace())
    insertion = buffer.insert(chunk(0), for_step=0, now_step=3)
    assert insertion.num_late_rows == buffer.counts.num_late_rows == 3
    planned = buffer.action(3)
    assert planned is not None
    assert (planned.action[0], planned.age_steps, planned.for_step) == (3, 3, 0)


def test_a_body_that_stood_still_is_where_an_earlier_row_has_it() -> None:
    buffer = ActionBuffer(JOINTS, Replace())
    insertion = buffer.insert(chunk(0), for_step=0, now_step=2, num_still_steps=1)
    assert insertion.num_late_rows == 2
    assert buffer.remaining(2) == 2, "what it covers ends when it would have"
    np.testing.assert_array_equal(buffer.planned(2)[:, 0], [1, 2])
    played = [buffer.action(step) for step in range(2, 5)]
    assert [(planned.action[0], planned.age_steps) for planned in played[:2] if planned] == [(1, 2), (2, 3)]
    assert played[2] is None


def test_held_steps_are_counted_from_any_step_on() -> None:
    held, noted = HeldSteps(), [0, 1, 2, 5, 9, 10]
    for step in noted:
        held.note(step)
    assert [held.since(step) for step in range(13)] == [sum(each >= step for each in noted) for step in range(13)]
    assert HeldSteps().since(0) == 0


def test_a_chunk_none_of_whose_rows_is_left_changes_nothing() -> None:
    buffer = ActionBuffer(JOINTS, Replace())
    insertion = buffer.insert(chunk(0), for_step=0, now_step=9)
    assert insertion.num_late_rows == 4
    assert buffer.counts.num_useless_chunks == 1
    assert buffer.remaining(9) == 0
    assert buffer.action(9) is None


def test_the_row_of_a_step_that_was_asked_for_already_is_late() -> None:
    buffer = ActionBuffer(JOINTS, Replace())
    assert buffer.action(2) is None
    assert buffer.insert(chunk(0), for_step=1, now_step=2).num_late_rows == 2
    assert buffer.start_step == 3
    planned = buffer.action(3)
    assert planned is not None and planned.action[0] == 2


def test_a_chunk_that_adds_nothing_to_a_newer_one_is_of_no_use() -> None:
    buffer = ActionBuffer(JOINTS, Replace())
    buffer.insert(chunk(100, horizon=3), for_step=1, now_step=1)
    buffer.insert(chunk(0, horizon=4), for_step=0, now_step=1)
    assert buffer.counts.num_useless_chunks == 1


def test_steps_that_are_passed_over_take_their_actions_with_them() -> None:
    buffer = ActionBuffer(JOINTS, Replace())
    buffer.insert(chunk(0), for_step=0, now_step=0)
    planned = buffer.action(2)
    assert planned is not None and planned.action[0] == 2
    assert buffer.counts.num_skipped_rows == 2
    with pytest.raises(ValueError, match="step 1 was asked for after step 2"):
        buffer.action(1)


def test_steps_without_an_action_wait_before_the_first_chunk_and_are_underruns_after_it() -> None:
    buffer = ActionBuffer(JOINTS, Replace())
    assert buffer.action(0) is None
    buffer.insert(chunk(0, horizon=1), for_step=1, now_step=1)
    assert buffer.action(1) is not None
    assert buffer.action(2) is None
    counts = buffer.counts
    assert (counts.num_waited, counts.num_played, counts.num_underruns) == (1, 1, 1)


def test_the_newest_observation_says_the_action_whatever_comes_last() -> None:
    buffer = ActionBuffer(JOINTS, Replace())
    buffer.insert(chunk(100), for_step=2, now_step=3)
    insertion = buffer.insert(chunk(0), for_step=1, now_step=3)
    assert insertion.num_outrun_rows == 2
    assert buffer.counts.num_useless_chunks == 1
    planned = buffer.action(3)
    assert planned is not None and planned.action[0] == 101


def test_a_newer_chunk_replaces_what_it_holds_and_what_it_does_not_hold_stays() -> None:
    buffer = ActionBuffer(JOINTS, Replace())
    buffer.insert(chunk(0, horizon=8), for_step=0, now_step=0)
    insertion = buffer.insert(chunk(100, horizon=3), for_step=2, now_step=3)
    assert (insertion.num_late_rows, insertion.num_replaced_rows) == (1, 2)
    played = [buffer.action(step) for step in range(3, 8)]
    assert [planned.action[0] for planned in played if planned] == [101, 102, 5, 6, 7]


def test_what_remains_and_what_is_planned_agree_with_what_is_played() -> None:
    buffer = ActionBuffer(JOINTS, RealTimeChunkingRule())
    assert buffer.planned(0).shape == (0, 2)
    buffer.insert(chunk(0), for_step=0, now_step=1)
    assert buffer.remaining(1) == 3
    planned = buffer.planned(1)
    played = [buffer.action(step) for step in range(1, 4)]
    np.testing.assert_array_equal(planned, [each.action for each in played if each])


def test_an_ensemble_weighs_the_oldest_most_as_act_does() -> None:
    buffer = ActionBuffer(JOINTS, TemporalEnsemble(coefficient=0.5))
    for for_step, first in ((0, 10.0), (1, 20.0), (2, 40.0)):
        buffer.insert(chunk(first), for_step=for_step, now_step=2)
    weights = np.exp([0.0, -0.5, -1.0])
    planned = buffer.action(2)
    assert planned is not None
    np.testing.assert_allclose(planned.action, np.full(2, weights @ [12, 21, 40] / weights.sum()), rtol=1e-6)
    assert planned.age_steps == 0


def test_an_ensemble_does_not_depend_on_the_order_of_arrival() -> None:
    played = []
    for order in ((0, 1, 2), (2, 0, 1)):
        buffer = ActionBuffer(JOINTS, TemporalEnsemble(coefficient=0.3))
        for for_step in order:
            buffer.insert(chunk(10.0 * for_step), for_step=for_step, now_step=2)
        planned = [buffer.action(step) for step in range(2, 6)]
        played.append([each.action for each in planned if each])
    np.testing.assert_array_equal(played[0], played[1])


def test_an_ensemble_leaves_deltas_grippers_and_rotations_to_the_newest_chunk() -> None:
    groups = (
        group("arm", 1),
        group("hand", 1, "end_effector_position", "delta"),
        group("wrist", 1, "end_effector_rotation"),
        group("gripper", 1, "gripper"),
    )
    buffer = ActionBuffer(groups, TemporalEnsemble(coefficient=0.0))
    buffer.insert(np.zeros((4, 4), np.float32), for_step=0, now_step=1)
    buffer.insert(np.ones((4, 4), np.float32), for_step=1, now_step=1)
    planned = buffer.action(1)
    assert planned is not None
    np.testing.assert_array_equal(planned.action, [0.5, 1, 1, 1])


def test_an_ensemble_of_nothing_but_deltas_and_a_gripper_is_refused() -> None:
    groups = (group("hand", 3, "end_effector_position", "delta"), group("gripper", 1, "gripper"))
    with pytest.raises(ValueError, match=r"average nothing.*hand \(delta end_effector_position\)"):
        ActionBuffer(groups, TemporalEnsemble())


def test_a_chunk_of_another_body_or_from_the_future_is_refused() -> None:
    buffer = ActionBuffer(JOINTS, Replace())
    with pytest.raises(ValueError, match=r"shape \[4, 3\] came, expected \[1 or more, 2\]"):
        buffer.insert(chunk(0, dim=3), for_step=0, now_step=0)
    with pytest.raises(ValueError, match="for step 2 came at step 1"):
        buffer.insert(chunk(0), for_step=2, now_step=1)
    for num_still_steps in (-1, 3):
        with pytest.raises(ValueError, match=f"num_still_steps is {num_still_steps}, expected 0 to 2, the steps since"):
            buffer.insert(chunk(0), for_step=1, now_step=3, num_still_steps=num_still_steps)


def test_a_cleared_plan_is_not_played() -> None:
    buffer = ActionBuffer(JOINTS, Replace())
    buffer.insert(chunk(0), for_step=0, now_step=0)
    buffer.clear()
    assert buffer.action(0) is None
    assert buffer.counts.num_underruns == 1


# How many steps after its observation a chunk comes, how many rows it has, and in how many the body stood still.
ARRIVALS = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9), st.integers(0, 12)), max_size=3)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    steps=st.lists(st.tuples(st.integers(1, 4), ARRIVALS), min_size=1, max_size=25),
    coefficient=st.sampled_from([None, 0.0, 0.01, 0.7]),
)
def test_any_order_of_arrivals_gives_what_looking_at_all_chunks_would(
    steps: list[tuple[int, list[tuple[int, int, int]]]], coefficient: float | None
) -> None:
    rule = Replace() if coefficient is None else TemporalEnsemble(coefficient=coefficient)
    buffer, seen, now, num_asked = ActionBuffer(JOINTS, rule), [], -1, 0
    for advance, arrivals in steps:
        now += advance
        for delay, horizon, still in arrivals:
            for_step = max(now - delay, 0)
            num_still = min(still, now - for_step)
            # A step is observed once: its chunk does not come twice.
            if all(for_step != each for each, *_ in seen):
                seen.append((for_step, chunk(100.0 * for_step, horizon), num_still))
                buffer.insert(seen[-1][1], for_step=for_step, now_step=now, num_still_steps=num_still)
        holding = sorted((each for each in seen if each[0] <= now < each[0] + len(each[1])), key=lambda each: each[0])
        planned, num_asked = buffer.action(now), num_asked + 1
        if not holding:
            assert planned is None
            continue
        rows = np.array([rows[now - for_step - num_still, 0] for for_step, rows, num_still in holding])
        weights = np.exp(-(coefficient or 0.0) * np.arange(len(rows)))
        expected = rows[-1] if coefficient is None else weights @ rows / weights.sum()
        assert planned is not None
        np.testing.assert_allclose(planned.action, np.full(2, expected), rtol=1e-6)
        assert planned.for_step == holding[-1][0] == now - planned.age_steps
    counts = buffer.counts
    assert counts.num_played + counts.num_underruns + counts.num_waited == num_asked
    assert counts.num_chunks == len(seen)


def test_a_fleet_can_insert_ten_thousand_chunks_a_second() -> None:
    rows = chunk(0, horizon=50, dim=14)
    buffer = ActionBuffer((group("arm", 14),), Replace())
    started_s = time.process_time()
    for step in range(2000):
        buffer.insert(rows, for_step=step, now_step=step)
        buffer.action(step)
    assert time.process_time() - started_s < 0.2
