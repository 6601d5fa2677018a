"""Episodes of a chunk player as a file for Rerun's viewer (.rrd).

Owns what is logged under which name. Needs the extra `premotor[rerun]`, imported when a log is begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatchmethod
from pathlib import Path
from typing import Any

import numpy as np

from premotor.client.description import Embodiment, Group
from premotor.client.errors import FixRequestError
from premotor.client.events import (
    ActionPlayed,
    AskingStopped,
    ChunkArrived,
    EpisodeBegan,
    Failed,
    Held,
    Observed,
    PlayerEvent,
    Reconnected,
    Recovered,
    SwapSeen,
)
from premotor.client.images import encode_jpeg

_TIMELINE = "control_step"
_PNG = b"\x89PNG"


class RerunLog:
    """An observer of a chunk player, to be used in a `with` block around it.

    Steps go on from one episode to the next. Frames are kept as JPEG, so `premotor[images]` is needed where a robot
    gives pixels. For runs of minutes: it is called in the thread that plays, and a frame costs what its encoding does.
    """

    def __init__(self, path: Path | str, *, rerun: Any = None) -> None:
        """`rerun` is the module, None to import it. Raises FixRequestError when it is not installed."""
        self._rerun = _import_rerun() if rerun is None else rerun
        self._path = Path(path)
        self._stream = self._rerun.RecordingStream("premotor")
        self._embodiment: Embodiment | None = None
        self._first_step = 0
        self._num_steps = 0

    def __enter__(self) -> RerunLog:
        self._stream.save(str(self._path))
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()
        self._stream.disconnect()

    def __call__(self, event: PlayerEvent) -> None:
        if isinstance(event, EpisodeBegan):
            self._first_step = self._num_steps
        step = self._first_step + event.step
        self._num_steps = max(self._num_steps, step + 1)
        self._stream.set_time(_TIMELINE, sequence=step)
        self._log(event)

    @singledispatchmethod
    def _log(self, event: PlayerEvent) -> None:
        """The rest is in the columns of the others."""

    @_log.register
    def _(self, event: EpisodeBegan) -> None:
        self._embodiment = event.embodiment
        self._say("INFO", f"{event.episode_id}: {event.instruction}")

    @_log.register
    def _(self, event: Observed) -> None:
        for name, frame in event.images.items():
            contents = encode_jpeg(frame) if isinstance(frame, np.ndarray) else frame
            media_type = "image/png" if contents.startswith(_PNG) else "image/jpeg"
            image = self._rerun.EncodedImage(contents=contents, media_type=media_type)
            self._stream.log(f"cameras/{name}", image)

    @_log.register
    def _(self, event: ActionPlayed) -> None:
        self._log_vectors(event.state, event.action)
        self._scalar("playback/age_steps", event.age_steps)
        self._scalar("playback/held", 0)

    @_log.register
    def _(self, event: Held) -> None:
        self._log_vectors(event.state, event.action)
        self._scalar("playback/held", 1)

    @_log.register
    def _(self, event: ChunkArrived) -> None:
        self._scalar("latency/observation_to_chunk_ms", 1e3 * event.latency_s)
        self._scalar("latency/round_trip_ms", 1e3 * event.chunk.round_trip_s)
        self._scalar("latency/server_ms", 1e3 * event.chunk.timing.total_s)

    @_log.register
    def _(self, event: Recovered) -> None:
        self._say("INFO", f"plays again after {event.num_held_steps} steps")

    @_log.register
    def _(self, event: Reconnected) -> None:
        self._say("INFO", f"connected again after {event.away_s:.2f} s")

    @_log.register
    def _(self, event: SwapSeen) -> None:
        self._say("INFO", f"revision {event.revision} answers, before {event.previous_revision}")

    @_log.register
    def _(self, event: Failed) -> None:
        self._say("WARN", f"{type(event.error).__name__}: {event.error}")

    @_log.register
    def _(self, event: AskingStopped) -> None:
        self._say("ERROR", f"{type(event.error).__name__}: {event.error}")

    def _log_vectors(self, state: np.ndarray, action: np.ndarray) -> None:
        assert self._embodiment is not None
        self._log_groups("state", self._embodiment.state, state)
        self._log_groups("action", self._embodiment.action, action)

    def _log_groups(self, part: str, groups: Sequence[Group], vector: np.ndarray) -> None:
        start = 0
        for group in groups:
            self._stream.log(f"{part}/{group.name}", self._rerun.Scalars(vector[start : start + group.dim]))
            start += group.dim

    def _scalar(self, name: str, value: float) -> None:
        self._stream.log(name, self._rerun.Scalars(value))

    def _say(self, level: str, text: str) -> None:
        self._stream.log("events", self._rerun.TextLog(text, level=level))


def _import_rerun() -> Any:
    try:
        import rerun
    except ImportError:
        raise FixRequestError("rerun is not installed: pip install 'premotor[rerun]'") from None
    return rerun
