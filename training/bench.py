"""What training costs: windows from packs, the history's second pass, the wait for batches, stage 1 beside stage 2.

Runs the stages themselves, a few steps at a time and in turn, for other work on a machine moves times far more than
their ratios: each figure is the median over rounds with its 95 % bootstrap interval. Owns measuring, and demonstrations
that it makes where a run has none; gates nothing.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.corpus import Corpus, open_corpus
from training.data.lerobot.writer import LeRobotWriter
from training.loop import Schedule
from training.objective import HistoryPass
from training.recipe import Recipe, RunDirectory
from training.simulation.registry import embodiment
from training.stage1 import train_stage1
from training.stage2 import train_stage2

WINDOW_BATCH = 4096
_WINDOW_BATCHES_PER_ROUND = 20
# The first step of a sitting pays for cold caches and for a batch that nothing was computed beside.
_WARMUP_STEPS = 1
_MADE_EPISODES, _MADE_STEPS = 4, 60


# Stage 2 without history, with it as in paper A, and with it for the samples that a coin chooses.
_PASSES: Mapping[str, tuple[bool, HistoryPass]] = {
    "one pass": (False, "both"),
    "two passes": (True, "both"),
    "sampled pass": (True, "sampled"),
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured number beside its goal, which is a lower bound where more is better."""

    median: float
    low: float
    high: float
    goal: float
    more_is_better: bool = False

    @property
    def reached(self) -> bool:
        return self.median >= self.goal if self.more_is_better else self.median <= self.goal

    def to_json(self) -> dict[str, Any]:
        return {"median": self.median, "low": self.low, "high": self.high, "goal": self.goal, "reached": self.reached}


@dataclass(frozen=True, kw_only=True)
class _Sitting:
    """Seconds a step, and those of them that the loop waited for its batch."""

    seconds: float
    waited: float


def bench(corpus: Corpus, *, device: str = "cpu", num_rounds: int = 8, steps_per_round: int = 4) -> dict[str, Any]:
    """All figures, and the seconds a step they come from."""
    if num_rounds < 1 or steps_per_round < 1:
        raise ValueError(f"{num_rounds} rounds of {steps_per_round} steps, expected at least 1 of each")
    windows = _windows_per_s(corpus, num_rounds)
    sittings = _sittings(corpus, device, num_rounds, steps_per_round)
    seconds = {name: np.array([sitting.seconds for sitting in found]) for name, found in sittings.items()}
    waited = {name: np.array([sitting.waited for sitting in found]) for name, found in sittings.items()}
    stage2 = _kind_of(corpus.recipe)
    figures = {
        "windows_per_s": _figure(windows, goal=0.5e6, more_is_better=True),
        "dual_history_ratio": _figure(seconds["two passes"] / seconds["one pass"], goal=1.10),
        "dual_history_ratio_distilling": _figure(
            seconds["two passes, distilling"] / seconds["one pass, distilling"], goal=1.10
        ),
        "sampled_history_ratio": _figure(seconds["sampled pass"] / seconds["one pass"], goal=1.10),
        "sampled_history_ratio_distilling": _figure(
            seconds["sampled pass, distilling"] / seconds["one pass, distilling"], goal=1.10
        ),
        "loader_share": _figure(waited[stage2] / seconds[stage2], goal=0.05),
    }
    if "stage 1" in seconds:
        figures["stage1_share"] = _figure(_stage1_share(corpus.recipe, seconds, stage2), goal=0.10)
    return {
        "figures": {name: figure.to_json() for name, figure in figures.items()},
        "seconds_per_step": {name: float(np.median(values)) for name, values in seconds.items()},
        "rounds": num_rounds,
        "steps_per_round": steps_per_round,
        "recipe": corpus.recipe.name,
        "size": corpus.recipe.size,
        "batch_size": {"stage1": corpus.recipe.stage1.batch_size, "stage2": corpus.recipe.stage2.batch_size},
        "tasks": [pack.task for pack in corpus.packs],
        "frames": sum(pack.num_frames for pack in corpus.packs),
        "device": device,
        "threads": torch.get_num_threads(),
        "num_cpus": os.cpu_count(),
        "torch": torch.__version__,
    }


