"""Meta-World tasks of the `sawyer` body: the hand is moved in small Cartesian steps, 80 times a second.

Owns the cameras, the seeding of the scenes and the experts. The environments are Meta-World's own, v3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.simulation.bodies.sawyer import SPEC
from training.simulation.rendering import FastRenderer, FreeView, Stage
from training.simulation.task import Frame

VIEWS = {
    "left": FreeView(look_at=(0.0, 0.68, 0.13), distance=0.69, azimuth=40.0, elevation=-32.0),
    "right": FreeView(look_at=(0.0, 0.68, 0.13), distance=0.69, azimuth=140.0, elevation=-32.0),
}
COLLISION_GEOM_GROUP = 4
HANDLE_HELD = 0.6  # opening of a gripper with the nut's handle in it, at most
# Meta-World's own puck and peg are dark red on brown wood and its goal a 2 cm dot: hardly visible at 96 pixels.
PUCK_RGBA = (0.3, 1.0, 0.1, 1.0)
GOAL_RGBA = (0.1, 0.1, 1.0, 1.0)
GOAL_RADIUS_M = 0.03

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What an expert reads, metres; `opening` is 1 for an open gripper."""

    hand: Vector
    opening: float
    thing: Vector  # what the hand goes for: puck, handle or button
    ring: Vector  # centre of the nut's ring in assembly, the thing itself elsewhere
    goal: Vector


def open_drawer(scene: Scene) -> Vector:
    """Come down in front of the handle, then pull it to the goal."""
    handle = scene.thing + (0.0, 0.0, -0.02)
    offset = float(np.linalg.norm(scene.hand[:2] - handle[:2]))
    if offset < 0.06 and abs(scene.hand[2] - handle[2]) < 0.04:
        pull = np.clip(scene.goal[1] - scene.thing[1], -0.06, 0.0)
        return _towards(scene, handle + (0.0, pull, 0.0), gain=25.0, grip=-1.0)
    return _towards(scene, handle + (0.0, 0.0, _funnel(offset - 0.03, 0.12)), gain=10.0, grip=-1.0)


def press_button(scene: Scene) -> Vector:
    """Line up with the button, then push it in."""
    button = scene.thing + (0.0, 0.02, -0.07)
    offset = float(np.linalg.norm((scene.hand - button)[[0, 2]]))
    return _towards(scene, button - (0.0, _funnel(offset - 0.015, 0.12), 0.0), gain=10.0, grip=0.0)


def pick_and_place(scene: Scene) -> Vector:
    """Come down on the puck, close, carry it to the goal."""
    puck = scene.thing + (-0.005, 0.0, 0.0)
    offset = float(np.linalg.norm(scene.hand[:2] - puck[:2]))
    above_m = scene.hand[2] - puck[2]
    reach_m = 0.02 if scene.opening > 0.95 else 0.03  # once closing, a small slip is no reason to open again
    near = offset < reach_m and above_m < 0.06
    if near and scene.opening <= 0.73:
        return _towards(scene, scene.goal, gain=10.0, grip=1.0)
    back_off = _funnel(offset - (0.01 if scene.opening > 0.95 else 0.03), 0.1)
    return _towards(scene, puck + (0.0, 0.0, 0.03 + back_off), gain=12.0, grip=1.0 if near else -1.0)


def assemble(scene: Scene) -> Vector:
    """Take the nut by its handle, lift it, bring its ring over the peg, lower it."""
    grip_point = scene.thing + (-0.02, 0.0, 0.0)
    offset = float(np.linalg.norm(scene.hand[:2] - grip_point[:2]))
    above_m = scene.hand[2] - grip_point[2]
    near = offset < 0.03 and above_m < 0.06
    if near and scene.opening <= HANDLE_HELD:
        return _towards(scene, scene.hand + _ring_to_peg(scene.goal - scene.ring), gain=10.0, grip=1.0)
    back_off = _funnel(offset - (0.01 if scene.opening > 0.95 else 0.03), 0.1)
    return _towards(scene, grip_point + (0.0, 0.0, 0.03 + back_off), gain=10.0, grip=1.0 if near else -1.0)


def _ring_to_peg(move: Vector) -> Vector:
    """How to move a held nut whose ring is `move` away from the top of the peg: up, over, down."""
    offset = float(np.linalg.norm(move[:2]))
    clearance_m = 0.04 - move[2]
    down = move[2] + (0.05 if offset > 0.012 else -0.06)
    across = float(np.clip(clearance_m / 0.05, 0.0, 1.0)) if offset > 0.02 else 1.0
    return np.append(across * move[:2], down)


def _funnel(offset_m: float, height_m: float) -> float:
    """How far to stay back while off the axis by `offset_m`.

    A slope instead of phases, so that a disturbed hand is corrected smoothly.
    """
    return float(np.clip(5.0 * offset_m, 0.0, height_m))


def _towards(scene: Scene, target: Vector, *, gain: float, grip: float) -> Vector:
    return np.append(gain * (target - scene.hand), grip)


def _as_it_is(model: Any) -> None:
    pass


def _bright_puck_and_goal(model: Any) -> None:
    _paint(model, model.geom("objGeom").bodyid[0], PUCK_RGBA)
    model.site("goal").rgba[:] = GOAL_RGBA
    model.site("goal").size[:] = GOAL_RADIUS_M


