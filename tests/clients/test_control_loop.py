"""What a robot is told, step by step, whatever the network does: the action of where it is by then, or to stay."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premotor.client import (
    Chunk,
    DeadlineExceededError,
    FixRequestError,
    LastPosition,
    ObservationSupersededError,
    OutputViolationError,
    PolicyError,
    RealTimeChunkingRule,
    Replace,
    RetryableError,
    RobotObservation,
    SchemaChangedError,
    ServerTiming,
    TemporalEnsemble,
)
from premotor.client.asking import Answer, News, Question
from premotor.client.control_clock import ControlStep
from premotor.client.control_loop import ControlLoop, Task
from premotor.client.description import Camera, Embodiment, Group, PolicyDescription
from premotor.client.events import (
    ActionPlayed,
    Asked,
    AskingStopped,
    ChunkArrived,
    EpisodeBegan,
    EpisodeEnded,
    Failed,
    Held,
    Observed,
    PeriodsSkipped,
    PlayerEvent,
    Recovered,
    SwapSeen,
)
from premotor.client.latency import LatencyEstimate
from premotor.client.playback_settings import PlaybackSettings

RATE_HZ, HORIZON, EXECUTION_HORIZON = 10.0, 8, 4
ARM = Embodiment(
    name="arm",
    cameras=(Camera(name="front", height=8, width=8),),
    state=(Group(name="joints", dim=2, kind="joint_position", unit="rad", representation="absolute"),),
    action=(Group(name="joints", dim=2, kind="joint_position", unit="rad", representation="absolute"),),
    control_rate_hz=RATE_HZ,
)
DESCRIPTION = PolicyDescription(
    name="tabletop",
    revision="r0",
    variant="",
    embodiments=(ARM,),
    history_steps=3,
    action_horizon=HORIZON,
    execution_horizon=EXECUTION_HORIZON,
    num_inference_steps=4,
    max_inference_steps=8,
    schema_digest="digest",
    real_time_chunking_methods=("guidance",),
)
# Steps encoded as actions: the first number is the step a row is for, the second the step of its observation.
START_STATE = np.array([-1000.0, -1000.0], np.float32)


class StepClock:
    """Time is the control step that has begun, no more."""

    step = 0

    def now_s(self) -> float:
        return self.step / RATE_HZ

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        return event.is_set()


class FakeRobot:
    """An ideal arm that goes no further than its limit and keeps what it was told."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock
        self.limit = 1e6
        self.position = START_STATE.copy()
        self.told: list[np.ndarray] = []
        self.num_resets = 0

    def reset(self) -> None:
        self.num_resets += 1

    def observe(self) -> RobotObservation:
        return RobotObservation(
            images={"front": np.zeros((8, 8, 3), np.uint8)}, state=self.state(), capture_time_s=self.clock.now_s()
        )

    def state(self) -> np.ndarray:
        return self.position.copy()

    def act(self, action: np.ndarray) -> np.ndarray:
        self.told.append(action.copy())
        self.position = np.clip(action, -self.limit, self.limit).astype(np.float32)
        return self.position


@dataclass(frozen=True)
class Fate:
    """What becomes of one question: an answer or a failure after so many steps, or nothing for ever (a lost one)."""

    delay_steps: int
    error: PolicyError | None = None


class FakeAsker:
    """One question at a time, as the real one, with a fate for each."""

    def __init__(self, clock: StepClock, fates: Iterator[Fate]) -> None:
        self._clock, self._fates = clock, fates
        self.questions: list[Question] = []
        self.extra: list[News] = []
        self._due: tuple[int, Answer] | None = None
        self.free_from_step = 0

    def is_free(self) -> bool:
        return self._due is None and self._clock.step >= self.free_from_step

    def ask(self, question: Question) -> None:
        assert self.is_free(), "two questions in flight"
        self.questions.append(question)
        fate = next(self._fates)
        outcome: Any = fate.error or chunk_for(question.step)
        arrives = question.step + fate.delay_steps
        self._due = arrives, Answer(question=question, outcome=outcome, arrived_s=arrives / RATE_HZ)

    def take(self) -> list[News]:
        news, self.extra = self.extra, []
        if self._due is not None and self._due[0] <= self._clock.step:
            news.append(self._due[1])
            self._due = None
        return news


