"""Packs: one dataset as memory-mapped arrays, which is what training reads. Building one and opening one.

A pack directory holds `state.npy`, `action.npy`, optionally `executed_action.npy`, `environment_state.npy` and
`images_<camera>.npy` [num_frames, ...], `episodes.npz` and `pack.json`, which names the embodiment, the task, the
source and the sha256 of each file. Windows over a pack belong to windows.py, statistics to statistics.py.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from policy.embodiment import EmbodimentSpec
from policy.images import Interpolation, resize_frames
from training.data.lerobot.embodiment import ACTION_KEY, STATE_KEY, camera_key, embodiment_of
from training.data.lerobot.layout import DatasetError, element_names, frame_shape
from training.data.lerobot.reader import Episode, LeRobotReader
from training.data.registration import open_reader, source_sha256

FORMAT_VERSION = 1
MANIFEST = "pack.json"
EXECUTED_ACTION_KEY = "executed_action"
ENVIRONMENT_STATE_KEY = "observation.environment_state"
NO_SEED = -1
_RESIZE_BATCH = 64

FloatRows = npt.NDArray[np.float32]


class PackError(ValueError):
    """A pack on disk is not what its pack.json says."""


@dataclass(frozen=True, kw_only=True)
class Pack:
    """One task's recorded episodes of one embodiment, frames of all episodes end to end.

    `action` is the label, the expert's command; `executed_action` is what the robot was sent, the same array where the
    dataset does not tell them apart. `images` is empty in a state-action pack.
    """

    directory: Path
    source_sha256: str  # of the dataset this was packed from
    task: str
    instructions: tuple[str, ...]
    spec: EmbodimentSpec
    image_size: int | None
    state: FloatRows  # [num_frames, state_dim]
    action: FloatRows  # [num_frames, action_dim]
    executed_action: FloatRows  # [num_frames, action_dim]
    environment_state: FloatRows | None  # [num_frames, num names]
    environment_state_names: tuple[str, ...]
    images: Mapping[str, npt.NDArray[np.uint8]]  # camera -> [num_frames, image_size, image_size, 3]
    episode_start: npt.NDArray[np.int64]  # [num_episodes], first frame
    episode_length: npt.NDArray[np.int64]  # [num_episodes]
    episode_seed: npt.NDArray[np.int64]  # [num_episodes], NO_SEED where the source names none
    episode_instruction: npt.NDArray[np.int64]  # [num_episodes], position in `instructions`

    @property
    def num_frames(self) -> int:
        return len(self.state)

    @property
    def num_episodes(self) -> int:
        return len(self.episode_start)

    def instructions_of(self, frames: npt.NDArray[np.int64]) -> list[str]:
        """What was asked for in the episode of each frame."""
        return [self.instructions[index] for index in self.episode_instruction[self.episode_of(frames)]]

    def episode_of(self, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The episode each frame belongs to."""
        return np.searchsorted(self.episode_start, frames, side="right") - 1

    def first(self, num_episodes: int) -> Pack:
        """The same pack with its first episodes only. Raises PackError when it holds fewer."""
        if not 1 <= num_episodes <= self.num_episodes:
            raise PackError(f"pack {self.directory} has {self.num_episodes} episodes, {num_episodes} were asked for")
        stop = int(self.episode_start[num_episodes - 1] + self.episode_length[num_episodes - 1])
        return replace(
            self,
            state=self.state[:stop],
            action=self.action[:stop],
            executed_action=self.executed_action[:stop],
            environment_state=None if self.environment_state is None else self.environment_state[:stop],
            images={name: frames[:stop] for name, frames in self.images.items()},
            episode_start=self.episode_start[:num_episodes],
            episode_length=self.episode_length[:num_episodes],
            episode_seed=self.episode_seed[:num_episodes],
            episode_instruction=self.episode_instruction[:num_episodes],
        )

    @classmethod
    def open(cls, directory: Path | str) -> Pack:
        """Map a pack's arrays, reading almost nothing. Raises PackError for a foreign format or a bad file."""
        directory = Path(directory)
        manifest = _read_manifest(directory)
        if manifest is None:
            raise PackError(f"{directory} is not a pack: no {MANIFEST}")
        if manifest["format_version"] != FORMAT_VERSION:
            raise PackError(
                f"pack {directory} has format_version {manifest['format_version']}, expected {FORMAT_VERSION}"
            )
        for name, entry in manifest["files"].items():
            found = (directory / name).stat().st_size if (directory / name).is_file() else None
            if found != entry["num_bytes"]:
                raise PackError(f"pack {directory}: {name} has {found} bytes, expected {entry['num_bytes']}")

        def mapped(name: str) -> Any:
            return np.load(directory / name, mmap_mode="r", allow_pickle=False)

        files = manifest["files"]
        spec = EmbodimentSpec.from_json(manifest["embodiment"])
        with np.load(directory / "episodes.npz", allow_pickle=False) as episodes:
            columns = {f"episode_{name}": episodes[name] for name in ("start", "length", "seed", "instruction")}
        action = mapped("action.npy")
        image_size = manifest["image_size"]
        return cls(
            directory=directory,
            source_sha256=manifest["source"]["sha256"],
            task=manifest["task"],
            instructions=tuple(manifest["instructions"]),
            spec=spec,
            image_size=image_size,
            state=mapped("state.npy"),
            action=action,
            executed_action=mapped("executed_action.npy") if "executed_action.npy" in files else action,
            environment_state=mapped("environment_state.npy") if "environment_state.npy" in files else None,
            environment_state_names=tuple(manifest["environment_state_names"]),
            images={} if image_size is None else {name: mapped(f"images_{name}.npy") for name in spec.camera_names},
            **columns,
        )

    def verify(self) -> None:
        """Read every file and compare its sha256 with pack.json. Raises PackError naming the first that differs."""
        manifest = _read_manifest(self.directory)
        for name, entry in (manifest or {"files": {}})["files"].items():
            if _sha256(self.directory / name) != entry["sha256"]:
                raise PackError(f"pack {self.directory}: {name} does not have the sha256 in {MANIFEST}")


