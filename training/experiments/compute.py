"""What training an arm computes: its steps, each at what a step of its kind takes on a machine with little else to do.

The hours that arms took differ by what else the machine did meanwhile; this does not, so that arms can be compared.
Owns which steps do the same work and how long one takes, by the logs of runs. Trains nothing and compares nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.experiments.store import Run, Store
from training.json_file import read_lines
from training.recipe import RunDirectory, Stage2Recipe
from training.time_spent import usual_step_s

Phase = Literal["stage 1", "distilling", "stage 2"]


@dataclass(frozen=True, kw_only=True)
class StepKind:
    """Steps that do the same work, in whatever arm. `work` is what of the recipe says so."""

    phase: Phase
    work: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """`num_steps` of one kind in a row, the first of them `first`, logged below `directory`.

    `told_step_s` is what one usually took where that log is not here (finished_jobs.py), None where nobody told.
    """

    kind: StepKind
    first: int
    num_steps: int
    directory: Path
    told_step_s: float | None


def training_steps(run: Run, store: Store, until: int | None = None) -> list[Steps]:
    """All steps behind a run, those of the policy that it starts from among them, to the end or to step `until`."""
    steps = training_steps(run.parent, store) if run.parent else []
    recipe, size = run.recipe, run.recipe.size
    if run.stage1_digest:
        stage1 = recipe.stage1
        directory = RunDirectory.of(recipe, store.stage1_directory(run.stage1_digest)).stage1
        kind = StepKind(phase="stage 1", work=(size, stage1.batch_size, stage1.num_draws, stage1.inputs))
        told = _told(store.stage1_outcome(run.stage1_digest))
        steps.append(_steps(kind, 0, stage1.schedule.num_steps, directory, told))
    directory = store.run_directory(run).stage2
    end = min(until or recipe.stage2.schedule.num_steps, recipe.stage2.schedule.num_steps)
    distilled = end if recipe.stage2.decay_steps is None else min(recipe.stage2.decay_steps, end)
    work = (size, *_stage2_work(recipe.stage2), recipe.stage2.tasks or recipe.data.tasks)
    distilling = StepKind(phase="distilling", work=(*work, recipe.stage1.inputs))
    told = _told(store.run_outcome(run))
    for kind, first, last in ((distilling, 0, distilled), (StepKind(phase="stage 2", work=work), distilled, end)):
        if last > first:
            steps.append(_steps(kind, first, last - first, directory, told))
    return steps


def seconds_a_step(trained: Iterable[Steps]) -> Mapping[StepKind, float]:
    """Of each kind that was logged: a run's median, for standstills; of these the least, for company on the machine."""
    medians: dict[StepKind, float] = {}
    for steps in set(trained):
        usual = usual_seconds(steps)
        if usual is not None:
            medians[steps.kind] = min(usual, medians.get(steps.kind, usual))
    return medians


def usual_seconds(steps: Steps) -> float | None:
    """The median of one of these steps, by their log or as told; None where there is neither."""
    logged = logged_step_s(row for row in read_log(steps.directory) if 0 <= row["step"] - steps.first < steps.num_steps)
    return steps.told_step_s if logged is None else logged


def logged_step_s(rows: Iterable[Mapping[str, Any]]) -> float | None:
    """The median of one step by rows of a log, the first of which holds a start; None where no other tells."""
    told = [row for row in rows if row["step"] > 0 and "seconds" in row]
    if not told:
        return None
    return usual_step_s([(row["seconds"], row["seconds"] * row["steps_per_s"]) for row in told])


def to_json(steps: Sequence[Steps], step_s: Mapping[StepKind, float]) -> dict[str, Any]:
    """Of one arm's training with one seed; `seconds` is None where a kind of step was never logged."""
    parts = [{"phase": each.kind.phase, "steps": each.num_steps, "step_s": step_s.get(each.kind)} for each in steps]
    known = all(part["step_s"] is not None for part in parts)
    return {
        "parts": [{**part, "step_s": part["step_s"] and round(part["step_s"], 4)} for part in parts],
        "seconds": round(sum(part["steps"] * part["step_s"] for part in parts), 1) if known else None,
    }


def first_steps(run: Run, store: Store, num_steps: int) -> Sequence[Mapping[str, Any]]:
    """The rows of a policy's first steps; fewer where it was not trained so far or its log is not here."""
    return [row for row in read_log(store.run_directory(run).stage2) if row["step"] < num_steps]


def read_log(directory: Path) -> Sequence[Mapping[str, Any]]:
    """The rows of a stage's metrics.jsonl; none where nothing was trained."""
    return read_lines(directory / "metrics.jsonl")


def _steps(kind: StepKind, first: int, num_steps: int, directory: Path, told: Mapping[str, float]) -> Steps:
    return Steps(kind=kind, first=first, num_steps=num_steps, directory=directory, told_step_s=told.get(kind.phase))


def _told(outcome: Mapping[str, Any] | None) -> Mapping[str, float]:
    return (outcome or {}).get("step_s", {})


def _stage2_work(recipe: Stage2Recipe) -> tuple[Any, ...]:
    return (
        recipe.batch_size,
        recipe.num_draws,
        recipe.history_pass if recipe.history else None,
        recipe.image_shift,
        recipe.max_inference_delay,
    )
