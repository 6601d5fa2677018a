"""What robots did with a served policy becomes training data: a LeRobot v3 data set with how each step came about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from policy.embodiment import EmbodimentSpec, GroupKind
from premotor.client import EpisodeRecorder, RecordingError
from tests.clients.playback_events import episode_events
from training.__main__ import main
from training.data.lerobot import LeRobotReader
from training.data.pack import build_pack
from training.recorded_run import PLAYBACK_COLUMNS, import_run, read_chunks


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    directory = tmp_path / "recording"
    with EpisodeRecorder(directory) as recorder:
        for events in (episode_events("one", num_steps=12), episode_events("two", num_steps=16, skipped_at=10)):
            for event in events:
                recorder(event)
    assert recorder.lost == []
    return directory


def test_an_imported_run_reads_back_as_it_was_played(recording: Path, tmp_path: Path) -> None:
    imported = import_run(recording, tmp_path / "dataset")
    reader = LeRobotReader(tmp_path / "dataset")
    assert (imported.num_episodes, imported.num_frames, imported.num_left_out) == (3, 12 + 7 + 6, 0)
    assert (reader.version, reader.fps, reader.robot_type) == ("v3.0", 10.0, "slider")
    first = reader.episodes[0]
    assert first.tasks == ("slide it over",)
    columns = reader.numeric(first)
    assert set(PLAYBACK_COLUMNS) <= set(columns)
    np.testing.assert_array_equal(columns["observation.state"][:, 0], np.arange(12))
    np.testing.assert_array_equal(columns["action"][:4, 0], [0, 1, 102, 103])
    np.testing.assert_array_equal(columns["playback.held"], [1, 1, 0, 0] * 3)
    np.testing.assert_array_equal(columns["playback.age_steps"], [-1, -1, 2, 3] * 3)
    np.testing.assert_array_equal(columns["playback.chunk_index"], [-1, -1, 0, 0, -1, -1, 1, 1, -1, -1, 2, 2])
    np.testing.assert_allclose(columns["playback.latency_s"][[2, 6, 10]], [0.2, 0.204, 0.208], rtol=1e-6)
    shown = reader.frames(first, "observation.images.front", [3, 7])
    assert np.abs(shown.mean((1, 2, 3)) - [30, 70]).max() < 3


def test_a_step_finds_the_chunk_and_the_row_that_it_was_played_from(recording: Path, tmp_path: Path) -> None:
    import_run(recording, tmp_path / "dataset")
    reader = LeRobotReader(tmp_path / "dataset")
    for episode in reader.episodes:
        columns, chunks = reader.numeric(episode), read_chunks(tmp_path / "dataset", episode.index)
        played = np.flatnonzero(columns["playback.held"] == 0)
        assert len(played)
        for row in played:
            chunk, age = columns["playback.chunk_index"][row], columns["playback.age_steps"][row]
            np.testing.assert_array_equal(chunks["actions"][chunk, age], columns["action"][row])
            assert chunks["for_step"][chunk] == columns["playback.control_step"][row] - age
            assert chunks["server_total_s"][chunk] == 0.007


def test_an_episode_is_cut_where_control_periods_went_by(recording: Path, tmp_path: Path) -> None:
    import_run(recording, tmp_path / "dataset")
    reader = LeRobotReader(tmp_path / "dataset")
    steps = [reader.numeric(episode)["playback.control_step"] for episode in reader.episodes]
    np.testing.assert_array_equal(steps[1], np.arange(7))
    np.testing.assert_array_equal(steps[2], np.arange(10, 16))


def test_the_body_is_the_one_that_the_gateway_described(recording: Path, tmp_path: Path) -> None:
    import_run(recording, tmp_path / "dataset")
    spec = EmbodimentSpec.from_json(LeRobotReader(tmp_path / "dataset").annotations["embodiment"])
    assert (spec.name, spec.control_rate_hz, spec.action[0].kind) == ("slider", 10.0, GroupKind.JOINT_POSITION)


def test_an_imported_run_can_be_trained_on(recording: Path, tmp_path: Path) -> None:
    import_run(recording, tmp_path / "dataset")
    pack = build_pack(tmp_path / "dataset", tmp_path / "pack", image_size=32, interpolation="bilinear")
    assert pack.num_frames == 25
    assert pack.action.shape == (25, 2)


def test_the_command_line_imports_and_says_what_is_wrong(recording: Path, tmp_path: Path, capsys) -> None:
    arguments = ["import-run", "--recording", str(recording), "--dataset", str(tmp_path / "dataset")]
    assert main(arguments) == 0
    assert "3 episodes, 25 frames" in capsys.readouterr().out
    assert main(arguments) == 1
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(RecordingError, match="is no recording"):
        import_run(tmp_path / "dataset", tmp_path / "another")
