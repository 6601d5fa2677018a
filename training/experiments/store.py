"""Where each trained and tested thing lies, named by its content: equal recipes on equal data are one run.

Owns digests, paths and the small JSON files that say what is done. Weights may be deleted; what is done stays done.
Layout below `build/experiments/<budget>/`: `stage1/<digest>/`, `runs/<digest>/`, and in a run
`evaluations/step_NNNNNN/<condition>/<task>.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from training.experiments.budget import Budget
from training.experiments.experiment import Condition, Training
from training.json_file import write_json
from training.locked import locked
from training.recipe import Recipe, RunDirectory
from training.time_spent import TimeSpent, time_of_log, usual_step_s, without_standstill

DataIdentity = Callable[[Recipe], Mapping[str, str]]
_OUTCOME = "outcome.json"
UNKNOWN_COMMIT = "unknown"
CARRIES_OUT = "carries out experiments"  # what a process does that has a store locked


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training with one seed: its exact recipe and where it and its stage 1 lie."""

    recipe: Recipe
    digest: str
    stage1_digest: str  # empty: there is none
    # The same of the recipe alone: what is wanted, whatever recordings it reads.
    recipe_digest: str
    stage1_recipe_digest: str
    parent: Run | None = None


@dataclass(frozen=True, kw_only=True)
class Store:
    root: Path
    budget: Budget
    data_identity: DataIdentity

    def run(self, training: Training, seed: int) -> Run:
        if training.adapted_episodes:
            parent = self.run(_parent_training(training), seed)
            recipe = self.budget.adapted_recipe(training, seed, self.checkpoint(parent, None))
            return self._run(recipe, parent)
        return self._run(self.budget.recipe(training, seed), None)

    def _run(self, recipe: Recipe, parent: Run | None) -> Run:
        data = self.data_identity(recipe)
        has_stage1 = bool(recipe.stage1.schedule.num_steps) and parent is None
        trained = {
            "size": recipe.size,
            "seed": recipe.seed,
            "autocast": recipe.autocast,
            "data": explicit(replace(recipe.data, root="")),
            "stage1": explicit(recipe.stage1) if has_stage1 else None,
            "stage2": explicit(replace(recipe.stage2, start_from=parent.digest if parent else "")),
        }
        shared = {key: value for key, value in trained.items() if key != "stage2"}
        wanted = explicit(replace(recipe.stage2, start_from=parent.recipe_digest if parent else ""))
        return Run(
            recipe=recipe,
            digest=digest_of({**trained, "recordings": data}),
            stage1_digest=digest_of({**shared, "recordings": data}) if has_stage1 else "",
            recipe_digest=digest_of({**shared, "stage2": wanted}),
            stage1_recipe_digest=digest_of(shared) if has_stage1 else "",
            parent=parent,
        )

    def stage1_directory(self, digest: str) -> Path:
        return self.root / "stage1" / digest

    def run_directory(self, run: Run) -> RunDirectory:
        return RunDirectory.of(run.recipe, self.root / "runs" / run.digest)

    def checkpoint(self, run: Run, step: int | None) -> Path:
        """The checkpoint of a snapshot's step, or the last one."""
        directory = self.run_directory(run)
        if step is None or step == run.recipe.stage2.schedule.num_steps:
            return directory.checkpoint
        return directory.snapshot(step)

    def config(self, run: Run) -> Mapping[str, Any] | None:
        """The last checkpoint's, or as much of it as was told with the outcome of a run that is not here."""
        return read_json(self.checkpoint(run, None) / "config.json") or self._outcome(run).get("config")

    def stage1_outcome(self, digest: str) -> Mapping[str, Any] | None:
        """What is known of a prior that is trained, its `seconds` and `left_out_seconds` (time_spent.py) among it."""
        directory = self.stage1_directory(digest)
        return _with_time(read_json(directory / _OUTCOME), RunDirectory(root=directory).stage1)

    def write_stage1_outcome(self, digest: str, recipe: Recipe, values: Mapping[str, Any]) -> None:
        write_json(self.stage1_directory(digest) / "recipe.json", recipe.to_json())
        write_json(self.stage1_directory(digest) / _OUTCOME, values)

    def run_outcome(self, run: Run) -> Mapping[str, Any] | None:
        """As stage1_outcome, of a policy."""
        directory = self.run_directory(run)
        return _with_time(read_json(directory.root / _OUTCOME), directory.stage2)

    def write_run_outcome(self, run: Run, values: Mapping[str, Any]) -> None:
        write_json(self.run_directory(run).root / "recipe.json", run.recipe.to_json())
        write_json(self.run_directory(run).root / _OUTCOME, values)

    def is_told(self, run: Run) -> bool:
        """Whether what is known of it was told by finished_jobs.py, of a training whose weights are not here."""
        return "digest" in self._outcome(run)

    def is_told_stage1(self, digest: str) -> bool:
        """As is_told, of a prior."""
        return "digest" in (read_json(self.stage1_directory(digest) / _OUTCOME) or {})

    def trained_digest(self, run: Run) -> str:
        """Of the training that is known of: another one's where it was told."""
        return self._outcome(run).get("digest", run.digest)

    def trained_steps(self, run: Run) -> int:
        return int(self._outcome(run).get("steps", 0))

    def _outcome(self, run: Run) -> Mapping[str, Any]:
        return read_json(self.run_directory(run).root / _OUTCOME) or {}

    def evaluation(self, run: Run, step: int, condition: Condition, task: str) -> Evaluation:
        return Evaluation.from_json(read_json(self._evaluation_path(run, step, condition, task)) or {})

    def write_evaluation(self, run: Run, step: int, condition: Condition, task: str, evaluation: Evaluation) -> None:
        write_json(self._evaluation_path(run, step, condition, task), evaluation.to_json())

    def test_step_s(self) -> Mapping[str, float]:
        """What a control step of a task usually takes in the tests of this store, by task: what `spent` asks for."""
        intervals: dict[str, list[tuple[float, float]]] = {}
        for path in sorted((self.root / "runs").glob("*/evaluations/step_*/*/*.json")):
            values = json.loads(path.read_text())
            if values["num_steps"]:
                intervals.setdefault(path.stem, []).append((values["seconds"], values["num_steps"]))
        return {task: usual_step_s(of_task) for task, of_task in intervals.items()}

    def _evaluation_path(self, run: Run, step: int, condition: Condition, task: str) -> Path:
        directory = self.run_directory(run).root / "evaluations"
        return directory / f"step_{step:06d}" / condition.name / f"{task}.json"

    def locked(self) -> AbstractContextManager[None]:
        """One process at a time carries out jobs here; raises BusyError."""
        return locked(self.root, CARRIES_OUT)


