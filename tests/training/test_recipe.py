"""Recipes are strict: what is unknown, missing or would let training scenes into the evaluation is refused by name."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from training.recipe import RECIPES, Recipe, RunDirectory
from training.simulation.registry import TASK_NAMES
from training.suite import Suite


def values(**changes: Any) -> dict[str, Any]:
    """A small recipe as its JSON says it; a change is named by its path, `stage1__schedule__num_steps=0`."""
    recipe: dict[str, Any] = {
        "name": "toy",
        "size": "tiny",
        "data": {"tasks": ["drawer-open"], "episodes_per_task": 10},
        "stage1": {"schedule": {"num_steps": 5}},
        "stage2": {"schedule": {"num_steps": 5}, "decay_steps": 2},
        "evaluation": {"num_episodes": 20, "first_seed": 100_000},
    }
    for path, value in changes.items():
        *parents, name = path.split("__")
        part = recipe
        for parent in parents:
            part = part.setdefault(parent, {})
        part[name] = value
    return recipe


def without(path: str) -> dict[str, Any]:
    recipe = values()
    *parents, name = path.split("__")
    part = recipe
    for parent in parents:
        part = part[parent]
    del part[name]
    return recipe


SHIPPED = sorted(path.stem for path in RECIPES.glob("*.json"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_loads_under_its_own_name(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert set(recipe.data.tasks) <= set(TASK_NAMES)
    assert recipe.evaluation.num_episodes >= 50


def test_the_recipe_of_make_train_demo_is_shipped() -> None:
    assert "demo" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_survives_json(name: str) -> None:
    recipe = Recipe.load(name)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_a_recipe_is_loaded_from_any_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values(seed=3)))
    recipe = Recipe.load(str(path))
    assert (recipe.name, recipe.seed, recipe.data.tasks) == ("toy", 3, ("drawer-open",))


def test_a_recipe_that_is_nowhere_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"unknown recipe 'demmo', did you mean 'demo'\? Expected one of .*demo.* or a JSON file"
    ):
        Recipe.load("demmo")


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("sise", "recipe"),
        ("data__task", "data"),
        ("stage1__steps", "stage1"),
        ("stage1__schedule__steps", "stage1"),
        ("stage2__landmarks", "stage2"),
        ("stage2__schedule__warmup", "stage2"),
        ("evaluation__episodes", "evaluation"),
    ],
)
def test_an_unknown_key_is_refused_at_any_depth(path: str, where: str) -> None:
    with pytest.raises(ValueError, match=rf"^{where} has unknown keys \['{path.rpartition('__')[2]}'\], expected \["):
        Recipe.from_json(values(**{path: 1}))


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("name", "recipe"),
        ("data__episodes_per_task", "data"),
        ("stage1__schedule__num_steps", "stage1"),
        ("stage2__schedule__num_steps", "stage2"),
        ("stage2__decay_steps", "stage2"),
    ],
)
def test_a_missing_key_is_named(path: str, where: str) -> None:
    with pytest.raises(ValueError, match=rf"^{where}: .*missing.*'{path.rpartition('__')[2]}'"):
        Recipe.from_json(without(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "huge"}, r"size is 'huge', expected one of \['tiny', 'tiny-vlm', 'small', 'paper'\]"),
        ({"seed": -1}, "seed is -1, expected a whole number of at least 0"),
        ({"autocast": "no"}, r"autocast is 'no', expected one of \[True, False\]"),
        ({"data": [1]}, "data is list, expected an object"),
        ({"data__tasks": "lift"}, "data.tasks is 'lift', expected a list of names, each once"),
        ({"data__tasks": ["lift", "lift"]}, "data.tasks is .*, expected a list of names, each once"),
        ({"data__tasks": []}, "data.tasks are empty, expected at least one task"),
        ({"data__episodes_per_task": 0}, "data.episodes_per_task is 0, expected a whole number of at least 1"),
        ({"data__episodes": {"drawer-open": 2.5}}, "data.episodes of 'drawer-open' is 2.5, expected a whole number"),
        ({"data__episodes": ["drawer-open"]}, r"data.episodes is \('drawer-open',\), expected a number for each"),
        ({"data__weights": {"drawer-open": 0}}, "data.weights of 'drawer-open' is 0, expected a number more than 0"),
        ({"data__disturbed_fraction": 1.5}, "data.disturbed_fraction is 1.5, expected a number from 0 to 1"),
        ({"data__first_seed": -1}, "data.first_seed is -1, expected a whole number of at least 0"),
        ({"stage1": 5}, "stage1 is int, expected an object"),
        ({"stage1__schedule": [5]}, "stage1 is list, expected an object"),
        ({"stage1__batch_size": 0}, "stage1.batch_size is 0, expected a whole number of at least 1"),
        ({"stage1__num_draws": 0}, "stage1.num_draws is 0, expected a whole number of at least 1"),
        ({"stage1__motion_episodes": -1}, "stage1.motion_episodes is -1, expected a whole number of at least 0"),
        ({"stage1__inputs": "state"}, r"stage1.inputs is 'state', expected one of \['state-action', 'action'\]"),
        ({"stage1__schedule__num_steps": 1e3}, "schedule.num_steps is 1000.0, expected a whole number of at least 0"),
        ({"stage1__schedule__save_every": 0}, "schedule.save_every is 0, expected a whole number of at least 1"),
        ({"stage2__schedule__log_every": 0}, "schedule.log_every is 0, expected a whole number of at least 1"),
        ({"stage2__schedule__learning_rate": "1e-3"}, "schedule.learning_rate is '1e-3', expected a number more than"),
        ({"stage2__schedule__clip_norm": 0}, "schedule.clip_norm is 0, expected a number more than 0"),
        ({"stage2__schedule__ema_decay": 1.1}, "schedule.ema_decay is 1.1, expected a number from 0 to 1"),
        ({"stage2__schedule__weight_decay": -1}, "schedule.weight_decay is -1, expected a number of at least 0"),
        ({"stage2__schedule__warmup_steps": -1}, "schedule.warmup_steps is -1, expected a whole number of at least 0"),
        ({"stage2__decay_steps": -1}, "stage2.decay_steps is -1, expected a whole number of at least 0"),
        ({"stage2__history": "false"}, r"stage2.history is 'false', expected one of \[True, False\]"),
        ({"stage2__history_pass": "bot"}, r"stage2.history_pass is 'bot', expected one of \['both', 'sampled'\]"),
        ({"stage2__state_dropout": 30}, "stage2.state_dropout is 30, expected a number from 0 to 1"),
        ({"stage2__landmark_weight": -1}, "stage2.landmark_weight is -1, expected a number of at least 0"),
        ({"stage2__image_shift": -3}, "stage2.image_shift is -3, expected a whole number of at least 0"),
        ({"stage2__snapshots": [2.0]}, "stage2.snapshots' step is 2.0, expected a whole number of at least 1"),
        ({"stage2__snapshots": [3, 2]}, r"stage2.snapshots are \[3, 2\], expected rising steps between 0 and 5"),
        ({"stage2__tasks": ["lift"]}, r"stage2.tasks names \['lift'\], expected some of \['drawer-open'\]"),
        ({"evaluation__num_episodes": 0}, "evaluation.num_episodes is 0, expected a whole number of at least 1"),
        ({"evaluation__history": "no"}, "evaluation.history is 'no', expected one of"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_value_that_cannot_be_is_refused_by_its_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Recipe.from_json(values(**changes))


def test_a_file_that_is_no_json_is_refused_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text("{'name': 'toy'}")
    with pytest.raises(ValueError, match=rf"^recipe {path} is not JSON: "):
        Recipe.load(str(path))


@pytest.mark.parametrize(
    ("first_training_seed", "first_held_out_seed"),
    [(0, 0), (0, 999), (500, 500), (500, 481), (100, 90)],
    ids=["the same", "the last that may be tried", "both moved", "runs into them", "spans their start"],
)
def test_scenes_that_may_be_trained_on_are_never_held_out(first_training_seed: int, first_held_out_seed: int) -> None:
    with pytest.raises(ValueError, match="held-out scenes must not be training scenes"):
        Recipe.from_json(values(data__first_seed=first_training_seed, evaluation__first_seed=first_held_out_seed))


@pytest.mark.parametrize(("first_training_seed", "first_held_out_seed"), [(0, 1000), (20, 0), (500, 480)])
def test_scenes_on_either_side_of_the_training_ones_may_be_held_out(
    first_training_seed: int, first_held_out_seed: int
) -> None:
    recipe = Recipe.from_json(values(data__first_seed=first_training_seed, evaluation__first_seed=first_held_out_seed))
    assert recipe.evaluation.first_seed == first_held_out_seed


@pytest.mark.parametrize(
    ("changes", "variant"),
    [
        ({}, "history"),
        ({"stage2__history": False}, "state-prior"),
        ({"stage2__history": False, "stage1__schedule__num_steps": 0}, "no-prior"),
    ],
)
def test_a_variant_is_named_after_what_it_was_trained_with(changes: dict[str, Any], variant: str) -> None:
    assert Recipe.from_json(values(**changes)).variant == variant


def test_a_recipe_cannot_be_changed() -> None:
    recipe = Recipe.from_json(values())
    with pytest.raises(AttributeError):
        recipe.seed = 1  # type: ignore[misc]
    assert asdict(recipe)["seed"] == 0


def test_every_verb_has_its_own_place_in_a_run() -> None:
    run = RunDirectory(root=Path("runs/toy"))
    places = [run.dataset("a"), run.packs, run.statistics, run.stage1, run.stage2, run.checkpoint, run.evaluation]
    assert len(set(places)) == len(places)
    assert all(place.is_relative_to(run.root) for place in places)
    assert run.dataset("a").parent == run.dataset("b").parent == run.datasets


def test_shared_recordings_hold_what_their_suite_records_and_runs_use_less() -> None:
    data = Recipe.load("cross13-history").data
    suite = Suite.load("cross13")
    assert data.tasks == suite.task_names
    for task in data.tasks:
        assert data.num_episodes(task) == suite.num_episodes(task)
        assert data.num_recorded(task) == suite.demonstrations
    alone = replace(data, root="")
    assert [alone.num_recorded(task) for task in ("assembly", "lift")] == [10, 50]


def test_the_recipe_of_train_demo_is_the_shipped_one_with_fewer_steps() -> None:
    shipped, short = Recipe.load("cross13-history"), Recipe.load("cross13-short")
    assert short.stage2.schedule.num_steps < shipped.stage2.schedule.num_steps
    schedule = replace(short.stage2.schedule, num_steps=shipped.stage2.schedule.num_steps)
    assert replace(short, name=shipped.name, stage2=replace(short.stage2, schedule=schedule)) == shipped


def test_the_joint_policy_s_variants_differ_in_prior_and_history_alone() -> None:
    variants = {name: Recipe.load(f"cross13-{name}") for name in ("no-prior", "state-prior", "history")}
    assert {name: recipe.variant for name, recipe in variants.items()} == {name: name for name in variants}
    base = variants["history"]
    for recipe in variants.values():
        assert (recipe.size, recipe.seed, recipe.data) == (base.size, base.seed, base.data)
        assert recipe.stage2.schedule == base.stage2.schedule
        assert recipe.stage2.batch_size == base.stage2.batch_size
