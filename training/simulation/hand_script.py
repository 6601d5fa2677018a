"""What a hand does in a scene: a smooth way through a few poses, the words for it, and whether it came true.

Owns the scripts. Metres, seconds and radians; the directions are the viewer's. Nothing of a script reaches a clip
but the words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.simulation.hand_scene import FINGER_BASE, FINGER_LENGTHS, HandScene, Vector

_OPEN, _FLAT, _CLOSED = 0.35, 0.08, 0.95  # how far each joint of a finger is bent
_REACH = FINGER_BASE + sum(FINGER_LENGTHS)  # from the palm's centre to the fingertips
_SHOULDER = np.array([0.16, -0.45])  # of a right hand


@dataclass(frozen=True, kw_only=True)
class HandPose:
    """Where the palm is, how it is turned (yaw about up, pitch fingers up, roll thumb up) and how far it is closed."""

    place: Vector  # [3]
    yaw: float
    pitch: float
    roll: float
    curl: float

    @property
    def vector(self) -> Vector:
        return np.array([*self.place, self.yaw, self.pitch, self.roll, self.curl])


@dataclass(frozen=True, kw_only=True)
class HandScript:
    """Poses at times, minimum jerk between two of them; the target is held from `grasp_s` to `release_s`.

    `came_true` is asked with where the target's centre was, [num frames, 3].
    """

    instruction: str
    times_s: Vector  # [num poses]
    poses: tuple[HandPose, ...]
    grasp_s: float
    release_s: float
    came_true: Callable[[Vector], bool]

    def at(self, time_s: float) -> HandPose:
        if time_s >= self.times_s[-1]:
            return self.poses[-1]
        index = max(int(np.searchsorted(self.times_s, time_s, side="right")) - 1, 0)
        part = (time_s - self.times_s[index]) / (self.times_s[index + 1] - self.times_s[index])
        part = part**3 * (10 - 15 * part + 6 * part**2)
        before, after = self.poses[index].vector, self.poses[index + 1].vector
        x, y, z, yaw, pitch, roll, curl = before + part * (after - before)
        return HandPose(place=np.array([x, y, z]), yaw=yaw, pitch=pitch, roll=roll, curl=curl)


def draw_script(rng: np.random.Generator, scene: HandScene, duration_s: float) -> HandScript:
    """One of pushing, pulling, lifting, moving and touching the scene's target within `duration_s`."""
    kind = rng.choice(
        ["push_across", "push_away", "pull", "lift", "move", "touch"], p=[0.3, 0.12, 0.13, 0.15, 0.2, 0.1]
    )
    return _SCRIPTS[str(kind)](rng, scene, duration_s)


def _push_across(rng: np.random.Generator, scene: HandScene, duration_s: float) -> HandScript:
    thing, direction = scene.target, int(rng.choice([-1, 1]))
    x, y = thing.place
    roll = 1.35
    beside = x - direction * (thing.radius + 0.035)
    far = beside + direction * rng.uniform(0.09, 0.14)
    back = y - 0.06
    poses = (
        _rest(rng, scene),
        _pose(scene, (beside - 0.02 * direction, back - 0.03, 0.12), pitch=-0.2, roll=0.6, curl=_OPEN),
        _pose(scene, (beside, back, 0.052), pitch=-0.1, roll=roll, curl=_FLAT, yaw=0.0),
        _pose(scene, (far, back, 0.052), pitch=-0.1, roll=roll, curl=_FLAT, yaw=0.0),
        _rest(rng, scene),
    )
    words = "left" if direction < 0 else "right"
    return _script(
        rng,
        duration_s,
        (0, 0.28, 0.42, 0.76, 1),
        poses,
        instruction=f"push the {thing.words} to the {words}",
        came_true=lambda track: direction * (track[-1, 0] - track[0, 0]) > 0.03,
    )