def chunk_for(step: int, revision: str = "r0") -> Chunk:
    rows = np.stack([step + np.arange(HORIZON), np.full(HORIZON, step)], 1).astype(np.float32)
    return Chunk(
        actions=rows,
        revision=revision,
        seed=0,
        timing=ServerTiming(decode_s=0, queue_s=0, inference_s=0, total_s=0),
        robot_id="robot",
        episode_id="episode",
        request_id=f"request-{step}",
        capture_time_s=123.0,
        round_trip_s=0.0,
    )


class Stand:
    """A loop with everything around it replaced by something that a test can see."""

    def __init__(self, fates: Iterator[Fate], description: PolicyDescription = DESCRIPTION, **changed: Any) -> None:
        self.clock = StepClock()
        self.robot = FakeRobot(self.clock)
        self.asker = FakeAsker(self.clock, fates)
        self.events: list[PlayerEvent] = []
        self.latency = LatencyEstimate(RATE_HZ)
        self.num_steps = 10_000
        self.loop = ControlLoop(
            self.robot,
            self.asker,
            description=description,
            embodiment=ARM,
            task=Task(policy="tabletop", robot_id="robot", episode_id="episode", instruction="reach"),
            settings=PlaybackSettings(**{"rule": Replace(), "hold": LastPosition(), **changed}),
            latency=self.latency,
            clock=self.clock,
            observer=self.events.append,
        )
        self.loop.begin()

    def step(self, step: int, num_skipped: int = 0) -> None:
        self.clock.step = step
        self.loop.run_step(ControlStep(step, num_skipped, self.clock.now_s()), lambda: self.catch_up(step))

    def catch_up(self, begun: int) -> ControlStep | None:
        step = self.clock.step
        return ControlStep(step, step - begun, self.clock.now_s()) if step < self.num_steps else None

    def run(self, num_steps: int) -> None:
        for step in range(num_steps):
            self.step(step)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def always(delay_steps: int) -> Iterator[Fate]:
    while True:
        yield Fate(delay_steps)


def in_turn(*fates: Fate, then: int = 1) -> Iterator[Fate]:
    yield from fates
    yield from always(then)


def test_the_robot_is_held_where_it_is_until_the_first_chunk_and_then_plays_it_from_its_beginning() -> None:
    stand = Stand(always(2))
    stand.run(20)
    np.testing.assert_array_equal(stand.robot.told[:2], [START_STATE, START_STATE])
    # It is where the chunk's observation had it. Those after it are of a robot that moves: each step plays its own row.
    assert [told[0] for told in stand.robot.told[2:]] == [0, 1, 2, 3, *range(6, 20)]
    assert [event.age_steps for event in stand.of(ActionPlayed)][:4] == [2, 3, 4, 5]
    assert [event.reason for event in stand.of(Held)] == ["waiting", "waiting"]
    assert stand.loop.report.counts.num_underruns == 0
    assert stand.of(Recovered) == []


def test_the_next_chunk_is_asked_for_when_the_policy_means_to_look_again() -> None:
    stand = Stand(always(1))
    stand.run(20)
    assert [question.step for question in stand.asker.questions] == [0, 4, 8, 12, 16]


def test_slow_answers_are_asked_for_early_enough_that_nothing_runs_out() -> None:
    stand = Stand(always(4), execution_horizon=HORIZON)
    stand.run(60)
    assert stand.loop.report.counts.num_underruns == 0
    assert stand.latency.threshold_steps == 5
    # 4 actions are left when a chunk comes, so it asks again at once.
    assert [question.step for question in stand.asker.questions][:4] == [0, 4, 8, 12]


def test_fast_answers_are_not_asked_for_sooner_than_needed() -> None:
    stand = Stand(always(1), execution_horizon=HORIZON)
    stand.run(30)
    asked = stand.of(Asked)
    assert {(event.remaining_steps, event.threshold_steps) for event in asked[1:]} == {(2, 2)}
    assert stand.loop.report.counts.num_underruns == 0


