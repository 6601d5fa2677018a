"""Egocentric clips of a hand at a table, simulated: a stand-in for video of people, and honest about being one.

A hand-like effector carries out a script under a camera that sways as a head does. What is kept is the picture, the
words and, for scores and probes alone, what only a simulator knows; the hand's commands are kept nowhere. A clip is a
function of its seed. Owns the filming; the scene, the scripts and the camera are hand_scene.py's, hand_script.py's and
head_camera.py's. Needs `MUJOCO_GL` set before mujoco is imported.
"""

# mujoco is a C extension: pyright sees few of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from training.ego_video.pack import Clip
from training.simulation.hand_scene import TIME_STEP_S, WRIST, HandScene, Vector, draw_scene
from training.simulation.hand_script import HandPose, HandScript, draw_script
from training.simulation.head_camera import HeadCamera, Sway, facing, quaternion, rotation
from training.simulation.rendering import check_frame

Pixels = npt.NDArray[np.uint8]

BODY = "hand"
SOURCE, WANDERER_SOURCE = "simulated hand", "simulated hand, other motion behind it"

_OVERSAMPLING = 2  # pixels are rendered finer and averaged: GL's own multisampling costs ten times as much
_MAX_TRIES = 20
_MOVING_M = 0.003  # a thing that gets as far between the frames around one is moving there
_ELBOW = np.array([0.20, -0.50, 0.06])  # of a right arm


class ImpossibleClipError(RuntimeError):
    """No script came true within the tries of a seed."""


@dataclass(frozen=True, kw_only=True)
class FilmSettings:
    """How clips are filmed; lengths in seconds, `image_size` in pixels.

    `wanderer_fraction` of the clips have something in the background that moves by itself. `sway` scales the head's
    motion, 0 holds it still. `noise` is the camera's, in grey levels.
    """

    image_size: int = 64
    rate_hz: float = 10.0
    min_s: float = 3.0
    max_s: float = 4.0
    sway: float = 1.0
    wanderer_fraction: float = 0.3
    noise: float = 1.5

    def __post_init__(self) -> None:
        if self.image_size < 16:
            raise ValueError(f"image_size is {self.image_size}, expected at least 16 pixels")
        if not 0.5 <= self.rate_hz <= 1 / TIME_STEP_S / 2:
            raise ValueError(f"rate_hz is {self.rate_hz}, expected 0.5 to {1 / TIME_STEP_S / 2:.0f}")
        if not 1.5 <= self.min_s <= self.max_s:
            raise ValueError(f"min_s is {self.min_s} and max_s {self.max_s}, expected 1.5 <= min_s <= max_s")
        if not 0 <= self.wanderer_fraction <= 1 or self.sway < 0 or self.noise < 0:
            raise ValueError(
                f"wanderer_fraction {self.wanderer_fraction}, sway {self.sway} and noise {self.noise}: "
                "expected a fraction and two numbers that are not negative"
            )


@dataclass(frozen=True, kw_only=True)
class FilmedClip:
    """One clip of T frames, as ClipPackWriter.add takes it. All but frames and words is privileged.

    `hand` is the hand's part of `truth`, which also holds the things that move in that frame.
    """

    clip: Clip
    frames: Pixels  # [T, S, S, 3]
    truth: Pixels  # [T, S, S]
    hand: Pixels  # [T, S, S]
    effector: npt.NDArray[np.float32]  # [T, 2], NaN out of the picture
    scenery: npt.NDArray[np.float32]  # [T, 2]


def film(seed: int, settings: FilmSettings) -> FilmedClip:
    """The clip of a seed. A script that does not come true (the ball rolled away) is drawn again, with its scene.

    Raises ImpossibleClipError after twenty tries and rendering.NoisyFrameError for a broken GL context.
    """
    rng = np.random.default_rng(seed)
    for _ in range(_MAX_TRIES):
        scene = draw_scene(rng, settings.wanderer_fraction)
        num_frames = int(
            rng.integers(round(settings.min_s * settings.rate_hz), round(settings.max_s * settings.rate_hz) + 1)
        )
        script = draw_script(rng, scene, num_frames / settings.rate_hz)
        sway = Sway(rng, scene, settings.sway)
        played = _play(scene, script, sway, num_frames, settings.rate_hz)
        if script.came_true(played.things[:, 0]):
            return _render(seed, settings, script, played, rng)
    raise ImpossibleClipError(f"clip {seed}: no script came true in {_MAX_TRIES} scenes")


