"""Imports a robot's LeRobot data set into a run: everything is checked, then two small files are written.

The data set stays where it is and as it is. The run gets a registration of it at data/<task> and a recipe.json that
trains on it; packs, statistics and stages then work as for any other data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from policy.embodiment import EmbodimentSpec
from training.data.lerobot.layout import INDEX_FEATURES, DatasetError
from training.data.lerobot.reader import LeRobotReader
from training.data.registration import Registration, content_sha256, is_registered, stat_sha256
from training.json_file import write_json
from training.own_data.columns import check_columns
from training.own_data.info_file import read_checked_info
from training.own_data.metadata import check_metadata, read_bounds
from training.own_data.pictures import check_pictures
from training.own_data.problems import ImportRefusedError, Problem, Problems
from training.recipe import DataRecipe, EvaluationRecipe, Recipe, RunDirectory, Stage1Recipe, Stage2Recipe

# How long and how fast a run trains that says nothing of it.
_TEMPLATE = "demo"


@dataclass(frozen=True, kw_only=True)
class Words:
    """Where instructions come from: one for all episodes, or, when that is empty, a column of task indices."""

    instruction: str = ""
    column: str = "task_index"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import found and wrote."""

    task: str
    num_episodes: int
    num_frames: int
    recipe: Path


def import_dataset(root: Path, spec: EmbodimentSpec, run: RunDirectory, *, task: str, words: Words) -> Imported:
    """Check a data set against `spec` and register it as `task` of `run`; an earlier import of it is replaced.

    Raises ImportRefusedError with every problem found, FileExistsError when the run recorded a task of that name,
    ValueError for a name that no directory can have or a recipe that trains on other data.
    """
    root = root.resolve()
    if not re.fullmatch(r"[\w.-]+", task) or task.startswith("."):
        raise ValueError(f"task is {task!r}, expected letters, digits, dots, dashes and underscores")
    dataset = run.dataset(task)
    if dataset.is_dir() and not is_registered(dataset):
        raise FileExistsError(f"{dataset} holds recorded demonstrations; import under another name with --name")
    reader = check_dataset(root, spec, words=words)
    recipe = _recipe(run, task, len(reader.episodes))
    Registration(
        directory=str(root),
        content_sha256=content_sha256(root),
        stat_sha256=stat_sha256(root),
        task=task,
        embodiment=spec.to_json(),
        instruction=words.instruction,
        instruction_column=words.column,
    ).write(dataset)
    write_json(run.recipe, recipe.to_json())
    return Imported(task=task, num_episodes=len(reader.episodes), num_frames=reader.num_frames, recipe=run.recipe)


def check_dataset(root: Path, spec: EmbodimentSpec, *, words: Words) -> LeRobotReader:
    """The reader of a data set without a fault. Raises ImportRefusedError with every problem found."""
    problems = Problems()
    info = read_checked_info(root, problems)
    reader = _check_all(root, info, spec, words, problems) if info is not None else None
    if reader is None or len(problems):
        raise ImportRefusedError(str(root), problems)
    return reader


def _check_all(
    root: Path, info: dict[str, Any], spec: EmbodimentSpec, words: Words, problems: Problems
) -> LeRobotReader | None:
    check_metadata(root, info, spec, problems)
    bounds = read_bounds(root, info, problems)
    annotations = {"instruction": words.instruction, "instruction_column": words.column}
    try:
        reader = LeRobotReader(root, annotations=annotations)
    except (DatasetError, OSError, ValueError, LookupError, TypeError) as error:
        problems.add(
            "files",
            Problem(
                file=str(root),
                found=str(error),
                expected="episodes and files that agree with info.json",
                remedy="finish the download or the copy, or restore the metadata",
            ),
        )
        return None
    if not reader.episodes:
        problems.add(
            "episodes",
            Problem(
                file=str(root),
                found="no episode",
                expected="at least one",
                remedy="record some",
            ),
        )
    if all(name in reader.numeric_keys for name in INDEX_FEATURES):
        check_columns(reader, spec, bounds, problems)
    check_pictures(reader, spec, problems)
    return reader


def _recipe(run: RunDirectory, task: str, num_episodes: int) -> Recipe:
    """The run's own recipe with this task in it; what a person changed there stays."""
    if run.recipe.is_file():
        recipe = Recipe.load(str(run.recipe))
        tasks = tuple(dict.fromkeys((*recipe.data.tasks, task)))
        episodes = {**recipe.data.episodes, task: num_episodes}
        data = replace(recipe.data, tasks=tasks, episodes=episodes)
        evaluation = replace(recipe.evaluation, first_seed=_first_held_out_seed(data))
        return replace(recipe, data=data, evaluation=evaluation)
    template = Recipe.load(_TEMPLATE)
    data = DataRecipe(tasks=(task,), episodes_per_task=num_episodes)
    return Recipe(
        name=run.root.resolve().name,
        size=template.size,
        data=data,
        stage1=Stage1Recipe(schedule=template.stage1.schedule, batch_size=template.stage1.batch_size),
        stage2=Stage2Recipe(
            schedule=template.stage2.schedule,
            batch_size=template.stage2.batch_size,
            decay_steps=template.stage2.decay_steps,
            landmark_weight=0.0,
        ),
        evaluation=EvaluationRecipe(first_seed=_first_held_out_seed(data)),
    )


def _first_held_out_seed(data: DataRecipe) -> int:
    """A robot's scenes have no seeds, but a recipe keeps those of training and of evaluation apart."""
    return max(EvaluationRecipe().first_seed, data.first_seed + 100 * max(map(data.num_episodes, data.tasks)))
