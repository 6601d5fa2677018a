"""A Gymnasium environment with pixels as a robot.

Owns the way from its observations to ours. Works with any object of Gymnasium's `Env` interface (reset, step, render)
and imports nothing of it: making the environment is the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from premotor.client.errors import FixRequestError
from premotor.client.robot import RobotObservation

# A camera that is no entry of the observation but what `render()` returns.
RENDERED = "render()"


class GymnasiumEnv(Protocol):
    """What is used of gymnasium.Env; its actions are a Box."""

    @property
    def action_space(self) -> Any: ...

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]: ...

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]: ...

    def render(self) -> Any: ...


class GymnasiumRobot:
    """One environment; each command is one `step`, and time stands still between two of them.

    `cameras` maps our camera names, and `state` lists the parts of our state vector in order, both by where they are
    in an observation: keys joined by "/", such as "pixels/top", "" for an observation that is an array itself, RENDERED
    for the rendered frame. A reset takes the seeds in turn, then goes on without. Actions are clipped to the action
    space.
    """

    def __init__(
        self, env: GymnasiumEnv, *, cameras: Mapping[str, str], state: Sequence[str], seeds: Sequence[int] = ()
    ) -> None:
        self._env, self._cameras, self._state_paths = env, dict(cameras), tuple(state)
        self._seeds = iter(seeds)
        self._observation: Any = None
        self._time_s = time.monotonic()
        self.reward = 0.0
        self.terminated = False
        self.truncated = False

    @property
    def finished(self) -> bool:
        """Whether the environment ended the episode, or cut it off; further commands are not stepped."""
        return self.terminated or self.truncated

    def reset(self) -> None:
        self._observation, _ = self._env.reset(seed=next(self._seeds, None))
        self._time_s = time.monotonic()
        self.reward, self.terminated, self.truncated = 0.0, False, False

    def observe(self) -> RobotObservation:
        images = {name: self._frame(name, path) for name, path in self._cameras.items()}
        return RobotObservation(images=images, state=self.state(), capture_time_s=self._time_s)

    def state(self) -> np.ndarray:
        parts = [np.asarray(self._entry(path), np.float32).ravel() for path in self._state_paths]
        return np.concatenate(parts)

    def act(self, action: np.ndarray) -> np.ndarray:
        if self.finished:
            return action
        space = self._env.action_space
        sent = np.clip(action, space.low, space.high).astype(space.dtype)
        self._observation, reward, terminated, truncated, _ = self._env.step(sent)
        self._time_s = time.monotonic()
        self.reward += float(reward)
        self.terminated, self.truncated = bool(terminated), bool(truncated)
        return np.asarray(sent, np.float32)

    def _frame(self, name: str, path: str) -> np.ndarray:
        frame = self._env.render() if path == RENDERED else self._entry(path)
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            came = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise FixRequestError(f"camera {name!r}: {came} came, expected uint8 [height, width, 3]", field=name)
        return frame.copy()

    def _entry(self, path: str) -> Any:
        found = self._observation
        for key in filter(None, path.split("/")):
            if not isinstance(found, Mapping) or key not in found:
                known = ", ".join(found) if isinstance(found, Mapping) else type(found).__name__
                raise FixRequestError(f"{path!r}: no {key!r} in the observation, which has {known}", field=path)
            found = found[key]
        return found