def clip_name(seed: int) -> str:
    return f"hand-{seed:07d}"


@dataclass(frozen=True, kw_only=True)
class _Played:
    """A script as it went: the model and its whole state at each frame."""

    scene: HandScene
    model: Any
    states: Vector  # [T, state]
    things: Vector  # [T, num things, 3], the centres


def _play(scene: HandScene, script: HandScript, sway: Sway, num_frames: int, rate_hz: float) -> _Played:
    model = scene.compile()
    data = mujoco.MjData(model)
    num_states = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION)
    states, things = np.empty((num_frames, num_states)), np.empty((num_frames, len(scene.things), 3))
    _follow(model, data, scene, script)
    palm = model.body("palm").jntadr[0]
    start = model.jnt_qposadr[palm]
    data.qpos[start : start + 3], data.qpos[start + 3 : start + 7] = _lead(model, data)
    mujoco.mj_forward(model, data)
    for frame in range(num_frames):
        while data.time < frame / rate_hz:
            _follow(model, data, scene, script)
            mujoco.mj_step(model, data)
        _place_observers(model, data, scene, sway)
        mujoco.mj_getState(model, data, states[frame], mujoco.mjtState.mjSTATE_INTEGRATION)
        things[frame] = [data.body(thing.name).xpos for thing in scene.things]
    return _Played(scene=scene, model=model, states=states, things=things)


def _follow(model: Any, data: Any, scene: HandScene, script: HandScript) -> None:
    """Sets what is driven to where it should be now: the palm's lead, the forearm, the fingers, the grip."""
    pose = script.at(data.time)
    turned = _palm_rotation(pose)
    _drive(model, data, "lead", pose.place, quaternion(turned))
    _drive(model, data, "forearm", *_forearm(pose.place - WRIST * turned[:, 1], scene.hand_side))
    data.ctrl[:] = pose.curl
    held = script.grasp_s <= data.time < script.release_s
    grip = model.equality("grip").id
    if held and not data.eq_active[grip]:
        _grip_as_it_is(model, data, scene, grip)
    data.eq_active[grip] = held


def _place_observers(model: Any, data: Any, scene: HandScene, sway: Sway) -> None:
    """The head and the wanderer, which touch nothing, and so need a place only when a frame is taken."""
    _drive(model, data, "head", *sway.pose(data.time))
    if scene.wanderer is not None:
        wanderer = scene.wanderer
        part = np.sin(2 * np.pi * wanderer.rate_hz * data.time + wanderer.phase)
        _drive(model, data, "wanderer", np.array(wanderer.start) + part * np.array(wanderer.reach), None)


def _grip_as_it_is(model: Any, data: Any, scene: HandScene, grip: int) -> None:
    """Friction alone would let a thing slip now and then: a grasp is a weld at the pose in which it began."""
    palm, thing = data.body("palm"), data.body(scene.target.name)
    inverse, relative = np.empty(4), np.empty(4)
    mujoco.mju_negQuat(inverse, palm.xquat)
    mujoco.mju_mulQuat(relative, inverse, thing.xquat)
    model.eq_data[grip, :3] = 0.0
    model.eq_data[grip, 3:6] = palm.xmat.reshape(3, 3).T @ (thing.xpos - palm.xpos)
    model.eq_data[grip, 6:10] = relative


