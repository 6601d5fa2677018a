"""A robot that brings only a data set, through the command line: draft, finish, import, train, export, act."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policy.embodiment import EmbodimentSpec
from policy.policy import Policy
from policy.request import ChunkRequest
from training.__main__ import main
from training.corpus import open_corpus
from training.loop import Schedule
from training.recipe import Recipe, RunDirectory

WriteArm = Callable[..., Path]


def call(*arguments: str | Path) -> int:
    return main([*map(str, arguments), "--threads", "1"])


def settle(path: Path) -> None:
    """What a person does with a draft: each guess is taken, and the kind's list of choices with it."""

    def settled(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("TODO "):
            return value.removeprefix("TODO ").split("?")[0]
        if isinstance(value, dict):
            return {key: settled(part) for key, part in value.items()}
        return [settled(part) for part in value] if isinstance(value, list) else value

    path.write_text(json.dumps(settled(json.loads(path.read_text()))))


def shorten(path: Path) -> None:
    """Three steps of each stage, of the smallest model."""
    recipe = Recipe.load(str(path))
    schedule = Schedule(num_steps=3, warmup_steps=1, save_every=3, log_every=1)
    recipe = replace(
        recipe,
        size="tiny-vlm",
        autocast=False,
        stage1=replace(recipe.stage1, schedule=schedule, batch_size=4),
        stage2=replace(recipe.stage2, schedule=schedule, batch_size=2, decay_steps=2),
    )
    path.write_text(json.dumps(recipe.to_json()))


def test_a_data_set_becomes_a_policy_that_acts(
    write_arm: WriteArm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, spec_path, run = write_arm(), tmp_path / "arm.json", tmp_path / "runs/arm"
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}

    assert call("import", "--lerobot", data, "--draft", spec_path) == 0
    assert "settle these 10 fields" in capsys.readouterr().out
    assert call("import", "--lerobot", data, "--embodiment", spec_path, "--run", run) == 1
    assert "replace each of these by its value" in capsys.readouterr().err
    assert not run.exists()

    settle(spec_path)
    assert call("import", "--lerobot", data, "--embodiment", spec_path, "--run", run, "--name", "cube") == 0
    assert f"next: python -m training stats --run {run}" in capsys.readouterr().out
    shorten(run / "recipe.json")
    for verb in ("stats", "stage1", "stage2", "export"):
        assert call(verb, "--run", run) == 0, capsys.readouterr().err

    corpus = open_corpus(Recipe.load(str(run / "recipe.json")), RunDirectory(root=run))
    batch = corpus.mixture(corpus.packs, landmarks=False).vla([(0, np.array([8, 9, 21]))], torch.ones(3).bool())
    assert batch.observation.instructions == ("pick the cube", "place the cube", "pick the cube")

    policy = Policy.from_checkpoint(run / "checkpoint")
    spec = EmbodimentSpec.from_json(json.loads(spec_path.read_text()))
    request = ChunkRequest(
        embodiment="arm",
        images={"wrist": torch.zeros(32, 48, 3, dtype=torch.uint8)},
        state=torch.zeros(4),
        instruction="place the cube",
        history_states=torch.zeros(0, 4),
        history_actions=torch.zeros(0, 4),
        seed=1,
    )
    [chunk] = policy.predict_chunk([request])
    assert chunk.shape[-1] == spec.action_dim and chunk.isfinite().all()
    assert policy.manifest["data"]["cube"]["instructions"] == ["pick the cube", "place the cube"]
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_a_refused_data_set_exits_with_1_and_lists_what_is_wrong(
    write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_arm()
    (data / "meta/stats.json").unlink()
    (tmp_path / "arm.json").write_text(json.dumps(replace(spec, control_rate_hz=20.0).to_json()))
    assert call("import", "--lerobot", data, "--embodiment", tmp_path / "arm.json", "--run", tmp_path / "run") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "nothing was written. Problems found: 2\n  1. " in captured.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["--lerobot", "x"], ["--lerobot", "x", "--draft", "a", "--embodiment", "b"], ["--draft", "a"]],
    ids=["nothing", "neither", "both", "no data"],
)
def test_a_wrong_call_of_import_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["import", *arguments])
    assert exit_.value.code == 2


def test_modality_without_draft_is_a_wrong_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("import", "--lerobot", tmp_path, "--embodiment", "x", "--modality", "y") == 2
    assert "--modality goes with --draft" in capsys.readouterr().err
