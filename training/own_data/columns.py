"""Faults in the tables: where rows stand, when they were taken, what was asked for. Owns no state and no action."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from policy.embodiment import EmbodimentSpec
from training.data.lerobot.embodiment import ACTION_KEY, STATE_KEY
from training.data.lerobot.layout import DatasetError
from training.data.lerobot.reader import Episode, LeRobotReader
from training.data.pack import EXECUTED_ACTION_KEY, episode_instruction
from training.own_data.metadata import Bounds
from training.own_data.numbers import VectorCheck
from training.own_data.problems import Problem, Problems

# Of a control period: how far one step may be off, and how far a frame from where the rate puts it, which is also how
# far its picture may be off.
_STEP_TOLERANCE, _DRIFT_TOLERANCE = 0.2, 0.5
_REINDEX = "let LeRobot write the data set anew (lerobot-edit-dataset), which numbers episodes and frames without gaps"


def check_columns(reader: LeRobotReader, spec: EmbodimentSpec, bounds: Bounds, problems: Problems) -> None:
    """Every row of every column that training reads, in one pass over the tables."""
    checks = {
        key: VectorCheck(key, groups, dim, bounds.get(key))
        for key, groups, dim in (
            (STATE_KEY, spec.state, spec.state_dim),
            (ACTION_KEY, spec.action, spec.action_dim),
            (EXECUTED_ACTION_KEY, spec.action, spec.action_dim),
        )
        if key in reader.features and list(reader.features[key]["shape"]) == [dim]
    }
    _check_order(reader, problems)
    start = num_read = 0
    for episode in reader.episodes:
        _check_length(reader, episode, problems)
        columns = _read(reader, episode, ["timestamp", "index", *checks], problems)
        if columns is not None:
            num_read += 1
            _check_index(reader, episode, columns["index"], start, problems)
            _check_timestamps(reader, episode, columns["timestamp"], problems)
            for key, check in checks.items():
                check.add(reader.data_file(episode), episode.index, columns[key])
            _check_words(reader, episode, problems)
        start += episode.length
    for check in checks.values():
        check.report(problems, complete=num_read == len(reader.episodes))


def _read(
    reader: LeRobotReader, episode: Episode, keys: Iterable[str], problems: Problems
) -> Mapping[str, np.ndarray] | None:
    try:
        return reader.numeric(episode, list(keys))
    except (DatasetError, OSError, ValueError, IndexError) as error:
        file = str(reader.data_file(episode))
        problems.add(
            f"rows of {file}",
            Problem(
                file=file,
                place=f"episode {episode.index}",
                found=str(error).removeprefix(f"{file}: "),
                expected=f"{episode.length} whole rows in order, as meta/episodes says",
                remedy=_REINDEX,
            ),
        )
        return None


def _check_order(reader: LeRobotReader, problems: Problems) -> None:
    indices = [episode.index for episode in reader.episodes]
    if indices != list(range(len(indices))):
        wrong = next(place for place, index in enumerate(indices) if place != index)
        problems.add(
            "order",
            Problem(
                file=str(reader.root / "meta/episodes"),
                column="episode_index",
                found=f"{indices[wrong]} for episode number {wrong} of {len(indices)}",
                expected=f"{wrong}, without gaps",
                remedy=_REINDEX,
            ),
        )


def _check_length(reader: LeRobotReader, episode: Episode, problems: Problems) -> None:
    if episode.length < 2:
        problems.add(
            "length",
            Problem(
                file=str(reader.data_file(episode)),
                place=f"episode {episode.index}",
                found=f"{episode.length} frames",
                expected="at least 2, for there is no motion in one",
                remedy="take the episode out (lerobot-edit-dataset --operation.type delete_episodes)",
            ),
        )


def _check_index(reader: LeRobotReader, episode: Episode, index: np.ndarray, start: int, problems: Problems) -> None:
    wrong = np.flatnonzero(index != start + np.arange(len(index)))
    if wrong.size:
        frame = int(wrong[0])
        problems.add(
            "index",
            Problem(
                file=str(reader.data_file(episode)),
                column="index",
                place=f"episode {episode.index} frame {frame}",
                found=f"{index[frame]}",
                expected=f"{start + frame}, counting on through all episodes",
                remedy=_REINDEX,
            ),
        )


def _check_timestamps(reader: LeRobotReader, episode: Episode, timestamp: np.ndarray, problems: Problems) -> None:
    frames, times = np.arange(len(timestamp)), timestamp.astype(np.float64)
    steps = np.diff(times) * reader.fps
    jumps = np.flatnonzero(~(np.abs(steps - 1) <= _STEP_TOLERANCE))
    drift = np.flatnonzero(~(np.abs(times * reader.fps - frames) <= _DRIFT_TOLERANCE))
    if not jumps.size and not drift.size:
        return
    frame = int(jumps[0]) + 1 if jumps.size else int(drift[0])
    came = (
        f"{times[frame]:.4f} s, {times[frame] - times[frame - 1]:.4f} s after the frame before"
        if frame
        else (f"{times[frame]:.4f} s")
    )
    problems.add(
        "timestamp",
        Problem(
            file=str(reader.data_file(episode)),
            column="timestamp",
            place=f"episode {episode.index} frame {frame}",
            found=came,
            expected=f"{frame / reader.fps:.4f} s, steps of {1 / reader.fps:.4f} s from 0",
            remedy="take the episode out or resample it; frames were lost, or it was recorded at another rate",
        ),
    )


def _check_words(reader: LeRobotReader, episode: Episode, problems: Problems) -> None:
    column = reader.annotations.get("instruction_column", "task_index")
    try:
        words = episode_instruction(reader, episode)
    except (DatasetError, KeyError, TypeError) as error:
        problems.add(
            "words",
            Problem(
                file=str(reader.data_file(episode)),
                column=column,
                place=f"episode {episode.index}",
                found=str(error),
                expected="one task of meta/tasks for a whole episode",
                remedy="correct the column, or give one instruction for all with --instruction",
            ),
        )
        return
    if not words.strip():
        problems.add(
            "words",
            Problem(
                file=str(reader.root / "meta/tasks"),
                column=column,
                place=f"episode {episode.index}",
                found=f"the instruction {words!r}",
                expected="words, which the policy is asked with",
                remedy="write the task into meta/tasks, or give one instruction for all with --instruction",
            ),
        )
