"""Played episodes as they are finished, a line of JSON each, so that an evaluation that was killed goes on.

Owns the lines of one task, and that only those count that the same policy played under the same conditions. Does not
own how an episode is played (rollout.py) or what many of them say (evaluate.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.json_file import append_line, read_lines
from training.rollout import Episode


@dataclass(frozen=True, kw_only=True)
class PlayedEpisode:
    """`seams` are the figures of a SeamMeter that watched this episode alone."""

    episode: Episode
    elapsed_s: float
    seams: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class EpisodeLog:
    """`played_by` is what decides an episode beside its task and its seed: the revision, and how it is asked."""

    path: Path
    played_by: Mapping[str, Any]

    def read(self) -> dict[int, PlayedEpisode]:
        """By seed, what `played_by` played so far; lines of others are left alone."""
        return {
            line["seed"]: _played(line)
            for line in read_lines(self.path)
            if line["played_by"] == json.loads(json.dumps(self.played_by))
        }

    def append(self, played: PlayedEpisode) -> None:
        values = asdict(played)
        append_line(self.path, {"played_by": dict(self.played_by), **values.pop("episode"), **values})


def _played(line: Mapping[str, Any]) -> PlayedEpisode:
    return PlayedEpisode(
        episode=Episode(
            seed=line["seed"],
            succeeded=line["succeeded"],
            num_steps=line["num_steps"],
            latencies_s=tuple(line["latencies_s"]),
        ),
        elapsed_s=line["elapsed_s"],
        seams=line["seams"],
    )
