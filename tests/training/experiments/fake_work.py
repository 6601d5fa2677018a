"""Training and testing that take no time: losses that fall, successes that are a function of run and scene."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.experiments.budget import Budget
from training.experiments.experiment import Condition
from training.experiments.store import Store
from training.recipe import Recipe, RunDirectory


@dataclass
class FakeWork:
    """`fails_at` is the number of the call that raises, as a kill would."""

    calls: list[tuple[str, ...]] = field(default_factory=list)
    fails_at: int | None = None

    def train_stage1(self, recipe: Recipe, directory: Path) -> Mapping[str, Any]:
        self._note("stage 1", directory.name)
        return {"seconds": 36.0}

    def train_stage2(
        self, recipe: Recipe, run: RunDirectory, stage1_directory: Path | None, until: int
    ) -> Mapping[str, Any]:
        self._note("stage 2", run.root.name, str(until))
        scale = 1.0 if recipe.stage1.schedule.num_steps == 0 else 0.25
        rows = [
            {"step": step, "prediction": scale * math.exp(-step / 300), "gradient_norm": scale * 2.0}
            for step in range(until)
        ]
        run.stage2.mkdir(parents=True, exist_ok=True)
        (run.stage2 / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"seconds": 360.0, "git_commit": "c0ffee", "revision": f"of-{run.root.name}"}

    def evaluate(
        self, checkpoint: Path, condition: Condition, task: str, first_seed: int, num_episodes: int
    ) -> Mapping[str, Any]:
        self._note("evaluation", str(checkpoint), condition.name, task, str(first_seed), str(num_episodes))
        seeds = range(first_seed, first_seed + num_episodes)
        solved = [seed for seed in seeds if _uniform(f"{checkpoint} {condition.name} {task} {seed}") < 0.5]
        return {"seeds": list(seeds), "solved_seeds": solved, "mean_steps": 10.0, "revision": f"of-{checkpoint}"}

    def _note(self, *call: str) -> None:
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt(f"killed in {call}")
        self.calls.append(call)


def recorded(recipe: Recipe) -> Mapping[str, str]:
    """Recordings that are always the same."""
    return {task: f"sha256 of {task}" for task in recipe.data.tasks}


def store_of(budget: Budget, root: Path) -> Store:
    return Store(root=root, budget=budget, data_identity=recorded)


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
