"""A robot is driven through a real connection at its control rate, and is held whenever that fails it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from premotor.client import (
    BackOff,
    ChunkPlayer,
    FixRequestError,
    LastPosition,
    PolicyClient,
    RealTimeChunkingRule,
    RetryableError,
    RobotObservation,
    SchemaChangedError,
    SyntheticRobot,
    TemporalEnsemble,
)
from premotor.client.events import (
    ActionPlayed,
    AskingStopped,
    ChunkArrived,
    EpisodeBegan,
    EpisodeEnded,
    Failed,
    Held,
    PeriodsSkipped,
    PlayerEvent,
    Reconnected,
    SwapSeen,
)
from premotor.v1 import policy_pb2

OPEN = LastPosition(first={"gripper": [0.0]})
QUICK = BackOff(initial_s=0.01, max_s=0.05)


def make_player(gateway: Any, robot: Any, events: list[PlayerEvent], **changed: Any) -> ChunkPlayer:
    settings: dict[str, Any] = {
        "policy": "tabletop",
        "robot_id": "robot",
        "hold": OPEN,
        "image_encoding": "raw",
        "back_off": QUICK,
        "timeout_s": 2.0,
        "observers": [events.append],
    }
    return ChunkPlayer(robot, lambda: PolicyClient(gateway.address, timeout_s=2.0), **{**settings, **changed})


@pytest.fixture
def robot(gateway) -> SyntheticRobot:
    with PolicyClient(gateway.address) as client:
        return SyntheticRobot(client.get_policy("tabletop").embodiment(), np.random.default_rng(0))


def arrived(events: list[PlayerEvent], kind: type, number: int = 1) -> Callable[[], bool]:
    return lambda: sum(isinstance(event, kind) for event in events) >= number


@pytest.mark.parametrize("transport", ["stream", "unary"])
def test_an_episode_is_played_at_the_control_rate_over_a_real_connection(gateway, robot, transport) -> None:
    events: list[PlayerEvent] = []
    with make_player(gateway, robot, events, transport=transport) as player:
        assert player.description.revision == "0123456789ab"
        assert player.embodiment.control_rate_hz == 80.0
        started_s = time.monotonic()
        report = player.play(instruction="go", episode_id="episode", max_steps=40)
        elapsed_s = time.monotonic() - started_s
    assert 39 / 80 <= elapsed_s < 3.0
    commands = [event for event in events if isinstance(event, ActionPlayed | Held)]
    skipped = sum(event.num_periods for event in events if isinstance(event, PeriodsSkipped))
    assert len(commands) == report.num_steps
    assert report.num_steps + skipped <= 40
    assert report.counts.num_played > 10
    assert isinstance(events[-1], EpisodeEnded) and events[-1].completed
    requests = gateway.service.requests
    # The last one may not have left when the player was closed.
    assert report.num_questions - 1 <= len(requests) <= report.num_questions
    assert {(request.episode_id, request.embodiment) for request in requests} == {("episode", "sawyer")}
    assert all(request.HasField("num_underruns") for request in requests)
    assert requests[-1].history.actions.shape[0] == 2


def test_a_player_in_a_thread_of_its_own_is_stopped_and_has_a_report(gateway, robot) -> None:
    events: list[PlayerEvent] = []
    with make_player(gateway, robot, events) as player:
        enough = threading.Event()
        player.start(
            instruction="go", episode_id="one", until=lambda: enough.is_set() or arrived(events, ActionPlayed)()
        )
        first = player.wait(5.0)
        player.start(instruction="go", episode_id="two")
        with pytest.raises(RuntimeError, match="is being played"):
            player.start(instruction="go", episode_id="three")
        player.stop()
        second = player.wait(5.0)
        with pytest.raises(RuntimeError, match="no episode"):
            player.wait(0.1)
    assert first.counts.num_played >= 1
    assert second.num_steps <= 1


def test_one_robot_is_never_driven_by_two_loops(gateway, robot) -> None:
    events: list[PlayerEvent] = []
    again = {"instruction": "go", "episode_id": "again", "max_steps": 1}
    with make_player(gateway, robot, events) as player:
        player.start(instruction="go", episode_id="one")
        wait_for(arrived(events, ActionPlayed))
        for begin in (player.play, player.start):
            with pytest.raises(RuntimeError, match="is being played"):
                begin(**again)
        # Nor did asking for another end the one that is played.
        num_before = len(events)
        wait_for(lambda: len(events) > num_before + 5)
        player.stop()
        assert player.wait(5.0).counts.num_played > 0

        played: list[Any] = []
        playing = threading.Thread(target=lambda: played.append(player.play(instruction="go", episode_id="two")))
        num_begun = sum(isinstance(event, EpisodeBegan) for event in events)
        playing.start()
        wait_for(arrived(events, EpisodeBegan, num_begun + 1))
        for begin in (player.play, player.start):
            with pytest.raises(RuntimeError, match="is being played"):
                begin(**again)
        player.stop()
        playing.join(5.0)
        assert len(played) == 1
        assert player.play(**again).num_steps == 1


class StuckRobot(SyntheticRobot):
    """One whose driver does not return."""

    def __init__(self, body: Any) -> None:
        super().__init__(body, np.random.default_rng(0))
        self.stuck, self.freed = threading.Event(), threading.Event()

    def act(self, action: np.ndarray) -> np.ndarray:
        self.stuck.set()
        self.freed.wait(10.0)
        return super().act(action)


@pytest.mark.parametrize("in_a_thread_of_its_own", [True, False])
def test_a_robot_that_does_not_return_is_not_silently_left_to_its_thread(
    gateway, robot, monkeypatch, in_a_thread_of_its_own: bool
) -> None:
    monkeypatch.setattr("premotor.client.player._END_TIMEOUT_S", 0.05)
    with PolicyClient(gateway.address) as client:
        stuck = StuckRobot(client.get_policy("tabletop").embodiment())
    player = make_player(gateway, stuck, [])
    player.open()
    arguments: dict[str, Any] = {"instruction": "go", "episode_id": "one"}
    others = threading.Thread(target=lambda: player.play(**arguments))
    if in_a_thread_of_its_own:
        player.start(**arguments)
    else:
        others.start()
    assert stuck.stuck.wait(5.0)
    with pytest.raises(TimeoutError, match=r"has not ended 0\.05 s .* robot 'robot'.* stop the robot itself"):
        player.close()
    stuck.freed.set()
    if in_a_thread_of_its_own:
        assert player.wait(5.0).num_steps == 1
    else:
        others.join(5.0)
    player.close()


def test_an_observer_may_close_the_player_that_calls_it(gateway, robot) -> None:
    def close(event: PlayerEvent) -> None:
        if isinstance(event, Held):
            player.close()

    player = make_player(gateway, robot, [], observers=[close])
    player.open()
    assert player.play(instruction="go", episode_id="one").num_steps == 1
    player.close()


def test_no_command_is_late_because_a_camera_was(gateway, robot) -> None:
    class SlowCamera(SyntheticRobot):
        def observe(self) -> RobotObservation:
            never.wait(8 / 80)
            return super().observe()

    never, events = threading.Event(), list[PlayerEvent]()
    with make_player(gateway, robot, []) as player:
        slow = SlowCamera(player.embodiment, np.random.default_rng(0))
    with make_player(gateway, slow, events) as player:
        report = player.play(instruction="go", episode_id="one", max_steps=60)
    commands = [event for event in events if isinstance(event, ActionPlayed | Held)]
    # When each step would have begun, as its command tells it; the first can only be late as well.
    begun_s = [event.time_s - event.step / 80 for event in commands]
    assert max(begun_s) - min(begun_s) < 4 / 80
    assert report.num_skipped_periods >= 16
    check_every_step_is_said(events)


@pytest.mark.parametrize("transport", ["stream", "unary"])
def test_a_gateway_that_goes_and_comes_back_is_found_again_and_the_robot_held_meanwhile(
    gateway, robot, transport
) -> None:
    events: list[PlayerEvent] = []
    with make_player(gateway, robot, events, transport=transport) as player:
        player.start(instruction="go", episode_id="one", until=arrived(events, Reconnected, 2))
        for num_returns in (1, 2):
            num_held = len(underruns(events))
            wait_for(lambda: isinstance(last_command(events), ActionPlayed))
            gateway.stop()
            wait_for(lambda num_held=num_held: len(underruns(events)) > num_held + 3)
            gateway.start()
            wait_for(arrived(events, Reconnected, num_returns))
        report = player.wait(5.0)
    assert report.num_reconnections == 2
    check_every_step_is_said(events)
    commands = {event.step: event for event in events if isinstance(event, ActionPlayed | Held)}
    # The hand is commanded by deltas, the gripper by a position: the one stops, the other stays.
    for held in underruns(events):
        before = max(step for step in commands if step < held.step)
        np.testing.assert_array_equal(held.action, [0, 0, commands[before].action[2]])


@pytest.mark.parametrize("transport", ["stream", "unary"])
def test_the_underruns_of_an_outage_are_told_afterwards_though_it_ended_the_episode(gateway, robot, transport) -> None:
    events: list[PlayerEvent] = []
    with make_player(gateway, robot, events, transport=transport, timeout_s=0.05) as player:
        player.start(instruction="go", episode_id="one")
        wait_for(arrived(events, ActionPlayed))
        gateway.service.is_cut_off.set()
        wait_for(lambda: len(underruns(events)) > 10 and arrived(events, Failed, 4)())
        player.stop()
        counted = player.wait(5.0).counts.num_underruns
        gateway.service.is_cut_off.clear()
        # What the next question finds out of the last one's fate goes with the one after it.
        player.start(instruction="go", episode_id="two")
        wait_for(lambda: sum(request.num_underruns for request in gateway.service.requests) >= counted)
        player.stop()
        player.wait(5.0)


def underruns(events: list[PlayerEvent]) -> list[Held]:
    return [event for event in events if isinstance(event, Held) and event.reason == "underrun"]


def last_command(events: list[PlayerEvent]) -> PlayerEvent | None:
    return next((event for event in reversed(events) if isinstance(event, ActionPlayed | Held)), None)


def check_every_step_is_said(events: list[PlayerEvent]) -> None:
    """Each control step was played, held or skipped, once; what was played is the row of where it was by then."""
    rows = {event.for_step: event.chunk.actions for event in events if isinstance(event, ChunkArrived)}
    commanded = [event.step for event in events if isinstance(event, ActionPlayed | Held)]
    skipped = [
        event.step - 1 - i for event in events if isinstance(event, PeriodsSkipped) for i in range(event.num_periods)
    ]
    assert sorted([*commanded, *skipped]) == list(range(len(commanded) + len(skipped)))
    held = {event.step for event in events if isinstance(event, Held)}
    for event in events:
        if isinstance(event, ActionPlayed):
            num_held = sum(event.for_step <= step < event.step for step in held)
            assert event.step - event.for_step < len(rows[event.for_step])
            np.testing.assert_array_equal(event.action, rows[event.for_step][event.step - event.for_step - num_held])


def test_a_schema_that_changes_ends_the_episode_with_the_robot_held(gateway, robot) -> None:
    events: list[PlayerEvent] = []
    with make_player(gateway, robot, events) as player:
        player.start(instruction="go", episode_id="one")
        wait_for(arrived(events, ActionPlayed, 3))
        gateway.service.policy.schema_digest = "another"
        gateway.service.policy.revision = "ffffffffffff"
        with pytest.raises(SchemaChangedError):
            player.wait(5.0)
        ended = len(events)
        with pytest.raises(SchemaChangedError):
            player.play(instruction="go", episode_id="two")
    del events[ended:]
    assert arrived(events, AskingStopped)()
    assert isinstance(events[-1], EpisodeEnded) and not events[-1].completed
    last = [event for event in events if isinstance(event, ActionPlayed | Held)][-1]
    assert isinstance(last, Held) and last.reason == "stopped"
    assert not any(isinstance(event, ChunkArrived) and event.chunk.revision == "ffffffffffff" for event in events)


def test_a_swap_under_way_goes_on_and_is_counted(gateway, robot) -> None:
    events: list[PlayerEvent] = []
    with make_player(gateway, robot, events) as player:
        player.start(instruction="go", episode_id="one", until=arrived(events, SwapSeen))
        wait_for(arrived(events, ChunkArrived))
        gateway.service.policy.revision = "ffffffffffff"
        assert player.wait(5.0).num_swaps == 1


def test_what_the_robot_raises_is_raised_and_ends_the_episode(gateway, robot) -> None:
    events: list[PlayerEvent] = []

    class Broken(SyntheticRobot):
        def act(self, action: np.ndarray) -> np.ndarray:
            raise OSError("the bus is gone")

    with make_player(gateway, robot, []) as player:
        broken = Broken(player.embodiment, np.random.default_rng(0))
    with make_player(gateway, broken, events) as player, pytest.raises(OSError, match="the bus is gone"):
        player.play(instruction="go", episode_id="one", max_steps=3)
    assert isinstance(events[-1], EpisodeEnded) and not events[-1].completed


def test_an_observer_that_fails_ends_the_episode_with_the_robot_told_to_stay(gateway, robot) -> None:
    class Kept(SyntheticRobot):
        def act(self, action: np.ndarray) -> np.ndarray:
            told.append(action)
            return super().act(action)

    def fail(event: PlayerEvent) -> None:
        if isinstance(event, ActionPlayed):
            raise KeyError("an observer's own")

    told: list[np.ndarray] = []
    with make_player(gateway, robot, []) as player:
        kept = Kept(player.embodiment, np.random.default_rng(0))
    with make_player(gateway, kept, [], observers=[fail]) as player, pytest.raises(KeyError, match="an observer's own"):
        player.play(instruction="go", episode_id="one", max_steps=400)
    # The hand moved by a delta before; the gripper keeps its last command.
    assert np.any(told[-2][:2] != 0)
    np.testing.assert_array_equal(told[-1], [0, 0, told[-2][2]])


def test_settings_that_do_not_fit_the_body_are_refused_before_it_moves(gateway, robot) -> None:
    with pytest.raises(ValueError, match=r"gripper \(1\)"), make_player(gateway, robot, [], hold=LastPosition()):
        pass
    with pytest.raises(ValueError, match="average nothing"), make_player(gateway, robot, [], rule=TemporalEnsemble()):
        pass
    rule = RealTimeChunkingRule()
    del gateway.service.policy.real_time_chunking_methods[:]
    with pytest.raises(FixRequestError, match="supports none"), make_player(gateway, robot, [], rule=rule):
        pass
    with pytest.raises(FixRequestError, match="policy 'tabletop' drives sawyer"):
        make_player(gateway, robot, [], embodiment="panda").open()
    with pytest.raises(RuntimeError, match="with"):
        make_player(gateway, robot, []).play(instruction="go", episode_id="one")


def test_frames_that_nothing_here_can_compress_are_refused_before_the_robot_moves(gateway, robot, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(FixRequestError, match=r"pip install 'premotor\[images\]'.* image_encoding='raw'"):
        make_player(gateway, robot, [], image_encoding="jpeg").open()
    with make_player(gateway, robot, []):
        pass


def test_no_gateway_is_an_error_at_once(gateway, robot) -> None:
    gateway.stop()
    with pytest.raises(RetryableError):
        make_player(gateway, robot, []).open()
    gateway.start()


def test_real_time_chunking_goes_out_with_the_plan(gateway, robot) -> None:
    gateway.service.policy.real_time_chunking_methods[:] = [policy_pb2.RealTimeChunking.METHOD_GUIDANCE]
    with make_player(gateway, robot, [], rule=RealTimeChunkingRule(method="auto")) as player:
        player.play(instruction="go", episode_id="one", until=lambda: len(gateway.service.requests) >= 3, max_steps=400)
    asked = [request for request in gateway.service.requests if request.HasField("real_time_chunking")]
    assert asked
    for request in asked:
        chunking = request.real_time_chunking
        rows, width = chunking.previous_actions.shape
        assert (width, 1 <= rows <= 4, 0 <= chunking.inference_delay <= rows) == (3, True, True)


def test_a_synthetic_robot_follows_absolute_commands_of_what_it_measures(gateway, robot) -> None:
    with make_player(gateway, robot, []) as player:
        body = player.embodiment
    absolute = replace(body, action=body.state)
    follower = SyntheticRobot(absolute, np.random.default_rng(0))
    follower.act(np.array([0.1, 0.2, 0.3], np.float32))
    np.testing.assert_allclose(follower.state(), [0.1, 0.2, 0.3])
    assert follower.observe().images["front"].shape == (24, 32, 3)


def wait_for(found: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline_s, never = time.monotonic() + timeout_s, threading.Event()
    while not found():
        assert time.monotonic() < deadline_s
        never.wait(0.002)
