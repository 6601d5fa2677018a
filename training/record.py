"""Records one task as a LeRobot v3 dataset: the scripted expert, successes only, a part of them disturbed.

Owns which seeds are recorded, what a frame holds (images or motion alone), and resuming after a kill. Finished episodes
lie in `<directory>.partial` until all are there; then the dataset is written once. Any number of processes may record
at a time, each its own directory. Does not own simulators or the file format.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from policy.embodiment import EmbodimentSpec, Group
from training.data.lerobot.embodiment import ACTION_KEY, CAMERA_PREFIX, STATE_KEY
from training.data.lerobot.layout import ANNOTATIONS_PATH
from training.data.lerobot.writer import LeRobotWriter
from training.simulation.disturbance import Disturbance
from training.simulation.registry import make_simulation, simulator_versions
from training.simulation.task import Simulation

# What training/data/pack.py reads under these names; importing it would bring torch into every recording process.
EXECUTED_ACTION_KEY = "executed_action"
ENVIRONMENT_STATE_KEY = "observation.environment_state"
STEPS_AFTER_SUCCESS = 10  # so that a policy learns to finish calmly
FEWEST_ATTEMPTS_TO_JUDGE = 20

Arrays = dict[str, npt.NDArray[Any]]
Report = Callable[[Mapping[str, Any]], None]


class RecordingError(RuntimeError):
    """The recording cannot go on: the expert fails too often, or what lies on disk is of another recording."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an episode depends on besides its seed: shards of an equal plan can be resumed."""

    task: str
    first_seed: int
    disturbed_fraction: float
    images: bool = True

    def __post_init__(self) -> None:
        if self.first_seed < 0:
            raise ValueError(f"first_seed is {self.first_seed}, expected 0 or more")
        if not 0.0 <= self.disturbed_fraction <= 1.0:
            raise ValueError(f"disturbed_fraction is {self.disturbed_fraction}, expected 0 to 1")

    def is_disturbed(self, seed: int) -> bool:
        """Spread evenly over the seeds, so that any run of them has the fraction."""
        position = seed - self.first_seed
        return int((position + 1) * self.disturbed_fraction) > int(position * self.disturbed_fraction)


def print_report(event: Mapping[str, Any]) -> None:
    print(json.dumps(event), file=sys.stderr, flush=True)


def record(
    *,
    task: str,
    directory: Path | str,
    num_episodes: int,
    first_seed: int,
    disturbed_fraction: float = 0.5,
    images: bool = True,
    num_workers: int = 1,
    report: Report = print_report,
) -> Path:
    """Write the first `num_episodes` solved seeds, counting from `first_seed`, to the dataset `directory`.

    Without `images` nothing is rendered and the dataset has no video: states, actions and the environment's state.
    Resumes a recording that was killed and returns at once when it is done. `report` gets one event per episode.
    Raises ValueError for a wrong argument or task, FileExistsError when `directory` holds something else,
    RecordingError when the expert fails on more than half of the scenes or another process records `directory` now.
    """
    if num_episodes < 1 or num_workers < 1:
        raise ValueError(f"num_episodes is {num_episodes} and num_workers {num_workers}, expected at least 1")
    directory = Path(directory)
    plan = Plan(task=task, first_seed=first_seed, disturbed_fraction=disturbed_fraction, images=images)
    recording = {**asdict(plan), "num_episodes": num_episodes}
    if directory.exists():
        _check_same_recording(directory, recording)
        return directory
    simulation = make_simulation(task)
    try:
        shards = Shards(directory.with_name(directory.name + ".partial"), plan)
        with shards.claimed():
            _fill(shards, simulation, num_episodes, num_workers, report)
            _seal(shards, simulation, directory, recording, num_episodes)
            shutil.rmtree(shards.directory)
    finally:
        simulation.close()
    report({"event": "recorded", **recording, "directory": str(directory)})
    return directory


def _check_same_recording(directory: Path, recording: Mapping[str, Any]) -> None:
    path = directory / ANNOTATIONS_PATH
    found = json.loads(path.read_text()).get("recording") if path.is_file() else None
    if found is None or _with_images_unless_said(found) != recording:
        raise FileExistsError(f"{directory} exists and holds {found}, expected {recording}: name another directory")


