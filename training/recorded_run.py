"""What a robot did with a served policy, as a LeRobot v3 data set: its recording by premotor.client, converted.

Owns the columns that playback adds, the side file of chunks, and the cut at control steps that went by. Does not own
either format (premotor.client.recording, training/data/lerobot).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from policy.embodiment import EmbodimentSpec
from premotor.client.recording import RecordedEpisode, Recording
from training.data.lerobot.embodiment import ACTION_KEY, CAMERA_PREFIX, STATE_KEY
from training.data.lerobot.writer import LeRobotWriter
from training.record import element_names

# One file an episode of the data set: the chunks that arrived during it, as the recording has them.
CHUNKS_TEMPLATE = "meta/premotor_chunks/episode-{episode_index:06d}.npz"
PLAYBACK_COLUMNS: Mapping[str, str] = {
    "playback.control_step": "int64",  # counted from the recorded episode's first
    "playback.held": "int64",  # 1 where no action was valid and the robot was told to stay
    "playback.age_steps": "int64",  # from the chunk's observation to this step; -1 where held
    "playback.chunk_index": "int64",  # the row of the side file that was played; -1 where held
    "playback.latency_s": "float32",  # what that chunk took from its observation to the robot; -1 where held
}
_FEWEST_STEPS = 2

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class ImportedRun:
    """What was written; `num_left_out` counts steps between two gaps that were too few to be an episode."""

    num_episodes: int
    num_frames: int
    num_left_out: int


def import_run(recording_directory: Path, dataset: Path) -> ImportedRun:
    """Writes the data set `dataset` of every episode of a recording.

    `action` is what was sent. LeRobot's frames are one control period apart, so an episode in which periods were
    skipped becomes one for each stretch without a gap. Raises RecordingError for what is no recording, FileExistsError
    when `dataset` exists, DatasetError for frames of changing shapes.
    """
    recording = Recording(recording_directory)
    # The body as the gateway described it, which says nothing of normalisation: that keeps its default.
    spec = EmbodimentSpec.from_json(recording.header["embodiment"])
    episodes = list(recording.episodes())
    num_left_out = 0
    with LeRobotWriter(
        dataset,
        fps=spec.control_rate_hz,
        features=_features(spec, episodes),
        robot_type=spec.name,
        annotations={"embodiment": spec.to_json(), "playback": _annotation(recording)},
    ) as writer:
        num_episodes = num_frames = 0
        for episode in episodes:
            for arrays, chunks in _stretches(episode):
                if len(arrays[ACTION_KEY]) < _FEWEST_STEPS:
                    num_left_out += len(arrays[ACTION_KEY])
                    continue
                index = writer.add_episode(arrays, episode.summary["instruction"])
                path = writer.side_file(CHUNKS_TEMPLATE.format(episode_index=index))
                np.savez(path, **chunks)  # pyright: ignore[reportArgumentType]  (taken for its flag allow_pickle)
                num_episodes, num_frames = num_episodes + 1, num_frames + len(arrays[ACTION_KEY])
    return ImportedRun(num_episodes=num_episodes, num_frames=num_frames, num_left_out=num_left_out)


def read_chunks(dataset: Path, episode_index: int) -> Arrays:
    """The chunks of an episode that `import_run` wrote: actions [num_chunks, action_horizon, action_dim], ..."""
    with np.load(dataset / CHUNKS_TEMPLATE.format(episode_index=episode_index), allow_pickle=False) as chunks:
        return dict(chunks)


def _stretches(episode: RecordedEpisode) -> Iterator[tuple[Arrays, Arrays]]:
    """The columns of each run of steps without a gap, and the chunks that its steps were played from."""
    steps, chunks = episode.steps(), episode.chunks()
    frames = _all_frames(episode)
    chunk_of_step = {int(for_step): index for index, for_step in enumerate(chunks.get("for_step", ()))}
    played_from = np.array([chunk_of_step.get(int(for_step), -1) for for_step in steps["for_step"]], np.int64)
    bounds = np.flatnonzero(np.diff(steps["step"]) != 1) + 1
    for rows in np.split(np.arange(len(steps["step"])), bounds):
        held = played_from[rows] < 0
        kept = _kept_chunks(chunks, played_from[rows][~held], steps["step"][rows])
        # Rows of the side file are counted within this stretch.
        index = np.where(held, -1, np.searchsorted(kept, played_from[rows]))
        latency_s = np.full(len(rows), -1.0, np.float32)
        latency_s[~held] = chunks["latency_s"][played_from[rows][~held]] if len(kept) else 0.0
        yield (
            {
                **{CAMERA_PREFIX + name: pixels[rows] for name, pixels in frames.items()},
                STATE_KEY: steps["state"][rows],
                ACTION_KEY: steps["action"][rows],
                "playback.control_step": steps["step"][rows].astype(np.int64),
                "playback.held": (steps["held"][rows] != "").astype(np.int64),
                "playback.age_steps": steps["age_steps"][rows].astype(np.int64),
                "playback.chunk_index": index,
                "playback.latency_s": latency_s,
            },
            {name: column[kept] for name, column in chunks.items()},
        )


def _kept_chunks(chunks: Arrays, played: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Those that were played in these steps, and those that arrived during them."""
    if "arrived_step" not in chunks:
        return np.zeros(0, np.int64)
    arrived = np.flatnonzero((chunks["arrived_step"] >= steps[0]) & (chunks["arrived_step"] <= steps[-1]))
    return np.union1d(played, arrived).astype(np.int64)


def _all_frames(episode: RecordedEpisode) -> Arrays:
    parts = list(episode.frames())
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _features(spec: EmbodimentSpec, episodes: Sequence[RecordedEpisode]) -> dict[str, dict[str, Any]]:
    first = next(episodes[0].frames()) if episodes else {}
    features: dict[str, dict[str, Any]] = {
        CAMERA_PREFIX + name: {
            "dtype": "video",
            "shape": list(pixels.shape[1:]),
            "names": ["height", "width", "channels"],
        }
        for name, pixels in first.items()
    }
    for key, groups in ((STATE_KEY, spec.state), (ACTION_KEY, spec.action)):
        names = element_names(groups)
        features[key] = {"dtype": "float32", "shape": [len(names)], "names": names}
    for key, dtype in PLAYBACK_COLUMNS.items():
        features[key] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def _annotation(recording: Recording) -> dict[str, Any]:
    return {"policy": recording.header["policy"], "schema_digest": recording.header["schema_digest"]}
