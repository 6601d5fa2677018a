"""Episodes of a chunk player on disk: what was seen, sent and held, the chunks behind it, and how late they came.

Owns the directory's format, in npz without objects and JSON lines, and its reader. Does not own writing it
(episode_recorder.py), or LeRobot's format, which `python -m training import-run` makes of it.

    recording.json                    what recorded, and of which policy and body
    episodes/000000/episode.json      instruction, ids, counts
                   /steps.npz         one row a control step that a command was sent in
                   /chunks.npz        one row a chunk that arrived
                   /frames-0000.npz   camera name -> uint8 [up to 64 steps, height, width, 3]
                   /events.jsonl      failures, reconnections, swaps, holds: what is no column
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "premotor-recording"
FORMAT_VERSION = 1
HEADER = "recording.json"

Arrays = dict[str, np.ndarray]


class RecordingError(RuntimeError):
    """An episode could not be recorded, or a recording cannot be read; the message says which and why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedEpisode:
    """One episode as it lies on disk; arrays are read when they are asked for."""

    directory: Path
    summary: Mapping[str, Any]

    def steps(self) -> Arrays:
        """step, time_s, state [n, state_dim], action [n, action_dim], held ("" where an action was played), ..."""
        return _load(self.directory / "steps.npz")

    def chunks(self) -> Arrays:
        """actions [num_chunks, action_horizon, action_dim], for_step, arrived_step, latency_s, revision, ..."""
        return _load(self.directory / "chunks.npz")

    def frames(self) -> Iterator[Arrays]:
        """Camera name -> uint8 [up to 64 steps, height, width, 3], in order."""
        for path in sorted(self.directory.glob("frames-*.npz")):
            yield _load(path)

    def events(self) -> list[dict[str, Any]]:
        """What is no column, in order; each has `event` and `step`."""
        return [json.loads(line) for line in (self.directory / "events.jsonl").read_text().splitlines()]


class Recording:
    """A directory that an EpisodeRecorder wrote."""

    def __init__(self, directory: Path | str) -> None:
        """Raises RecordingError when it is none, or of a version that is not read here."""
        self.directory = Path(directory)
        path = self.directory / HEADER
        if not path.is_file():
            raise RecordingError(f"{self.directory} has no {HEADER}: it is no recording, or holds no whole episode")
        self.header: Mapping[str, Any] = json.loads(path.read_text())
        found = self.header.get("format"), self.header.get("version")
        if found != (FORMAT, FORMAT_VERSION):
            raise RecordingError(f"{path} says {found}, expected {(FORMAT, FORMAT_VERSION)}")

    def episodes(self) -> Iterator[RecordedEpisode]:
        """Every whole episode, in the order of recording."""
        for directory in sorted((self.directory / "episodes").iterdir()):
            yield RecordedEpisode(directory=directory, summary=json.loads((directory / "episode.json").read_text()))


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
