"""Rotation matrices for the scripted experts: log map, turn about an axis, shortest turn. Column vectors, radians."""

# mujoco is a C extension: pyright sees few of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import mujoco
import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]  # [3]
Matrix = npt.NDArray[np.float64]  # [3, 3]


def rotation_vector(rotation: Matrix) -> Vector:
    """Axis times angle of a rotation."""
    quaternion, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).ravel())
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def rotation_about(unit_axis: Vector, angle_rad: float) -> Matrix:
    k = _skew(unit_axis)
    return np.eye(3) + np.sin(angle_rad) * k + (1 - np.cos(angle_rad)) * k @ k


def rotation_between(a: Vector, b: Vector) -> Matrix:
    """Shortest rotation that takes direction a to direction b."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    cross, cosine = np.cross(a, b), a @ b
    if np.linalg.norm(cross) < 1e-8:
        return np.eye(3) if cosine > 0 else np.diag([1.0, -1.0, -1.0])
    k = _skew(cross)
    return np.eye(3) + k + k @ k / (1 + cosine)


def _skew(v: Vector) -> Matrix:
    return np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
