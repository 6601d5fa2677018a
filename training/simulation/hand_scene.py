"""A table, what stands on it and the hand that will move it, as MJCF drawn from a random generator.

Owns what a scene looks like: surfaces, lights, things, the hand's shape and the head's first pose. Does not own what
the hand does there (hand_script.py) nor what is filmed of it (hand_clips.py). Metres; x is the viewer's right, y ahead
of the viewer, z up, and the table's top is z = 0.
"""

# mujoco is a C extension: pyright sees few of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Surface = npt.NDArray[np.uint8]

TIME_STEP_S = 0.004
SCENERY_GROUP = 1  # geoms that never move: what the camera's own motion is told by
SURFACE_SIZE = 256  # pixels, height and width of a texture
WRIST = 0.040  # metres behind the palm's centre, where the forearm begins
FINGER_BASE = 0.045  # metres from the palm's centre to the first joints
FINGER_LENGTHS = (0.045, 0.034)
TABLE_DEPTH = 1.3

_COLOURS = {
    "red": (0.80, 0.10, 0.10),
    "green": (0.12, 0.58, 0.18),
    "blue": (0.10, 0.22, 0.78),
    "yellow": (0.90, 0.80, 0.10),
    "purple": (0.48, 0.14, 0.60),
    "white": (0.93, 0.93, 0.93),
    "black": (0.08, 0.08, 0.08),
}
_SHAPES = {"cube": "box", "ball": "sphere", "can": "cylinder"}
_SKINS = ((0.95, 0.78, 0.68), (0.87, 0.67, 0.54), (0.76, 0.55, 0.42), (0.58, 0.40, 0.29), (0.36, 0.24, 0.18))
_SURFACES = ("table", "floor", "back", "left", "right")


