"""Training and testing that take no time: losses that fall, successes that are a function of run and scene."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.experiments.budget import Budget
from training.experiments.experiment import Condition
from training.experiments.store import Store
from training.json_file import write_json
from training.recipe import Recipe, RunDirectory

# Seconds of a step.
STAGE1_S, DISTILLED_S, QUIET_S = 0.17, 0.326, 0.228


@dataclass
class FakeWork:
    """`fails_at` is the number of the call that raises, as a kill would."""

    calls: list[tuple[str, ...]] = field(default_factory=list)
    fails_at: int | None = None

    def train_stage1(self, recipe: Recipe, directory: Path) -> Mapping[str, Any]:
        self._note("stage 1", directory.name)
        _log(directory / "stage1", [{"step": step, **took(STAGE1_S, 20)} for step in range(0, 181, 20)])
        return {"seconds": 36.0, "left_out_seconds": 0.0}

    def train_stage2(
        self, recipe: Recipe, run: RunDirectory, stage1_directory: Path | None, until: int
    ) -> Mapping[str, Any]:
        self._note("stage 2", run.root.name, str(until))
        prior = recipe.stage1.schedule.num_steps > 0
        distilled = until if recipe.stage2.decay_steps is None else recipe.stage2.decay_steps
        rows = [
            {
                "step": step,
                # With a prior a quarter at first, and falling half as fast: the ratio is another at every step.
                "prediction": (0.25 if prior else 1.0) * math.exp(-step / (600 if prior else 300)),
                "gradient_norm": (0.5 if prior else 2.0) * math.exp(-step / (400 if prior else 200)),
                # Once the machine stands still.
                **took(1000.0 if step == 150 else DISTILLED_S if step < distilled else QUIET_S),
            }
            for step in range(until)
        ]
        _log(run.stage2, rows)
        write_json(run.checkpoint / "config.json", {"execution_horizon": 8, "action_horizon": 16})
        return {
            "seconds": 360.0,
            "left_out_seconds": 999.0,
            "git_commit": "c0ffee",
            "revision": f"of-{run.root.name}",
        }

    def evaluate(
        self, checkpoint: Path, condition: Condition, task: str, first_seed: int, num_episodes: int
    ) -> Mapping[str, Any]:
        self._note("evaluation", str(checkpoint), condition.name, task, str(first_seed), str(num_episodes))
        seeds = range(first_seed, first_seed + num_episodes)
        solved = [seed for seed in seeds if uniform(f"{run_part(checkpoint)} {condition.name} {task} {seed}") < 0.5]
        return evaluated(checkpoint, seeds, solved)

    def _note(self, *call: str) -> None:
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt(f"killed in {call}")
        self.calls.append(call)


def took(step_s: float, num_steps: int = 1) -> dict[str, float]:
    """As a training's log has it."""
    return {"seconds": step_s * num_steps, "steps_per_s": 1 / step_s}


def recorded(recipe: Recipe) -> Mapping[str, str]:
    """Recordings that are always the same."""
    return {task: f"sha256 of {task}" for task in recipe.data.tasks}


def recorded_here(recipe: Recipe) -> Mapping[str, str]:
    """The same scenes recorded by another machine."""
    return {task: f"{digest}, recorded here" for task, digest in recorded(recipe).items()}


def evaluated(checkpoint: Path, seeds: Sequence[int], solved: Sequence[int]) -> Mapping[str, Any]:
    """What `evaluate` returns of these scenes."""
    return {
        "seeds": list(seeds),
        "solved_seeds": list(solved),
        "mean_steps": 10.0,
        "revision": f"of-{checkpoint}",
        "git_commit": "c0ffee",
        "versions": {"mujoco": "3.3.0"},
    }


def store_of(budget: Budget, root: Path) -> Store:
    return Store(root=root, budget=budget, data_identity=recorded)


def _log(directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_part(checkpoint: Path) -> str:
    """The part of the path that does not change with the temporary folder: `RUN/...`."""
    return checkpoint.as_posix().rpartition("/runs/")[2]


def uniform(text: str) -> float:
    """A number in [0, 1) that is a function of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
