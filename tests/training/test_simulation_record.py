"""Recording: resumed after a kill, filtered on success, checked against what already lies on disk."""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is first imported

import hashlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy.embodiment import EmbodimentSpec
from training.data.lerobot.reader import LeRobotReader
from training.record import STEPS_AFTER_SUCCESS, Plan, RecordingError, Shards, record, record_episode
from training.simulation.bodies.sawyer import SPEC as SAWYER
from training.simulation.disturbance import Disturbance
from training.simulation.task import Frame

ARGUMENTS: dict[str, Any] = {"task": "drawer-open", "num_episodes": 2, "first_seed": 40, "disturbed_fraction": 0.5}


NUMERIC = ("observation.state", "action", "executed_action", "observation.environment_state")


class CountingTask:
    """Counts its steps and succeeds at the tenth; the expert always says one half."""

    task, instruction, max_steps = "counting", "count", 30
    spec: EmbodimentSpec = SAWYER
    environment_state_names = ("count",)

    def __init__(self, *, succeeds_at: int = 10) -> None:
        self._succeeds_at = succeeds_at
        self._count = 0

    def reset(self, seed: int) -> None:
        self._count = 0

    def observe(self) -> Frame:
        images = {name: np.full((128, 128, 3), self._count, np.uint8) for name in self.spec.camera_names}
        return Frame(images=images, state=self.state(), environment_state=self.environment_state())

    def state(self) -> np.ndarray:
        return np.full(4, self._count, np.float32)

    def environment_state(self) -> np.ndarray:
        return np.array([self._count], np.float32)

    def step(self, action: np.ndarray) -> np.ndarray:
        self._count += 1
        return np.clip(action, -1, 1)

    def succeeded(self) -> bool:
        return self._count >= self._succeeds_at

    def expert(self) -> Iterator[np.ndarray]:
        while True:
            yield np.full(4, 0.5, np.float32)

    def close(self) -> None:
        pass


def digests(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Mapping[str, Any]]]:
    events: list[Mapping[str, Any]] = []
    return record(directory=tmp_path_factory.mktemp("whole") / "drawer", report=events.append, **ARGUMENTS), events


def test_a_recording_killed_between_episodes_resumes_to_the_same_dataset(
    recorded: tuple[Path, list[Mapping[str, Any]]], tmp_path: Path
) -> None:
    directory = tmp_path / "drawer"
    script = f"from training.record import record; record(directory={str(directory)!r}, **{ARGUMENTS!r})"
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = next(line for line in process.stderr if '"episode"' in line)
    process.kill()
    process.wait(timeout=60)
    process.stderr.close()
    assert '"seed": 40' in first
    assert not directory.exists()

    events: list[Mapping[str, Any]] = []
    record(directory=directory, report=events.append, **ARGUMENTS)
    assert 40 not in [event.get("seed") for event in events]
    assert digests(directory) == digests(recorded[0])
    assert not directory.with_name("drawer.partial").exists()


def test_two_processes_record_the_same_dataset_as_one(
    recorded: tuple[Path, list[Mapping[str, Any]]], tmp_path: Path
) -> None:
    record(directory=tmp_path / "drawer", num_workers=2, **ARGUMENTS)
    assert digests(tmp_path / "drawer") == digests(recorded[0])


def test_the_dataset_says_what_a_frame_holds_and_how_it_was_made(
    recorded: tuple[Path, list[Mapping[str, Any]]],
) -> None:
    directory, events = recorded
    reader = LeRobotReader(directory)
    assert [episode.seed for episode in reader.episodes] == [40, 41]
    assert EmbodimentSpec.from_json(reader.annotations["embodiment"]) == SAWYER
    assert reader.annotations["disturbed_seeds"] == [41]
    assert set(reader.annotations["simulator"]) == {"mujoco", "metaworld"}
    clean, disturbed = (reader.numeric(episode, ["action", "executed_action"]) for episode in reader.episodes)
    np.testing.assert_array_equal(clean["action"], clean["executed_action"])
    assert (disturbed["action"] != disturbed["executed_action"]).any()
    assert [event["event"] for event in events] == ["episode", "episode", "recorded"]


def test_a_finished_recording_is_left_alone_and_another_one_refused(
    recorded: tuple[Path, list[Mapping[str, Any]]],
) -> None:
    directory, _ = recorded
    before = digests(directory)
    record(directory=directory, **ARGUMENTS)
    assert digests(directory) == before
    with pytest.raises(FileExistsError, match="name another directory"):
        record(directory=directory, **{**ARGUMENTS, "num_episodes": 3})


def test_a_recording_is_what_a_pack_reads(recorded: tuple[Path, list[Mapping[str, Any]]], tmp_path: Path) -> None:
    from training.data import pack

    built = pack.build_pack(recorded[0], tmp_path / "pack", image_size=None)
    assert built.environment_state_names == ("object_x", "object_y", "object_z")
    assert built.environment_state is not None
    assert (built.executed_action != built.action).any()
    assert built.spec == SAWYER
    assert list(built.episode_seed) == [40, 41]


@pytest.fixture(scope="module")
def motion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(directory=tmp_path_factory.mktemp("motion") / "drawer", images=False, **ARGUMENTS)


