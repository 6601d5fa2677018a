"""What the scenes' experts share: objects' poses, grasps and the slopes that stand in for phases."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.simulation.rotations import Matrix, Vector


def body_pose(environment: Any, body: int) -> tuple[Vector, Matrix]:
    data = environment.sim.data._data
    return data.xpos[body].copy(), data.xmat[body].reshape(3, 3).copy()


def quarter_turn_yaw(rotation: Matrix) -> tuple[float, float]:
    """Sine and cosine of four times the yaw: all that can be seen of a cube's."""
    yaw = np.arctan2(rotation[1, 0], rotation[0, 0])
    return float(np.sin(4 * yaw)), float(np.cos(4 * yaw))


def is_grasped(environment: Any, thing: Any) -> bool:
    """Both finger pads touch it."""
    return bool(environment._check_grasp(gripper=environment.robots[0].gripper["right"], object_geoms=thing))


def slope(excess: float, gain: float, highest: float) -> float:
    """How far to stay away while `excess` off: not a phase, so that a pushed arm is corrected smoothly."""
    return float(np.clip(gain * excess, 0.0, highest))


def horizontal(vector: Vector) -> float:
    return float(np.hypot(vector[0], vector[1]))
