"""A suite's recordings: many at a time, one failure alone, the same job here and on a cluster; and their card."""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is first imported

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from training.__main__ import main
from training.bench_data import (
    MissingRayError,
    RecordingJob,
    perform,
    recording_jobs,
    run_in_processes,
    run_on_ray,
)
from training.data.lerobot.reader import LeRobotReader
from training.data.pack import build_pack
from training.dataset_card import noisy_datasets, write_card
from training.suite import Suite

SMOKE = Suite.load("smoke")


def silent(event: Mapping[str, Any]) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Recorded:
    status: int
    output: str
    events: Sequence[Mapping[str, Any]]


def bench_data(directory: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> Recorded:
    status = main(["bench-data", "--suite", "smoke", "--directory", str(directory), *arguments])
    captured = capsys.readouterr()
    events = [json.loads(line) for line in captured.err.splitlines() if line.startswith("{")]
    return Recorded(status=status, output=captured.out, events=events)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bench")
    call = ["bench-data", "--suite", "smoke", "--directory", str(directory), "--tasks", "button-press", "--motion"]
    assert main(call) == 0
    return directory


def test_a_task_is_recorded_with_images_and_more_of_it_without(recorded: Path) -> None:
    data, motion = LeRobotReader(recorded / "data/button-press"), LeRobotReader(recorded / "motion/button-press")
    assert [episode.seed for episode in data.episodes] == [0, 1, 2]
    assert [episode.seed for episode in motion.episodes] == [10_000, 10_001]
    assert (len(data.camera_keys), len(motion.camera_keys)) == (2, 0)


def test_what_is_complete_is_left_alone(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = bench_data(recorded, capsys, "--tasks", "button-press", "button-press", "--motion")
    assert again.status == 0
    assert [event["event"] for event in again.events] == ["complete", "complete", "described", "described"]


def entry_of(card: Mapping[str, Any], kind: str, task: str) -> Mapping[str, Any]:
    (entry,) = (entry for entry in card["recordings"][kind] if entry["task"] == task)
    return entry


@pytest.mark.parametrize("kind", ["data", "motion"])
def test_the_card_names_what_a_pack_names_as_its_source(recorded: Path, tmp_path: Path, kind: str) -> None:
    entry = entry_of(json.loads((recorded / "card.json").read_text()), kind, "button-press")
    pack = build_pack(recorded / kind / "button-press", tmp_path / "pack", image_size=None)
    assert (entry["sha256"], entry["frames"]) == (pack.source_sha256, pack.num_frames)
    assert (entry["first_seed"], entry["last_seed"]) == (pack.episode_seed[0], pack.episode_seed[-1])
    assert entry["instructions"] == list(pack.instructions)
    assert entry["robot_time_s"] == pytest.approx(pack.num_frames / pack.spec.control_rate_hz)


def test_the_card_says_bodies_simulators_and_that_every_image_was_checked(recorded: Path) -> None:
    card = json.loads((recorded / "card.json").read_text())
    (body,) = card["bodies"]
    assert (body["body"], body["state_dim"], body["action_dim"], body["control_rate_hz"]) == ("sawyer", 4, 4, 80)
    assert set(card["simulators"]) == set(card["licences"]) == {"mujoco", "metaworld"}
    assert "mujoco" in card["renderers"][0]
    assert Suite.from_json(card["suite"]) == SMOKE
    entry = entry_of(card, "data", "button-press")
    assert entry["status"] == "recorded"
    assert entry["checked_images"] == 2 * entry["frames"]
    assert (entry["noisy_images"], entry["disturbed_episodes"]) == (0, 1)
    assert 0 < entry["highest_pixel_noise"] < card["noise_limit"]
    assert entry["expert_attempts"] == entry["episodes"] + len(entry["failed_seeds"])
    assert entry_of(card, "motion", "button-press")["checked_images"] == 0


def test_the_page_says_what_the_card_says(recorded: Path) -> None:
    page, card = (recorded / "README.md").read_text(), json.loads((recorded / "card.json").read_text())
    for kind in ("data", "motion"):
        entry = entry_of(card, kind, "button-press")
        assert f"| {kind}/button-press | `{entry['sha256']}` |" in page
        assert f"| button-press | sawyer | recorded | {entry['episodes']} | {entry['frames']} |" in page
    for words in ("press the button", "100000 to 100999", "80 Hz", "MIT", "Apache-2.0", "0 above the limit"):
        assert words in page


def test_a_task_that_is_not_recorded_is_listed_as_such(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry_of(json.loads((recorded / "card.json").read_text()), "data", "drawer-open")["status"] == "not recorded"
    described = bench_data(tmp_path, capsys, "--card")
    assert described.status == 0
    assert "drawer-open   sawyer  not recorded" in described.output
    assert "data: 0 tasks recorded, 0 episodes" in described.output
    assert "| button-press | sawyer | not recorded |" in (tmp_path / "README.md").read_text()


@pytest.fixture
def own_copy(recorded: Path, tmp_path: Path) -> Path:
    """The recordings, for a test that changes their card."""
    return shutil.copytree(recorded, tmp_path / "bench")


def test_a_dataset_of_another_plan_is_listed_as_such(own_copy: Path) -> None:
    card = write_card(replace(SMOKE, motion_demonstrations=1), own_copy, report=silent)
    assert entry_of(card, "data", "button-press")["status"] == "recorded"
    assert entry_of(card, "motion", "button-press")["status"] == "of another plan"


def test_a_noisy_image_in_a_dataset_is_found(own_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    monkeypatch.setattr(LeRobotReader, "iter_frames", lambda self, key: iter([noise]))
    assert noisy_datasets(write_card(SMOKE, own_copy, report=silent)) == {}  # checked before, and not changed since
    (own_copy / "card.json").unlink()
    assert noisy_datasets(write_card(SMOKE, own_copy, report=silent)) == {"data/button-press": 2}


def test_one_failure_leaves_the_others_and_is_named_at_the_end(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(recorded / "data" / "button-press", tmp_path / "data" / "button-press")
    shutil.copytree(recorded / "motion" / "button-press", tmp_path / "data" / "drawer-open")
    status = main(["bench-data", "--suite", "smoke", "--directory", str(tmp_path)])
    captured = capsys.readouterr()
    assert status == 1
    assert '"event": "complete", "recording": "data/button-press"' in captured.err
    last = captured.err.splitlines()[-1]
    assert last.startswith("bench-data: 1 failed, the others are complete: data/drawer-open: FileExistsError: ")
    assert "drawer-open   sawyer  of another plan" in captured.out


def test_a_crashed_process_is_a_failure_with_its_status(tmp_path: Path) -> None:
    # A job that cannot be unpickled ends its process before anything is sent.
    job = RecordingJob(
        task="drawer-open", directory=tmp_path / "data" / "x", num_episodes=1, first_seed=0, disturbed_fraction=0.0,
        images=True,
    )  # fmt: skip
    object.__setattr__(job, "images", Crash())
    failures = run_in_processes([job], 1, silent)
    assert failures == {"data/x": "the process ended with status 3"}


class Crash:
    """Ends the process that receives it."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (3,)


def test_the_longest_recordings_start_first() -> None:
    suite = Suite.load("cross13")
    jobs = recording_jobs(suite, Path("bench"), tasks=suite.task_names, motion=True)
    expected_s = [job.num_episodes * suite.tasks[job.task].recording_s for job in jobs]
    assert expected_s == sorted(expected_s, reverse=True)
    assert len(jobs) == 26
    assert len(recording_jobs(suite, Path("bench"), tasks=["lift"], motion=False)) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--suite", "smok"], 2, "unknown suite 'smok', did you mean 'smoke'?"),
        (["--suite", "smoke", "--tasks", "drawer"], 2, "unknown task 'drawer', did you mean 'drawer-open'?"),
        (["--suite", "smoke", "--workers", "0"], 1, "--workers is 0, expected at least 1"),
    ],
)
def test_a_wrong_call_is_named(
    arguments: list[str], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench-data", "--directory", str(tmp_path), *arguments]) == status
    assert message in capsys.readouterr().err


class FakeRay(ModuleType):
    """A cluster of one that runs a task when it is waited for, the last one given first."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.exceptions = ModuleType("ray.exceptions")
        self.exceptions.RayError = type("RayError", (Exception,), {})  # type: ignore[attr-defined]
        self.address = ""
        self.environment: Mapping[str, str] = {}
        self.functions: list[Any] = []
        self.lost: set[str] = set()
        self.slow = 1

    def init(self, address: str, runtime_env: Mapping[str, Mapping[str, str]]) -> None:
        self.address = address
        self.environment = runtime_env["env_vars"]

    def shutdown(self) -> None:
        self.address = ""

    def remote(self, function: Any) -> Any:
        self.functions.append(function)
        cluster = self

        class Remote:
            def remote(self, *arguments: Any) -> Any:
                return cluster.Reference(function, arguments)

        return Remote()

    class Reference:
        def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
            self.function, self.arguments = function, arguments

    def wait(self, references: list[Reference], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        assert self.address
        assert num_returns == 1
        assert timeout > 0
        self.slow -= 1
        return ([], references) if self.slow == 0 else (references[-1:], references[:-1])

    def get(self, reference: Reference) -> Any:
        if reference.arguments[0].name in self.lost:
            raise self.exceptions.RayError("a machine is gone")
        return reference.function(*reference.arguments)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.exceptions", fake.exceptions)
    yield fake
    assert fake.address == ""  # disconnected, whatever happened


def test_a_cluster_is_given_the_function_that_a_process_runs(ray: FakeRay, recorded: Path) -> None:
    events: list[Mapping[str, Any]] = []
    jobs = recording_jobs(SMOKE, recorded, tasks=["button-press"], motion=True)
    assert run_on_ray(jobs, "10.0.0.1:6379", events.append) == {}
    assert ray.functions == [perform]
    assert [event["event"] for event in events] == ["waiting", "complete", "complete"]
    assert events[0]["recordings"] == ["data/button-press", "motion/button-press"]


def test_processes_of_a_cluster_render_as_here_and_take_one_core(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    for here, there in (("osmesa", "osmesa"), (None, "egl")):
        monkeypatch.delenv("MUJOCO_GL", raising=False)
        if here:
            monkeypatch.setenv("MUJOCO_GL", here)
        assert run_on_ray([], "10.0.0.1:6379", silent) == {}
        assert ray.environment == {"MUJOCO_GL": there, "OMP_NUM_THREADS": "1"}


def test_a_machine_that_a_cluster_loses_is_one_failure(ray: FakeRay, recorded: Path) -> None:
    ray.lost = {"data/button-press"}
    jobs = recording_jobs(SMOKE, recorded, tasks=["button-press"], motion=True)
    assert run_on_ray(jobs, "10.0.0.1:6379", silent) == {"data/button-press": "RayError: a machine is gone"}


def test_the_verb_asks_the_cluster_whose_address_it_is_given(
    ray: FakeRay, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_data(recorded, capsys, "--tasks", "button-press", "--ray", "10.0.0.1:6379").status == 0
    assert ray.functions == [perform]


def test_an_address_without_ray_is_an_error_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingRayError, match=r"pip install ray.*pip install --no-deps robosuite"):
        run_on_ray([], "10.0.0.1:6379", silent)
    recorded = bench_data(tmp_path, capsys, "--ray", "10.0.0.1:6379")
    assert recorded.status == 1
