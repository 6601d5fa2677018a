"""Robots of other projects are driven by their own interfaces; a map that does not fit is refused before they move."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from premotor.client import Embodiment, FixRequestError, Group
from premotor.client.adapters.gymnasium import RENDERED, GymnasiumRobot
from premotor.client.adapters.lerobot import LeRobotRobot, bus_positions
from premotor.client.description import Camera

gymnasium = pytest.importorskip("gymnasium")


class Slider(gymnasium.Env):
    """A point on a line, with a picture of it; ends at the far side."""

    action_space = gymnasium.spaces.Box(-0.5, 0.5, (1,), np.float32)
    observation_space = gymnasium.spaces.Dict(
        {
            "pixels": gymnasium.spaces.Dict({"top": gymnasium.spaces.Box(0, 255, (4, 8, 3), np.uint8)}),
            "agent_pos": gymnasium.spaces.Box(-2, 2, (1,), np.float64),
        }
    )
    render_mode = "rgb_array"

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seed = seed
        self.position = 0.0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.position += float(action[0])
        return self._observe(), 1.0, self.position >= 1.0, False, {}

    def render(self) -> np.ndarray:
        return np.full((4, 8, 3), 7, np.uint8)

    def _observe(self) -> dict[str, Any]:
        frame = np.full((4, 8, 3), int(10 * self.position), np.uint8)
        return {"pixels": {"top": frame}, "agent_pos": np.array([self.position])}


def slider(**changed: Any) -> GymnasiumRobot:
    settings: dict[str, Any] = {
        "cameras": {"top": "pixels/top", "screen": RENDERED},
        "state": ["agent_pos"],
        "seeds": [11, 12],
    }
    robot = GymnasiumRobot(Slider(), **{**settings, **changed})
    robot.reset()
    return robot


def test_an_environment_is_seen_and_stepped_as_a_robot() -> None:
    robot = slider()
    sent = robot.act(np.array([0.4], np.float32))
    observation = robot.observe()
    np.testing.assert_allclose(sent, [0.4])
    np.testing.assert_allclose(observation.state, [0.4])
    assert observation.state.dtype == np.float32
    assert observation.images["top"][0, 0, 0] == 4
    assert observation.images["screen"][0, 0, 0] == 7
    assert robot.reward == 1.0


def test_a_command_outside_the_action_space_is_sent_as_the_space_allows() -> None:
    np.testing.assert_allclose(slider().act(np.array([3.0], np.float32)), [0.5])


def test_an_environment_that_has_ended_is_not_stepped_further() -> None:
    robot = slider()
    for _ in range(5):
        robot.act(np.array([0.5], np.float32))
    assert robot.terminated and robot.finished and not robot.truncated
    assert robot.reward == 2.0
    robot.reset()
    assert not robot.finished
    np.testing.assert_array_equal(robot.state(), [0])


def test_resets_take_the_seeds_in_turn() -> None:
    env = Slider()
    robot = GymnasiumRobot(env, cameras={}, state=["agent_pos"], seeds=[3, 4])
    seeds = []
    for _ in range(3):
        robot.reset()
        seeds.append(env.seed)
    assert seeds == [3, 4, None]


def test_what_is_not_in_the_observation_is_refused_by_name() -> None:
    with pytest.raises(FixRequestError, match="no 'side' in the observation, which has top"):
        slider(cameras={"side": "pixels/side"}).observe()
    with pytest.raises(FixRequestError, match=r"camera 'top': float64 \[1\] came"):
        slider(cameras={"top": "agent_pos"}).observe()


MOTORS = ("shoulder_pan", "elbow_flex", "gripper")


@dataclass
class FakeFollower:
    """The public face of lerobot.robots.Robot: names, properties and signatures of its 0.4 releases."""

    position: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MOTORS, 10.0))
    sent: list[dict[str, Any]] = field(default_factory=list)
    connections: list[str] = field(default_factory=list)
    frame: np.ndarray = field(default_factory=lambda: np.zeros((4, 6, 3), np.uint8))
    largest_change: float = 5.0
    num_frames_read: int = 0

    name = "so100_follower"

    @property
    def observation_features(self) -> dict[str, Any]:
        return {**self.action_features, "wrist_cam": (4, 6, 3)}

    @property
    def action_features(self) -> dict[str, type]:
        return {f"{motor}.pos": float for motor in MOTORS}

    @property
    def is_connected(self) -> bool:
        return self.connections.count("connect") > self.connections.count("disconnect")

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self.connections.append("connect")

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    @property
    def bus(self) -> FakeBus:
        return FakeBus(self)

    def get_observation(self) -> dict[str, Any]:
        assert self.is_connected
        self.num_frames_read += 1
        return {**{f"{motor}.pos": value for motor, value in self.position.items()}, "wrist_cam": self.frame}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        assert self.is_connected
        assert all(type(value) is float for value in action.values())
        for motor in MOTORS:
            change = action[f"{motor}.pos"] - self.position[motor]
            self.position[motor] += max(-self.largest_change, min(change, self.largest_change))
        self.sent.append(action)
        return {f"{motor}.pos": value for motor, value in self.position.items()}

    def disconnect(self) -> None:
        self.connections.append("disconnect")


@dataclass
class FakeBus:
    """What an arm's `get_observation` reads its motors with, and no cameras (lerobot.motors.MotorsBus)."""

    follower: FakeFollower

    def sync_read(
        self, data_name: str, motors: str | list[str] | None = None, *, normalize: bool = True, num_retry: int = 0
    ) -> dict[str, Any]:
        assert self.follower.is_connected and data_name == "Present_Position" and normalize
        return dict(self.follower.position)


