"""`python -m training video-prior`: what it is asked, what it says, how it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policy.policy import Policy
from training.__main__ import main
from training.locked import locked


@pytest.fixture
def arguments(recipe_values: dict[str, Any], tmp_path: Path) -> list[str]:
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(recipe_values))
    return ["--recipe", str(path), "--threads", "1"]


def test_parts_are_made_one_by_one_and_leave_a_run_that_other_verbs_read(
    arguments: list[str], run_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*arguments, "--run", str(run_root)]
    for part in ("eyes", "latent-actions", "pretraining", "adaptation"):
        assert main(["video-prior", part, *run]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"{part}: {run_root}")
        assert Path(said.split(": ", 1)[1].strip()).is_dir()
    assert main(["video-prior", *run]) == 0
    assert Policy.from_checkpoint(run_root / "checkpoint").manifest["variant"] == "video-prior"
    assert main(["stats", "--run", str(run_root)]) == 0
    assert "slide: 4 episodes" in capsys.readouterr().out


def test_pretraining_says_what_it_foresees_of_other_clips(
    arguments: list[str],
    recipe_values: dict[str, Any],
    clip_packs: tuple[str, str],
    run_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = [*arguments, "--run", str(run_root), "--test-clips", *clip_packs]
    assert main(["video-prior", "pretraining", *run]) == 0
    where, line = capsys.readouterr().out.splitlines()
    assert where.startswith(f"pretraining: {run_root}")
    assert re.match(
        r"  hand: cross-entropy \d\.\d+, by frequency alone [01]\.\d+; right \d+ %, by .*; \d+ frames$", line
    )
    path = tmp_path / "control.json"
    path.write_text(json.dumps({**recipe_values, "pretraining": {"schedule": {"num_steps": 0}}}))
    assert main(["video-prior", "pretraining", *run, "--recipe", str(path)]) == 1
    assert "recipe toy-video has none" in capsys.readouterr().err


def test_other_clips_in_a_run_that_is_done_are_refused(
    arguments: list[str], clip_packs: tuple[str, str], run_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*arguments, "--run", str(run_root)]
    assert main(["video-prior", *run, "--clips", clip_packs[0]]) == 0
    assert main(["video-prior", *run, "--clips", *clip_packs]) == 1
    assert "checkpoint is of another recipe: clips differ" in capsys.readouterr().err


def test_a_vision_model_of_a_directory_reads_pictures_of_the_size_that_is_asked(
    arguments: list[str], run_root: Path, tmp_path: Path
) -> None:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=32, patch_size=4
    )
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    run = [*arguments, "--run", str(run_root), "--eyes", str(tmp_path / "dino"), "--eyes-image-size", "16"]
    assert main(["video-prior", *run]) == 0
    intent = Policy.from_checkpoint(run_root / "checkpoint").config.intent
    assert intent is not None and intent.visual is not None
    assert (intent.visual["kind"], intent.visual["image_size"]) == ("transformers", 16)


def test_eyes_need_no_robot(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = [*arguments, "--run", str(tmp_path / "empty")]
    assert main(["video-prior", "eyes", *run]) == 0
    assert main(["video-prior", *run]) == 1
    assert "no demonstrations of slide" in capsys.readouterr().err


def test_a_wrong_call_says_what_is_wrong(
    arguments: list[str], clip_packs: tuple[str, str], run_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*arguments, "--run", str(run_root)]
    assert main(["video-prior", *run, "--clips", str(run_root)]) == 1
    assert "is not a clip pack" in capsys.readouterr().err
    assert main(["video-prior", "eyes", *run, "--clips", clip_packs[0]]) == 0
    assert main(["video-prior", "eyes", *run, "--seed", "7"]) == 1
    assert "recipe of another run" in capsys.readouterr().err
    assert main(["video-prior", "--recipe", "video-pior"]) == 2
    assert "did you mean 'video-prior'" in capsys.readouterr().err


def test_a_pretrained_backbone_is_tuned_as_it_is_asked(
    arguments: list[str],
    save_vlm: Callable[..., Path],
    run_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = save_vlm(tmp_path / "model", "smolvlm")
    run = [*arguments, "--run", str(run_root)]
    assert main(["video-prior", *run, "--backbone", str(model), "--tuning", "lora", "--lora-rank", "2"]) == 0
    manifest = Policy.from_checkpoint(run_root / "checkpoint").manifest
    asked = manifest["recipe"]
    assert (asked["adaptation"]["tuning"], asked["base"]["backbone"]["tuning"]) == ("lora", "lora")
    assert asked["base"]["backbone"]["lora_rank"] == 2
    capsys.readouterr()
    assert main(["video-prior", *run, "--tuning", "lora"]) == 1
    assert "expected --backbone DIR as well" in capsys.readouterr().err
    assert main(["video-prior", *run, "--lora-rank", "4"]) == 1
    assert "expected --backbone DIR as well" in capsys.readouterr().err


def test_two_processes_do_not_train_the_same_parts(
    arguments: list[str], run_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = tmp_path / "shared"
    run = [*arguments, "--run", str(run_root), "--shared", str(shared)]
    with locked(shared, "trains"):
        assert main(["video-prior", "eyes", *run]) == 1
        assert f"another process trains in {shared}" in capsys.readouterr().err
    assert main(["video-prior", "eyes", *run]) == 0