def format_bench(result: Mapping[str, Any]) -> str:
    """The figures for a person, and what they were measured on."""
    lines = [
        f"{name:<30} {_number(row['median']):>12}  95 % {_number(row['low'])} to {_number(row['high'])}"
        f"  goal {_number(row['goal'])}{'' if row['reached'] else ', missed'}"
        for name, row in result["figures"].items()
    ]
    lines += [f"{name:<30} {seconds * 1e3:>9.1f} ms a step" for name, seconds in result["seconds_per_step"].items()]
    lines.append(
        f"recipe {result['recipe']}, size {result['size']}, {result['frames']} frames of {len(result['tasks'])} tasks; "
        f"{result['rounds']} rounds of {result['steps_per_round']} steps on {result['device']}, "
        f"{result['threads']} threads of {result['num_cpus']} CPUs"
    )
    return "\n".join(lines)


@contextmanager
def measured_corpus(recipe: Recipe, run: RunDirectory) -> Iterator[Corpus]:
    """The run's demonstrations where it has all tasks', else random ones of the same bodies, gone afterwards."""
    if all(run.dataset(task).is_dir() for task in recipe.data.tasks):
        yield open_corpus(recipe, run)
        return
    own = replace(recipe, data=replace(recipe.data, root=""), stage1=replace(recipe.stage1, motion_episodes=0))
    print(f"bench: no demonstrations in {run.datasets}, making random ones", file=sys.stderr)
    with TemporaryDirectory(prefix="premotor-bench-") as directory:
        made = RunDirectory(root=Path(directory))
        for task in own.data.tasks:
            _make_demonstrations(task, made.dataset(task))
        yield open_corpus(own, made)


def _make_demonstrations(task: str, root: Path) -> None:
    spec = embodiment(task)
    generator = np.random.default_rng(0)
    landmarks = ["x", "y", "z"]
    numeric = {
        "observation.state": spec.state_dim,
        "action": spec.action_dim,
        "executed_action": spec.action_dim,
        "observation.environment_state": len(landmarks),
    }
    features: dict[str, Any] = {
        name: {"dtype": "float32", "shape": [dim], "names": [f"{name}.{i}" for i in range(dim)]}
        for name, dim in numeric.items()
    }
    for camera in spec.cameras:
        features[f"observation.images.{camera.name}"] = {
            "dtype": "video",
            "shape": [camera.height, camera.width, 3],
            "names": ["height", "width", "channels"],
        }
    annotations = {"task": task, "embodiment": spec.to_json(), "environment_state_names": landmarks}
    with LeRobotWriter(
        root, fps=spec.control_rate_hz, features=features, robot_type=spec.name, annotations=annotations
    ) as writer:
        for seed in range(_MADE_EPISODES):
            columns: dict[str, Any] = {
                name: generator.normal(size=(_MADE_STEPS, dim)).astype(np.float32) for name, dim in numeric.items()
            }
            for camera in spec.cameras:
                shape = (_MADE_STEPS, camera.height, camera.width, 3)
                columns[f"observation.images.{camera.name}"] = generator.integers(0, 256, shape, dtype=np.uint8)
            writer.add_episode(columns, f"do {task}", seed=seed)


def _windows_per_s(corpus: Corpus, num_rounds: int) -> npt.NDArray[np.float64]:
    """Windows of stage 1 made per second by one thread, in model units, by round."""
    packs = corpus.stage1_packs
    mixture, sampler = corpus.mixture(packs, landmarks=False), corpus.sampler(packs, WINDOW_BATCH, corpus.recipe.seed)
    mixture.motion(sampler.batch(0))
    rates = []
    for number in range(num_rounds):
        first = 1 + number * _WINDOW_BATCHES_PER_ROUND
        started = time.perf_counter()
        for step in range(first, first + _WINDOW_BATCHES_PER_ROUND):
            mixture.motion(sampler.batch(step))
        rates.append(WINDOW_BATCH * _WINDOW_BATCHES_PER_ROUND / (time.perf_counter() - started))
    return np.array(rates)