def build_packs(
    datasets: Sequence[Path], directory: Path, *, image_size: int | None, interpolation: Interpolation = "bilinear"
) -> list[Pack]:
    """A pack per LeRobot dataset, at `directory / <dataset directory name>`; those up to date are left alone."""
    names = [Path(dataset).name for dataset in datasets]
    if len(set(names)) != len(names):
        raise ValueError(f"two datasets share a directory name: {sorted(names)}")
    return [
        build_pack(dataset, Path(directory) / name, image_size=image_size, interpolation=interpolation)
        for dataset, name in zip(datasets, names, strict=True)
    ]


def build_pack(
    dataset: Path, directory: Path, *, image_size: int | None, interpolation: Interpolation = "bilinear"
) -> Pack:
    """Convert one LeRobot dataset, or a registered one, frames resized to image_size, or without images if None.

    Writes `<directory>.tmp`, renames it and says so on stderr; returns at once when `directory` holds a pack of the
    same dataset content.
    Raises DatasetError for a dataset that does not fit its embodiment.
    """
    directory = Path(directory)
    source = {"name": Path(dataset).name, "sha256": source_sha256(Path(dataset))}
    existing = _read_manifest(directory)
    wanted = (FORMAT_VERSION, source["sha256"], image_size, interpolation)
    if existing is not None and _made_from(existing) == wanted:
        return Pack.open(directory)
    reader = open_reader(Path(dataset))
    spec = embodiment_of(reader)
    _check_fits(reader, spec, with_images=image_size is not None)
    temporary = directory.with_name(directory.name + ".tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    _write_numeric(reader, temporary)
    instructions = _write_episodes(reader, temporary)
    if image_size is not None:
        for camera in spec.camera_names:
            _write_images(
                reader, camera_key(reader, camera), temporary / f"images_{camera}.npy", image_size, interpolation
            )
    manifest = {
        "format_version": FORMAT_VERSION,
        "task": reader.annotations.get("task", Path(dataset).name),
        "instructions": instructions,
        "embodiment": spec.to_json(),
        "image_size": image_size,
        "interpolation": interpolation,
        "environment_state_names": _environment_state_names(reader),
        "num_frames": reader.num_frames,
        "num_episodes": len(reader.episodes),
        "source": source,
        "files": {
            path.name: {"sha256": _sha256(path), "num_bytes": path.stat().st_size}
            for path in sorted(temporary.iterdir())
        },
    }
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    if directory.exists():
        shutil.rmtree(directory)
    temporary.rename(directory)
    pack = Pack.open(directory)
    made = f"packed {directory.name}: {pack.num_episodes} episodes, {pack.num_frames} frames"
    print(made, file=sys.stderr, flush=True)
    return pack


def _check_fits(reader: LeRobotReader, spec: EmbodimentSpec, *, with_images: bool) -> None:
    for key, dim in (
        (STATE_KEY, spec.state_dim),
        (ACTION_KEY, spec.action_dim),
        (EXECUTED_ACTION_KEY, spec.action_dim),
    ):
        feature = reader.features.get(key)
        if feature is None and key != EXECUTED_ACTION_KEY:
            raise DatasetError(f"{reader.root}: no feature {key!r}, it has {list(reader.features)}")
        if feature is not None and list(feature["shape"]) != [dim]:
            raise DatasetError(
                f"{reader.root}: {key!r} has shape {feature['shape']}, embodiment {spec.name!r} has [{dim}]"
            )
    for camera in spec.cameras if with_images else ():
        found = frame_shape(reader.features[camera_key(reader, camera.name)])
        expected = (camera.height, camera.width, 3)
        if found != expected or not re.fullmatch(r"[\w.-]+", camera.name):
            raise DatasetError(
                f"{reader.root}: camera {camera.name!r} of {spec.name!r} needs {expected}, found {found}"
            )


def _write_numeric(reader: LeRobotReader, directory: Path) -> None:
    files = {
        key: (directory / f"{name}.npy", int(np.prod(reader.features[key]["shape"])))
        for key, name in (
            (STATE_KEY, "state"),
            (ACTION_KEY, "action"),
            (EXECUTED_ACTION_KEY, "executed_action"),
            (ENVIRONMENT_STATE_KEY, "environment_state"),
        )
        if key in reader.features
    }
    outputs = {
        # numpy 2 writes an unreadable header for a shape of numpy integers.
        key: np.lib.format.open_memmap(path, "w+", np.dtype(np.float32), (int(reader.num_frames), int(dim)))
        for key, (path, dim) in files.items()
    }
    start = 0
    for episode in reader.episodes:
        for key, values in reader.numeric(episode, list(outputs)).items():
            outputs[key][start : start + episode.length] = values.reshape(episode.length, -1)
        start += episode.length
    for key, output in outputs.items():
        if not np.isfinite(output).all():
            raise DatasetError(
                f"{reader.root}: {key!r} is not finite in frame {int(np.argwhere(~np.isfinite(output))[0][0])}"
            )
        output.flush()


def _write_episodes(reader: LeRobotReader, directory: Path) -> list[str]:
    instructions: dict[str, int] = {}
    instruction = [
        instructions.setdefault(episode_instruction(reader, episode), len(instructions)) for episode in reader.episodes
    ]
    length = np.array([episode.length for episode in reader.episodes], np.int64)
    seed = np.array([NO_SEED if e.seed is None else e.seed for e in reader.episodes], np.int64)
    np.savez(
        directory / "episodes.npz",
        start=np.cumsum(length) - length,
        length=length,
        seed=seed,
        instruction=np.array(instruction, np.int64),
    )
    return list(instructions)


def episode_instruction(reader: LeRobotReader, episode: Episode) -> str:
    """What was asked for in an episode. Raises DatasetError when that changes within it or is not in the tasks."""
    if reader.annotations.get("instruction"):
        return reader.annotations["instruction"]
    column = reader.annotations.get("instruction_column", "task_index")
    tasks = np.unique(reader.numeric(episode, [column])[column])
    if len(tasks) != 1:
        raise DatasetError(
            f"{reader.data_file(episode)}: episode {episode.index} changes its task, {column} is {tasks.tolist()}"
        )
    if int(tasks[0]) not in reader.tasks:
        raise DatasetError(
            f"{reader.data_file(episode)}: episode {episode.index} has {column} {int(tasks[0])}, "
            f"the data set has the tasks {sorted(reader.tasks)}"
        )
    return reader.tasks[int(tasks[0])]


def _write_images(reader: LeRobotReader, key: str, path: Path, size: int, interpolation: Interpolation) -> None:
    num_frames, size = int(reader.num_frames), int(size)
    output = np.lib.format.open_memmap(path, "w+", np.dtype(np.uint8), (num_frames, size, size, 3))
    start = 0
    for batch in _batches(reader.iter_frames(key), _RESIZE_BATCH):
        if batch.shape[1:] != frame_shape(reader.features[key]):
            raise DatasetError(
                f"{reader.root}: {key!r} decodes to {batch.shape[1:]}, declared {reader.features[key]['shape']}"
            )
        output[start : start + len(batch)] = resize_frames(torch.from_numpy(batch), size, interpolation).numpy()
        start += len(batch)
    output.flush()


def _batches(frames: Iterator[npt.NDArray[np.uint8]], size: int) -> Iterator[npt.NDArray[np.uint8]]:
    while batch := list(islice(frames, size)):
        yield np.stack(batch)


def _environment_state_names(reader: LeRobotReader) -> list[str]:
    feature = reader.features.get(ENVIRONMENT_STATE_KEY)
    return [] if feature is None else list(element_names(feature) or ())


def _read_manifest(directory: Path) -> dict[str, Any] | None:
    path = directory / MANIFEST
    return json.loads(path.read_text()) if path.is_file() else None


def _made_from(manifest: Mapping[str, Any]) -> tuple[int, str, int | None, str]:
    # Packs from before there was a choice do not name it.
    interpolation = manifest.get("interpolation", "bilinear")
    return manifest["format_version"], manifest["source"]["sha256"], manifest["image_size"], interpolation


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