def test_an_underrun_is_held_said_counted_and_recovered_from() -> None:
    stand = Stand(in_turn(Fate(1), Fate(12)))
    stand.run(24)
    held = [event.step for event in stand.of(Held) if event.reason == "underrun"]
    assert held == list(range(8, 17))
    # The chunk asked for at step 4 came at 16, when all of its rows had passed.
    assert stand.of(ChunkArrived)[1].num_late_rows == HORIZON
    assert [event.num_held_steps for event in stand.of(Recovered)] == [len(stand.of(Held)) - 1]
    np.testing.assert_array_equal([stand.robot.told[step][0] for step in held], np.full(len(held), 6))


def test_a_robot_that_was_held_goes_on_from_where_it_is() -> None:
    stand = Stand(in_turn(Fate(1), Fate(6), then=3))
    stand.run(14)
    assert [event.step for event in stand.of(Held)] == [0, 8, 9, 12]
    # The chunk seen at step 4 came at 10, of which the robot was held in the last two: four rows have gone by.
    assert [told[0] for told in stand.robot.told[10:12]] == [8, 9]
    assert [(event.for_step, event.age_steps) for event in stand.of(ActionPlayed)][7:9] == [(4, 6), (4, 7)]
    # Its last two rows are never played: the time that the chunk covers ends with step 11.
    assert stand.of(ChunkArrived)[1].num_late_rows == 6


def test_steps_held_before_an_observation_are_not_those_of_its_chunk() -> None:
    stand = Stand(in_turn(Fate(3), then=2), execution_horizon=HORIZON)
    stand.run(24)
    assert [event.step for event in stand.of(Held)] == [0, 1, 2]
    assert [question.step for question in stand.asker.questions][1] == 4
    # The first chunk's rows until the second one's, which was seen while the robot moved.
    assert [told[0] for told in stand.robot.told[3:]] == [0, 1, 2, *range(6, 24)]


def test_underruns_are_told_to_the_service_once() -> None:
    stand = Stand(in_turn(Fate(1), Fate(12)))
    stand.run(30)
    told = [question.arguments.get("num_underruns") for question in stand.asker.questions]
    assert sum(told) == stand.loop.report.counts.num_underruns
    assert told[:2] == [0, 0]
    assert sorted(told)[-1] > 0


def test_history_holds_what_was_really_sent_up_to_the_step_before_the_observation() -> None:
    stand = Stand(always(1))
    stand.run(9)
    history = stand.asker.questions[2].arguments.get("history")
    assert history is not None
    states, actions, num_valid = history.window()
    assert num_valid == 3
    np.testing.assert_array_equal(actions[:, 0], [5, 6, 7])
    np.testing.assert_array_equal(states[:, 0], [3, 5, 6])


def test_history_holds_commands_as_the_robot_clipped_them() -> None:
    stand = Stand(always(1))
    stand.robot.limit = 5.5
    stand.run(9)
    history = stand.asker.questions[2].arguments.get("history")
    assert history is not None
    np.testing.assert_array_equal(history.window().actions[:, 0], [5, 5.5, 5.5])


def test_a_policy_without_history_is_sent_none() -> None:
    stand = Stand(always(1), replace(DESCRIPTION, history_steps=0))
    stand.run(1)
    assert "history" not in stand.asker.questions[0].arguments


def test_periods_that_went_by_are_said_and_their_actions_are_not_played() -> None:
    stand = Stand(always(1))
    for step, num_skipped in ((0, 0), (1, 0), (5, 3), (6, 0)):
        stand.step(step, num_skipped)
    # The first row was held; the three that went by are gone.
    assert [told[0] for told in stand.robot.told[1:]] == [0, 4, 6]
    assert [(event.step, event.num_periods) for event in stand.of(PeriodsSkipped)] == [(5, 3)]
    assert stand.loop.report.num_skipped_periods == 3
    assert stand.loop.report.counts.num_skipped_rows == 3