def _with_images_unless_said(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {"images": True, **plan}


class Shards:
    """The episodes of a recording that is not complete: one npz per solved seed, an empty file per failed one."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.directory, self.plan = directory, plan
        directory.mkdir(parents=True, exist_ok=True)
        path, wanted = directory / "plan.json", asdict(plan)
        if not path.exists():
            _write_atomically(path, lambda file: file.write_text(json.dumps(wanted)))
        found = json.loads(path.read_text())
        if _with_images_unless_said(found) != wanted:
            raise RecordingError(f"{directory} was begun as {found}, expected {wanted}: delete it to start again")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes out; a killed process has no claim. Raises RecordingError when one is inside."""
        with (self.directory / "plan.json").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RecordingError(
                    f"{self.directory} is being recorded by another process: wait for it or name another directory"
                ) from error
            yield

    def solved_seeds(self) -> list[int]:
        return sorted(int(path.stem) for path in self.directory.glob("[0-9]*.npz"))

    def failed_seeds(self) -> list[int]:
        return sorted(int(path.stem) for path in self.directory.glob("[0-9]*.failed"))

    def write(self, seed: int, episode: Arrays | None) -> None:
        if episode is None:
            self._path(seed, ".failed").touch()
        else:
            _write_atomically(self._path(seed, ".npz"), lambda file: _save(file, episode))

    def read(self, seed: int) -> Arrays:
        with np.load(self._path(seed, ".npz"), allow_pickle=False) as episode:
            return dict(episode)

    def _path(self, seed: int, suffix: str) -> Path:
        return self.directory / f"{seed:09d}{suffix}"


def _save(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]  (taken for its flag allow_pickle)


def _write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    staged = path.with_name(f"staged-{path.name}")
    write(staged)
    staged.replace(path)


def _fill(shards: Shards, simulation: Simulation, num_episodes: int, num_workers: int, report: Report) -> None:
    """Attempt seeds in order until enough are solved; a round attempts as many as are missing, never too many."""
    plan = shards.plan
    while missing := num_episodes - len(shards.solved_seeds()):
        attempted = {*shards.solved_seeds(), *shards.failed_seeds()}
        if len(attempted) >= FEWEST_ATTEMPTS_TO_JUDGE and 2 * len(shards.failed_seeds()) > len(attempted):
            raise RecordingError(
                f"the expert failed on {len(shards.failed_seeds())} of {len(attempted)} scenes of {plan.task!r}, "
                "expected at most half"
            )
        # A round that was killed left holes: its seeds come before any new one.
        round_end = max([plan.first_seed - 1, *attempted]) + 1
        holes = [seed for seed in range(plan.first_seed, round_end) if seed not in attempted]
        seeds = (holes + list(range(round_end, round_end + missing)))[:missing]
        outcomes = (
            _attempt(shards, simulation, seeds)
            if num_workers == 1
            else _attempt_in_processes(shards, seeds, num_workers)
        )
        for seed, num_steps in outcomes:
            report(
                {
                    "event": "episode",
                    "task": plan.task,
                    "seed": seed,
                    "disturbed": plan.is_disturbed(seed),
                    "solved": num_steps is not None,
                    "num_steps": num_steps,
                    "num_solved": len(shards.solved_seeds()),
                    "num_episodes": num_episodes,
                }
            )


def _attempt(shards: Shards, simulation: Simulation, seeds: Sequence[int]) -> Iterator[tuple[int, int | None]]:
    """Each seed with its number of steps, None for a failure."""
    for seed in seeds:
        disturbance = None
        if shards.plan.is_disturbed(seed):
            disturbance = Disturbance(np.random.default_rng([seed, 1]), simulation.spec)
        episode = record_episode(simulation, seed, disturbance=disturbance, images=shards.plan.images)
        shards.write(seed, episode)
        yield seed, None if episode is None else len(episode[ACTION_KEY])


def _attempt_in_processes(shards: Shards, seeds: Sequence[int], num_workers: int) -> Iterator[tuple[int, int | None]]:
    # Spawned, not forked: a forked GL context is broken. A process whose reader is gone ends at its next episode.
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, SpawnProcess] = {}
    try:
        for part in range(min(num_workers, len(seeds))):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_attempt_part, args=(shards, seeds[part::num_workers], writer))
            process.start()
            writer.close()
            running[reader] = process
        while running:
            for reader in wait(list(running)):
                assert isinstance(reader, Connection)
                try:
                    yield reader.recv()
                except EOFError:
                    process = running.pop(reader)
                    process.join()
                    if process.exitcode:
                        raise RecordingError(f"a recording process ended with status {process.exitcode}") from None
    finally:
        for process in running.values():
            process.terminate()
            process.join()