def _push_away(rng: np.random.Generator, scene: HandScene, duration_s: float) -> HandScript:
    thing = scene.target
    x, y = thing.place
    near = y - thing.radius - _REACH - 0.012
    far = near + rng.uniform(0.08, 0.12)
    poses = (
        _rest(rng, scene),
        _pose(scene, (x, near - 0.02, 0.08), pitch=-0.25, curl=_OPEN, yaw=0.0),
        _pose(scene, (x, near, 0.045), pitch=-0.12, curl=_FLAT, yaw=0.0),
        _pose(scene, (x, far, 0.045), pitch=-0.12, curl=_FLAT, yaw=0.0),
        _rest(rng, scene),
    )
    return _script(
        rng,
        duration_s,
        (0, 0.25, 0.38, 0.74, 1),
        poses,
        instruction=f"push the {thing.words} away",
        came_true=lambda track: track[-1, 1] - track[0, 1] > 0.03,
    )


def _pull(rng: np.random.Generator, scene: HandScene, duration_s: float) -> HandScript:
    thing = scene.target
    x, y = thing.place
    behind = y + thing.radius + 0.03 - FINGER_BASE
    height = max(2 * thing.half_height, 0.06) + 0.02
    near = behind - rng.uniform(0.07, 0.11)
    poses = (
        _rest(rng, scene),
        _pose(scene, (x, behind + 0.02, height + 0.07), pitch=0.1, curl=_OPEN, yaw=0.0),
        _pose(scene, (x, behind, height), pitch=-0.1, curl=_CLOSED, yaw=0.0),
        _pose(scene, (x, near, height), pitch=-0.1, curl=_CLOSED, yaw=0.0),
        _rest(rng, scene),
    )
    return _script(
        rng,
        duration_s,
        (0, 0.30, 0.44, 0.78, 1),
        poses,
        instruction=f"pull the {thing.words} closer",
        came_true=lambda track: track[0, 1] - track[-1, 1] > 0.03,
    )


def _lift(rng: np.random.Generator, scene: HandScene, duration_s: float) -> HandScript:
    thing = scene.target
    above, grasp = _over_target(scene)
    high = _pose(scene, (*grasp.place[:2], grasp.place[2] + rng.uniform(0.07, 0.12)), pitch=-0.5, curl=_CLOSED)
    poses = (_rest(rng, scene), above, grasp, _with_curl(grasp, _CLOSED), high, high)
    return _script(
        rng,
        duration_s,
        (0, 0.30, 0.44, 0.54, 0.86, 1),
        poses,
        holds=(3, 5),
        instruction=f"lift the {thing.words}",
        came_true=lambda track: track[-1, 2] - track[0, 2] > 0.04,
    )


def _move(rng: np.random.Generator, scene: HandScene, duration_s: float) -> HandScript:
    thing = scene.target
    direction = -1 if thing.place[0] > 0 else 1
    above, grasp = _over_target(scene)
    x, y, z = grasp.place
    far = x + direction * rng.uniform(0.09, 0.14)
    aside = y + rng.uniform(-0.03, 0.03)
    held = _with_curl(grasp, _CLOSED)
    poses = (
        _rest(rng, scene),
        above,
        grasp,
        held,
        _pose(scene, ((x + far) / 2, (y + aside) / 2, z + rng.uniform(0.03, 0.07)), pitch=-0.5, curl=_CLOSED),
        _pose(scene, (far, aside, z + 0.003), pitch=-0.5, curl=_CLOSED),
        _pose(scene, (far, aside - 0.01, z + 0.05), pitch=-0.4, curl=_OPEN),
        _rest(rng, scene),
    )
    words = "left" if direction < 0 else "right"
    return _script(
        rng,
        duration_s,
        (0, 0.22, 0.33, 0.40, 0.58, 0.74, 0.84, 1),
        poses,
        holds=(3, 5),
        instruction=f"move the {thing.words} to the {words}",
        came_true=lambda track: direction * (track[-1, 0] - track[0, 0]) > 0.05,
    )


