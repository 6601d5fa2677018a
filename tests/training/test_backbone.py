"""Stage 2 around a pretrained model: what trains under each tuning, resuming, and a checkpoint like any other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from policy.images import resize_frames
from policy.policy import Policy
from policy.vla import VLA
from policy.vlm import VlmBackbone
from training.__main__ import main
from training.backbone import add_lora, merge_lora
from training.corpus import Corpus, open_corpus
from training.data.lerobot.reader import LeRobotReader
from training.export import export_checkpoint, probe_request
from training.loop import Schedule
from training.recipe import BackboneRecipe, Recipe, RunDirectory, Tuning
from training.stage1 import train_stage1
from training.stage2 import train_stage2

FAMILIES = ("smolvlm", "qwen3_vl", "paligemma")
IMAGE_SIZES = {"smolvlm": 64, "qwen3_vl": 96, "paligemma": 64}


@pytest.fixture(scope="module")
def directories(save_vlm: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family, one of them in shards."""
    root = tmp_path_factory.mktemp("models")
    shards = {"qwen3_vl": "300KB"}
    return {name: save_vlm(root / name, name, max_shard_size=shards.get(name, "50GB")) for name in FAMILIES}


@pytest.fixture
def open_on(directories: dict[str, Path], toy_recipe: Recipe, toy_run: RunDirectory) -> Callable[..., Corpus]:
    def build(family: str, tuning: Tuning, **backbone: Any) -> Corpus:
        backbone = {"directory": str(directories[family]), "tuning": tuning, "lora_rank": 4, **backbone}
        return open_corpus(replace(toy_recipe, backbone=BackboneRecipe(**backbone)), toy_run)

    return build


def vlm(vla: VLA) -> nn.Module:
    return cast(VlmBackbone, vla.backbone).vlm


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def losses(directory: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def language_layers(model: nn.Module) -> set[str]:
    """Weights and biases of the linear layers that LoRA adds to."""
    part = next(name for name in ("language_model", "text_model") if hasattr(model, name))
    return {
        f"{name}.weight"
        for name, layer in model.named_modules()
        if name.startswith(part + ".") and isinstance(layer, nn.Linear)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_full_tuning_trains_the_whole_model_and_serves_it(
    family: str, open_on: Callable[..., Corpus], tmp_path: Path
) -> None:
    corpus = open_on(family, "full")
    before = weights(corpus.build_model())
    vla = train_stage2(corpus, None, tmp_path / "stage2", until=3)
    assert len(losses(tmp_path / "stage2")) == 3
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "stage2"))
    unchanged = {name for name, value in weights(vla).items() if torch.equal(value, before[name])}
    assert unchanged <= {"backbone.no_state"}
    check_served(corpus, vla, tmp_path / "checkpoint", tuning="full", lora_rank=None)


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_trains_the_language_layers_alone_and_serves_them_merged(
    family: str, open_on: Callable[..., Corpus], tmp_path: Path
) -> None:
    corpus = open_on(family, "lora")
    fresh = corpus.build_model()
    before = weights(fresh)
    vla = train_stage2(corpus, None, tmp_path / "stage2", until=3)
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "stage2"))
    after = weights(vla)
    assert after.keys() == before.keys()
    pretrained = {name for name in before if name.startswith("backbone.vlm.")}
    layers = {f"backbone.vlm.{name}" for name in language_layers(vlm(fresh))}
    assert {name for name in pretrained if not torch.equal(after[name], before[name])} == layers
    ours = before.keys() - pretrained - {"backbone.no_state"}
    assert not [name for name in ours if torch.equal(after[name], before[name])]
    check_served(corpus, vla, tmp_path / "checkpoint", tuning="lora", lora_rank=4)


