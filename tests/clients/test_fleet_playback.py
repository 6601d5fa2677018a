"""What a body would have played, from stamps alone."""

from __future__ import annotations

import numpy as np
import pytest

from premotor.client.description import Group
from premotor.client.fleet import playback
from premotor.client.fleet.endpoint import Answer
from premotor.client.fleet.playback import Hold, looking_again, play
from premotor.client.fleet.robot import Ask
from premotor.client.playback import Insertion, PlannedAction

GROUPS = (Group(name="arm", dim=1, kind="joint_position", unit="rad", representation="absolute"),)


def answered(
    intended_s: float, ended_s: float, *, num_actions: int = 10, value: float = 0.0, waited_s: float = 0.0
) -> Ask:
    actions = np.full((num_actions, 1), value, np.float32)
    return Ask(
        intended_s=intended_s,
        woke_s=intended_s,
        waited=waited_s > 0,
        sent_s=intended_s + waited_s,
        ended_s=ended_s,
        answer=Answer(actions=actions, response_bytes=1, received_s=ended_s),
    )


def test_a_chunk_supplies_the_steps_from_its_arrival_to_its_last_row() -> None:
    played = play([answered(0.0, 0.25)], GROUPS, control_rate_hz=10.0, first_s=0.0, end_s=2.0)
    assert (played.num_steps, played.num_supplied, played.num_stale) == (20, 7, 0)
    assert dict(played.ages_steps) == dict.fromkeys(range(3, 10), 1)
    assert played.holds == [Hold(start_s=0.0, end_s=0.3), Hold(start_s=1.0, end_s=2.0, is_over=False)]
    assert played.supplied_share == pytest.approx(0.35)


def test_an_answer_that_comes_in_time_leaves_no_gap() -> None:
    asks = [answered(0.5 * i, 0.5 * i + 0.3) for i in range(5)]
    played = play(asks, GROUPS, control_rate_hz=10.0, first_s=0.5, end_s=2.5)
    assert played.num_supplied == played.num_steps == 20
    assert played.holds == []


def test_an_answer_after_its_last_row_supplies_nothing() -> None:
    played = play([answered(0.0, 1.0)], GROUPS, control_rate_hz=10.0, first_s=0.0, end_s=2.0)
    assert played.num_supplied == 0
    assert played.holds == [Hold(start_s=0.0, end_s=2.0, is_over=False)]


def test_a_chunk_ages_alike_wherever_its_question_waited() -> None:
    on_the_robot = play([answered(0.0, 0.6, waited_s=0.4)], GROUPS, control_rate_hz=10.0, first_s=0.0, end_s=2.0)
    in_the_server = play([answered(0.0, 0.6)], GROUPS, control_rate_hz=10.0, first_s=0.0, end_s=2.0)
    assert on_the_robot.ages_steps == in_the_server.ages_steps == dict.fromkeys(range(6, 10), 1)
    assert on_the_robot.num_supplied == in_the_server.num_supplied == 4


def test_a_robot_that_looked_again_before_it_sent_would_have_had_a_younger_chunk() -> None:
    asks = looking_again([answered(0.0, 0.6, waited_s=0.4), answered(0.5, 1.9)])
    played = play(asks, GROUPS, control_rate_hz=10.0, first_s=0.0, end_s=1.5)
    assert dict(played.ages_steps) == dict.fromkeys(range(2, 10), 1)
    assert [ask.intended_s for ask in asks] == [0.4, 0.5]


def test_a_hold_that_an_answer_ends_is_over() -> None:
    played = play([answered(0.5, 0.6)], GROUPS, control_rate_hz=10.0, first_s=0.0, end_s=1.5)
    assert played.holds == [Hold(start_s=0.0, end_s=0.6)]


def test_an_older_question_answered_late_does_not_take_over() -> None:
    asks = [answered(0.0, 0.8, value=1.0), answered(0.5, 0.6, value=2.0)]
    played = play(asks, GROUPS, control_rate_hz=10.0, first_s=0.6, end_s=1.5)
    assert dict(played.ages_steps) == dict.fromkeys(range(1, 10), 1)


def test_failed_questions_supply_nothing() -> None:
    failed = Ask(intended_s=0.0, woke_s=0.0, sent_s=0.0, ended_s=0.1, failure="DeadlineExceededError")
    assert play([failed], GROUPS, control_rate_hz=10.0, first_s=0.0, end_s=1.0).num_supplied == 0


def test_a_buffer_that_plays_a_row_of_another_step_would_be_found(monkeypatch) -> None:
    class StaleBuffer(playback.ActionBuffer):
        def action(self, step: int) -> PlannedAction | None:
            planned = super().action(step)
            # The row of the step before, passed off as this one's.
            return planned and planned._replace(action=np.array([step - 1], np.float32))

    asks = [answered(0.0, 0.05)]
    np.copyto(asks[0].answer.actions[:, 0], np.arange(10))
    monkeypatch.setattr(playback, "ActionBuffer", StaleBuffer)
    played = play(asks, GROUPS, control_rate_hz=10.0, first_s=0.0, end_s=1.0)
    assert played.num_stale == played.num_supplied == 9


def test_a_stamp_that_makes_a_chunk_younger_would_be_found(monkeypatch) -> None:
    class YoungBuffer(playback.ActionBuffer):
        def insert(self, actions: np.ndarray, *, for_step: int, now_step: int) -> Insertion:
            return super().insert(actions, for_step=for_step + 2, now_step=now_step)

    asks = [answered(0.0, 0.25)]
    np.copyto(asks[0].answer.actions[:, 0], np.arange(10))
    monkeypatch.setattr(playback, "ActionBuffer", YoungBuffer)
    played = play(asks, GROUPS, control_rate_hz=10.0, first_s=0.0, end_s=1.5)
    assert played.num_stale == played.num_supplied == 9


# On the steps themselves two ways of computing one moment differ in their last digits.
@pytest.mark.parametrize("whole", [False, True])
def test_random_arrivals_play_nothing_stale_and_account_for_every_step(whole: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        asks = [
            answered(looked_s, looked_s + float(rng.exponential(0.4)))
            for looked_s in np.cumsum(rng.integers(1, 12, 20) / 20.0 if whole else rng.uniform(0.05, 0.6, 20)).tolist()
        ]
        for ask in asks:
            assert ask.answer is not None
            np.copyto(ask.answer.actions, rng.normal(size=(10, 1)))
        played = play(asks, GROUPS, control_rate_hz=20.0, first_s=1.0, end_s=6.0)
        held_steps = sum(round((hold.end_s - hold.start_s) * 20.0) for hold in played.holds)
        assert played.num_stale == 0
        assert played.num_steps == played.num_supplied + held_steps == 100