@dataclass(frozen=True, kw_only=True)
class Thing:
    """Something on the table that can be moved; `radius` and `half_height` bound it."""

    name: str  # the body's, in the model
    colour: str
    shape: str
    radius: float
    half_height: float
    place: tuple[float, float]  # on the table

    @property
    def words(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Wanderer:
    """Something in the background that moves by itself: along `reach` to both sides of `start`, `rate_hz` a second."""

    start: tuple[float, float, float]
    reach: tuple[float, float, float]
    rate_hz: float
    phase: float


@dataclass(frozen=True, kw_only=True)
class HandScene:
    """One scene. `hand_side` is +1 for a right hand, -1 for a left one; the first thing is the one to be moved."""

    things: tuple[Thing, ...]
    hand_side: int
    wanderer: Wanderer | None
    head: tuple[float, float, float]
    look_at: tuple[float, float, float]
    xml: str
    surfaces: tuple[Surface, ...]

    @property
    def target(self) -> Thing:
        return self.things[0]

    def compile(self) -> Any:
        """The MuJoCo model. Textures are written into it, so that no image file and no codec is needed."""
        model = mujoco.MjModel.from_xml_string(self.xml)
        for index, surface in enumerate(self.surfaces):
            start = model.tex_adr[index]
            model.tex_data[start : start + surface.size] = surface.ravel()
        return model


def draw_scene(rng: np.random.Generator, wanderer_fraction: float) -> HandScene:
    """A scene that is a function of the generator's state alone."""
    things = _draw_things(rng)
    side = 1 if rng.random() < 0.7 else -1
    wanderer = _draw_wanderer(rng) if rng.random() < wanderer_fraction else None
    head = (rng.uniform(-0.05, 0.05), rng.uniform(-0.34, -0.26), rng.uniform(0.36, 0.46))
    look_at = (rng.uniform(-0.04, 0.04), rng.uniform(0.03, 0.09), 0.0)
    xml = _xml(rng, things, side, wanderer, head, field_deg=rng.uniform(58, 70))
    return HandScene(
        things=things,
        hand_side=side,
        wanderer=wanderer,
        head=head,
        look_at=look_at,
        xml=xml,
        surfaces=tuple(_draw_surface(rng) for _ in _SURFACES),
    )


def _draw_things(rng: np.random.Generator) -> tuple[Thing, ...]:
    """Things far enough apart that a hand passes between them, no two with the same words."""
    count = int(rng.integers(1, 4))
    kinds = [(colour, shape) for colour in _COLOURS for shape in _SHAPES]
    things: list[Thing] = []
    for index in rng.permutation(len(kinds)):
        colour, shape = kinds[index]
        radius = rng.uniform(0.022, 0.034)
        half_height = radius if shape != "can" else rng.uniform(0.030, 0.045)
        for _ in range(20):
            near = not things
            place = (
                rng.uniform(-0.09, 0.09) if near else rng.uniform(-0.25, 0.25),
                rng.uniform(0.0, 0.11) if near else rng.uniform(-0.06, 0.30),
            )
            if all(np.hypot(*np.subtract(place, other.place)) > 0.16 for other in things):
                things.append(
                    Thing(
                        name=f"thing{len(things)}",
                        colour=colour,
                        shape=shape,
                        radius=radius,
                        half_height=half_height,
                        place=place,
                    )
                )
                break
        if len(things) == count:
            break
    return tuple(things)


def _draw_wanderer(rng: np.random.Generator) -> Wanderer:
    angle = rng.uniform(0, 2 * np.pi)
    length = rng.uniform(0.05, 0.15)
    return Wanderer(
        start=(rng.uniform(-0.35, 0.35), rng.uniform(0.40, 0.60), rng.uniform(0.05, 0.15)),
        reach=(length * np.cos(angle), 0.0, 0.5 * length * np.sin(angle)),
        rate_hz=rng.uniform(0.2, 0.8),
        phase=rng.uniform(0, 2 * np.pi),
    )


def _draw_surface(rng: np.random.Generator) -> Surface:
    """uint8 [SURFACE_SIZE, SURFACE_SIZE, 3] of two colours: cloth, planks, tiles, spots or plaster."""
    ys, xs = np.mgrid[0:SURFACE_SIZE, 0:SURFACE_SIZE] / SURFACE_SIZE
    grain = _grain(rng)
    kind = rng.integers(5)
    if kind == 0:
        blend = grain
    elif kind == 1:  # planks: long grain and a line between two of them
        blend = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.integers(3, 7) * ys + 0.7 * grain))
        blend = np.where((xs * rng.integers(3, 7)) % 1 < 0.05, 0.0, blend)
    elif kind == 2:
        cells = rng.integers(3, 8)
        blend = 0.75 * ((np.floor(xs * cells) + np.floor(ys * cells)) % 2) + 0.25 * grain
    elif kind == 3:
        cells = rng.integers(4, 9)
        spots = np.hypot((xs * cells) % 1 - 0.5, (ys * cells) % 1 - 0.5) < rng.uniform(0.2, 0.4)
        blend = 0.8 * spots + 0.2 * grain
    else:
        blend = 0.7 * (np.sin(2 * np.pi * rng.integers(3, 9) * (xs + rng.uniform(-1, 1) * ys)) > 0) + 0.3 * grain
    first = rng.uniform(0.15, 0.95, 3)
    second = np.clip(first + rng.uniform(0.12, 0.45) * rng.choice([-1.0, 1.0], 3), 0.05, 1.0)
    return (255 * (first + blend[..., None] * (second - first))).astype(np.uint8)


def _grain(rng: np.random.Generator) -> Vector:
    """Noise of several scales in [0, 1], without a seam where the surface repeats."""
    grain = np.zeros((SURFACE_SIZE, SURFACE_SIZE))
    for cells, weight in ((4, 0.4), (16, 0.35), (64, 0.25)):
        coarse = rng.random((cells, cells))
        coarse = np.concatenate([coarse, coarse[:1]])
        coarse = np.concatenate([coarse, coarse[:, :1]], axis=1)
        at = np.arange(SURFACE_SIZE) * cells / SURFACE_SIZE
        low, part = np.floor(at).astype(int), at % 1
        rows = coarse[low] * (1 - part[:, None]) + coarse[low + 1] * part[:, None]
        grain += weight * (rows[:, low] * (1 - part) + rows[:, low + 1] * part)
    return grain


