"""The head of a simulated viewer: how it sways, what its camera shows, and where a point is in the picture.

Owns the rotations that a hand's clips are made with. Does not own what stands in front of the camera.
"""

# mujoco is a C extension: pyright sees few of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from training.simulation.hand_scene import SCENERY_GROUP, HandScene, Vector

_SCENERY_RAYS = 5  # per side of the picture


class Sway:
    """A head's motion: slow waves and a drift in each of six directions, around a pose that looks at the table."""

    _AMPLITUDES = np.array([0.020, 0.016, 0.012, 0.055, 0.045, 0.025])  # metres along x y z; radians yaw pitch roll
    _DRIFTS = np.array([0.010, 0.008, 0.006, 0.025, 0.020, 0.010])  # the same, per second

    def __init__(self, rng: np.random.Generator, scene: HandScene, scale: float) -> None:
        self._head = np.array(scene.head)
        right, ahead, up = facing(np.array(scene.look_at) - self._head).T
        self._looking = np.stack([right, up, -ahead], axis=1)
        strength = scale * rng.uniform(0.5, 1.5)
        self._amplitudes = strength * self._AMPLITUDES[:, None] * rng.uniform(0.3, 1.0, (6, 3)) * [1.0, 0.6, 0.25]
        self._rates = 2 * np.pi * rng.uniform([0.1, 0.3, 0.8], [0.3, 0.8, 1.4], (6, 3))
        self._phases = rng.uniform(0, 2 * np.pi, (6, 3))
        self._drifts = strength * self._DRIFTS * rng.uniform(-1, 1, 6)

    def pose(self, time_s: float) -> tuple[Vector, Vector]:
        """Where the head is and its rotation as a quaternion; the camera looks along -z with y up."""
        waves = self._amplitudes * np.sin(self._rates * time_s + self._phases)
        *place, yaw, pitch, roll = waves.sum(axis=1) + self._drifts * time_s
        turned = self._looking @ rotation(1, yaw) @ rotation(0, pitch) @ rotation(2, roll)
        return self._head + place, quaternion(turned)


class HeadCamera:
    """The head's camera: pictures, which geom each pixel shows, and where a point of the world is in the picture."""

    def __init__(self, model: Any, size: int) -> None:
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        self._model, self._id = model, model.camera("eyes").id
        self._slope = np.tan(0.5 * np.deg2rad(model.cam_fovy[self._id]))
        self._renderer = mujoco.Renderer(model, size, size)

    def take(self, data: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
        """uint8 [size, size, 3] RGB, and the geom of each pixel, int32 [size, size], -1 for none."""
        self._renderer.update_scene(data, self._id)
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        picture = self._renderer.render()
        self._renderer.enable_segmentation_rendering()
        shown = self._renderer.render()
        self._renderer.disable_segmentation_rendering()
        is_geom = shown[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM)
        return picture, np.where(is_geom, shown[..., 0], -1)

    def project(self, data: Any, points: Vector) -> Vector:
        """[N, 3] in the world to [N, 2] in the picture, x right and y down, its sides at -1 and 1; NaN behind."""
        local = (points - data.cam_xpos[self._id]) @ data.cam_xmat[self._id].reshape(3, 3)
        depth = np.where(local[:, 2] < -1e-3, -local[:, 2], np.nan)
        return np.stack([local[:, 0], -local[:, 1]], axis=1) / depth[:, None] / self._slope

    def points_of_scenery(self, data: Any) -> Vector:
        """Points [N, 3] of what never moves, on a grid of rays through the picture, with what moves looked through."""
        eye, axes = data.cam_xpos[self._id], data.cam_xmat[self._id].reshape(3, 3)
        groups = np.zeros(6, np.uint8)
        groups[SCENERY_GROUP] = 1
        points, hit = [], np.empty(1, np.int32)
        for y in np.linspace(-0.8, 0.8, _SCENERY_RAYS):
            for x in np.linspace(-0.8, 0.8, _SCENERY_RAYS):
                ray = axes @ np.array([x * self._slope, -y * self._slope, -1.0])
                distance = mujoco.mj_ray(self._model, data, eye, ray, groups, 1, -1, hit)
                if distance >= 0:
                    points.append(eye + distance * ray)
        return np.array(points)

    def close(self) -> None:
        self._renderer.close()


def facing(ahead: Vector) -> Vector:
    """The rotation that turns y to `ahead` and leaves x level."""
    x, y, z = ahead / np.linalg.norm(ahead)
    level = np.hypot(x, y)
    return np.array([[y / level, x, -x * z / level], [-x / level, y, -y * z / level], [0.0, z, level]])


def rotation(axis: int, angle_rad: float) -> Vector:
    """Around x, y or z."""
    first, second = [(1, 2), (2, 0), (0, 1)][axis]
    turned = np.eye(3)
    turned[first, first] = turned[second, second] = np.cos(angle_rad)
    turned[second, first] = np.sin(angle_rad)
    turned[first, second] = -np.sin(angle_rad)
    return turned


def quaternion(matrix: Vector) -> Vector:
    """Of a rotation [3, 3], as MuJoCo has it: w x y z."""
    values = np.empty(4)
    mujoco.mju_mat2Quat(values, np.ascontiguousarray(matrix).ravel())
    return values