def _render(
    seed: int, settings: FilmSettings, script: HandScript, played: _Played, rng: np.random.Generator
) -> FilmedClip:
    model, num_frames, size = played.model, len(played.states), settings.image_size
    data = mujoco.MjData(model)
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    truth, hand = np.empty((num_frames, size, size), np.uint8), np.empty((num_frames, size, size), np.uint8)
    effector, scenery = np.empty((num_frames, 2), np.float32), np.zeros((num_frames, 2), np.float32)
    hand_geoms, thing_geoms = _geoms(model, played.scene)
    moving = _moving(played.things)
    fixed, first_places = np.empty((0, 3)), np.empty((0, 2))
    camera = HeadCamera(model, size * _OVERSAMPLING)
    try:
        for frame, state in enumerate(played.states):
            mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
            mujoco.mj_forward(model, data)
            picture, geoms = camera.take(data)
            # Before it is made smaller: fine tiles then differ from pixel to pixel nearly as noise does.
            check_frame({BODY: picture})
            grainy = picture + rng.normal(0.0, settings.noise * _OVERSAMPLING, picture.shape)
            frames[frame] = np.clip(_pooled(grainy) + 0.5, 0, 255)
            hand_pixels = np.isin(geoms, hand_geoms)
            moved = np.isin(geoms, [thing_geoms[index] for index in np.flatnonzero(moving[frame])])
            hand[frame] = _pooled(255.0 * hand_pixels) + 0.5
            truth[frame] = _pooled(255.0 * (hand_pixels | moved)) + 0.5
            place = camera.project(data, data.site("grip").xpos[None])[0]
            effector[frame] = place if (np.abs(place) <= 1).all() else np.nan
            if frame == 0:
                fixed = camera.points_of_scenery(data)
                first_places = camera.project(data, fixed)
            scenery[frame] = np.median(camera.project(data, fixed) - first_places, axis=0)
    finally:
        camera.close()
    return FilmedClip(
        clip=Clip(
            name=clip_name(seed),
            source=SOURCE if played.scene.wanderer is None else WANDERER_SOURCE,
            rate_hz=settings.rate_hz,
            instruction=script.instruction,
            body=BODY,
        ),
        frames=frames,
        truth=truth,
        hand=hand,
        effector=effector,
        scenery=scenery,
    )


def _geoms(model: Any, scene: HandScene) -> tuple[npt.NDArray[np.int64], list[int]]:
    """The hand's geoms, and each thing's."""
    roots = model.body_rootid[model.geom_bodyid]
    things = [int(model.body(thing.name).geomadr[0]) for thing in scene.things]
    return np.flatnonzero(np.isin(roots, [model.body("palm").id, model.body("forearm").id])), things


def _moving(things: Vector) -> npt.NDArray[np.bool_]:
    """Which things move around each frame, [T, num things]."""
    before, after = np.concatenate([things[:1], things[:-1]]), np.concatenate([things[1:], things[-1:]])
    return np.linalg.norm(after - before, axis=-1) > _MOVING_M


def _drive(model: Any, data: Any, body: str, place: Vector, rotation: Vector | None) -> None:
    index = model.body(body).mocapid[0]
    data.mocap_pos[index] = place
    if rotation is not None:
        data.mocap_quat[index] = rotation


def _lead(model: Any, data: Any) -> tuple[Vector, Vector]:
    index = model.body("lead").mocapid[0]
    return data.mocap_pos[index], data.mocap_quat[index]


def _forearm(wrist: Vector, side: int) -> tuple[Vector, Vector]:
    """From the wrist towards the elbow, which hangs beside the viewer: place and rotation."""
    return wrist, quaternion(facing(wrist - _ELBOW * (side, 1, 1)))


def _palm_rotation(pose: HandPose) -> Vector:
    return rotation(2, pose.yaw) @ rotation(0, pose.pitch) @ rotation(1, pose.roll)


def _pooled(image: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """[n * S, n * S, ...] to [S, S, ...], the mean of each square of n = _OVERSAMPLING pixels."""
    size = len(image) // _OVERSAMPLING
    return image.reshape(size, _OVERSAMPLING, size, _OVERSAMPLING, *image.shape[2:]).mean(axis=(1, 3))