class SlowRobot(FakeRobot):
    """One that time goes by with while it is looked at, before its frames are taken and after."""

    def __init__(self, clock: StepClock) -> None:
        super().__init__(clock)
        self.returning_steps: dict[int, int] = {}  # by the step that the frames were taken in
        self.observing_steps: dict[int, int] = {}  # by the step that it began in
        self.measuring_steps: dict[int, int] = {}

    def observe(self) -> RobotObservation:
        self.clock.step += self.observing_steps.get(self.clock.step, 0)
        observation = super().observe()
        self.clock.step += self.returning_steps.get(self.clock.step, 0)
        return observation

    def state(self) -> np.ndarray:
        self.clock.step += self.measuring_steps.get(self.clock.step, 0)
        return super().state()


def slow_stand(fates: Iterator[Fate], **changed: Any) -> tuple[Stand, SlowRobot]:
    stand = Stand(fates, **changed)
    stand.robot = stand.loop._robot = robot = SlowRobot(stand.clock)
    return stand, robot


def played_on_time(stand: Stand) -> bool:
    return all(event.time_s == event.step / RATE_HZ for event in stand.of(ActionPlayed))


def test_a_robot_that_is_slow_to_look_is_sent_the_action_of_the_step_that_it_is_then() -> None:
    stand, robot = slow_stand(always(1))
    robot.observing_steps, robot.measuring_steps = {4: 3}, {9: 2}
    for step in (0, 1, 2, 3, 4, 8, 9, 12):
        stand.step(step)
    # The first row was held; what went by while the robot was looked at is gone.
    assert [told[0] for told in robot.told[1:]] == [0, 1, 2, 6, 8, 11, 12]
    assert [(event.step, event.age_steps) for event in stand.of(ActionPlayed)][3] == (7, 7)
    assert [(event.step, event.num_periods) for event in stand.of(PeriodsSkipped)] == [(7, 3), (11, 2)]
    assert played_on_time(stand)
    report = stand.loop.report
    assert (report.num_skipped_periods, report.counts.num_skipped_rows) == (5, 5)


def test_a_camera_that_takes_longer_than_the_plan_has_the_robot_held_not_late() -> None:
    stand, robot = slow_stand(always(1))
    robot.observing_steps = {4: HORIZON}
    for step in (0, 1, 2, 3, 4):
        stand.step(step)
    assert [event.step for event in stand.of(Held)] == [0, 4 + HORIZON]
    assert played_on_time(stand)


def test_a_robot_that_cannot_look_in_time_moves_between_two_looks() -> None:
    stand, robot = slow_stand(always(1))
    robot.observing_steps = dict.fromkeys(range(100), HORIZON - 2)
    while stand.clock.step < 60:
        stand.step(stand.clock.step + 1)
    played, held = stand.of(ActionPlayed), stand.of(Held)
    assert len(played) >= 2 * len(held) > 10
    # From the answer on, a step after the frames were taken, until the policy means to look again.
    assert {event.age_steps for event in played} == set(range(1, EXECUTION_HORIZON))
    assert played_on_time(stand)


def test_a_chunk_is_for_the_step_in_which_its_frames_were_taken_and_not_for_the_one_in_which_looking_began() -> None:
    stand, robot = slow_stand(always(1), rule=RealTimeChunkingRule())
    # A camera that is waited for, and one whose frame is old when it is there.
    robot.observing_steps, robot.returning_steps = {4: 2}, {14: 2}
    for step in (0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 13, 14, 17):
        stand.step(step)
    taken = [question.step for question in stand.asker.questions][:4]
    assert taken == [0, 6, 10, 14]
    assert [question.captured_s for question in stand.asker.questions][:4] == [step / RATE_HZ for step in taken]
    assert [event.step for event in stand.of(Observed)][:4] == taken
    # A chunk's rows are its steps' numbers, so what is continued begins at the observation: one step behind in the
    # first chunk, as the robot was held for one.
    assert [chunking.previous_actions[0, 0] for chunking in chunkings(stand)][:2] == [5, 10]
    arrived = {event.for_step: event for event in stand.of(ChunkArrived)}
    assert [arrived[step].latency_s for step in taken[:3]] == pytest.approx([0.1] * 3)
    assert [(event.step, event.for_step) for event in stand.of(ActionPlayed)][4:6] == [(7, 6), (8, 6)]
    assert played_on_time(stand)


