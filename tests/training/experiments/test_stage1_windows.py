"""How much of its data stage 1 sees, against the sampler's own walk over packs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import write_demonstrations
from training.corpus import open_corpus
from training.experiments.stage1_windows import stage1_windows
from training.recipe import Recipe, RunDirectory


def walked(recipe: Recipe, run: RunDirectory) -> tuple[int, int, int]:
    """Windows that there are, that all steps drew, and different ones among these."""
    packs = (corpus := open_corpus(recipe, run)).stage1_packs
    sampler = corpus.sampler(packs, recipe.stage1.batch_size, 1)
    picks = [pick for step in range(recipe.stage1.schedule.num_steps) for pick in sampler.batch(step)]
    drawn = np.concatenate([1_000_000 * pack + frames for pack, frames in picks])
    return sum(pack.num_frames for pack in packs), len(drawn), len(np.unique(drawn))


@pytest.fixture
def recipe(toy_recipe: Recipe, tmp_path: Path) -> Recipe:
    """Of 20 and 21 recorded windows, and of 12 times as many without images."""
    write_demonstrations(tmp_path / "data" / "slide")
    write_demonstrations(tmp_path / "motion" / "slide", range(4, 28))
    return replace(toy_recipe, data=replace(toy_recipe.data, root=str(tmp_path), episodes_per_task=2))


@pytest.mark.parametrize("num_steps", [3, 12])
@pytest.mark.parametrize("motion_episodes", [0, 20])
def test_windows_are_those_that_the_sampler_walks(num_steps: int, motion_episodes: int, recipe: Recipe) -> None:
    schedule = replace(recipe.stage1.schedule, num_steps=num_steps)
    recipe = replace(recipe, stage1=replace(recipe.stage1, schedule=schedule, motion_episodes=motion_episodes))
    windows, drawn, distinct = walked(recipe, RunDirectory.of(recipe, Path(recipe.data.root)))
    found = stage1_windows(recipe)
    assert found == {
        "motion_episodes": motion_episodes,
        "windows": windows,
        "drawn": drawn,
        "distinct": pytest.approx(distinct, rel=0.02),
    }
    assert distinct < drawn if (num_steps, motion_episodes) == (12, 0) else distinct == drawn


def test_without_stage_1_or_packs_nothing_is_known(recipe: Recipe) -> None:
    schedule = replace(recipe.stage1.schedule, num_steps=0)
    assert stage1_windows(replace(recipe, stage1=replace(recipe.stage1, schedule=schedule))) is None
    assert stage1_windows(replace(recipe, data=replace(recipe.data, root="nowhere"))) is None
