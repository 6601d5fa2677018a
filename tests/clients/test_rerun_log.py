"""A run can be looked at in Rerun's viewer, where that is installed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from premotor.client import FixRequestError
from premotor.client.rerun_log import RerunLog
from tests.clients.playback_events import episode_events


@dataclass
class FakeStream:
    """What is used of rerun.RecordingStream, kept."""

    application: str
    logged: list[tuple[int, str, Any]] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    step: int = -1

    def save(self, path: str) -> None:
        self.saved.append(path)

    def set_time(self, timeline: str, *, sequence: int) -> None:
        assert timeline == "control_step"
        self.step = sequence

    def log(self, name: str, entity: Any) -> None:
        self.logged.append((self.step, name, entity))

    def flush(self) -> None:
        self.ended.append("flush")

    def disconnect(self) -> None:
        self.ended.append("disconnect")


class FakeRerun:
    """The module, with archetypes that are their arguments."""

    def __init__(self) -> None:
        self.streams: list[FakeStream] = []

    def RecordingStream(self, application: str) -> FakeStream:
        self.streams.append(FakeStream(application))
        return self.streams[-1]

    def Scalars(self, values: Any) -> Any:
        return values

    def EncodedImage(self, *, contents: bytes, media_type: str) -> bytes:
        assert media_type == "image/jpeg"
        return contents

    def TextLog(self, text: str, *, level: str) -> tuple[str, str]:
        return level, text


def test_every_step_of_every_episode_is_logged_on_one_line_of_steps(tmp_path: Path) -> None:
    pytest.importorskip("simplejpeg")
    rerun = FakeRerun()
    with RerunLog(tmp_path / "run.rrd", rerun=rerun) as log:
        for event in [*episode_events("one", num_steps=6), *episode_events("two", num_steps=6)]:
            log(event)
    (stream,) = rerun.streams
    assert stream.saved == [str(tmp_path / "run.rrd")]
    assert stream.ended == ["flush", "disconnect"]
    by_name: dict[str, list[tuple[int, Any]]] = {}
    for step, name, value in stream.logged:
        by_name.setdefault(name, []).append((step, value))
    # The end of an episode takes a step of its own, so that two episodes do not touch.
    assert [step for step, _ in by_name["action/position"]] == [*range(6), *range(7, 13)]
    assert [value for _, value in by_name["playback/held"]] == [1, 1, 0, 0, 1, 1] * 2
    assert [value for _, value in by_name["latency/round_trip_ms"]] == [150.0] * 2
    assert all(frame.startswith(b"\xff\xd8") for _, frame in by_name["cameras/front"])
    assert ("INFO", "two: slide it over") in [text for _, text in by_name["events"]]
    assert ("WARN", "RetryableError: away") in [text for _, text in by_name["events"]]


def test_the_real_viewers_file_is_written(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    pytest.importorskip("simplejpeg")
    path = tmp_path / "run.rrd"
    with RerunLog(path) as log:
        for event in episode_events():
            log(event)
    assert path.read_bytes()[:3] == b"RRF"
    assert path.stat().st_size > 2000


def test_without_rerun_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rerun", None)
    with pytest.raises(FixRequestError, match=r"pip install 'premotor\[rerun\]'"):
        RerunLog(tmp_path / "run.rrd")