def test_steps_that_looking_takes_are_asked_ahead_of() -> None:
    stand, robot = slow_stand(always(1), execution_horizon=HORIZON)
    robot.observing_steps = dict.fromkeys(range(100), 2)
    while stand.clock.step < 60:
        stand.step(stand.clock.step + 1)
    # But for the first time, when nobody knew.
    assert [event.step for event in stand.of(Held) if event.step > 20] == []
    assert {event.threshold_steps for event in stand.of(Asked)[3:]} == {2 + 2}


@pytest.mark.parametrize(("says_s", "step"), [(-1e6, 4), (0.0, 4), (0.55, 5), (1e6, 6)])
def test_frames_are_never_older_than_their_look_nor_from_the_future(says_s: float, step: int) -> None:
    class Liar(SlowRobot):
        def observe(self) -> RobotObservation:
            return replace(super().observe(), capture_time_s=says_s)

    stand = Stand(always(1))
    stand.robot = stand.loop._robot = robot = Liar(stand.clock)
    robot.observing_steps = {4: 2}
    stand.step(4)
    assert [question.step for question in stand.asker.questions] == [step]


def test_no_command_is_sent_once_the_episode_has_run_out_while_the_robot_was_looked_at() -> None:
    stand, robot = slow_stand(always(1))
    stand.num_steps, robot.observing_steps = 6, {4: 2}
    stand.run(5)
    assert [told[0] for told in robot.told[1:]] == [0, 1, 2]
    stand.loop.end(completed=True)
    assert stand.events[-1].step == 4
    np.testing.assert_array_equal(robot.told[-1], robot.told[-2])


def test_real_time_chunking_sends_the_plan_from_the_observation_on_and_the_measured_delay() -> None:
    stand = Stand(always(2), rule=RealTimeChunkingRule(max_guidance_weight=3.0))
    stand.run(20)
    first, second = stand.asker.questions[0].arguments, stand.asker.questions[1].arguments
    assert first.get("real_time_chunking") is None
    chunking = second.get("real_time_chunking")
    assert chunking is not None
    # Four steps after an observation after which it was held for two; the last two rows have no time left.
    np.testing.assert_array_equal(chunking.previous_actions[:, 0], [2, 3, 4, 5])
    assert chunking.inference_delay == 2
    assert chunking.execution_horizon == HORIZON - 4
    assert (chunking.method, chunking.max_guidance_weight) == ("auto", 3.0)
    assert [event.inference_delay for event in stand.of(Asked)][:2] == [None, 2]


def test_a_delay_that_the_policy_was_not_trained_for_leaves_the_method_to_the_server() -> None:
    description = replace(DESCRIPTION, real_time_chunking_methods=("guidance", "prefix"), max_inference_delay=1)
    for delay_steps, method in ((1, "prefix"), (2, "auto")):
        stand = Stand(always(delay_steps), description, rule=RealTimeChunkingRule(method="prefix"))
        stand.run(6)
        chunking = stand.asker.questions[1].arguments.get("real_time_chunking")
        assert chunking is not None and chunking.method == method


def test_a_method_that_the_policy_lacks_is_refused_before_anything_moves() -> None:
    with pytest.raises(FixRequestError, match=r"by 'prefix' was asked for, .* supports guidance"):
        Stand(always(1), rule=RealTimeChunkingRule(method="prefix"))
    with pytest.raises(ValueError, match="execution_horizon is 9, a chunk has 8 actions"):
        Stand(always(1), execution_horizon=9)


def test_a_chunk_that_broke_a_limit_ends_the_plan_it_would_have_continued() -> None:
    error = OutputViolationError("joints moved too far", code=grpc.StatusCode.INTERNAL)
    stand = Stand(in_turn(Fate(1), Fate(1, error)))
    stand.run(8)
    assert [event.step for event in stand.of(Held)] == [0, 5]
    np.testing.assert_array_equal(stand.robot.told[5], stand.robot.told[4])


