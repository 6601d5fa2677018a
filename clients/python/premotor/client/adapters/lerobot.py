"""A robot of LeRobot's `Robot` interface, as a robot of ours.

Owns the map between LeRobot's flat dictionaries of named motors and our groups, checked before anything moves. Works
with any object of that interface and imports nothing of it: making and calibrating the robot is the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from premotor.client.description import Embodiment, Group
from premotor.client.errors import FixRequestError
from premotor.client.robot import RobotObservation


class LeRobotInterface(Protocol):
    """What is used of lerobot.robots.Robot."""

    @property
    def observation_features(self) -> Mapping[str, Any]: ...

    @property
    def action_features(self) -> Mapping[str, Any]: ...

    @property
    def is_connected(self) -> bool: ...

    def connect(self, calibrate: bool = True) -> None: ...

    def get_observation(self) -> Mapping[str, Any]: ...

    def send_action(self, action: dict[str, Any]) -> Mapping[str, Any]: ...

    def disconnect(self) -> None: ...


class MotorBus(Protocol):
    """What is used of lerobot.motors.MotorsBus, which LeRobot's arms have as `bus`."""

    def sync_read(self, data_name: str) -> Mapping[str, Any]: ...


def bus_positions(bus: MotorBus) -> Callable[[], dict[str, Any]]:
    """Reads an arm's motors as its `get_observation` does, without its cameras; for LeRobotRobot's `read_motors`."""

    def read() -> dict[str, Any]:
        return {f"{motor}.pos": position for motor, position in bus.sync_read("Present_Position").items()}

    return read


class LeRobotRobot:
    """One robot, to be used in a `with` block, which connects it.

    `motors` maps a group's name to LeRobot's keys of its dimensions in order, such as {"arm": ["shoulder_pan.pos",
    "shoulder_lift.pos"], "gripper": ["gripper.pos"]}; the same keys are read for a state group and sent for an action
    group. `cameras` maps our camera names to LeRobot's, {} where they are the same. Numbers go through as they are: the
    policy must have been trained in the units that the robot speaks (degrees or -100 to 100, as it is configured).

    `read_motors` reads the state alone, by the same keys, for the steps that need no frames: LeRobot's interface has
    `get_observation` and nothing less, which reads the cameras and may wait for them. It is `bus_positions(robot.bus)`
    for an arm on one motor bus, and `robot.get_observation` for a robot whose cameras nobody waits for.
    """

    def __init__(
        self,
        robot: LeRobotInterface,
        embodiment: Embodiment,
        *,
        motors: Mapping[str, Sequence[str]],
        read_motors: Callable[[], Mapping[str, Any]],
        cameras: Mapping[str, str] | None = None,
    ) -> None:
        """Raises FixRequestError where the robot lacks a camera or a motor that the map names, or the map a group."""
        self._robot, self._read_motors = robot, read_motors
        self._state_keys = list(_keys(embodiment.state, motors, robot.observation_features, "state"))
        self._action_keys = list(_keys(embodiment.action, motors, robot.action_features, "action"))
        if unmapped := sorted(set(robot.action_features) - set(self._action_keys)):
            raise FixRequestError(
                f"motors {', '.join(unmapped)} are in no action group of {embodiment.name!r}: they would never move",
                field="motors",
            )
        self._cameras = {camera.name: (cameras or {}).get(camera.name, camera.name) for camera in embodiment.cameras}
        for camera, key in self._cameras.items():
            if key not in robot.observation_features:
                known = ", ".join(
                    name for name, shape in robot.observation_features.items() if isinstance(shape, tuple)
                )
                raise FixRequestError(f"camera {camera!r} is {key!r}, the robot has {known}", field="cameras")

    def __enter__(self) -> LeRobotRobot:
        if not self._robot.is_connected:
            self._robot.connect()
        return self

    def __exit__(self, *_: object) -> None:
        if self._robot.is_connected:
            self._robot.disconnect()

    def reset(self) -> None:
        """Nothing: LeRobot's interface knows no episodes, a person puts the scene back."""

    def observe(self) -> RobotObservation:
        found = self._robot.get_observation()
        # It may have waited for its cameras' next frames.
        capture_time_s = time.monotonic()
        # A camera's reader may write its next frame to the same memory.
        images = {name: np.array(found[key], np.uint8) for name, key in self._cameras.items()}
        return RobotObservation(images=images, state=self._vector(found), capture_time_s=capture_time_s)

    def state(self) -> np.ndarray:
        return self._vector(self._read_motors())

    def act(self, action: np.ndarray) -> np.ndarray:
        sent = self._robot.send_action(dict(zip(self._action_keys, action.tolist(), strict=True)))
        # It says what it clipped; a driver that leaves a motor out sent it as it was.
        return np.array(
            [sent.get(key, value) for key, value in zip(self._action_keys, action, strict=True)], np.float32
        )

    def _vector(self, found: Mapping[str, Any]) -> np.ndarray:
        return np.array([float(found[key]) for key in self._state_keys], np.float32)


def _keys(
    groups: Sequence[Group], motors: Mapping[str, Sequence[str]], features: Mapping[str, Any], part: str
) -> Iterator[str]:
    for group in groups:
        keys = motors.get(group.name)
        if keys is None or len(keys) != group.dim:
            raise FixRequestError(
                f"{part} group {group.name!r}: {list(keys or ())} came, expected {group.dim} motors", field="motors"
            )
        for key in keys:
            if key not in features:
                raise FixRequestError(
                    f"{part} group {group.name!r}: the robot has no {key!r}, it has {', '.join(features)}",
                    field="motors",
                )
            yield key
