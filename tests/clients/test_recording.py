"""What was played is on disk as it was, whole episodes or none, and the robot never waits for it."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from premotor.client import EpisodeRecorder, Recording, RecordingError
from premotor.client.events import Observed, PlayerEvent
from tests.clients.playback_events import episode_events


def record(directory: Path, *episodes: list[PlayerEvent]) -> EpisodeRecorder:
    written = threading.Event()
    with EpisodeRecorder(directory) as recorder:
        for events in episodes:
            for event in events:
                # A robot's steps are further apart than these.
                while recorder._waiting.full():
                    written.wait(0.001)
                recorder(event)
    return recorder


def test_an_episode_reads_back_as_it_was_played(tmp_path: Path) -> None:
    recorder = record(tmp_path, episode_events(num_steps=12))
    assert (recorder.num_episodes, recorder.lost) == (1, [])
    recording = Recording(tmp_path)
    assert recording.header["policy"] == "tabletop"
    assert recording.header["embodiment"]["action"][0]["name"] == "position"
    (episode,) = recording.episodes()
    assert episode.summary["instruction"] == "slide it over"
    steps, chunks = episode.steps(), episode.chunks()
    np.testing.assert_array_equal(steps["step"], np.arange(12))
    np.testing.assert_array_equal(steps["state"][:, 0], np.arange(12))
    assert list(steps["held"]) == ["underrun", "underrun", "", ""] * 3
    np.testing.assert_array_equal(steps["action"][:4, 0], [0, 1, 102, 103])
    np.testing.assert_array_equal(steps["for_step"][:4], [-1, -1, 0, 0])
    assert chunks["actions"].shape == (3, 4, 2)
    np.testing.assert_array_equal(chunks["for_step"], [0, 4, 8])
    np.testing.assert_array_equal(chunks["arrived_step"], [2, 6, 10])
    np.testing.assert_allclose(chunks["latency_s"], [0.2, 0.204, 0.208])
    assert list(chunks["request_id"]) == ["request-0", "request-4", "request-8"]


def test_frames_of_every_step_read_back_in_order_over_several_files(tmp_path: Path) -> None:
    record(tmp_path, episode_events(num_steps=150))
    (episode,) = Recording(tmp_path).episodes()
    parts = [part["front"] for part in episode.frames()]
    assert [len(part) for part in parts] == [64, 64, 22]
    np.testing.assert_array_equal(np.concatenate(parts)[:, 5, 5, 1], [10 * step % 256 for step in range(150)])


def test_what_is_no_column_is_a_line_of_json(tmp_path: Path) -> None:
    record(tmp_path, episode_events(num_steps=11, skipped_at=9))
    (episode,) = Recording(tmp_path).episodes()
    events = episode.events()
    assert {event["event"] for event in events} == {
        "Asked", "Failed", "PeriodsSkipped", "Reconnected", "Recovered", "SwapSeen"
    }  # fmt: skip
    (failed,) = (event for event in events if event["event"] == "Failed")
    assert failed == {"event": "Failed", "step": 10, "error": "RetryableError: away", "retry_delay_s": 0.5}


def test_episodes_are_added_to_a_recording_of_the_same_body(tmp_path: Path) -> None:
    record(tmp_path, episode_events("one"), episode_events("two"))
    record(tmp_path, episode_events("three"))
    assert [episode.summary["episode_id"] for episode in Recording(tmp_path).episodes()] == ["one", "two", "three"]


def test_an_episode_that_an_error_ended_or_that_did_not_end_is_absent(tmp_path: Path) -> None:
    recorder = record(
        tmp_path, episode_events("bad", completed=False), episode_events("cut")[:-1], episode_events("good")
    )
    assert [episode.summary["episode_id"] for episode in Recording(tmp_path).episodes()] == ["good"]
    assert recorder.lost == ["bad: an error ended it", "cut: it was not ended"]
    assert list(tmp_path.glob("staged-*")) == []


def test_what_a_killed_process_left_is_cleared_away_and_never_read(tmp_path: Path) -> None:
    record(tmp_path, episode_events("good"))
    (tmp_path / "staged-episode").mkdir()
    (tmp_path / "staged-episode" / "steps.npz").write_bytes(b"half")
    assert len(list(Recording(tmp_path).episodes())) == 1
    record(tmp_path, episode_events("next"))
    assert len(list(Recording(tmp_path).episodes())) == 2


def test_frames_that_were_not_taken_are_missed_by_name(tmp_path: Path) -> None:
    events = [event for event in episode_events("blind") if not (isinstance(event, Observed) and event.step == 3)]
    assert record(tmp_path, events).lost == ["blind: step 3 has no frames: play with observe_every_step=True"]


def test_a_command_that_was_sent_steps_after_its_frames_were_taken_leaves_a_gap(tmp_path: Path) -> None:
    """Kept, it would teach a policy to answer what was seen then."""
    events = [
        replace(event, step=3) if isinstance(event, Observed) and event.step == 6 else event
        for event in episode_events("slow", skipped_at=6)
    ]
    recorder = record(tmp_path, events)
    (episode,) = Recording(tmp_path).episodes()
    assert recorder.lost == []
    np.testing.assert_array_equal(episode.steps()["step"], [0, 1, 2, 7, 8, 9, 10, 11])
    assert sum(len(part["front"]) for part in episode.frames()) == 8


def test_a_camera_that_changes_its_resolution_costs_its_episode_alone(tmp_path: Path) -> None:
    events = episode_events("zoomed")
    smaller = {"front": np.zeros((16, 16, 3), np.uint8)}
    events = [
        replace(event, images=smaller) if isinstance(event, Observed) and event.step else event for event in events
    ]
    recorder = record(tmp_path, events, episode_events("good"))
    assert len(recorder.lost) == 1 and recorder.lost[0].startswith("zoomed: ")
    assert [episode.summary["episode_id"] for episode in Recording(tmp_path).episodes()] == ["good"]


def test_a_disk_that_is_too_slow_costs_the_episode_and_not_the_robot(tmp_path: Path) -> None:
    recorder = EpisodeRecorder(tmp_path)
    # The writing thread has not begun: everything waits.
    for event in episode_events("long", num_steps=400):
        recorder(event)
    taken = threading.Event()
    with recorder:
        while not recorder._waiting.empty():
            taken.wait(0.001)
        for event in episode_events("short"):
            recorder(event)
    assert recorder.lost == ["long: the disk is slower than the robot"]
    assert [episode.summary["episode_id"] for episode in Recording(tmp_path).episodes()] == ["short"]


def test_nothing_on_disk_can_be_run(tmp_path: Path) -> None:
    record(tmp_path, episode_events())
    (episode,) = Recording(tmp_path).episodes()
    for path in episode.directory.glob("*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays)


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RecordingError, match="no recording: name another"):
        EpisodeRecorder(tmp_path)
    with pytest.raises(RecordingError, match=r"has no recording\.json"):
        Recording(tmp_path)
    (tmp_path / "recording.json").write_text(json.dumps({"format": "premotor-recording", "version": 2}))
    with pytest.raises(RecordingError, match=r"2.*expected"):
        Recording(tmp_path)


def test_another_body_is_another_recording(tmp_path: Path) -> None:
    record(tmp_path, episode_events("one"))
    header = json.loads((tmp_path / "recording.json").read_text())
    (tmp_path / "recording.json").write_text(json.dumps({**header, "schema_digest": "another"}))
    assert record(tmp_path, episode_events("two")).lost[0].endswith("holds a recording of another policy or body")
