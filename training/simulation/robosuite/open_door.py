"""robosuite's Door: a door with a latch, to be opened by its lever."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.simulation.rendering import FreeView
from training.simulation.robosuite.objects import slope
from training.simulation.robosuite.servo import CLOSE, OPEN, UP, ArmServo
from training.simulation.robosuite.simulation import RobosuiteTask
from training.simulation.rotations import Matrix, Vector, rotation_about

HELD_OPENING_M = 0.06  # of the pads, at most, with the lever between them
PRESSED_RAD, UNLOCKED_RAD = 1.45, 1.1  # the latch's angle to turn to, and that from which the door may be pulled
UNLOCKED_HINGE_RAD = 0.04  # from here on the latch is out of its frame
LATCH_LEAD_RAD, HINGE_LEAD_RAD = 0.35, 0.15
STAND_OFF_M = 0.12


class OpenDoorScene:
    def __init__(self, environment: Any, servo: ArmServo) -> None:
        self._environment, self._servo = environment, servo
        self._data = environment.sim.data._data
        model = environment.sim.model._model
        self._hinge, self._latch = (model.joint(name).id for name in environment.door.joints)
        self._hinge_qpos, self._latch_qpos = (model.jnt_qposadr[joint] for joint in (self._hinge, self._latch))
        self._door = environment.object_body_ids["door"]
        self._site = environment.door_handle_site_id

    def _handle(self) -> Vector:
        return self._data.site_xpos[self._site].copy()

    def _angles_rad(self) -> tuple[float, float]:
        """Of the latch and the hinge."""
        return float(self._data.qpos[self._latch_qpos]), float(self._data.qpos[self._hinge_qpos])

    def environment_state(self) -> Vector:
        return np.concatenate([self._handle(), self._angles_rad()])

    def expert_action(self) -> Vector:
        servo, handle = self._servo, self._handle()
        into_door = self._data.xmat[self._door].reshape(3, 3)[:, 1].copy()
        across_lever = self._about(self._latch, self._angles_rad()[0]) @ UP
        rotation = servo.aim(across_lever, into_door)
        away = servo.tool_position() - handle
        depth = float(away @ into_door)
        aside = float(np.linalg.norm(away - depth * into_door))
        if aside < 0.04 and abs(depth) < 0.03 and servo.opening_m() < HELD_OPENING_M:
            return self._open(handle, rotation)
        stand_off = max(slope(aside - 0.015, 4.0, STAND_OFF_M), slope(servo.turn_rad(rotation) - 0.1, 0.5, STAND_OFF_M))
        near = aside < 0.02 and abs(depth) < 0.02 and servo.turn_rad(rotation) < 0.25
        return servo.action(handle - stand_off * into_door, rotation, CLOSE if near else OPEN)

    def _open(self, handle: Vector, rotation: Matrix) -> Vector:
        """Carry the closed hand round the latch's axis and, as it comes free, round the hinge's."""
        latch_rad, hinge_rad = self._angles_rad()
        free = max(slope(latch_rad - UNLOCKED_RAD, 5.0, 1.0), slope(hinge_rad - 0.5 * UNLOCKED_HINGE_RAD, 50.0, 1.0))
        target = handle
        for joint, lead_rad in (
            (self._latch, np.clip(PRESSED_RAD - latch_rad, 0.0, LATCH_LEAD_RAD)),
            (self._hinge, HINGE_LEAD_RAD * free),
        ):
            turn, anchor = self._about(joint, lead_rad), self._data.xanchor[joint]
            target, rotation = anchor + turn @ (target - anchor), turn @ rotation
        return self._servo.action(target, rotation, CLOSE)

    def _about(self, joint: int, angle_rad: float) -> Matrix:
        return rotation_about(self._data.xaxis[joint], angle_rad)


OPEN_DOOR = RobosuiteTask(
    environment="Door",
    instruction="press the latch and open the door",
    max_steps=150,
    front=FreeView(look_at=(-0.12, -0.15, 1.06), distance=0.7, azimuth=-140.0, elevation=-30.0),
    environment_state_names=("handle_x", "handle_y", "handle_z", "latch_rad", "hinge_rad"),
    scene=OpenDoorScene,
    options={"use_latch": True},
)
