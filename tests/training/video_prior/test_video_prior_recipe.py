"""The recipe of the chain from video: strict, whole, and kept beside its run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from training.names import UnknownNameError
from training.recipe import Recipe
from training.video_prior.recipe import RECIPES, VideoPriorRecipe, VideoPriorRun


def test_a_recipe_survives_json(recipe: VideoPriorRecipe) -> None:
    assert VideoPriorRecipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert recipe.base.name == recipe.name


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_a_shipped_recipe_loads(path: Path) -> None:
    assert VideoPriorRecipe.load(path.stem).name == path.stem


def test_a_wrong_name_suggests_a_shipped_one() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'video-prior'"):
        VideoPriorRecipe.load("vido-prior")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": []}, "clips are empty"),
        ({"eyes_image_size": 32}, "eyes_image_size is 32, expected pixels and an eyes_directory"),
        ({"clip": []}, r"recipe has unknown keys \['clip'\]"),
        ({"latent_actions": {"num_codes": 0}}, "num_codes is 0"),
        ({"intent": {"use_intent": False, "use_eyes": False}}, "both false"),
        ({"pretraining": {}}, "num_steps"),
        ({"adaptation": {"tuning": "half"}}, "tuning is 'half'"),
        ({"adaptation": {"intent_weight": -1}}, "intent_weight is -1"),
        ({"adaptation": {"sight_dropout": 1.0}}, "sight_dropout is 1.0, expected 0 to below 1"),
        (
            {"adaptation": {"sight_dropout": 0.5}, "intent": {"use_intent": False}},
            "sight_dropout is 0.5, expected 0 for a decoder that does not read both",
        ),
        ({"adaptation": {"tuning": "lora"}}, "expected what base.backbone.tuning says"),
        ({"adaptation": {"tuning": "frozen"}}, "it cannot learn to read it"),
        ({"base": {"stage2": {"decay_steps": 4}}}, "decay_steps is 4, expected 0"),
        ({"base": {"stage2": {"start_from": "there"}}}, "start_from is 'there', expected none"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(
    recipe_values: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    values = copy.deepcopy(recipe_values)
    if "base" in change:
        values["base"]["stage2"] |= change["base"]["stage2"]
    else:
        values |= change
    with pytest.raises(ValueError, match=message):
        VideoPriorRecipe.from_json(values)


def test_the_robots_side_is_left_where_a_runs_verbs_look(recipe: VideoPriorRecipe, tmp_path: Path) -> None:
    run = VideoPriorRun.of(recipe, tmp_path)
    run.keep_recipe(recipe)
    run.keep_recipe(recipe)
    assert Recipe.load(str(run.robots.recipe)) == recipe.base
    other = VideoPriorRecipe.from_json({**recipe.to_json(), "base": {**recipe.base.to_json(), "seed": 1}})
    with pytest.raises(ValueError, match="recipe of another run"):
        run.keep_recipe(other)


def test_parts_are_named_by_what_they_are_made_of(recipe: VideoPriorRecipe, tmp_path: Path) -> None:
    run = VideoPriorRun.of(recipe, tmp_path / "one", tmp_path / "shared")
    other = VideoPriorRun.of(recipe, tmp_path / "other", tmp_path / "shared")
    assert run.part("eyes", {"a": 1, "b": 2}) == other.part("eyes", {"b": 2, "a": 1})
    assert run.part("eyes", {"a": 1}) != run.part("eyes", {"a": 2})
    assert run.adaptation != other.adaptation
