"""Both stages at toy size: they learn, a kill and a resume change nothing, and the objective is the paper's."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import training.stage1
import training.stage2
from policy.backbone import ObservationBatch
from policy.models import Model
from policy.vla import HistoryBatch
from tests.training import killed_training
from training.batches import Mixture
from training.corpus import Corpus, open_corpus
from training.export import export_checkpoint
from training.inspection import format_inspection, inspect
from training.loop import Schedule, saved_step, step_seed
from training.objective import encode_motion, flow_loss, observe_sampled, prior_decay, stage2_losses
from training.parallel import Processes
from training.recipe import Recipe, RunDirectory, Stage1Recipe
from training.stage1 import train_stage1
from training.stage2 import train_stage2

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def corpus(toy_recipe: Recipe, toy_run: RunDirectory) -> Corpus:
    return open_corpus(toy_recipe, toy_run)


@pytest.fixture(scope="module")
def unbroken_stage1(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    directory = tmp_path_factory.mktemp("unbroken")
    return directory, train_stage1(corpus, directory)


def metrics(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def losses(directory: Path) -> list[float]:
    return [values["loss"] for values in metrics(directory)]


def steps(directory: Path) -> list[int]:
    return [int(values["step"]) for values in metrics(directory)]


class KilledError(Exception):
    pass


def dying(real: Callable[..., Any], kill_at: int) -> Callable[..., Any]:
    """A stage's losses until step `kill_at`, where training dies."""
    steps = iter(range(kill_at + 1))

    def losses_or_death(*arguments: Any, **options: Any) -> Any:
        if next(steps) == kill_at:
            raise KilledError
        return real(*arguments, **options)

    return losses_or_death


def counting(real: Callable[..., Any], steps: list[None]) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        steps.append(None)
        return real(*arguments, **options)

    return counted


def check_same(directory: Path, unbroken: Path, trained: torch.nn.Module, expected: torch.nn.Module) -> None:
    """No line twice and none left out, and every number bit for bit."""
    assert steps(directory) == list(range(len(steps(unbroken))))
    assert losses(directory) == losses(unbroken)
    for name, value in expected.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name


