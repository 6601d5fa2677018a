"""What a run opens: statistics of its very data, batches by weights of tasks, rows as functions of seed and step."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training import shared_training
from training.corpus import open_corpus
from training.recipe import Recipe, RunDirectory
from training.stage2 import rows_of_step

Demonstrate = Callable[[Path, Sequence[int]], None]


@pytest.fixture
def run(demonstrate: Demonstrate, tmp_path: Path) -> RunDirectory:
    run = RunDirectory(root=tmp_path)
    demonstrate(run.dataset("slide"), range(3))
    return run


def test_statistics_are_kept_until_the_data_is_another(
    toy_recipe: Recipe, run: RunDirectory, demonstrate: Demonstrate, tmp_path: Path
) -> None:
    first = open_corpus(toy_recipe, run).statistics
    written = run.statistics.stat().st_mtime_ns
    assert open_corpus(toy_recipe, run).statistics == first
    assert run.statistics.stat().st_mtime_ns == written
    run.dataset("slide").rename(tmp_path / "before")
    demonstrate(run.dataset("slide"), range(5, 8))
    second = open_corpus(toy_recipe, run).statistics
    assert second != first
    assert json.loads(run.statistics.read_text())["embodiments"]["slider"] == second[0]


def test_a_run_on_fewer_episodes_has_the_statistics_of_all_that_are_recorded(
    toy_recipe: Recipe, run: RunDirectory, tmp_path: Path
) -> None:
    def opened(num_episodes: int, name: str) -> Any:
        data = replace(toy_recipe.data, root=str(run.root), episodes_per_task=num_episodes)
        recipe = replace(toy_recipe, data=data)
        return open_corpus(recipe, RunDirectory.of(recipe, tmp_path / name))

    few, all_ = opened(1, "few"), opened(3, "all")
    assert [corpus.packs[0].num_episodes for corpus in (few, all_)] == [1, 3]
    assert few.statistics == all_.statistics
    assert few.identity(few.packs) != all_.identity(all_.packs)


def test_a_task_is_drawn_by_its_weight_in_however_many_packs_it_is() -> None:
    corpus = shared_training.corpus()
    arm, pair = corpus.packs
    recipe = replace(corpus.recipe, data=replace(corpus.recipe.data, weights={"pair": 3.0}))
    packs = [arm, arm.first(1), pair]
    sampler = replace(corpus, recipe=recipe).sampler(packs, 8, seed=0)
    drawn = np.zeros(3)
    for step in range(1024):
        for pack, frames in sampler.batch(step):
            drawn[pack] += len(frames)
    # Of the arm's 15 and 7 frames each is drawn as often as any other.
    np.testing.assert_allclose(drawn / drawn.sum(), [0.25 * 15 / 22, 0.25 * 7 / 22, 0.75], atol=1e-3)


def differing(one: Any, other: Any, where: str = "") -> set[str]:
    if is_dataclass(one):
        return {
            name
            for field in fields(one)
            for name in differing(getattr(one, field.name), getattr(other, field.name), f"{where}.{field.name}")
        }
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return set() if same else {where}


def test_hidden_states_and_shifts_are_functions_of_seed_and_step_alone() -> None:
    corpus = shared_training.corpus()
    stage2 = replace(corpus.recipe.stage2, batch_size=30, state_dropout=0.3, image_shift=2)
    recipe = replace(corpus.recipe, stage2=stage2)
    mixture = corpus.mixture(corpus.packs, landmarks=False)
    picks = [(0, np.arange(15)), (1, np.arange(15))]

    def rows(step: int, changed: Recipe = recipe) -> Any:
        return rows_of_step(replace(corpus, recipe=changed), mixture, picks, step)

    assert not differing(rows(3), rows(3))
    random = {".observation.images", ".observation.state_mask"}
    assert differing(rows(3), rows(4)) == differing(rows(3), rows(3, replace(recipe, seed=1))) == random
    unshifted = rows(3, replace(recipe, stage2=replace(stage2, image_shift=0)))
    assert differing(rows(3), unshifted) == {".observation.images"}
    hidden = 1 - torch.cat([rows(step).observation.state_mask for step in range(100)]).float().mean()
    assert hidden == pytest.approx(0.3, abs=0.03)