def _blue_peg(model: Any) -> None:
    _paint(model, model.body("peg").id, GOAL_RGBA)


def _paint(model: Any, body: int, rgba: tuple[float, float, float, float]) -> None:
    model.geom_rgba[model.geom_bodyid == body] = rgba
    model.geom_matid[model.geom_bodyid == body] = -1


@dataclass(frozen=True, kw_only=True)
class MetaWorldTask:
    """What differs between the tasks of this body."""

    environment: str
    instruction: str
    max_steps: int
    expert: Callable[[Scene], Vector]
    has_goal: bool = False
    ring_site: str = ""
    raise_contrast: Callable[[Any], None] = _as_it_is
    visible_site_groups: tuple[int, ...] = ()


PICK_PLACE = MetaWorldTask(
    environment="pick-place-v3",
    instruction="pick up the puck and bring it to the goal",
    max_steps=200,
    expert=pick_and_place,
    has_goal=True,
    raise_contrast=_bright_puck_and_goal,
    visible_site_groups=(0, 1, 2),
)
DRAWER_OPEN = MetaWorldTask(
    environment="drawer-open-v3", instruction="open the drawer", max_steps=200, expert=open_drawer
)
BUTTON_PRESS = MetaWorldTask(
    environment="button-press-v3", instruction="press the button", max_steps=200, expert=press_button
)
ASSEMBLY = MetaWorldTask(
    environment="assembly-v3",
    instruction="put the nut on the peg",
    max_steps=240,
    expert=assemble,
    has_goal=True,
    ring_site="RoundNut",
    raise_contrast=_blue_peg,
)
MIN_GOAL_DISTANCE_M = 0.15  # the environment's own rule for pick-place


class MetaWorldSimulation:
    """One Meta-World task behind the Simulation protocol."""

    spec = SPEC

    def __init__(self, task: str, definition: MetaWorldTask) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        self._definition = definition
        self.task, self.instruction, self.max_steps = task, definition.instruction, definition.max_steps
        names = ["object"]
        names += ["ring"] if self._definition.ring_site else []
        names += ["goal"] if self._definition.has_goal else []
        self.environment_state_names = tuple(f"{name}_{axis}" for name in names for axis in "xyz")
        self._environment: Any = ALL_V3_ENVIRONMENTS[self._definition.environment]()
        self._environment.max_path_length = 1_000_000  # the caller counts steps; Meta-World raises past its own 500
        self._definition.raise_contrast(self._environment.model)
        self._renderer: FastRenderer | None = None
        self._succeeded = False

    def reset(self, seed: int) -> None:
        environment = self._environment
        environment._set_task_called = True
        environment._freeze_rand_vec = True
        environment._last_rand_vec = self._draw_scene(seed)
        environment.reset()
        self._succeeded = False

    def _draw_scene(self, seed: int) -> Vector:
        generator = np.random.default_rng(seed)
        space = self._environment._random_reset_space
        while True:
            scene = generator.uniform(space.low, space.high)
            if not self._definition.has_goal or np.linalg.norm(scene[:2] - scene[3:5]) >= MIN_GOAL_DISTANCE_M:
                return scene

    def observe(self) -> Frame:
        if self._renderer is None:
            self._renderer = self._make_renderer()
        return Frame(
            images=self._renderer.render(self._environment.data),
            state=self.state(),
            environment_state=self.environment_state(),
        )

    def state(self) -> npt.NDArray[np.float32]:
        scene = self._scene()
        return np.append(scene.hand, scene.opening).astype(np.float32)

    def environment_state(self) -> npt.NDArray[np.float32]:
        scene = self._scene()
        positions = [scene.thing]
        positions += [scene.ring] if self._definition.ring_site else []
        positions += [scene.goal] if self._definition.has_goal else []
        return np.concatenate(positions).astype(np.float32)

    def _make_renderer(self) -> FastRenderer:
        return FastRenderer(
            self._environment.model,
            VIEWS,
            hidden_geom_groups=(COLLISION_GEOM_GROUP,),
            visible_site_groups=self._definition.visible_site_groups,
        )

    def _scene(self) -> Scene:
        readings = self._environment._get_curr_obs_combined_no_goal()
        ring_site = self._definition.ring_site
        return Scene(
            hand=readings[:3],
            opening=float(readings[3]),
            thing=readings[4:7],
            ring=self._environment.data.site(ring_site).xpos.copy() if ring_site else readings[4:7],
            goal=self._environment._target_pos,
        )

    def stage(self) -> Stage:
        """For filming: what a picture does not say."""
        if self._renderer is None:
            self._renderer = self._make_renderer()
        return Stage(self._environment.model, self._environment.data, self._renderer)

    def step(self, action: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        executed = np.clip(action, -1.0, 1.0).astype(np.float32)
        _, _, _, _, info = self._environment.step(executed)
        self._succeeded |= bool(info["success"])
        return executed

    def succeeded(self) -> bool:
        return self._succeeded

    def expert(self) -> Iterator[npt.NDArray[np.float32]]:
        while True:
            yield np.clip(self._definition.expert(self._scene()), -1.0, 1.0).astype(np.float32)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._environment.close()