# Stage 1 saves after every fourth of its 12 steps: each of these loses what came after, one of them everything.
@pytest.mark.parametrize("kill_at", sorted(random.Random(0).sample(range(1, 12), 3)))
def test_stage1_killed_and_resumed_gives_the_losses_of_an_unbroken_run(
    corpus: Corpus,
    unbroken_stage1: tuple[Path, torch.nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kill_at: int,
) -> None:
    real, replayed = training.stage1.stage1_losses, list[None]()
    monkeypatch.setattr(training.stage1, "stage1_losses", dying(real, kill_at))
    with pytest.raises(KilledError):
        train_stage1(corpus, tmp_path / "killed")
    assert steps(tmp_path / "killed") == list(range(kill_at)), "what is logged past the save is to be dropped"
    assert saved_step(tmp_path / "killed") == kill_at // 4 * 4
    monkeypatch.setattr(training.stage1, "stage1_losses", counting(real, replayed))
    resumed = train_stage1(corpus, tmp_path / "killed")
    assert len(replayed) == 12 - kill_at // 4 * 4
    check_same(tmp_path / "killed", unbroken_stage1[0], resumed, unbroken_stage1[1])


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_stage_ended_by_sigkill_and_resumed_gives_the_losses_of_an_unbroken_run(stage: str, tmp_path: Path) -> None:
    kill_at = random.Random(stage).randrange(5, 12)
    unbroken = killed_training.train(stage, tmp_path / "unbroken")
    program = [sys.executable, "-m", killed_training.__name__, stage, str(tmp_path / "killed"), str(kill_at)]
    ended = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert (steps(tmp_path / "killed"), saved_step(tmp_path / "killed")) == (list(range(kill_at)), kill_at // 4 * 4)
    resumed = killed_training.train(stage, tmp_path / "killed")
    check_same(tmp_path / "killed", tmp_path / "unbroken", resumed, unbroken)


def test_runs_that_share_a_finished_stage_1_only_read_it(corpus: Corpus, tmp_path: Path) -> None:
    trained = train_stage1(corpus, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = train_stage1(corpus, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    for name, value in trained.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("kill_at", [2, 5])
def test_stage2_killed_between_saves_and_resumed_gives_the_losses_of_an_unbroken_run(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    unbroken = train_stage2(corpus, None, tmp_path / "unbroken")
    real = training.stage2.stage2_losses
    monkeypatch.setattr(training.stage2, "stage2_losses", dying(real, kill_at))
    with pytest.raises(KilledError):
        train_stage2(corpus, None, tmp_path / "killed")
    monkeypatch.setattr(training.stage2, "stage2_losses", real)
    resumed = train_stage2(corpus, None, tmp_path / "killed")
    check_same(tmp_path / "killed", tmp_path / "unbroken", resumed, unbroken)


def test_a_run_directory_of_another_recipe_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    train_stage1(corpus, tmp_path, until=1)
    other = replace(corpus, recipe=replace(corpus.recipe, stage1=replace(corpus.recipe.stage1, batch_size=4)))
    with pytest.raises(ValueError, match="batch_size differ"):
        train_stage1(other, tmp_path)


def test_stage1_learns_to_reconstruct(corpus: Corpus, tmp_path: Path) -> None:
    recipe = replace(
        corpus.recipe, stage1=Stage1Recipe(schedule=Schedule(num_steps=80, warmup_steps=5, log_every=5), batch_size=16)
    )
    train_stage1(replace(corpus, recipe=recipe), tmp_path)
    found = losses(tmp_path)
    assert np.mean(found[-3:]) < 0.6 * found[0]


def test_stage2_starts_from_stage_1s_prior(corpus: Corpus, tmp_path: Path) -> None:
    prior = train_stage1(corpus, tmp_path / "stage1")
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    vla = train_stage2(corpus, prior, tmp_path / "stage2", until=0)
    for name, value in vla.prior.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_distillation_decays_to_nothing_and_then_skips_the_encoder(corpus: Corpus) -> None:
    assert [prior_decay(step, 4) for step in (0, 1, 4, 9)] == [1.0, 0.75, 0.0, 0.0]
    assert prior_decay(0, 0) == 0.0
    vla = corpus.build_model()
    mixture = corpus.mixture(corpus.packs, landmarks=False)
    batch = mixture.vla([(0, np.arange(4))], torch.ones(4, dtype=torch.bool))
    generator = torch.Generator()
    with_prior = stage2_losses(vla, batch, generator.manual_seed(0), distillation=0.5, num_draws=1)
    without = stage2_losses(vla, batch, generator.manual_seed(0), distillation=0.0, num_draws=1)
    assert set(with_prior) == {"loss", "prediction", "alignment", "reconstruction"}
    assert set(without) == {"loss", "prediction"}
    torch.testing.assert_close(
        with_prior["loss"], with_prior["prediction"] + 0.5 * (with_prior["alignment"] + with_prior["reconstruction"])
    )
    torch.testing.assert_close(without["loss"], with_prior["prediction"])


@pytest.mark.parametrize("coins", ["0110", "1111", "0000"])
def test_a_sampled_pass_gives_each_sample_one_of_its_two_outputs(corpus: Corpus, coins: str) -> None:
    vla = corpus.build_model()
    mixture = corpus.mixture(corpus.packs, landmarks=False)
    batch = mixture.vla([(0, np.array([3, 9, 14, 20]))], torch.ones(4, dtype=torch.bool))
    assert batch.history is not None
    told = torch.tensor([coin == "1" for coin in coins])
    (queries,), _ = observe_sampled(vla, batch.observation, batch.history, told)
    both = vla.observe(batch.observation, batch.history)
    assert both.with_history is not None
    assert not torch.allclose(both.with_history, both.without_history)
    torch.testing.assert_close(queries, torch.where(told[:, None], both.with_history, both.without_history))


def test_sampled_losses_depend_on_the_step_alone_and_reach_the_encoder(corpus: Corpus) -> None:
    vla = corpus.build_model()
    torch.nn.init.normal_(vla.prior.decoder.velocity_out.weight)
    mixture = corpus.mixture(corpus.packs, landmarks=False)
    batch = mixture.vla([(0, np.arange(8, 24))], torch.ones(16, dtype=torch.bool))
    first, again, other = (
        stage2_losses(
            vla, batch, torch.Generator().manual_seed(seed), distillation=0.0, num_draws=1, history_pass="sampled"
        )["loss"]
        for seed in (0, 0, 1)
    )
    assert first.item() == again.item() != other.item()
    first.backward()
    assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in vla.prior.encoder.parameters())


def test_a_sampled_pass_is_not_sharded(corpus: Corpus, tmp_path: Path) -> None:
    stage2 = replace(corpus.recipe.stage2, history_pass="sampled")
    sampled = replace(corpus, recipe=replace(corpus.recipe, stage2=stage2))
    with pytest.raises(ValueError, match=r"'sampled', which cannot be sharded"):
        train_stage2(sampled, None, tmp_path, processes=Processes(rank=0, world_size=2, sharing="fsdp"))


def test_alignment_moves_the_vlm_and_never_the_encoder(corpus: Corpus) -> None:
    vla = corpus.build_model()
    mixture = corpus.mixture(corpus.packs, landmarks=False)
    batch = mixture.vla([(0, np.arange(4))], torch.ones(4, dtype=torch.bool), history=False)
    losses = stage2_losses(vla, batch, torch.Generator().manual_seed(0), distillation=1.0, num_draws=1)
    losses["alignment"].backward()
    assert all(value.grad is None for value in vla.prior.encoder.parameters())
    assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in vla.backbone.parameters())


def test_the_errors_of_padded_steps_are_no_part_of_the_flow_loss(corpus: Corpus) -> None:
    vla = corpus.build_model()
    motion = corpus.mixture(corpus.packs, landmarks=False).motion([(0, np.array([18, 40]))])
    assert not motion.step_mask.all(), "the window must reach past an episode's end"
    z = encode_motion(vla.prior, motion)
    poisoned = motion.actions.clone()
    poisoned[~motion.step_mask] = 1e3
    generator = torch.Generator()
    # Masked steps are still tokens of the chunk: only their own error is left out, so compare with a decoder that
    # answers zero (its initial state), where nothing mixes.
    torch.nn.init.zeros_(vla.prior.decoder.velocity_out.weight)
    clean = flow_loss(vla.prior.decoder, z, motion, generator.manual_seed(0))
    dirty = flow_loss(vla.prior.decoder, z, replace(motion, actions=poisoned), generator.manual_seed(0))
    torch.testing.assert_close(clean, dirty)


def test_seeds_of_different_steps_and_runs_differ() -> None:
    seeds = {step_seed(seed, step) for seed in range(4) for step in range(1000)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_exported_run_serves_and_describes_itself(corpus: Corpus, tmp_path: Path) -> None:
    from policy.policy import Policy

    vla = train_stage2(corpus, None, tmp_path / "stage2", until=2)
    revision = export_checkpoint(corpus, vla, tmp_path / "checkpoint", training={"hours": 0.0}, metrics={})
    policy = Policy.from_checkpoint(tmp_path / "checkpoint")
    assert policy.revision == revision
    assert policy.manifest["variant"] == "history"
    assert policy.manifest["data"]["slide"]["num_episodes"] == 4
    with pytest.raises(FileExistsError, match="immutable"):
        export_checkpoint(corpus, vla, tmp_path / "checkpoint", training={}, metrics={})


class Looker(torch.nn.Module):
    """Reads the frame's number off the picture, and answers with that frame's chunk, half a unit too high.

    One that copies does as if the last step of its history said it all, and looks only where it has no history.
    """

    def __init__(self, corpus: Corpus, mixture: Mixture, *, copies: bool) -> None:
        super().__init__()
        self.config, self._copies = corpus.config, copies
        self._chunks = mixture.motion([(0, np.arange(mixture.packs[0].num_frames))]).actions + 0.5

    def sample(
        self, observation: ObservationBatch, history: HistoryBatch | None, noise: torch.Tensor, *_: Any
    ) -> torch.Tensor:
        seen = self._chunks[observation.images[:, 0, 0, 0, 0].long()]
        if history is None or not self._copies:
            return seen
        return history.actions[:, -1:].expand_as(seen)


@pytest.mark.parametrize("copies", [False, True])
def test_inspection_tells_a_policy_that_looks_from_one_that_copies_its_history(corpus: Corpus, copies: bool) -> None:
    pack = corpus.packs[0]
    numbers = np.arange(pack.num_frames, dtype=np.uint8)[:, None, None, None]
    numbered = replace(pack, images={"front": np.broadcast_to(numbers, pack.images["front"].shape)})
    mixture = corpus.mixture([numbered], landmarks=False)
    looker = cast(Model, Looker(corpus, mixture, copies=copies))
    (row,) = inspect(looker, mixture, num_frames=pack.num_frames)
    assert row["error"] == pytest.approx(0.5, rel=1e-4)
    assert row["images_ratio"] == pytest.approx(row["error_images_shuffled"] / row["error"])
    assert row["images_ratio"] > 1.2
    assert row["images_ratio_history"] == (1.0 if copies else row["images_ratio"])
    assert row["state_ratio"] == row["state_ratio_history"] == 1.0
    judged, without = format_inspection([{**row, "frames": "training", "trained_with_history": True}]).splitlines()[1:3]
    assert (judged.split()[1], float(judged.split()[-2])) == ("true", round(row["images_ratio_history"], 2))
    assert (without.split()[1], float(without.split()[-2])) == ("none", round(row["images_ratio"], 2))


def test_a_policy_without_history_is_judged_without() -> None:
    figures = ("error", "error_images_shuffled", "error_state_shuffled", "images_ratio", "state_ratio")
    row = {"task": "slide", "frames": "training", "trained_with_history": False, **dict.fromkeys(figures, 2.0)}
    table = format_inspection([row | {f"{name}_history": 9.0 for name in figures}])
    assert "with no history, shuffled images cost 2.00 to 2.00 times the true error" in table
    assert "9.0" not in table


def test_a_delay_is_named_by_the_runs_that_have_one_which_share_a_stage_1(
    corpus: Corpus, toy_run: RunDirectory, tmp_path: Path
) -> None:
    stage2 = replace(corpus.recipe.stage2, max_inference_delay=2)
    delayed = open_corpus(replace(corpus.recipe, stage2=stage2), toy_run)
    train_stage1(corpus, tmp_path / "stage1", until=1)
    train_stage1(delayed, tmp_path / "stage1", until=1)
    train_stage2(corpus, None, tmp_path / "plain", until=1)
    assert "max_inference_delay" not in (tmp_path / "plain" / "run.json").read_text()
    vla = train_stage2(delayed, None, tmp_path / "delayed", until=1)
    assert vla.config.max_inference_delay == 2
    assert json.loads((tmp_path / "delayed" / "run.json").read_text())["max_inference_delay"] == 2
    with pytest.raises(ValueError, match="max_inference_delay differ"):
        train_stage2(delayed, None, tmp_path / "plain", until=1)
