"""What a standstill of the machine adds is left out and said; what is merely slow counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.loop import seconds_spent
from training.time_spent import STANDSTILL_FACTOR, TimeSpent, time_of_log, usual_step_s, without_standstill


def write_log(directory: Path, intervals: list[tuple[float, int]]) -> Path:
    """As the loop writes it, of (seconds, steps) each."""
    directory.mkdir(parents=True, exist_ok=True)
    path, step, lines = directory / "metrics.jsonl", -1, []
    for seconds, num_steps in intervals:
        step += num_steps
        lines.append(json.dumps({"step": step, "loss": 0.5, "steps_per_s": num_steps / seconds, "seconds": seconds}))
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_an_interval_in_which_the_machine_stood_still_counts_ten_usual_ones(tmp_path: Path) -> None:
    # As one was: 20 steps of 0.25 s, and once 1857 s.
    path = write_log(tmp_path, [(0.5, 1), (5.0, 20), (1857.0, 20), (5.0, 20), (5.0, 20), (4.75, 19)])
    spent = time_of_log(path)
    assert spent.seconds == pytest.approx(0.5 + 3 * 5.0 + 4.75 + STANDSTILL_FACTOR * 0.25 * 20)
    assert spent.seconds + spent.left_out_seconds == pytest.approx(1877.25)
    assert seconds_spent(tmp_path) == spent.seconds


def test_a_run_that_was_slow_at_times_counts_whole(tmp_path: Path) -> None:
    path = write_log(tmp_path, [(4.0, 1), (10.0, 20), (90.0, 20), (10.0, 20)])
    assert time_of_log(path) == TimeSpent(seconds=114.0, left_out_seconds=0.0)


def test_an_interval_is_measured_by_its_steps_not_by_its_length(tmp_path: Path) -> None:
    path = write_log(tmp_path, [(1.0, 1), (1.0, 1), (1.0, 1), (50.0, 50)])
    assert time_of_log(path).left_out_seconds == pytest.approx(0.0)


def test_a_line_that_was_cut_in_half_counts_nothing(tmp_path: Path) -> None:
    path = write_log(tmp_path, [(4.0, 1), (10.0, 20)])
    path.write_text(path.read_text() + '{"step": 40, "steps_per_s": 2.0, "sec')
    assert time_of_log(path).seconds == 14.0


def test_what_was_never_trained_took_no_time(tmp_path: Path) -> None:
    assert time_of_log(tmp_path / "metrics.jsonl") == TimeSpent(seconds=0.0, left_out_seconds=0.0)
    assert usual_step_s([]) == 0.0


def test_the_time_left_out_is_what_was_measured_and_not_counted() -> None:
    spent = without_standstill([(1.0, 1.0), (100.0, 2.0)], step_s=1.0)
    assert spent.to_json() == {"seconds": 21.0, "left_out_seconds": 80.0}