def _sittings(corpus: Corpus, device: str, num_rounds: int, steps_per_round: int) -> dict[str, list[_Sitting]]:
    """Every kind of training goes on for a few steps in every round, in another order each time."""
    length = _WARMUP_STEPS + steps_per_round
    kinds = _kinds(corpus, num_steps=num_rounds * length)
    found: dict[str, list[_Sitting]] = {name: [] for name in kinds}
    order = np.random.default_rng(0)
    with TemporaryDirectory(prefix="premotor-bench-") as directory:
        for number in range(num_rounds):
            print(f"bench: round {number + 1} of {num_rounds}", file=sys.stderr, flush=True)
            for index in order.permutation(len(kinds)):
                name = list(kinds)[index]
                found[name].append(
                    _sit(
                        kinds[name], name, Path(directory) / name, device, range(number * length, (number + 1) * length)
                    )
                )
    return found


def _kinds(corpus: Corpus, *, num_steps: int) -> dict[str, Corpus]:
    """What is timed: stage 1 where the recipe has one, and stage 2 with and without history and distillation."""
    recipe = corpus.recipe

    def alike(schedule: Schedule) -> Schedule:
        return replace(schedule, num_steps=num_steps, log_every=1, save_every=num_steps)

    kinds = {}
    if recipe.stage1.schedule.num_steps:
        stage1 = replace(recipe.stage1, schedule=alike(recipe.stage1.schedule))
        kinds["stage 1"] = replace(corpus, recipe=replace(recipe, stage1=stage1))
    for name, (history, history_pass) in _PASSES.items():
        for suffix, decay_steps in (("", 0), (", distilling", None)):
            stage2 = replace(
                recipe.stage2,
                schedule=alike(recipe.stage2.schedule),
                snapshots=(),
                history=history,
                history_pass=history_pass,
                decay_steps=decay_steps,
            )
            kinds[name + suffix] = replace(corpus, recipe=replace(recipe, stage2=stage2))
    return kinds


def _kind_of(recipe: Recipe) -> str:
    if not recipe.stage2.history:
        return "one pass"
    return "two passes" if recipe.stage2.history_pass == "both" else "sampled pass"


def _sit(corpus: Corpus, name: str, directory: Path, device: str, steps: range) -> _Sitting:
    """Train over `steps`, resuming, and read what the stage itself logged about them."""
    with redirect_stderr(io.StringIO()):
        if name == "stage 1":
            train_stage1(corpus, directory, device=device, until=steps.stop)
        else:
            train_stage2(corpus, None, directory, device=device, until=steps.stop)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    counted = [row for row in rows if row["step"] >= steps.start + _WARMUP_STEPS]
    return _Sitting(
        seconds=sum(row["seconds"] for row in counted) / len(counted),
        waited=sum(row["loader_seconds"] for row in counted) / len(counted),
    )


def _stage1_share(
    recipe: Recipe, seconds: Mapping[str, npt.NDArray[np.float64]], stage2: str
) -> npt.NDArray[np.float64]:
    """Stage 1's wall clock over stage 2's, from seconds a step and the recipe's steps; saving and building left out."""
    num_steps, decay_steps = recipe.stage2.schedule.num_steps, recipe.stage2.decay_steps
    distilling = num_steps if decay_steps is None else min(decay_steps, num_steps)
    stage2_s = distilling * seconds[f"{stage2}, distilling"] + (num_steps - distilling) * seconds[stage2]
    return recipe.stage1.schedule.num_steps * seconds["stage 1"] / stage2_s


def _figure(rounds: npt.NDArray[np.float64], *, goal: float, more_is_better: bool = False) -> Figure:
    """95 % of the medians of rounds drawn again, with replacement."""
    drawn = np.random.default_rng(0).choice(rounds, (2000, len(rounds)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return Figure(
        median=float(np.median(rounds)), low=float(low), high=float(high), goal=goal, more_is_better=more_is_better
    )


def _number(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e5 else f"{value:.3f}"
