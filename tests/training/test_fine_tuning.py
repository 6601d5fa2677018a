"""Stage 2 from a checkpoint: it keeps what the weights were trained with, and refuses bodies they never saw."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from policy.checkpoint import read_checkpoint
from tests.training import shared_training
from training.corpus import open_corpus
from training.export import export_checkpoint
from training.objective import stage2_losses
from training.recipe import DataRecipe, Recipe, RunDirectory
from training.stage2 import build_landmark_head, train_stage2


def fine_tuning(recipe: Recipe, checkpoint: Path) -> Recipe:
    return replace(recipe, stage2=replace(recipe.stage2, start_from=str(checkpoint)))


def test_it_starts_from_the_checkpoint_and_says_so(toy_recipe: Recipe, toy_run: RunDirectory, tmp_path: Path) -> None:
    first = open_corpus(toy_recipe, toy_run)
    revision = export_checkpoint(
        first, train_stage2(first, None, tmp_path / "first", until=2), tmp_path / "parent", training={}, metrics={}
    )
    corpus = open_corpus(fine_tuning(toy_recipe, tmp_path / "parent"), toy_run)
    assert corpus.statistics == read_checkpoint(tmp_path / "parent").statistics
    untouched = train_stage2(corpus, None, tmp_path / "none", until=0)
    for name, value in corpus.parent.vla.state_dict().items() if corpus.parent else ():
        assert torch.equal(value, untouched.state_dict()[name]), name
    assert corpus.parent_manifest is not None
    assert corpus.parent_manifest["revision"] == revision


def test_another_parent_is_another_run(toy_recipe: Recipe, toy_run: RunDirectory, tmp_path: Path) -> None:
    first = open_corpus(toy_recipe, toy_run)
    vla = train_stage2(first, None, tmp_path / "first", until=1)
    for name in ("one", "two"):
        export_checkpoint(first, vla, tmp_path / name, training={"name": name}, metrics={})
    train_stage2(open_corpus(fine_tuning(toy_recipe, tmp_path / "one"), toy_run), None, tmp_path / "run", until=1)
    with pytest.raises(ValueError, match="start_from differ"):
        train_stage2(open_corpus(fine_tuning(toy_recipe, tmp_path / "two"), toy_run), None, tmp_path / "run", until=2)


def test_a_body_the_checkpoint_never_saw_is_refused(toy_recipe: Recipe, toy_run: RunDirectory, tmp_path: Path) -> None:
    first = open_corpus(toy_recipe, toy_run)
    export_checkpoint(first, first.build_model(), tmp_path / "parent", training={}, metrics={})
    other = RunDirectory(root=tmp_path / "other")
    shutil.copytree(toy_run.dataset("slide"), other.dataset("slide"))
    annotations = other.dataset("slide") / "meta" / "premotor.json"
    changed = json.loads(annotations.read_text())
    changed["embodiment"]["control_rate_hz"] = 11.0
    annotations.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="embodiment 'slider' of task 'slide' is not the one it was trained on"):
        open_corpus(fine_tuning(toy_recipe, tmp_path / "parent"), other)


def test_tasks_may_differ_in_episodes_and_weight() -> None:
    data = DataRecipe(tasks=("a", "b"), episodes_per_task=4, episodes={"b": 9}, weights={"a": 0.5})
    assert [data.num_episodes(task) for task in data.tasks] == [4, 9]
    assert [data.weight(task) for task in data.tasks] == [0.5, 1.0]
    with pytest.raises(ValueError, match=r"data\.weights names \['c'\]"):
        DataRecipe(tasks=("a",), episodes_per_task=1, weights={"c": 2.0})


def test_a_new_landmark_head_moves_the_eyes_only_after_its_delay() -> None:
    corpus = shared_training.corpus()
    vla, head = corpus.build_model(), build_landmark_head(corpus, corpus.packs)
    assert head is not None
    batch = corpus.mixture(corpus.packs, landmarks=True).vla(
        [(0, np.arange(3)), (1, np.arange(3))], torch.ones(6, dtype=torch.bool)
    )

    def eyes_moved(landmarks_move_eyes: bool) -> bool:
        losses = stage2_losses(
            vla,
            batch,
            torch.Generator().manual_seed(0),
            distillation=0,
            num_draws=1,
            landmark_head=head,
            landmark_weight=1.0,
            landmarks_move_eyes=landmarks_move_eyes,
        )
        (learnt,) = torch.autograd.grad(losses["landmarks"], [head.out], retain_graph=True)
        assert learnt.any()
        eyes = list(vla.backbone.stem.parameters())  # pyright: ignore[reportAttributeAccessIssue]
        return any(each is not None for each in torch.autograd.grad(losses["landmarks"], eyes, allow_unused=True))

    assert eyes_moved(True)
    assert not eyes_moved(False)


def test_the_delay_of_landmarks_counts_steps(tmp_path: Path) -> None:
    def norms(delay: int) -> list[float]:
        corpus = shared_training.corpus()
        delayed = replace(corpus.recipe, stage2=replace(corpus.recipe.stage2, landmark_delay_steps=delay))
        train_stage2(replace(corpus, recipe=delayed), None, tmp_path / str(delay), until=3)
        log = tmp_path / str(delay) / "metrics.jsonl"
        return [json.loads(line)["gradient_norm"] for line in log.read_text().splitlines()]

    at_once, second, third = norms(0), norms(1), norms(2)
    assert second[0] == third[0] != at_once[0]
    assert second[1] != third[1]


def test_an_instruction_that_would_be_cut_is_refused_with_its_data_and_the_remedy() -> None:
    corpus = shared_training.corpus()
    long = replace(corpus.packs[1], instructions=("hand it over", "1" * 129))
    with pytest.raises(
        ValueError, match=r"pack pair of task 'pair': an instruction of 129 .* at most 128: '1+'\.\.\.; short"
    ):
        replace(corpus, packs=[corpus.packs[0], long])