def check_served(corpus: Corpus, vla: VLA, directory: Path, **tuned: Any) -> None:
    """The checkpoint needs nothing but itself, and answers as the trained model does."""
    export_checkpoint(corpus, vla, directory, training={}, metrics={})
    policy = Policy.from_checkpoint(directory)
    asked = probe_request(corpus.packs[0], corpus.config)
    trained = Policy(vla=vla, specs=corpus.specs, statistics=corpus.statistics, manifest={}, revision="")
    torch.testing.assert_close(policy.predict_chunk([asked])[0], trained.predict_chunk([asked])[0], atol=1e-6, rtol=0)
    assert not [name for name in load_file(directory / "model.safetensors") if "lora" in name or "base_layer" in name]
    assert corpus.pretrained is not None
    found = policy.manifest["backbone"]
    assert found.items() >= {"sha256": corpus.pretrained.sha256, **tuned}.items()
    files = {path.name for path in directory.rglob("*") if path.is_file()}
    assert files == {
        "config.json", "embodiments.json", "manifest.json", "model.safetensors", "probe.npz", "tokenizer.json",
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_merged_weights_answer_as_the_model_with_lora_beside_it(family: str, open_on: Callable[..., Corpus]) -> None:
    corpus = open_on(family, "lora")
    vla = corpus.build_model().eval()
    batch = corpus.mixture(corpus.packs, landmarks=False).vla([(0, np.arange(20, 24))], torch.ones(4, dtype=torch.bool))

    def answer() -> Tensor:
        output = vla.observe(batch.observation, batch.history)
        assert output.with_history is not None
        return torch.stack([output.without_history, output.with_history])

    plain = answer()
    add_lora(vla, rank=4, seed=0)
    torch.testing.assert_close(answer(), plain, atol=1e-6, rtol=0)
    generator = torch.Generator().manual_seed(0)
    for name, value in vla.named_parameters():
        if "lora_B" in name:
            value.normal_(std=0.05, generator=generator)
    beside = answer()
    assert (beside - plain).abs().max() > 1e-2
    merge_lora(vla)
    torch.testing.assert_close(answer(), beside, atol=1e-5, rtol=0)
    assert all(value.requires_grad for value in vla.parameters())


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_run_stopped_and_resumed_gives_the_losses_of_an_unbroken_one(
    tuning: Tuning, open_on: Callable[..., Corpus], tmp_path: Path
) -> None:
    corpus = open_on("smolvlm", tuning)
    prior = train_stage1(corpus, tmp_path / "stage1", until=1)
    unbroken = train_stage2(corpus, prior, tmp_path / "unbroken")
    train_stage2(corpus, prior, tmp_path / "stopped", until=5)
    resumed = train_stage2(open_on("smolvlm", tuning), prior, tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "unbroken")
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_lora_under_autocast_has_about_the_same_losses(open_on: Callable[..., Corpus], tmp_path: Path) -> None:
    corpus = open_on("qwen3_vl", "lora")
    train_stage2(corpus, None, tmp_path / "exact", until=2)
    train_stage2(replace(corpus, recipe=replace(corpus.recipe, autocast=True)), None, tmp_path / "rough", until=2)
    assert losses(tmp_path / "rough") == pytest.approx(losses(tmp_path / "exact"), rel=0.03)


def test_the_training_state_of_lora_holds_nothing_that_is_frozen(
    open_on: Callable[..., Corpus], tmp_path: Path
) -> None:
    train_stage2(open_on("smolvlm", "lora"), None, tmp_path, until=1)
    (path,) = (tmp_path / "state").glob("*.safetensors")
    with safe_open(path, framework="pt") as file:
        of_the_model = [name for name in file.keys() if ".vlm." in name]  # noqa: SIM118  (not a mapping)
    assert of_the_model
    assert all(".lora_A." in name or ".lora_B." in name for name in of_the_model)


@pytest.mark.parametrize(
    ("change", "differs"),
    [({"tuning": "full"}, "backbone"), ({"lora_rank": 2}, "backbone"), ({"image_size": 128}, "config")],
)
def test_a_run_does_not_go_on_with_another_tuning(
    change: dict[str, Any], differs: str, open_on: Callable[..., Corpus], tmp_path: Path
) -> None:
    train_stage2(open_on("smolvlm", "lora"), None, tmp_path, until=0)
    with pytest.raises(ValueError, match=f"holds another run: .*{differs}"):
        train_stage2(open_on("smolvlm", **{"tuning": "lora", **change}), None, tmp_path, until=1)


def test_a_run_does_not_go_on_with_other_frozen_weights(
    open_on: Callable[..., Corpus], save_vlm: Callable[..., Path], tmp_path: Path
) -> None:
    train_stage2(open_on("smolvlm", "lora"), None, tmp_path / "run", until=0)
    other = save_vlm(tmp_path / "other", "smolvlm", seed=9)
    with pytest.raises(ValueError, match="holds another run: backbone differ"):
        train_stage2(open_on("smolvlm", "lora", directory=str(other)), None, tmp_path / "run", until=1)


@pytest.mark.parametrize(("given", "scale"), [(None, 0.1), (0.5, 0.5)])
def test_the_pretrained_weights_learn_slower(
    given: float | None, scale: float, open_on: Callable[..., Corpus], tmp_path: Path
) -> None:
    corpus = open_on("smolvlm", "full", learning_rate_scale=given)
    schedule = Schedule(num_steps=1, warmup_steps=1, learning_rate=1e-3, weight_decay=0.0, log_every=1)
    corpus = replace(corpus, recipe=replace(corpus.recipe, stage2=replace(corpus.recipe.stage2, schedule=schedule)))
    before = weights(corpus.build_model())
    after = weights(train_stage2(corpus, None, tmp_path))
    # AdamW's first step moves every weight that has a gradient by the learning rate.
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    pretrained = max(value for name, value in moved.items() if name.startswith("backbone.vlm."))
    ours = max(value for name, value in moved.items() if not name.startswith("backbone.vlm."))
    assert pretrained / ours == pytest.approx(scale, rel=1e-2)


def test_a_checkpoints_own_model_is_tuned_further_with_lora(
    open_on: Callable[..., Corpus], toy_recipe: Recipe, toy_run: RunDirectory, tmp_path: Path
) -> None:
    first = open_on("qwen3_vl", "full")
    vla = train_stage2(first, None, tmp_path / "first", until=1)
    export_checkpoint(first, vla, tmp_path / "parent", training={}, metrics={})
    recipe = replace(
        toy_recipe,
        stage2=replace(toy_recipe.stage2, start_from=str(tmp_path / "parent")),
        backbone=BackboneRecipe(tuning="lora", lora_rank=2),
    )
    corpus = open_corpus(recipe, toy_run)
    assert corpus.config.to_json() == first.config.to_json()
    before = weights(corpus.build_model())
    after = weights(train_stage2(corpus, None, tmp_path / "second", until=2))
    changed = {
        name for name in before if name.startswith("backbone.vlm.") and not torch.equal(after[name], before[name])
    }
    assert changed == {f"backbone.vlm.{name}" for name in language_layers(vlm(corpus.build_model()))}


def test_a_checkpoint_without_such_a_model_has_nothing_to_tune(
    toy_recipe: Recipe, toy_run: RunDirectory, toy_checkpoint: Path
) -> None:
    recipe = replace(
        toy_recipe,
        stage2=replace(toy_recipe.stage2, start_from=str(toy_checkpoint)),
        backbone=BackboneRecipe(tuning="lora"),
    )
    with pytest.raises(ValueError, match=r"has no vision-language model that .*; leave backbone out"):
        open_corpus(recipe, toy_run)


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_are_packed_as_serving_will_resize_them(
    family: str, open_on: Callable[..., Corpus], toy_run: RunDirectory
) -> None:
    corpus = open_on(family, "full")
    size = IMAGE_SIZES[family]
    assert (corpus.config.image_size, corpus.config.interpolation) == (size, "bicubic")
    (pack,) = corpus.packs
    assert pack.directory.parent == toy_run.root / f"packs-{size}px-bicubic"
    frame = next(iter(LeRobotReader(toy_run.dataset("slide")).iter_frames("observation.images.front")))
    expected = resize_frames(torch.from_numpy(np.array(frame))[None], size, "bicubic")[0]
    np.testing.assert_array_equal(pack.images["front"][0], expected.numpy())


def test_the_size_of_a_recipe_is_around_any_model(open_on: Callable[..., Corpus], toy_run: RunDirectory) -> None:
    small = replace(open_on("smolvlm", "lora").recipe, size="small")
    config = open_corpus(small, toy_run).config
    assert (config.size, config.latent_dim, config.decoder.width, config.image_size) == ("small", 512, 384, 64)
    paper = open_corpus(replace(small, size="paper"), toy_run).config
    assert (paper.size, paper.latent_dim, paper.decoder.width, paper.image_size) == ("paper", 1024, 1024, 64)


def test_an_image_size_that_the_model_cannot_take_is_refused_before_anything_is_packed(
    open_on: Callable[..., Corpus], toy_run: RunDirectory
) -> None:
    with pytest.raises(ValueError, match=r"backbone.image_size is 72, .*smolvlm takes a multiple of 32"):
        open_on("smolvlm", "full", image_size=72)
    assert not list(toy_run.root.glob("packs-72px*"))


def test_the_command_line_names_a_backbone_for_every_verb_of_a_run(
    directories: dict[str, Path], toy_recipe: Recipe, toy_run: RunDirectory, tmp_path: Path
) -> None:
    short = replace(toy_recipe.stage1, schedule=replace(toy_recipe.stage1.schedule, num_steps=2))
    recipe = replace(toy_recipe, stage1=short, data=replace(toy_recipe.data, root=str(toy_run.root)))
    (tmp_path / "toy.json").write_text(json.dumps(recipe.to_json()))
    shared = ["--recipe", str(tmp_path / "toy.json"), "--run", str(tmp_path / "run"), "--threads", "1"]
    backbone = ["--backbone", str(directories["paligemma"]), "--tuning", "lora", "--lora-rank", "2"]
    for until in (["--until", "1"], []):
        assert main(["stage2", *shared, *backbone, *until]) == 0
    assert main(["export", *shared, *backbone]) == 0
    policy = Policy.from_checkpoint(tmp_path / "run" / "checkpoint")
    assert policy.manifest["backbone"]["family"] == "paligemma"
    assert policy.manifest["recipe"]["backbone"]["lora_rank"] == 2
    assert main(["stage2", *shared]) == 1


def test_a_tuning_of_no_backbone_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stage2", "--tuning", "lora", "--threads", "1"]) == 2
    assert "--tuning and --lora-rank need --backbone" in capsys.readouterr().err


def test_a_directory_that_cannot_be_used_fails_with_the_reason(
    toy_recipe: Recipe, toy_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy.json").write_text(json.dumps(toy_recipe.to_json()))
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "config.json").write_text('{"model_type": "llava"}')
    call = ["stage2", "--recipe", str(tmp_path / "toy.json"), "--run", str(toy_run.root), "--threads", "1"]
    assert main([*call, "--backbone", str(tmp_path / "llava")]) == 1
    assert "model_type is 'llava', expected one of ['idefics3'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {"tuning": "lora"}}, "backbone.directory is empty, expected the directory"),
        ({"backbone": {"directory": "x", "tuning": "some"}}, r"backbone.tuning is 'some', expected one of \['full'"),
        ({"backbone": {"directory": "x", "lora_rank": 0}}, "backbone.lora_rank is 0, expected a whole number of"),
        (
            {"backbone": {"directory": "x", "learning_rate_scale": 0}},
            "learning_rate_scale is 0, expected a number more",
        ),
        ({"backbone": {"directory": "x", "image_size": 0}}, "backbone.image_size is 0, expected a whole number of at"),
        ({"backbone": {"directory": "x", "rank": 4}}, r"backbone has unknown keys \['rank'\]"),
        ({"size": "paper"}, "size is 'paper' and backbone is not given"),
        ({"backbone": {"directory": "x"}, "start_from": "y"}, "expected one of them: a checkpoint brings its own"),
        ({"backbone": {"image_size": 64}, "start_from": "y"}, "backbone.image_size is 64, expected null"),
    ],
)
def test_a_backbone_that_makes_no_sense_is_refused_in_the_recipe(
    changes: dict[str, Any], message: str, toy_recipe: Recipe
) -> None:
    values = toy_recipe.to_json()
    values["stage2"]["start_from"] = changes.pop("start_from", "")
    with pytest.raises(ValueError, match=message):
        Recipe.from_json(values | changes)


def test_a_recipe_with_a_backbone_survives_json(toy_recipe: Recipe) -> None:
    recipe = replace(toy_recipe, backbone=BackboneRecipe(directory="somewhere", tuning="lora"))
    assert Recipe.from_json(recipe.to_json()) == recipe
