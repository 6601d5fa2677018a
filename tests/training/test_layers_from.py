"""Encoder and decoder that start from a Qwen3's first layers, as the paper's do: by recipe and by command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from policy.policy import Policy
from policy.prior import ActionPrior
from policy.qwen3_init import layers_sha256
from training.__main__ import main
from training.corpus import Corpus, open_corpus
from training.recipe import Recipe, RunDirectory
from training.stage1 import train_stage1


@pytest.fixture(scope="module")
def save_qwen3(toy_run: RunDirectory, toy_recipe: Recipe) -> Callable[[Path, int], Path]:
    """Writes a random model of which the size's layers are the first; returns its directory."""
    shape = open_corpus(toy_recipe, toy_run).config.encoder

    def save(directory: Path, seed: int) -> Path:
        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=8,
            hidden_size=shape.width,
            intermediate_size=shape.mlp_width,
            num_hidden_layers=shape.num_layers + 1,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            rms_norm_eps=shape.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        )
        Qwen3ForCausalLM(config).save_pretrained(directory)
        return directory

    return save


@pytest.fixture(scope="module")
def qwen3(save_qwen3: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen3(tmp_path_factory.mktemp("qwen3"), 0)


@pytest.fixture
def corpus(qwen3: Path, toy_recipe: Recipe, toy_run: RunDirectory) -> Corpus:
    return open_corpus(replace(toy_recipe, layers_from=str(qwen3)), toy_run)


def projections(prior: ActionPrior) -> tuple[Tensor, ...]:
    """A weight of each trunk's last layer."""
    return tuple(part.trunk.layers[-1].mlp.up_proj.weight for part in (prior.encoder, prior.decoder))


def test_both_trunks_start_from_the_layers_with_a_prior_and_without(corpus: Corpus, qwen3: Path) -> None:
    last = corpus.config.encoder.num_layers - 1
    expected = Qwen3ForCausalLM.from_pretrained(qwen3).model.layers[last].mlp.up_proj.weight
    for prior in (corpus.build_prior(), corpus.build_model().prior):
        assert all(torch.equal(weight, expected) for weight in projections(prior))


def test_what_is_no_layer_is_as_without_them(corpus: Corpus, toy_recipe: Recipe, toy_run: RunDirectory) -> None:
    from_layers = corpus.build_model().state_dict()
    at_random = open_corpus(toy_recipe, toy_run).build_model().state_dict()
    differ = {name for name in at_random if not torch.equal(at_random[name], from_layers[name])}
    assert {name.split(".")[1] + ".trunk" for name in differ} == {"encoder.trunk", "decoder.trunk"}
    assert all(".trunk.layers." in name for name in differ)


def test_other_layers_are_another_run(
    corpus: Corpus,
    toy_recipe: Recipe,
    toy_run: RunDirectory,
    save_qwen3: Callable[[Path, int], Path],
    tmp_path: Path,
) -> None:
    train_stage1(corpus, tmp_path / "stage1", until=1)
    other = replace(toy_recipe, layers_from=str(save_qwen3(tmp_path / "other", 1)))
    for recipe in (other, toy_recipe):
        with pytest.raises(ValueError, match="holds another run: layers_from differ"):
            train_stage1(open_corpus(recipe, toy_run), tmp_path / "stage1", until=2)


def test_the_command_line_names_the_layers_and_the_checkpoint_tells_of_them(
    qwen3: Path, toy_recipe: Recipe, toy_run: RunDirectory, tmp_path: Path
) -> None:
    short = {
        name: replace(stage, schedule=replace(stage.schedule, num_steps=2))
        for name, stage in (("stage1", toy_recipe.stage1), ("stage2", toy_recipe.stage2))
    }
    recipe = replace(toy_recipe, **short, data=replace(toy_recipe.data, root=str(toy_run.root)))
    (tmp_path / "toy.json").write_text(json.dumps(recipe.to_json()))
    shared = ["--recipe", str(tmp_path / "toy.json"), "--run", str(tmp_path / "run"), "--threads", "1"]
    for verb in ("stage1", "stage2", "export"):
        assert main([verb, *shared, "--layers-from", str(qwen3)]) == 0
    manifest = Policy.from_checkpoint(tmp_path / "run" / "checkpoint").manifest
    assert manifest["layers_from"] == {"family": "qwen3", "sha256": layers_sha256(qwen3)}
    assert manifest["recipe"]["layers_from"] == str(qwen3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda directory: (directory / "config.json").unlink(), "config.json is not there; give a directory of Qwen3"),
        (lambda directory: (directory / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda directory: (directory / "model.safetensors").unlink(), "holds neither model.safetensors nor"),
        (
            lambda directory: (directory / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}})
            ),
            "names ../elsewhere.safetensors, expected names of safetensors beside it",
        ),
        (
            lambda directory: (directory / "config.json").write_text(
                (directory / "config.json").read_text().replace('"hidden_size": ', '"hidden_size": 1')
            ),
            "hidden_size in ",
        ),
    ],
)
def test_layers_that_cannot_be_used_fail_with_the_reason(
    spoil: Callable[[Path], None],
    message: str,
    save_qwen3: Callable[[Path, int], Path],
    toy_recipe: Recipe,
    toy_run: RunDirectory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(save_qwen3(tmp_path / "qwen3", 0))
    recipe = replace(toy_recipe, data=replace(toy_recipe.data, root=str(toy_run.root)))
    (tmp_path / "toy.json").write_text(json.dumps(recipe.to_json()))
    call = ["stage1", "--recipe", str(tmp_path / "toy.json"), "--run", str(tmp_path / "run"), "--threads", "1"]
    assert main([*call, "--layers-from", str(tmp_path / "qwen3")]) == 1
    assert message in capsys.readouterr().err


def test_layers_and_a_checkpoint_to_start_from_are_refused_together(toy_recipe: Recipe) -> None:
    stage2 = replace(toy_recipe.stage2, start_from="checkpoints/tabletop")
    with pytest.raises(ValueError, match=r"layers_from is 'qwen3' and stage2.start_from .*, expected one of them"):
        replace(toy_recipe, layers_from="qwen3", stage2=stage2)
    with pytest.raises(ValueError, match=r"layers_from is None, expected the directory of a Qwen3"):
        replace(toy_recipe, layers_from=None)  # type: ignore[arg-type]
