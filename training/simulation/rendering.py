"""Camera images from MuJoCo at a few milliseconds each on a CPU, and the check that refuses a noise frame.

Owns the render settings (no shadows, no reflections, no multisampling: the defaults cost ten times more) and where a
camera stands. Does not own which cameras a body has. Needs `MUJOCO_GL` (egl or osmesa) set before mujoco is imported.
"""

# mujoco is a C extension: pyright sees few of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from training.simulation.task import IMAGE_SIZE

NOISE_LIMIT = 25.0
UNSEEN_GEOM_GROUP = 5  # MuJoCo draws the first three groups unless told otherwise


class NoisyFrameError(RuntimeError):
    """A rendered frame looks like noise: the GL context is broken and the episode must not be recorded."""


@dataclass(frozen=True, kw_only=True)
class FreeView:
    """A camera that stands still and looks at a point; metres and degrees, azimuth 90 looks along +y."""

    look_at: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """A camera of the model, for instance one mounted on a wrist; `upside_down` turns its image by 180 degrees.

    `unseen_bodies` are never in its picture, though their bounding boxes may be: what it is mounted on.
    """

    camera: str
    upside_down: bool = False
    unseen_bodies: tuple[str, ...] = ()


View = FreeView | ModelView


class FastRenderer:
    """Renders one model's views. Build it before any other renderer of that model: it changes `model.vis`."""

    def __init__(
        self,
        model: Any,
        views: Mapping[str, View],
        *,
        hidden_geom_groups: Sequence[int] = (),
        visible_site_groups: Sequence[int] = (),
        size: int = IMAGE_SIZE,
    ) -> None:
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        self._model = model
        self._renderer = mujoco.Renderer(model, size, size, max_geom=2000)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[list(hidden_geom_groups)] = 0
        self._options.sitegroup[:] = 0
        self._options.sitegroup[list(visible_site_groups)] = 1
        self._views = {name: (view, _camera(view)) for name, view in views.items()}

    def render(self, data: Any) -> dict[str, npt.NDArray[np.uint8]]:
        """Every view as uint8 [size, size, 3]."""
        return {name: self._render(data, view, camera) for name, (view, camera) in self._views.items()}

    def _render(self, data: Any, view: View, camera: Any) -> npt.NDArray[np.uint8]:
        self._update_scene(data, view, camera)
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        image = self._renderer.render()
        return np.ascontiguousarray(image[::-1, ::-1]) if isinstance(view, ModelView) and view.upside_down else image

    def _update_scene(self, data: Any, view: View, camera: Any) -> None:
        """Leaves out what cannot be in the picture: MuJoCo draws it all, and an arm has 100,000 triangles."""
        groups = self._model.geom_group
        present = groups.copy()
        groups[_out_of_sight(self._model, data, view)] = UNSEEN_GEOM_GROUP
        self._renderer.update_scene(data, camera, scene_option=self._options)
        groups[:] = present

    def geoms(self, data: Any, name: str) -> npt.NDArray[np.int32]:
        """Which geom each pixel of a view shows, int32 [size, size], -1 for none."""
        view, camera = self._views[name]
        self._update_scene(data, view, camera)
        self._renderer.enable_segmentation_rendering()
        shown = self._renderer.render()
        self._renderer.disable_segmentation_rendering()
        is_geom = shown[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM)
        geoms = np.where(is_geom, shown[..., 0], -1).astype(np.int32)
        return geoms[::-1, ::-1] if isinstance(view, ModelView) and view.upside_down else geoms

    def project(self, data: Any, name: str, point: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Where a point [3] of the world is in a view, [2], x right and y down, its sides at -1 and 1; NaN behind."""
        view, _ = self._views[name]
        position, axes, field_rad = _pose(self._model, data, view)
        right, up, behind = (np.asarray(point) - position) @ axes
        place = np.array([right, -up]) / -behind / np.tan(0.5 * field_rad) if behind < 0 else np.full(2, np.nan)
        return -place if isinstance(view, ModelView) and view.upside_down else place

    def close(self) -> None:
        self._renderer.close()


@dataclass(frozen=True)
class Stage:
    """A running simulation as MuJoCo holds it, with the renderer of its views: what clips are filmed from."""

    model: Any
    data: Any
    renderer: FastRenderer


def _camera(view: View) -> Any:
    if isinstance(view, ModelView):
        return view.camera
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = view.look_at
    camera.distance, camera.azimuth, camera.elevation = view.distance, view.azimuth, view.elevation
    return camera


def _out_of_sight(model: Any, data: Any, view: View) -> npt.NDArray[np.bool_]:
    """Which geoms' bounding boxes are wholly beyond a side of a square view, bool [num geoms]; never a plane."""
    position, axes, field_rad = _pose(model, data, view)
    slope = np.tan(0.5 * field_rad)
    outward = np.array([[1, 0, slope], [-1, 0, slope], [0, 1, slope], [0, -1, slope]])
    sides = outward @ axes.T  # 4 3, normals of the view's sides in the world
    rotation = data.geom_xmat.reshape(-1, 3, 3)
    centre = data.geom_xpos + np.einsum("gij,gj->gi", rotation, model.geom_aabb[:, :3])
    reach = np.einsum("sgj,gj->sg", np.abs(np.einsum("si,gij->sgj", sides, rotation)), model.geom_aabb[:, 3:])
    beyond = (sides @ (centre - position).T > reach).any(axis=0)
    if isinstance(view, ModelView) and view.unseen_bodies:
        beyond |= np.isin(model.geom_bodyid, [model.body(name).id for name in view.unseen_bodies])
    return (model.geom_rbound > 0) & beyond


def _pose(model: Any, data: Any, view: View) -> tuple[npt.NDArray[Any], npt.NDArray[Any], float]:
    """A camera's position, its axes as columns (right, up, behind) and its field of view."""
    if isinstance(view, ModelView):
        camera = model.camera(view.camera).id
        return data.cam_xpos[camera], data.cam_xmat[camera].reshape(3, 3), np.deg2rad(model.cam_fovy[camera])
    azimuth, elevation = np.deg2rad((view.azimuth, view.elevation))
    ahead = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    axes = np.stack([right, np.cross(right, ahead), -ahead], axis=1)
    return np.array(view.look_at) - view.distance * ahead, axes, np.deg2rad(model.vis.global_.fovy)


def renderer_name() -> str:
    """What made the images, for a dataset's metadata: frames of different renderers are different visual domains."""
    return f"mujoco {mujoco.__version__} {os.environ.get('MUJOCO_GL', 'default GL')}, no shadows, no multisampling"


def pixel_noise(image: npt.NDArray[np.uint8]) -> float:
    """Mean absolute difference of horizontal neighbours: 1 to 12 for a rendered scene, about 85 for noise."""
    return float(np.abs(np.diff(image.astype(np.int16), axis=1)).mean())


def check_frame(images: Mapping[str, npt.NDArray[np.uint8]]) -> None:
    """Raises NoisyFrameError for a frame whose pixel noise is above NOISE_LIMIT."""
    for name, image in images.items():
        noise = pixel_noise(image)
        if noise > NOISE_LIMIT:
            raise NoisyFrameError(
                f"camera {name!r} has pixel noise {noise:.1f}, expected at most {NOISE_LIMIT:.0f}: "
                "the GL context is broken, restart the process"
            )