def _attempt_part(shards: Shards, seeds: Sequence[int], writer: Connection) -> None:
    simulation = make_simulation(shards.plan.task)
    try:
        for outcome in _attempt(shards, simulation, seeds):
            writer.send(outcome)
    finally:
        simulation.close()


def record_episode(
    simulation: Simulation, seed: int, *, disturbance: Disturbance | None, images: bool = True
) -> Arrays | None:
    """The expert's episode on one scene as dataset columns, each [num_steps, ...]; None when it does not solve it.

    `action` is the expert's label, `executed_action` what was played. Raises NoisyFrameError for a broken image.
    """
    simulation.reset(seed)
    expert = simulation.expert()
    rows: list[Arrays] = []
    solved, steps_left = False, simulation.max_steps
    while steps_left > 0:
        observed = _observe(simulation) if images else _read_state(simulation)
        label = next(expert)
        executed = simulation.step(label if disturbance is None or solved else disturbance.apply(label))
        rows.append(observed | {ACTION_KEY: label, EXECUTED_ACTION_KEY: executed})
        steps_left -= 1
        if simulation.succeeded() and not solved:
            solved, steps_left = True, STEPS_AFTER_SUCCESS
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]} if solved else None


def _observe(simulation: Simulation) -> Arrays:
    from training.simulation.rendering import check_frame

    frame = simulation.observe()
    check_frame(frame.images)
    cameras = {CAMERA_PREFIX + name: image for name, image in frame.images.items()}
    return {**cameras, STATE_KEY: frame.state, ENVIRONMENT_STATE_KEY: frame.environment_state}


def _read_state(simulation: Simulation) -> Arrays:
    return {STATE_KEY: simulation.state(), ENVIRONMENT_STATE_KEY: simulation.environment_state()}


def _seal(
    shards: Shards, simulation: Simulation, directory: Path, recording: Mapping[str, Any], num_episodes: int
) -> None:
    seeds = shards.solved_seeds()[:num_episodes]
    annotations = {
        "task": simulation.task,
        "embodiment": simulation.spec.to_json(),
        "environment_state_names": list(simulation.environment_state_names),
        "recording": dict(recording),
        "disturbed_seeds": [seed for seed in seeds if shards.plan.is_disturbed(seed)],
        "failed_seeds": [seed for seed in shards.failed_seeds() if seed < seeds[-1]],
        "simulator": simulator_versions(simulation.task),
        "renderer": _renderer() if shards.plan.images else "none",
    }
    with LeRobotWriter(
        directory,
        fps=simulation.spec.control_rate_hz,
        features=_features(simulation, images=shards.plan.images),
        robot_type=simulation.spec.name,
        annotations=annotations,
    ) as writer:
        for seed in seeds:
            writer.add_episode(shards.read(seed), simulation.instruction, seed=seed)


def _renderer() -> str:
    from training.simulation.rendering import renderer_name

    return renderer_name()


def _features(simulation: Simulation, *, images: bool) -> dict[str, dict[str, Any]]:
    spec: EmbodimentSpec = simulation.spec
    features: dict[str, dict[str, Any]] = {
        CAMERA_PREFIX + camera.name: {
            "dtype": "video",
            "shape": [camera.height, camera.width, 3],
            "names": ["height", "width", "channels"],
        }
        for camera in (spec.cameras if images else ())
    }
    for key, names in (
        (STATE_KEY, element_names(spec.state)),
        (ACTION_KEY, element_names(spec.action)),
        (EXECUTED_ACTION_KEY, element_names(spec.action)),
        (ENVIRONMENT_STATE_KEY, list(simulation.environment_state_names)),
    ):
        features[key] = {"dtype": "float32", "shape": [len(names)], "names": names}
    return features


def element_names(groups: tuple[Group, ...]) -> list[str]:
    """A name for each dimension of a state or action vector."""
    return [group.name if group.dim == 1 else f"{group.name}_{i}" for group in groups for i in range(group.dim)]
