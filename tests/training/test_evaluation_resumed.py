"""An evaluation that is killed goes on with the episodes it has, and never with those of somebody else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training import evaluate as evaluation
from training.episode_log import EpisodeLog
from training.evaluate import Job, Target, evaluate
from training.json_file import append_line, read_lines
from training.rollout import Answer
from training.simulation.registry import embodiment
from training.simulation.task import Frame

TASKS, FIRST_SEED, NUM_EPISODES = ("lift", "drawer-open"), 100, 5


class KilledError(Exception):
    pass


class Simulation:
    """A task's body; scenes differ in their steps, and those of even seeds are solved."""

    def __init__(self, task: str) -> None:
        self.task, self.spec, self.instruction, self.max_steps = task, embodiment(task), "move", 20
        self._step = self._seed = 0

    def reset(self, seed: int) -> None:
        self._step, self._seed = 0, seed
        self.max_steps = 2 + seed % 10

    def observe(self) -> Frame:
        picture = np.tile(np.linspace(0, 200, 32, dtype=np.uint8)[None, :, None], (32, 1, 3))
        images = dict.fromkeys(self.spec.camera_names, picture)
        return Frame(images=images, state=self.state(), environment_state=np.zeros(1, np.float32))

    def state(self) -> np.ndarray:
        return np.zeros(self.spec.state_dim, np.float32)

    def step(self, action: np.ndarray) -> np.ndarray:
        self._step += 1
        return action

    def succeeded(self) -> bool:
        return self._seed % 2 == 0 and self._step >= self.max_steps - 1

    def close(self) -> None: ...


@dataclass
class Robots:
    """Whom the simulations ask: keeps the scenes that are begun; `dies_at` is the one that kills the evaluation."""

    dies_at: tuple[str, int] | None = None
    scenes: list[tuple[str, int]] = field(default_factory=list)
    execution_horizon: int = 2

    @contextmanager
    def open_source(self, _job: Job) -> Iterator[Robots]:
        yield self

    def start_episode(self, simulation: Simulation, episode_id: str) -> None:
        asked = simulation.task, int(episode_id.rpartition("-")[2])
        if asked == self.dies_at:
            raise KilledError
        self.scenes.append(asked)

    def predict(self, simulation: Simulation, _frame: Frame, seed: int, _chunking: Any = None) -> Answer:
        actions = np.random.default_rng(seed).normal(size=(4, simulation.spec.action_dim)).astype(np.float32)
        return Answer(actions=actions, latency_s=0.001 * (seed % 7))

    def played(self, state: np.ndarray, action: np.ndarray) -> None: ...


@pytest.fixture
def robots(monkeypatch: pytest.MonkeyPatch) -> Robots:
    found = Robots()
    monkeypatch.setattr(evaluation, "make_simulation", Simulation)
    monkeypatch.setattr(evaluation, "open_source", found.open_source)
    return found


TARGET = Target(address="127.0.0.1:1", policy="tabletop", revision="0123456789ab", history=True)


def play(directory: Path, target: Target = TARGET, **options: Any) -> list[Mapping[str, Any]]:
    asked: dict[str, Any] = {"tasks": TASKS, "num_episodes": NUM_EPISODES, "first_seed": FIRST_SEED, **options}
    return evaluate(target, log_directory=directory / "episodes", **asked)


def without_time(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{name: value for name, value in row.items() if name != "chunks_per_s"} for row in rows]


def test_a_killed_evaluation_goes_on_and_says_the_same(robots: Robots, tmp_path: Path) -> None:
    unbroken = play(tmp_path / "unbroken")
    whole = list(robots.scenes)
    robots.scenes.clear()
    robots.dies_at = ("drawer-open", 102)
    with pytest.raises(KilledError):
        play(tmp_path / "killed")
    robots.dies_at = None
    tasks_done: list[None] = []
    resumed = play(tmp_path / "killed", finished=lambda: tasks_done.append(None))
    assert robots.scenes == whole, "no scene twice and none left out"
    assert without_time(resumed) == without_time(unbroken)
    assert [row["solved_seeds"] for row in resumed] == [[100, 102, 104]] * 2
    assert len(tasks_done) == 2
    robots.scenes.clear()
    assert play(tmp_path / "killed") == resumed
    assert robots.scenes == []