@dataclass(frozen=True, kw_only=True)
class MadeWith:
    """The code that tried some scenes, and the versions that these depend on."""

    git_commit: str
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scenes tried so far, in the order of their seeds, of one revision; more are added, none is tried twice.

    `made_with` is what tried them, each once however many scenes it tried.
    """

    revision: str = ""
    seeds: tuple[int, ...] = ()
    solved: tuple[bool, ...] = ()
    num_steps: float = 0.0  # of all scenes together
    seconds: float = 0.0  # as measured
    made_with: tuple[MadeWith, ...] = ()

    def __post_init__(self) -> None:
        if len(self.seeds) != len(self.solved):
            raise ValueError(f"{len(self.seeds)} scenes were tried and {len(self.solved)} have an outcome")

    def plus(self, row: Mapping[str, Any], seconds: float) -> Evaluation:
        """With a row of `Work.evaluate` added."""
        solved = set(row["solved_seeds"])
        made = MadeWith(git_commit=row["git_commit"] or UNKNOWN_COMMIT, versions=row["versions"])
        return Evaluation(
            revision=row["revision"],
            seeds=(*self.seeds, *row["seeds"]),
            solved=(*self.solved, *(seed in solved for seed in row["seeds"])),
            num_steps=self.num_steps + row["mean_steps"] * len(row["seeds"]),
            seconds=self.seconds + seconds,
            made_with=self.made_with if made in self.made_with else (*self.made_with, made),
        )

    def spent(self, step_s: float) -> TimeSpent:
        """What it took, `step_s` being what a control step of its task usually takes (`Store.test_step_s`)."""
        if not self.num_steps:
            return TimeSpent(seconds=self.seconds, left_out_seconds=0.0)
        return without_standstill([(self.seconds, self.num_steps)], step_s)

    def to_json(self) -> dict[str, Any]:
        return {
            "revision": self.revision,
            "first_seed": self.seeds[0],
            "outcomes": "".join("1" if solved else "0" for solved in self.solved),
            "num_steps": self.num_steps,
            "seconds": round(self.seconds, 3),
            "made_with": [asdict(made) for made in self.made_with],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Evaluation:
        if not values:
            return cls()
        outcomes, first = values["outcomes"], values["first_seed"]
        # Tests did not always say what made them.
        made_with = values.get("made_with", [{"git_commit": UNKNOWN_COMMIT, "versions": {}}])
        return cls(
            revision=values["revision"],
            seeds=tuple(range(first, first + len(outcomes))),
            solved=tuple(outcome == "1" for outcome in outcomes),
            num_steps=values["num_steps"],
            seconds=values["seconds"],
            made_with=tuple(MadeWith(**made) for made in made_with),
        )


def _with_time(outcome: Mapping[str, Any] | None, trained: Path) -> Mapping[str, Any] | None:
    """An outcome that was written as measured, with the time that its log tells; with no log, as it is."""
    if outcome is None or "left_out_seconds" in outcome:
        return outcome
    spent = time_of_log(trained / "metrics.jsonl")
    if not spent.seconds:
        return {**outcome, "left_out_seconds": 0.0}
    return {**outcome, **spent.to_json()}


def _parent_training(training: Training) -> Training:
    return replace(training, adapted_episodes=0)


def explicit(part: Any) -> dict[str, Any]:
    """What a part of a recipe sets itself: a setting that is added later with a default changes no digest."""
    found = {}
    for each in fields(part):
        value = getattr(part, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if is_dataclass(value):
            found[each.name] = explicit(value)
        elif value != default:
            found[each.name] = dict(value) if isinstance(value, Mapping) else value
    return found


def digest_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def read_json(path: Path) -> Mapping[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None
