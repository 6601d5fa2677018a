"""Writes what a chunk player does to disk while it does it.

Owns the hand-over to a thread, and that an episode is complete or absent: it is written beside its place and renamed.
Does not own the format (recording.py).
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import singledispatchmethod
from pathlib import Path
from queue import Full, Queue
from typing import Any

import numpy as np

from premotor.client.events import (
    ActionPlayed,
    Asked,
    AskingStopped,
    ChunkArrived,
    EpisodeBegan,
    EpisodeEnded,
    Failed,
    Held,
    Observed,
    PeriodsSkipped,
    PlayerEvent,
    Reconnected,
    Recovered,
    SwapSeen,
)
from premotor.client.recording import FORMAT, FORMAT_VERSION, HEADER, Arrays, RecordingError

_STEPS_A_FILE = 64
# Events that may wait for the disk, three or four a step; a robot never waits for it.
_MAX_WAITING = 512
_JOIN_TIMEOUT_S = 30.0
_TOO_SLOW = "the disk is slower than the robot"
_NOT_ENDED = "it was not ended"

_REPORTED = (Asked, AskingStopped, Failed, PeriodsSkipped, Reconnected, Recovered, SwapSeen)


class EpisodeRecorder:
    """An observer of one chunk player that observes at every step, to be used in a `with` block around it.

    Writing is done in a thread of its own. An episode that cannot be kept, because the disk is too slow or frames are
    missing or it did not end well, is left out and named in `lost`; the robot is not disturbed. A command that was sent
    in a later step than its frames were asked for in is left out alone, like a step that went by.
    """

    def __init__(self, directory: Path | str) -> None:
        """Episodes are added to those that `directory` holds. Raises RecordingError when it holds something else."""
        self.directory = Path(directory)
        self.lost: list[str] = []
        self.num_episodes = 0
        if self.directory.exists() and any(self.directory.iterdir()) and not (self.directory / HEADER).is_file():
            raise RecordingError(f"{self.directory} holds something that is no recording: name another directory")
        (self.directory / "episodes").mkdir(parents=True, exist_ok=True)
        for staged in self.directory.glob("staged-*"):
            # Of a process that was killed: only one records here at a time.
            shutil.rmtree(staged) if staged.is_dir() else staged.unlink()
        # An event, and whether some before it found no room; None ends it all.
        self._waiting: Queue[tuple[PlayerEvent, bool] | None] = Queue(_MAX_WAITING)
        self._has_dropped = False
        self._thread = threading.Thread(target=self._write, name="premotor-recorder", daemon=True)

    def __enter__(self) -> EpisodeRecorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until everything is written. Raises RecordingError when the disk does not keep up."""
        with suppress(Full):
            self._waiting.put(None, timeout=_JOIN_TIMEOUT_S)
        self._thread.join(_JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            raise RecordingError(f"{self.directory}: what was recorded is not written after {_JOIN_TIMEOUT_S:g} s")

    def __call__(self, event: PlayerEvent) -> None:
        """Takes note of an event; never waits."""
        try:
            self._waiting.put_nowait((event, self._has_dropped))
            self._has_dropped = False
        except Full:
            self._has_dropped = True
            if isinstance(event, EpisodeBegan):
                self.lost.append(f"{event.episode_id}: {_TOO_SLOW}")

    def _write(self) -> None:
        episode: _EpisodeFiles | None = None
        while (item := self._waiting.get()) is not None:
            event, has_dropped = item
            try:
                if has_dropped and episode is not None:
                    raise RecordingError(_TOO_SLOW)
                if episode is not None and not isinstance(event, EpisodeBegan):
                    episode.add(event)
                    if isinstance(event, EpisodeEnded):
                        episode.finish(event)
                        self.num_episodes += 1
                        episode = None
            # ValueError: frames or vectors whose shape changes on the way.
            except (RecordingError, OSError, ValueError) as error:
                self._discard(episode, str(error))
                episode = None
            if isinstance(event, EpisodeBegan):
                self._discard(episode, _NOT_ENDED)
                episode = self._begin(event)
        self._discard(episode, _NOT_ENDED)

    def _begin(self, began: EpisodeBegan) -> _EpisodeFiles | None:
        try:
            return _EpisodeFiles(self.directory, began)
        except OSError as error:
            self.lost.append(f"{began.episode_id}: {error}")
            return None

    def _discard(self, episode: _EpisodeFiles | None, why: str) -> None:
        if episode is not None:
            self.lost.append(f"{episode.began.episode_id}: {why}")
            episode.discard()


class _EpisodeFiles:
    """One episode that is being written, in a directory that readers do not look at."""

    def __init__(self, directory: Path, began: EpisodeBegan) -> None:
        self.began = began
        self._directory = directory
        self._staged = directory / "staged-episode"
        self._staged.mkdir()
        self._steps: list[dict[str, Any]] = []
        self._chunks: list[dict[str, Any]] = []
        self._frames: list[Mapping[str, np.ndarray]] = []
        self._num_frame_files = 0
        self._observed: Observed | None = None
        self._lines = (self._staged / "events.jsonl").open("w")

    @singledispatchmethod
    def add(self, event: PlayerEvent) -> None:
        if isinstance(event, _REPORTED):
            self._lines.write(json.dumps(_event_line(event)) + "\n")

    @add.register
    def _(self, event: Observed) -> None:
        self._observed = event

    @add.register
    def _(self, event: ChunkArrived) -> None:
        chunk = event.chunk
        self._chunks.append(
            {
                "for_step": event.for_step,
                "arrived_step": event.step,
                "actions": chunk.actions,
                "latency_s": event.latency_s,
                "round_trip_s": chunk.round_trip_s,
                "server_decode_s": chunk.timing.decode_s,
                "server_queue_s": chunk.timing.queue_s,
                "server_inference_s": chunk.timing.inference_s,
                "server_total_s": chunk.timing.total_s,
                "num_late_rows": event.num_late_rows,
                "num_replaced_rows": event.num_replaced_rows,
                "revision": chunk.revision,
                "request_id": chunk.request_id,
                "real_time_chunking_method": chunk.real_time_chunking_method or "",
            }
        )

    @add.register
    def _(self, event: ActionPlayed) -> None:
        self._add_step(event, held="", for_step=event.for_step, age_steps=event.age_steps)

    @add.register
    def _(self, event: Held) -> None:
        self._add_step(event, held=event.reason, for_step=-1, age_steps=-1)

    def _add_step(self, event: ActionPlayed | Held, *, held: str, for_step: int, age_steps: int) -> None:
        observed, self._observed = self._observed, None
        if observed is None:
            raise RecordingError(f"step {event.step} has no frames: play with observe_every_step=True")
        if observed.step != event.step:
            # The frames took longer than their step: they do not show what this command was sent at.
            return
        self._steps.append(
            {
                "step": event.step,
                "time_s": event.time_s,
                "state": event.state,
                "action": event.action,
                "held": held,
                "for_step": for_step,
                "age_steps": age_steps,
            }
        )
        self._frames.append(_pixels(observed))
        if len(self._frames) == _STEPS_A_FILE:
            self._write_frames()

    def finish(self, ended: EpisodeEnded) -> None:
        """Gives the episode its name. Raises RecordingError for one that an error ended, or that has no step."""
        if not ended.completed:
            raise RecordingError("an error ended it")
        if not self._steps:
            raise RecordingError("it has no step")
        self._write_frames()
        _save(self._staged / "steps.npz", _columns(self._steps))
        embodiment, horizon = self.began.embodiment, self.began.description.action_horizon
        empty = {"actions": np.zeros((0, horizon, embodiment.action_dim), np.float32)}
        _save(self._staged / "chunks.npz", _columns(self._chunks) if self._chunks else empty)
        counts = asdict(ended.counts)
        counts["ages"] = {str(age): number for age, number in sorted(ended.counts.ages.items())}
        summary = {
            "episode_id": self.began.episode_id,
            "robot_id": self.began.robot_id,
            "instruction": self.began.instruction,
            "num_steps": len(self._steps),
            "num_chunks": len(self._chunks),
            "num_skipped_periods": ended.num_skipped_periods,
            "counts": counts,
        }
        _write_json(self._staged / "episode.json", summary)
        self._lines.close()
        self._write_header()
        episodes = self._directory / "episodes"
        number = max((int(path.name) for path in episodes.iterdir()), default=-1) + 1
        for path in self._staged.iterdir():
            _sync(path)
        self._staged.rename(episodes / f"{number:06d}")
        _sync(episodes)

    def discard(self) -> None:
        self._lines.close()
        self._discard_staged()

    def _discard_staged(self) -> None:
        shutil.rmtree(self._staged, ignore_errors=True)

    def _write_frames(self) -> None:
        if self._frames:
            frames = {name: np.stack([each[name] for each in self._frames]) for name in self._frames[0]}
            _save(self._staged / f"frames-{self._num_frame_files:04d}.npz", frames)
            self._num_frame_files += 1
            self._frames.clear()

    def _write_header(self) -> None:
        """The same for all episodes of a directory: another body or rate is another recording."""
        path, description = self._directory / HEADER, self.began.description
        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "policy": description.name,
            "schema_digest": description.schema_digest,
            "action_horizon": description.action_horizon,
            "embodiment": json.loads(json.dumps(asdict(self.began.embodiment))),
        }
        if path.is_file():
            found = json.loads(path.read_text())
            if found != header:
                raise RecordingError(f"{self._directory} holds a recording of another policy or body")
            return
        staged = path.with_name(f"staged-{path.name}")
        _write_json(staged, header)
        staged.replace(path)


def _pixels(observed: Observed) -> dict[str, np.ndarray]:
    frames = {}
    for name, frame in observed.images.items():
        if not isinstance(frame, np.ndarray):
            raise RecordingError(f"camera {name!r} gives {type(frame).__name__}, expected pixels")
        frames[name] = frame
    return frames


def _columns(rows: list[dict[str, Any]]) -> Arrays:
    return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}


def _event_line(event: PlayerEvent) -> dict[str, Any]:
    fields = {
        name: value if isinstance(value, (int, float, str)) else str(value) for name, value in vars(event).items()
    }
    if isinstance(event, (AskingStopped, Failed)):
        fields["error"] = f"{type(event.error).__name__}: {event.error}"
    return {"event": type(event).__name__, **fields}


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]  (taken for its flag allow_pickle)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
    _sync(path)


def _sync(path: Path) -> None:
    """Has it reach the disk: a rename must not be there before what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