def group(name: str, dim: int) -> Group:
    return Group(name=name, dim=dim, kind="joint_position", unit="deg", representation="absolute")


# In another order than the robot's.
BODY = Embodiment(
    name="so100",
    cameras=(Camera(name="wrist", height=4, width=6),),
    state=(group("gripper", 1), group("arm", 2)),
    action=(group("arm", 2), group("gripper", 1)),
    control_rate_hz=30.0,
)
MAP = {"arm": ["shoulder_pan.pos", "elbow_flex.pos"], "gripper": ["gripper.pos"]}


def lerobot_robot(follower: FakeFollower, **changed: Any) -> LeRobotRobot:
    settings: dict[str, Any] = {
        "motors": MAP,
        "cameras": {"wrist": "wrist_cam"},
        "read_motors": bus_positions(follower.bus),
    }
    return LeRobotRobot(follower, BODY, **{**settings, **changed})


@pytest.fixture
def follower() -> FakeFollower:
    return FakeFollower()


@pytest.fixture
def robot(follower: FakeFollower) -> Iterator[LeRobotRobot]:
    with lerobot_robot(follower) as connected:
        yield connected


def test_named_motors_become_groups_and_commands_are_named_again(follower: FakeFollower, robot: LeRobotRobot) -> None:
    follower.position.update(shoulder_pan=1.0, elbow_flex=2.0, gripper=3.0)
    np.testing.assert_array_equal(robot.state(), [3, 1, 2])
    robot.act(np.array([1.5, 2.5, 3.5], np.float32))
    assert follower.sent == [{"shoulder_pan.pos": 1.5, "elbow_flex.pos": 2.5, "gripper.pos": 3.5}]


def test_the_state_alone_is_read_without_waiting_for_a_frame(follower: FakeFollower, robot: LeRobotRobot) -> None:
    for step in range(5):
        follower.position["gripper"] = float(step)
        np.testing.assert_array_equal(robot.state(), [step, 10, 10])
    assert follower.num_frames_read == 0
    np.testing.assert_array_equal(robot.observe().state, robot.state())
    assert follower.num_frames_read == 1


def test_a_robot_whose_cameras_nobody_waits_for_may_read_all_of_it(follower: FakeFollower) -> None:
    with lerobot_robot(follower, read_motors=follower.get_observation) as robot:
        np.testing.assert_array_equal(robot.state(), [10, 10, 10])
    assert follower.num_frames_read == 1


def test_history_gets_what_the_robot_says_that_it_sent(robot: LeRobotRobot) -> None:
    np.testing.assert_array_equal(robot.act(np.array([100.0, 11.0, 10.0], np.float32)), [15, 11, 10])


def test_frames_that_were_waited_for_are_stamped_when_they_came(follower: FakeFollower, robot: LeRobotRobot) -> None:
    read, came_s = follower.get_observation, []

    def waits() -> dict[str, Any]:
        found = read()
        came_s.append(time.monotonic())
        return found

    follower.get_observation = waits
    assert robot.observe().capture_time_s >= came_s[0]


def test_a_frame_is_kept_from_a_camera_that_writes_over_its_own(follower: FakeFollower, robot: LeRobotRobot) -> None:
    observation = robot.observe()
    follower.frame[:] = 255
    assert observation.images["wrist"].max() == 0  # pyright: ignore
    assert observation.capture_time_s > 0


def test_the_robot_is_connected_inside_the_block_and_left_alone_where_it_was(follower: FakeFollower) -> None:
    with lerobot_robot(follower) as robot:
        robot.reset()
        assert follower.is_connected
    assert follower.connections == ["connect", "disconnect"]


@pytest.mark.parametrize(
    ("motors", "cameras", "message"),
    [
        ({"arm": MAP["arm"]}, {"wrist": "wrist_cam"}, r"state group 'gripper': \[\] came, expected 1 motors"),
        ({**MAP, "arm": ["elbow_flex.pos"]}, {"wrist": "wrist_cam"}, "state group 'arm'.*expected 2 motors"),
        (
            {**MAP, "gripper": ["jaw.pos"]},
            {"wrist": "wrist_cam"},
            "the robot has no 'jaw.pos', it has shoulder_pan.pos",
        ),
        (MAP, {}, "camera 'wrist' is 'wrist', the robot has wrist_cam"),
        (
            {**MAP, "gripper": ["elbow_flex.pos"]},
            {"wrist": "wrist_cam"},
            "motors gripper.pos are in no action group of 'so100'",
        ),
    ],
)
def test_a_map_that_does_not_fit_is_refused(follower: FakeFollower, motors, cameras, message: str) -> None:
    with pytest.raises(FixRequestError, match=message):
        lerobot_robot(follower, motors=motors, cameras=cameras)
    assert follower.connections == []