def test_the_first_task_that_fails_ends_an_evaluation(
    robots: Robots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = threading.Event()

    class Threads(ThreadPoolExecutor):
        """In the place of processes, which a fixture does not reach; a task plays once the pool is shut down."""

        def __init__(self, num_workers: int, **_: Any) -> None:
            super().__init__(num_workers)

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            ends.set()
            super().shutdown()

    def run_job(job: Job) -> Mapping[str, Any]:
        if job.task == "lift":
            raise KilledError
        assert ends.wait(10.0)
        robots.scenes.append((job.task, 0))
        return {}

    monkeypatch.setattr(evaluation, "ProcessPoolExecutor", Threads)
    monkeypatch.setattr(evaluation, "run_job", run_job)
    tasks = ["lift", "drawer-open", "assembly", "button-press", "pick-can", "open-door"]
    with pytest.raises(KilledError):
        play(tmp_path, tasks=tasks, num_workers=2)
    # At most what two workers had begun, and none of those that waited.
    assert len(robots.scenes) <= 2


def test_more_scenes_add_to_those_that_were_played(robots: Robots, tmp_path: Path) -> None:
    play(tmp_path, tasks=["lift"], num_episodes=2)
    (row,) = play(tmp_path, tasks=["lift"], num_episodes=4)
    assert [seed for _, seed in robots.scenes] == row["seeds"] == [100, 101, 102, 103]


@pytest.mark.parametrize(
    "changed",
    [
        {"revision": "ba9876543210"},
        {"history": False},
        {"policy": "another"},
        {"rule": "guidance"},
        {"inference_delay": 1},
    ],
    ids=str,
)
def test_episodes_of_another_revision_or_of_other_conditions_are_not_mixed_in(
    robots: Robots, tmp_path: Path, changed: dict[str, Any]
) -> None:
    play(tmp_path, tasks=["lift"])
    played = len(robots.scenes)
    play(tmp_path, replace(TARGET, **changed), tasks=["lift"])
    assert len(robots.scenes) == 2 * played
    play(tmp_path, tasks=["lift"])
    assert len(robots.scenes) == 2 * played, "neither overwrote the other's"


def test_a_gateway_elsewhere_that_serves_the_same_is_the_same(robots: Robots, tmp_path: Path) -> None:
    play(tmp_path)
    played = len(robots.scenes)
    play(tmp_path, replace(TARGET, address="127.0.0.1:2"))
    assert len(robots.scenes) == played


def test_a_line_that_was_cut_in_half_is_played_and_written_again(robots: Robots, tmp_path: Path) -> None:
    rows = play(tmp_path, tasks=["lift"])
    path = tmp_path / "episodes" / "lift.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-30])
    robots.scenes.clear()
    assert without_time(play(tmp_path, tasks=["lift"])) == without_time(rows)
    assert robots.scenes == [("lift", 104)]
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [100, 101, 102, 103, 104]


def test_a_video_that_is_not_there_has_its_scenes_played_again(robots: Robots, tmp_path: Path) -> None:
    play(tmp_path, tasks=["lift"])
    robots.scenes.clear()
    for expected in ([100, 101, 102], []):
        play(tmp_path, tasks=["lift"], video_directory=tmp_path / "videos")
        assert [seed for _, seed in robots.scenes] == expected
        assert (tmp_path / "videos" / "lift.mp4").stat().st_size > 1000
        robots.scenes.clear()


def test_a_video_is_whole_before_the_scenes_after_it_are_played(robots: Robots, tmp_path: Path) -> None:
    robots.dies_at = ("lift", 103)
    with pytest.raises(KilledError):
        play(tmp_path, tasks=["lift"], video_directory=tmp_path)
    assert (tmp_path / "lift.mp4").is_file()
    robots.dies_at = ("lift", 101)
    with pytest.raises(KilledError):
        play(tmp_path, replace(TARGET, history=False), tasks=["lift"], video_directory=tmp_path / "half")
    assert list((tmp_path / "half").iterdir()) == []


def test_episodes_of_a_served_policy_are_kept_of_one_revision_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="episodes are kept of one alone"):
        play(tmp_path, replace(TARGET, revision=""))


def test_lines_are_whole_however_the_last_one_ended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    assert read_lines(path) == []
    for cut in ("", '{"a": ', "{"):
        append_line(path, {"a": 1})
        path.write_text(path.read_text() + cut)
    assert read_lines(path) == [{"a": 1}] * 3
    path.write_text('{"a"')
    append_line(path, {"b": 2.5})
    assert path.read_text() == '{"b": 2.5}\n'


def test_a_log_reads_what_it_wrote_bit_for_bit(robots: Robots, tmp_path: Path) -> None:
    play(tmp_path, tasks=["lift"])
    log = EpisodeLog(path=tmp_path / "episodes" / "lift.jsonl", played_by=TARGET.played_by())
    copy = replace(log, path=tmp_path / "copy.jsonl")
    for played in log.read().values():
        copy.append(played)
    assert copy.read() == log.read()
    assert copy.path.read_bytes() == log.path.read_bytes()