def test_a_recording_without_images_holds_the_same_motion(
    recorded: tuple[Path, list[Mapping[str, Any]]], motion: Path
) -> None:
    seen, unseen = LeRobotReader(recorded[0]), LeRobotReader(motion)
    assert not any(key.startswith("observation.images") for key in unseen.features)
    assert unseen.annotations["recording"]["images"] is False
    assert unseen.annotations["renderer"] == "none"
    assert not list(motion.rglob("*.mp4"))
    for with_images, without in zip(seen.episodes, unseen.episodes, strict=True):
        expected, found = seen.numeric(with_images, NUMERIC), unseen.numeric(without, NUMERIC)
        for key in NUMERIC:
            np.testing.assert_array_equal(found[key], expected[key])


def test_a_recording_without_images_renders_nothing() -> None:
    class UnseenTask(CountingTask):
        def observe(self) -> Frame:
            raise AssertionError("rendered")

    episode = record_episode(UnseenTask(), 0, disturbance=None, images=False)
    assert episode is not None
    assert set(episode) == set(NUMERIC)
    np.testing.assert_array_equal(episode["observation.environment_state"][:, 0], np.arange(20))


def test_a_recording_without_images_is_what_a_state_action_pack_reads(motion: Path, tmp_path: Path) -> None:
    from training.data import pack
    from training.data.lerobot.layout import DatasetError

    built = pack.build_pack(motion, tmp_path / "pack", image_size=None)
    assert built.spec == SAWYER
    assert not built.images
    assert built.environment_state is not None
    with pytest.raises(DatasetError, match="camera 'left'"):
        pack.build_pack(motion, tmp_path / "images", image_size=96)


def test_a_recording_with_images_is_not_taken_for_one_without(
    recorded: tuple[Path, list[Mapping[str, Any]]], motion: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileExistsError, match="name another directory"):
        record(directory=recorded[0], images=False, **ARGUMENTS)
    with pytest.raises(FileExistsError, match="name another directory"):
        record(directory=motion, **ARGUMENTS)
    Shards(tmp_path / "x.partial", Plan(task="lift", first_seed=0, disturbed_fraction=0.5, images=False))
    with pytest.raises(RecordingError, match="delete it to start again"):
        Shards(tmp_path / "x.partial", Plan(task="lift", first_seed=0, disturbed_fraction=0.5))


def test_a_plan_that_does_not_mention_images_is_one_with_images(tmp_path: Path) -> None:
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "plan.json").write_text('{"task": "lift", "first_seed": 0, "disturbed_fraction": 0.5}')
    Shards(tmp_path / "x.partial", Plan(task="lift", first_seed=0, disturbed_fraction=0.5))


def test_a_directory_is_recorded_by_one_process_at_a_time(tmp_path: Path) -> None:
    plan = Plan(task="drawer-open", first_seed=40, disturbed_fraction=0.5)
    with Shards(tmp_path / "drawer.partial", plan).claimed():
        with pytest.raises(RecordingError, match="another process"):
            record(directory=tmp_path / "drawer", **ARGUMENTS)
        record(directory=tmp_path / "other", images=False, report=lambda event: None, **ARGUMENTS)
    with Shards(tmp_path / "drawer.partial", plan).claimed():
        pass


def test_an_episode_ends_some_steps_after_its_success() -> None:
    episode = record_episode(CountingTask(), 0, disturbance=None)
    assert episode is not None
    assert len(episode["action"]) == 10 + STEPS_AFTER_SUCCESS
    np.testing.assert_array_equal(episode["observation.environment_state"][:, 0], np.arange(20))


def test_the_label_stays_the_experts_and_the_disturbance_ends_with_the_success() -> None:
    disturbance = Disturbance(np.random.default_rng(1), SAWYER, scale=0.5)
    episode = record_episode(CountingTask(succeeds_at=25), 0, disturbance=disturbance)
    assert episode is not None
    assert (episode["action"] == 0.5).all()
    assert (episode["executed_action"][:25] != 0.5).any()
    assert (episode["executed_action"][25:] == 0.5).all()


def test_an_episode_without_success_is_not_kept() -> None:
    assert record_episode(CountingTask(succeeds_at=31), 0, disturbance=None) is None


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.25, 25), (0.5, 50), (1.0, 100)])
def test_the_disturbed_part_of_any_hundred_seeds_is_the_fraction(fraction: float, expected: int) -> None:
    plan = Plan(task="lift", first_seed=17, disturbed_fraction=fraction)
    assert sum(plan.is_disturbed(seed) for seed in range(17, 117)) == expected


def test_shards_of_another_plan_are_refused(tmp_path: Path) -> None:
    Shards(tmp_path / "x.partial", Plan(task="lift", first_seed=0, disturbed_fraction=0.5))
    with pytest.raises(RecordingError, match="delete it to start again"):
        Shards(tmp_path / "x.partial", Plan(task="lift", first_seed=1, disturbed_fraction=0.5))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_episodes": 0}, "num_episodes is 0"),
        ({"first_seed": -1}, "first_seed is -1"),
        ({"disturbed_fraction": 1.5}, "disturbed_fraction is 1.5"),
        ({"task": "drawer"}, "did you mean 'drawer-open'"),
    ],
)
def test_a_wrong_argument_is_named(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        record(directory=tmp_path / "x", **{**ARGUMENTS, **wrong})
