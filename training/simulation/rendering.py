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

IMAGE_SIZE = 128
NOISE_LIMIT = 25.0


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
    """A camera of the model, for instance one mounted on a wrist; `upside_down` turns its image by 180 degrees."""

    camera: str
    upside_down: bool = False


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
        self._renderer = mujoco.Renderer(model, size, size, max_geom=2000)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[list(hidden_geom_groups)] = 0
        self._options.sitegroup[:] = 0
        self._options.sitegroup[list(visible_site_groups)] = 1
        self._cameras = {name: (_camera(view), getattr(view, "upside_down", False)) for name, view in views.items()}

    def render(self, data: Any) -> dict[str, npt.NDArray[np.uint8]]:
        """Every view as uint8 [size, size, 3]."""
        return {name: self._render(data, camera, turned) for name, (camera, turned) in self._cameras.items()}

    def _render(self, data: Any, camera: Any, turned: bool) -> npt.NDArray[np.uint8]:
        self._renderer.update_scene(data, camera, scene_option=self._options)
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        image = self._renderer.render()
        return np.ascontiguousarray(image[::-1, ::-1]) if turned else image

    def close(self) -> None:
        self._renderer.close()


def _camera(view: View) -> Any:
    if isinstance(view, ModelView):
        return view.camera
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = view.look_at
    camera.distance, camera.azimuth, camera.elevation = view.distance, view.azimuth, view.elevation
    return camera


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
