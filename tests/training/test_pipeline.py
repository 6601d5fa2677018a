"""A run to its checkpoints: a snapshot has the weights of its own step, in however many calls a run is trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from training.__main__ import main
from training.corpus import open_corpus
from training.pipeline import PassedSnapshotError, train, train_stages
from training.recipe import Recipe, RunDirectory


@pytest.fixture
def recipe(toy_recipe: Recipe, toy_run: RunDirectory) -> Recipe:
    """8 steps, a checkpoint also after 2 and 5."""
    return replace(
        toy_recipe,
        data=replace(toy_recipe.data, root=str(toy_run.root)),
        stage1=replace(toy_recipe.stage1, schedule=replace(toy_recipe.stage1.schedule, num_steps=2)),
        stage2=replace(toy_recipe.stage2, snapshots=(2, 5)),
    )


def weights(checkpoint: Path) -> dict[str, Tensor]:
    return load_file(checkpoint / "model.safetensors")


def steps_in(checkpoint: Path) -> int:
    return json.loads((checkpoint / "manifest.json").read_text())["training"]["stage2_steps"]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_that_stops_past_a_snapshot_and_goes_on_has_the_snapshots_of_an_unbroken_one(
    recipe: Recipe, tmp_path: Path
) -> None:
    unbroken, stopped = (RunDirectory.of(recipe, tmp_path / name) for name in ("unbroken", "stopped"))
    train(recipe, unbroken)
    train_stages(open_corpus(recipe, stopped), stopped, until=4)
    assert not stopped.snapshot(5).exists() and not stopped.checkpoint.exists()
    train(recipe, stopped)
    found = {}
    for step in (2, 5, 8):
        one, other = (run.checkpoint if step == 8 else run.snapshot(step) for run in (unbroken, stopped))
        assert steps_in(one) == steps_in(other) == step
        assert same(weights(one), weights(other)), step
        found[step] = weights(one)
    assert not same(found[2], found[5]) and not same(found[5], found[8])
    losses = [
        [json.loads(line)["loss"] for line in (run.stage2 / "metrics.jsonl").read_text().splitlines()]
        for run in (unbroken, stopped)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 8


def test_a_snapshot_whose_step_was_passed_is_not_made_of_later_weights(recipe: Recipe, tmp_path: Path) -> None:
    run = RunDirectory.of(recipe, tmp_path / "run")
    corpus = open_corpus(recipe, run)
    train_stages(corpus, run, until=4)
    shutil.rmtree(run.snapshot(2))
    with pytest.raises(
        PassedSnapshotError, match=rf"is at step 4, and {run.snapshot(2)} is not there: delete {run.root}"
    ):
        train(recipe, run)
    assert not run.checkpoint.exists()
    train_stages(corpus, run, until=5)
    assert not run.snapshot(2).exists() and steps_in(run.snapshot(5)) == 5


def test_a_run_that_is_done_is_left_alone_also_without_its_recordings(recipe: Recipe, tmp_path: Path) -> None:
    run = RunDirectory.of(recipe, tmp_path / "run")
    train(recipe, run)
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}
    train(replace(recipe, data=replace(recipe.data, root=str(tmp_path / "nowhere"))), run)
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("*")} == before
    # Nor is it trained anew for a snapshot, where its training state was deleted to save room.
    shutil.rmtree(run.stage2 / "state")
    shutil.rmtree(run.snapshot(5))
    log = (run.stage2 / "metrics.jsonl").read_text()
    with pytest.raises(PassedSnapshotError, match=rf"is at step 8, and {run.snapshot(5)} is not there"):
        train(recipe, run)
    assert (run.stage2 / "metrics.jsonl").read_text() == log


def test_the_verb_stage2_writes_the_snapshots_on_its_way(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "toy.json").write_text(json.dumps(recipe.to_json()))
    run = RunDirectory.of(recipe, tmp_path / "run")
    call = ["stage2", "--recipe", str(tmp_path / "toy.json"), "--run", str(run.root), "--threads", "1"]
    assert main([*call, "--until", "3"]) == 0
    assert steps_in(run.snapshot(2)) == 2 and not run.snapshot(5).exists()
    assert main(call) == 0
    assert steps_in(run.snapshot(5)) == 5 and not run.checkpoint.exists()


@pytest.mark.parametrize("start", ["a checkpoint", "a random decoder"])
def test_no_prior_is_trained_that_stage_2_would_not_start_from(
    start: str, recipe: Recipe, toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if start == "a checkpoint":
        without = replace(recipe, stage2=replace(recipe.stage2, start_from=str(toy_checkpoint)))
    else:
        none = replace(recipe.stage1.schedule, num_steps=0)
        without = replace(recipe, stage1=replace(recipe.stage1, schedule=none))
    assert recipe.trains_prior and not without.trains_prior
    (tmp_path / "toy.json").write_text(json.dumps(without.to_json()))
    call = ["stage1", "--recipe", str(tmp_path / "toy.json"), "--run", str(tmp_path / "run"), "--threads", "1"]
    assert main(call) == 0
    said = str(toy_checkpoint) if start == "a checkpoint" else start
    assert capsys.readouterr().out == f"no stage 1: stage 2 starts from {said}\n"
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_was_fine_tuned_claims_no_steps_of_stage_1(recipe: Recipe, tmp_path: Path) -> None:
    parent = RunDirectory.of(recipe, tmp_path / "parent")
    train(recipe, parent)
    tuned = replace(recipe, stage2=replace(recipe.stage2, start_from=str(parent.checkpoint), snapshots=()))
    run = RunDirectory.of(tuned, tmp_path / "tuned")
    train(tuned, run)
    made = json.loads((run.checkpoint / "manifest.json").read_text())["training"]
    assert (made["stage1_steps"], made["started_from"]["training"]["stage1_steps"]) == (0, 2)
    assert not run.stage1.exists()