@pytest.mark.parametrize(
    "error",
    [
        RetryableError("overloaded", code=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_delay_s=0.1),
        ObservationSupersededError("newer", code=grpc.StatusCode.ABORTED),
        DeadlineExceededError("late"),
    ],
)
def test_other_failures_leave_the_plan_to_be_played_on(error: PolicyError) -> None:
    stand = Stand(in_turn(Fate(1), Fate(1, error)))
    stand.run(12)
    assert [event.step for event in stand.of(Held)] == [0]
    assert [question.step for question in stand.asker.questions][:3] == [0, 4, 5]


LATE = DeadlineExceededError("late")


def test_time_outs_say_nothing_of_how_long_answers_take() -> None:
    stand = Stand(in_turn(*[Fate(1)] * 12, *[Fate(HORIZON, LATE)] * 2), rule=RealTimeChunkingRule())
    stand.run(160)
    assert (stand.latency.delay_steps, stand.latency.threshold_steps) == (1, 2)
    delays = [chunking.inference_delay for chunking in chunkings(stand)]
    # The plan had run out when the two that timed out were asked and asked again, so those continue nothing.
    assert set(delays) == {1}


def test_after_an_outage_a_robot_asks_no_more_often_than_before() -> None:
    stand = Stand(in_turn(*[Fate(1)] * 3, *[Fate(HORIZON, LATE)] * 4))
    stand.run(160)
    back = next(event.step for event in stand.of(Recovered) if event.step > 20)
    asked = [question.step for question in stand.asker.questions if question.step >= back]
    assert len(asked) > 20
    assert set(np.diff(asked)) == {EXECUTION_HORIZON}


def test_answers_that_were_slow_for_once_leave_room_for_what_is_seen_now() -> None:
    """Two of them are the 95 % quantile of the next thirty: asked for at each step, a chunk would repeat the last."""
    stand = Stand(in_turn(*[Fate(1)] * 3, *[Fate(HORIZON - 1)] * 2), rule=RealTimeChunkingRule())
    stand.run(120)
    assert stand.latency.delay_steps == HORIZON - 1
    asked = [question.step for question in stand.asker.questions][8:]
    assert set(np.diff(asked)) == {EXECUTION_HORIZON}
    assert {chunking.inference_delay for chunking in chunkings(stand)[6:]} == {HORIZON - EXECUTION_HORIZON}
    assert {event.threshold_steps for event in stand.of(Asked)[8:]} == {HORIZON - EXECUTION_HORIZON}


def chunkings(stand: Stand) -> list[Any]:
    asked = [question.arguments.get("real_time_chunking") for question in stand.asker.questions]
    return [chunking for chunking in asked if chunking is not None]


def test_an_answer_to_a_question_of_an_earlier_episode_is_not_played() -> None:
    stand = Stand(always(1))
    question = Question(owner=object(), step=0, captured_s=0, expires_s=9, arguments={})  # pyright: ignore
    stand.asker.extra.append(Answer(question=question, outcome=chunk_for(0), arrived_s=0.0))
    stand.step(0)
    assert stand.of(ChunkArrived) == []
    assert len(stand.of(Held)) == 1


def test_when_asking_stops_the_robot_is_held_and_the_error_raised() -> None:
    stand = Stand(always(1))
    stand.run(3)
    stand.asker.extra.append(AskingStopped(step=0, error=SchemaChangedError("another schema")))
    with pytest.raises(SchemaChangedError):
        stand.step(3)
    np.testing.assert_array_equal(stand.robot.told[3], stand.robot.told[2])
    assert stand.of(Held)[-1].reason == "stopped"
    assert stand.of(AskingStopped)[0].step == 3


def test_what_the_asker_says_is_counted_and_passed_on_with_its_step() -> None:
    stand = Stand(always(1))
    stand.asker.extra += [
        SwapSeen(step=0, previous_revision="r0", revision="r1"),
        Failed(step=0, error=RetryableError("away"), retry_delay_s=0.5),
    ]
    stand.step(7)
    assert [(event.step, event.revision) for event in stand.of(SwapSeen)] == [(7, "r1")]
    report = stand.loop.report
    assert (report.num_swaps, report.num_failures, report.num_questions) == (1, 1, 1)