def _xml(
    rng: np.random.Generator,
    things: Sequence[Thing],
    side: int,
    wanderer: Wanderer | None,
    head: tuple[float, float, float],
    field_deg: float,
) -> str:
    wall, width = rng.uniform(0.75, 1.1), rng.uniform(0.7, 1.0)
    num_fingers = 4 if rng.random() < 0.7 else 3
    textures = "".join(
        f'<texture name="{name}" type="2d" builtin="flat" width="{SURFACE_SIZE}" height="{SURFACE_SIZE}"/>'
        f'<material name="{name}" texture="{name}" texuniform="true" texrepeat="{_text(rng.uniform(1.2, 3.5, 2))}"'
        f' specular="{rng.uniform(0, 0.4):.3f}" shininess="0.3"/>'
        for name in _SURFACES
    )
    planes = "".join(
        f'<geom type="plane" size="4 4 1" pos="{place}" zaxis="{normal}" material="{name}" class="scenery"/>'
        for name, place, normal in (
            ("floor", "0 0 -0.75", "0 0 1"),
            ("back", f"0 {wall} 0", "0 -1 0"),
            ("left", f"{-width} 0 0", "1 0 0"),
            ("right", f"{width} 0 0", "-1 0 0"),
        )
    )
    free = "".join(_thing_xml(thing, rng.uniform(0, 90)) for thing in things)
    grips = f'<weld name="grip" body1="palm" body2="{things[0].name}" active="false"/>'
    return f"""<mujoco model="hand">
<option timestep="{TIME_STEP_S}" integrator="implicitfast"/>
<visual>
  <quality offsamples="0" shadowsize="0"/><map znear="0.02" zfar="20"/>
  <headlight ambient="{_text(np.full(3, rng.uniform(0.25, 0.45)))}" diffuse="{_text(np.full(3, rng.uniform(0, 0.2)))}"
   specular="0 0 0"/>
</visual>
<default>
  <default class="scenery"><geom contype="0" conaffinity="0" group="{SCENERY_GROUP}"/></default>
  <default class="hand"><geom contype="1" conaffinity="0" density="400" friction="1 0.01 0.001"/></default>
  <default class="arm"><geom contype="0" conaffinity="0" density="1"/></default>
  <default class="thing">
    <geom contype="2" conaffinity="3" condim="6" density="300" friction="0.7 0.01 0.004"/>
  </default>
</default>
<asset>{textures}</asset>
<worldbody>
  {_lights_xml(rng)}
  {planes}
  <geom type="plane" size="0.75 {TABLE_DEPTH / 2} 1" pos="0 0.1 0.0005" material="table" class="scenery"/>
  <geom type="box" size="0.75 {TABLE_DEPTH / 2} 0.02" pos="0 0.1 -0.02" contype="2" conaffinity="2"
   group="{SCENERY_GROUP}" rgba="0.5 0.45 0.4 1"/>
  {_decor_xml(rng, wall)}
  <body name="head" mocap="true" pos="{_text(head)}"><camera name="eyes" fovy="{field_deg:.3f}"/></body>
  {_wanderer_xml(rng, wanderer)}
  <body name="lead" mocap="true"/>
  {_hand_xml(rng, side, num_fingers)}
  {free}
</worldbody>
<equality><weld body1="palm" body2="lead" solref="0.01 1" solimp="0.95 0.99 0.001"/>{grips}</equality>
<actuator>{"".join(_actuator_xml(name) for name in _joints(num_fingers))}</actuator>
</mujoco>"""


def _lights_xml(rng: np.random.Generator) -> str:
    lights = []
    for _ in range(rng.integers(1, 3)):
        across, ahead = rng.uniform(-0.9, 0.9), rng.uniform(-0.6, 0.9)
        colour = rng.uniform(0.25, 0.5) * np.array([1.0, rng.uniform(0.85, 1.0), rng.uniform(0.7, 1.05)])
        lights.append(
            f'<light directional="true" castshadow="false" pos="0 0 2" dir="{across:.3f} {ahead:.3f} -1"'
            f' diffuse="{_text(colour)}" specular="0.2 0.2 0.2"/>'
        )
    return "".join(lights)


def _decor_xml(rng: np.random.Generator, wall: float) -> str:
    """Boxes and tins that stand at the back of the table and pictures on the wall, none of which ever moves."""
    decor = []
    for _ in range(rng.integers(1, 5)):
        size = rng.uniform(0.02, 0.09, 3)
        place = (rng.uniform(-0.5, 0.5), rng.uniform(0.42, min(0.65, wall - 0.1)), size[2])
        decor.append(
            f'<geom type="box" size="{_text(size)}" pos="{_text(place)}" euler="0 0 {rng.uniform(0, 90):.1f}"'
            f' rgba="{_text(rng.uniform(0.1, 0.9, 3))} 1" class="scenery"/>'
        )
    for _ in range(rng.integers(0, 4)):
        decor.append(
            f'<geom type="box" size="{_text((rng.uniform(0.05, 0.2), 0.005, rng.uniform(0.05, 0.2)))}"'
            f' pos="{_text((rng.uniform(-0.5, 0.5), wall, rng.uniform(0.1, 0.4)))}"'
            f' rgba="{_text(rng.uniform(0.1, 0.9, 3))} 1" class="scenery"/>'
        )
    return "".join(decor)


