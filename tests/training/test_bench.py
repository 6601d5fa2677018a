"""What bench reports: every figure with its interval and goal, on a run's demonstrations or on made ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.bench import bench, format_bench, measured_corpus
from training.corpus import Corpus, open_corpus
from training.recipe import DataRecipe, Recipe, RunDirectory

FIGURES = {
    "windows_per_s",
    "dual_history_ratio",
    "dual_history_ratio_distilling",
    "sampled_history_ratio",
    "sampled_history_ratio_distilling",
    "loader_share",
    "stage1_share",
}


@pytest.fixture(scope="module")
def corpus(toy_recipe: Recipe, toy_run: RunDirectory) -> Corpus:
    return open_corpus(toy_recipe, toy_run)


def test_it_measures_the_trainings_of_a_recipe_in_turn(corpus: Corpus) -> None:
    result = bench(corpus, num_rounds=2, steps_per_round=1)
    assert set(result["figures"]) == FIGURES
    for name, row in result["figures"].items():
        assert np.isfinite(list(row.values())).all(), name
        assert row["low"] <= row["median"] <= row["high"], name
    assert all(seconds > 0 for seconds in result["seconds_per_step"].values())
    assert len(result["seconds_per_step"]) == 7
    printed = format_bench(result)
    assert all(name in printed for name in FIGURES)


def test_stage_1s_share_weighs_seconds_a_step_with_the_recipes_steps(corpus: Corpus) -> None:
    result = bench(corpus, num_rounds=1, steps_per_round=1)
    seconds = result["seconds_per_step"]
    # 12 steps of stage 1; 8 of stage 2, of which the first 4 distil.
    stage2_s = 4 * seconds["two passes, distilling"] + 4 * seconds["two passes"]
    assert result["figures"]["stage1_share"]["median"] == pytest.approx(12 * seconds["stage 1"] / stage2_s)


def test_a_recipe_without_a_prior_has_no_share_of_it(corpus: Corpus) -> None:
    stage1 = replace(corpus.recipe.stage1, schedule=replace(corpus.recipe.stage1.schedule, num_steps=0))
    without = replace(corpus, recipe=replace(corpus.recipe, stage1=stage1))
    result = bench(without, num_rounds=1, steps_per_round=1)
    assert "stage1_share" not in result["figures"] and "stage 1" not in result["seconds_per_step"]


def test_a_run_without_demonstrations_is_measured_on_made_ones(
    toy_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> None:
    empty = RunDirectory(root=tmp_path_factory.mktemp("empty"))
    recipe = replace(toy_recipe, data=DataRecipe(tasks=("drawer-open",), episodes_per_task=4))
    with measured_corpus(recipe, empty) as made:
        assert [pack.task for pack in made.packs] == ["drawer-open"]
        assert made.packs[0].spec.action_dim == 4
    assert not any(empty.root.iterdir())
    assert not made.packs[0].directory.exists()


def test_nothing_measured_is_no_figure(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="0 rounds of 4 steps"):
        bench(corpus, num_rounds=0)