def _touch(rng: np.random.Generator, scene: HandScene, duration_s: float) -> HandScript:
    thing = scene.target
    x, y = thing.place
    pitch = -0.45
    # Each bone of a finger points further down than the one before it.
    down = -pitch + _FLAT * np.arange(3)
    bones = np.array([FINGER_BASE, *FINGER_LENGTHS])
    back, height = float(bones @ np.cos(down)), 2 * thing.half_height + float(bones @ np.sin(down)) + 0.007
    above = _pose(scene, (x, y - back, height + 0.05), pitch=-0.3, roll=0.0, curl=_FLAT, yaw=0.0)
    on = _pose(scene, (x, y - back, height), pitch=pitch, roll=0.0, curl=_FLAT, yaw=0.0)
    return _script(
        rng,
        duration_s,
        (0, 0.32, 0.46, 0.56, 0.70, 1),
        (_rest(rng, scene), above, on, on, above, _rest(rng, scene)),
        instruction=f"touch the {thing.words}",
        came_true=lambda track: bool(np.linalg.norm(track[-1] - track[0]) < 0.03),
    )


_SCRIPTS = {
    "push_across": _push_across,
    "push_away": _push_away,
    "pull": _pull,
    "lift": _lift,
    "move": _move,
    "touch": _touch,
}


def _with_curl(pose: HandPose, curl: float) -> HandPose:
    return HandPose(place=pose.place, yaw=pose.yaw, pitch=pose.pitch, roll=pose.roll, curl=curl)


def _over_target(scene: HandScene) -> tuple[HandPose, HandPose]:
    """Above the target with an open hand, and with the target between fingers and thumb."""
    x, y = scene.target.place
    top = 2 * scene.target.half_height
    above = _pose(scene, (x, y - 0.05, top + 0.09), pitch=-0.4, curl=_OPEN)
    return above, _pose(scene, (x, y - 0.045, top + 0.028), pitch=-0.5, curl=_OPEN)


def _pose(
    scene: HandScene,
    place: tuple[float, float, float],
    *,
    pitch: float,
    curl: float,
    roll: float = 0.15,
    yaw: float | None = None,
) -> HandPose:
    """`roll` is for a right hand and mirrored for a left one; without a yaw the forearm comes from the shoulder."""
    if yaw is None:
        from_shoulder = np.array(place[:2]) - _SHOULDER * (scene.hand_side, 1)
        yaw = float(np.arctan2(-from_shoulder[0], from_shoulder[1]))
    return HandPose(place=np.array(place), yaw=yaw, pitch=pitch, roll=scene.hand_side * roll, curl=curl)


def _rest(rng: np.random.Generator, scene: HandScene) -> HandPose:
    """Somewhere near the viewer on the hand's own side, half in the picture."""
    place = (scene.hand_side * rng.uniform(0.02, 0.13), rng.uniform(-0.24, -0.16), rng.uniform(0.05, 0.11))
    return _pose(scene, place, pitch=rng.uniform(-0.4, 0.1), roll=rng.uniform(0.0, 0.5), curl=rng.uniform(0.2, 0.6))


def _script(
    rng: np.random.Generator,
    duration_s: float,
    parts: tuple[float, ...],
    poses: tuple[HandPose, ...],
    *,
    instruction: str,
    came_true: Callable[[Vector], bool],
    holds: tuple[int, int] | None = None,
) -> HandScript:
    """`parts` of the duration at each pose, each span up to a quarter longer or shorter; `holds` are two poses."""
    spans = np.diff(parts) * rng.uniform(0.75, 1.25, len(parts) - 1)
    times_s = np.concatenate([[0.0], np.cumsum(spans) / spans.sum()]) * duration_s
    grasp_s, release_s = (times_s[holds[0]], times_s[holds[1]]) if holds else (np.inf, np.inf)
    return HandScript(
        instruction=instruction,
        times_s=times_s,
        poses=poses,
        grasp_s=float(grasp_s),
        release_s=float(release_s),
        came_true=came_true,
    )