def test_an_episode_begins_with_a_reset_and_ends_with_a_command_to_stay() -> None:
    stand = Stand(always(1))
    stand.run(3)
    stand.loop.end(completed=True)
    assert stand.robot.num_resets == 1
    np.testing.assert_array_equal(stand.robot.told[3], stand.robot.told[2])
    assert isinstance(stand.events[0], EpisodeBegan)
    assert isinstance(stand.events[-1], EpisodeEnded) and stand.events[-1].completed
    assert stand.events[-1].step == 3


def test_frames_are_taken_at_every_step_only_where_that_is_asked_for() -> None:
    for every_step, expected in ((False, 3), (True, 12)):
        stand = Stand(always(1), observe_every_step=every_step)
        stand.run(12)
        assert sum(type(event).__name__ == "Observed" for event in stand.events) == expected


ERRORS = st.sampled_from(
    [
        None,
        None,
        DeadlineExceededError("late"),
        RetryableError("away", code=grpc.StatusCode.UNAVAILABLE),
        ObservationSupersededError("newer"),
        OutputViolationError("too far"),
    ]
)
FATES = st.lists(st.builds(Fate, st.integers(0, 25), ERRORS), min_size=80, max_size=80)
RULES = st.sampled_from([Replace(), TemporalEnsemble(), RealTimeChunkingRule()])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    fates=FATES,
    rule=RULES,
    skips=st.lists(st.sampled_from([0, 0, 0, 0, 1, 4, 11]), min_size=60, max_size=60),
    looks=st.lists(st.sampled_from([0, 0, 0, 0, 1, 3, 12]), min_size=60, max_size=60),
    busy_until=st.integers(0, 30),
)
def test_no_network_makes_a_robot_play_a_stale_action_or_leave_a_step_unsaid(
    fates: list[Fate], rule: Any, skips: list[int], looks: list[int], busy_until: int
) -> None:
    stand, robot = slow_stand(iter(fates), rule=rule, execution_horizon=HORIZON)
    stand.asker.free_from_step = busy_until
    step = -1
    for num_skipped, look_steps in zip(skips, looks, strict=True):
        step += 1 + num_skipped
        robot.observing_steps = robot.measuring_steps = {step: look_steps}
        stand.step(step, num_skipped)
        step = stand.clock.step
        np.testing.assert_array_equal(stand.robot.told[-1], (stand.events[-1]).action)  # pyright: ignore

    played = {event.step: event for event in stand.of(ActionPlayed)}
    held = {event.step: event for event in stand.of(Held)}
    skipped = {event.step - 1 - i for event in stand.of(PeriodsSkipped) for i in range(event.num_periods)}
    assert sorted([*played, *held, *skipped]) == list(range(step + 1)), "each step is one of played, held, skipped"
    assert len(stand.robot.told) == len(played) + len(held)
    for event in played.values():
        if isinstance(rule, TemporalEnsemble):
            least = event.step - sum(event.step - HORIZON < step < event.step for step in held)
            assert least - 1e-3 <= event.action[0] <= event.step + 1e-3
        else:
            num_held = sum(event.for_step <= step < event.step for step in held)
            assert event.action[0] == event.step - num_held, "steps in which the robot was held take no row with them"
        assert event.age_steps == event.step - event.for_step <= HORIZON - 1
        assert event.time_s == event.step / RATE_HZ, "and in its own step"
    last = START_STATE
    for event in sorted([*played.values(), *held.values()], key=lambda event: event.step):
        if event.step in held:
            np.testing.assert_array_equal(event.action, last)
        last = event.action
    counts = stand.loop.report.counts
    assert (counts.num_played, counts.num_waited + counts.num_underruns) == (len(played), len(held))
    assert sum(counts.ages.values()) == counts.num_played


def test_an_observer_sees_one_command_a_step_in_order() -> None:
    stand = Stand(always(3))
    stand.run(15)
    commands = [event.step for event in stand.events if isinstance(event, ActionPlayed | Held)]
    assert commands == list(range(15))