def _wanderer_xml(rng: np.random.Generator, wanderer: Wanderer | None) -> str:
    shape = rng.choice(["box", "sphere", "capsule"])
    size, colour = rng.uniform(0.02, 0.045, 3), rng.uniform(0.1, 0.9, 3)
    if wanderer is None:
        return ""
    return (
        f'<body name="wanderer" mocap="true" pos="{_text(wanderer.start)}"><geom type="{shape}" size="{_text(size)}"'
        f' rgba="{_text(colour)} 1" contype="0" conaffinity="0"/></body>'
    )


def _thing_xml(thing: Thing, turned_deg: float) -> str:
    size = (thing.radius, thing.half_height) if thing.shape == "can" else (thing.radius,) * 3
    if thing.shape == "cube":
        size = (thing.radius * 0.85,) * 2 + (thing.half_height,)
    colour = _text(_COLOURS[thing.colour])
    return (
        f'<body name="{thing.name}" pos="{_text((*thing.place, thing.half_height + 0.001))}"'
        f' euler="0 0 {turned_deg:.1f}"><freejoint/>'
        f'<geom type="{_SHAPES[thing.shape]}" size="{_text(size)}" rgba="{colour} 1" class="thing"/></body>'
    )


def _hand_xml(rng: np.random.Generator, side: int, num_fingers: int) -> str:
    """A palm with three or four fingers and a thumb, and a forearm in a sleeve or bare; palm down, fingers along y."""
    skin = np.array(_SKINS[rng.integers(len(_SKINS))]) * rng.uniform(0.92, 1.05)
    skin_rgba = f"{_text(np.clip(skin, 0, 1))} 1"
    sleeve_rgba = skin_rgba if rng.random() < 0.4 else f"{_text(rng.uniform(0.05, 0.9, 3))} 1"
    scale = rng.uniform(0.9, 1.1)
    cuff = rng.uniform(0.0, 0.10)
    fingers = "".join(
        _finger_xml(f"finger{index}", x=scale * x, y=FINGER_BASE, angle_deg=-8 * x / 0.033, rgba=skin_rgba)
        for index, x in enumerate((-0.033, -0.011, 0.011, 0.033)[:num_fingers])
    )
    thumb = _finger_xml("thumb", x=-0.040 * side, y=-0.015, angle_deg=40 * side, rgba=skin_rgba)
    return f"""<body name="palm" gravcomp="1" childclass="hand"><freejoint/>
  <site name="grip" pos="0 {FINGER_BASE} -0.015" size="0.002"/>
  <geom type="box" size="{0.040 * scale:.4f} 0.042 0.012" rgba="{skin_rgba}"/>
  {fingers}{thumb}
</body>
<body name="forearm" mocap="true" childclass="arm">
  <geom type="capsule" fromto="0 0 0 0 {-cuff:.4f} 0" size="{0.026 * scale:.4f}" rgba="{skin_rgba}"/>
  <geom type="capsule" fromto="0 {-0.02 - cuff:.4f} 0 0 -0.5 0" size="{0.033 * scale:.4f}" rgba="{sleeve_rgba}"/>
</body>"""


def _finger_xml(name: str, *, x: float, y: float, angle_deg: float, rgba: str) -> str:
    first, second = FINGER_LENGTHS
    joint = 'type="hinge" axis="-1 0 0" damping="0.01" armature="0.0002"'
    return (
        f'<body name="{name}" pos="{x:.4f} {y:.4f} 0" euler="0 0 {angle_deg:.2f}" gravcomp="1">'
        f'<joint name="{name}_base" {joint}/>'
        f'<geom type="capsule" fromto="0 0 0 0 {first} 0" size="0.0095" rgba="{rgba}"/>'
        f'<body name="{name}_tip" pos="0 {first} 0" gravcomp="1"><joint name="{name}_middle" {joint}/>'
        f'<geom type="capsule" fromto="0 0 0 0 {second} 0" size="0.0085" rgba="{rgba}"/></body></body>'
    )


def _joints(num_fingers: int) -> list[str]:
    fingers = [*(f"finger{index}" for index in range(num_fingers)), "thumb"]
    return [f"{finger}_{joint}" for finger in fingers for joint in ("base", "middle")]


def _actuator_xml(joint: str) -> str:
    return f'<position joint="{joint}" kp="0.4" kv="0.02"/>'


def _text(values: Sequence[float] | Vector) -> str:
    return " ".join(f"{value:.4f}" for value in values)
