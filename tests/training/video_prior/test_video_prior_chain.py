"""From clips to a checkpoint at toy size: each part resumes, is shared, and leaves alone what it must."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import training.video_prior.adaptation as adaptation
import training.video_prior.intent_pretraining as pretraining
from policy.config import IntentSettings
from policy.intent import IntentContext, fold_patches
from policy.intent_vla import IntentVLA
from policy.policy import Policy
from training.corpus import Corpus, open_corpus
from training.ego_video.pack import ClipPack
from training.export import probe_request
from training.inspection import format_inspection, inspect
from training.latent_actions.label import UNLABELLED
from training.loop import Schedule
from training.recipe import BackboneRecipe, Recipe, RunDirectory, Stage1Recipe
from training.video_prior.adaptation import Beginnings, adapt
from training.video_prior.foresight import foresee
from training.video_prior.intent_pretraining import (
    NEUTRAL,
    LabelledClips,
    build_model,
    intent_path,
    pretrain_intent,
)
from training.video_prior.objective import adaptation_losses, code_losses
from training.video_prior.pipeline import METHOD, VideoPrior
from training.video_prior.recipe import (
    AdaptationRecipe,
    IntentRecipe,
    PretrainingRecipe,
    VideoPriorRecipe,
    VideoPriorRun,
)

MakePrior = Callable[..., VideoPrior]


@pytest.fixture
def make_prior(recipe: VideoPriorRecipe, run_root: Path, tmp_path: Path) -> MakePrior:
    """A run on the recordings; runs of one test share parts."""

    def build(name: str = "", **changes: Any) -> VideoPrior:
        changed = replace(recipe, **changes)
        run = VideoPriorRun.of(changed, run_root, tmp_path / "shared")
        root = run_root.with_name(name) if name else run_root
        if name:
            root.mkdir(exist_ok=True)
            run = replace(run, robots=RunDirectory(root=root, shared=run_root))
        return VideoPrior(recipe=changed, run=run)

    return build


@pytest.fixture(scope="module")
def corpus(recipe: VideoPriorRecipe, toy_run: RunDirectory) -> Corpus:
    """Without eyes: what needs none of the clips."""
    corpus = open_corpus(recipe.base, toy_run, ["push it to the left", "push it to the right"])
    intent = IntentSettings(num_codes=4, num_tokens=2)
    return replace(corpus, config=replace(corpus.config, intent=intent))


def adapted(prior: VideoPrior, until: int | None = None) -> IntentVLA:
    vla = prior.adapted(until)
    assert isinstance(vla, IntentVLA)
    return vla


def losses(directory: Path, name: str = "loss") -> list[float]:
    return [json.loads(line)[name] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    """The parts of a model, by the first of their names, with a weight that is another."""
    return {name.split(".")[0] for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_the_chain_ends_in_a_checkpoint_like_any_other(make_prior: MakePrior) -> None:
    prior = make_prior()
    policy = Policy.from_checkpoint(prior.export())
    manifest = policy.manifest
    assert (manifest["method"], manifest["variant"]) == (METHOD, "video-prior")
    assert VideoPriorRecipe.from_json(manifest["recipe"]) == prior.recipe
    assert [clips["digest"] for clips in manifest["video"]["clips"]] == [pack.digest for pack in prior.clips]
    assert len(manifest["video"]["latent_actions_sha256"]) == len(manifest["video"]["eyes_sha256"]) == 64
    assert manifest["training"].items() >= {"pretraining_steps": 4, "adaptation_steps": 8, "stage1_steps": 0}.items()
    assert manifest["data"]["slide"]["num_episodes"] == 4
    asked = probe_request(prior.corpus.packs[0], prior.corpus.config)
    others = [replace(asked, seed=seed, instruction="push it to the left") for seed in range(3)]
    alone = policy.predict_chunk([asked])[0]
    torch.testing.assert_close(policy.predict_chunk([*others, asked])[-1], alone, atol=1e-5, rtol=1e-5)
    trained = losses(prior.run.adaptation, "intent")
    assert len(trained) == 8 and all(np.isfinite(trained))
    # Done, it is only read.
    again = make_prior()
    assert again.export() == prior.run.robots.checkpoint
    assert not {"corpus", "eyes"} & vars(again).keys()


def test_a_checkpoint_that_was_made_of_something_else_is_not_taken_for_this_recipes(
    make_prior: MakePrior, clip_packs: tuple[str, str]
) -> None:
    hands, more = clip_packs
    first = make_prior(clips=(hands,))
    kept = first.export()
    other_codes = replace(first.recipe.latent_actions, masks="none")
    longer = replace(first.recipe.pretraining, schedule=replace(first.recipe.pretraining.schedule, num_steps=5))
    for changes, named in (
        ({"clips": (hands, more)}, "clips"),
        ({"latent_actions": other_codes}, "latent_actions.masks"),
        ({"eyes": replace(first.recipe.eyes, batch_size=2)}, "eyes.batch_size"),
        ({"intent": IntentRecipe(use_eyes=False)}, "intent.use_eyes"),
        ({"pretraining": longer}, "pretraining.schedule.num_steps"),
        ({"adaptation": AdaptationRecipe(intent_weight=0.5)}, "adaptation.intent_weight"),
    ):
        with pytest.raises(ValueError, match=rf"{kept} is of another recipe: {named} differ") as refused:
            make_prior(**{"clips": (hands,), **changes}).export()
        assert refused.value.args[0].count(",") == 0, "only what differs is named"
    moved = shutil.copytree(hands, Path(hands).with_name("moved"), dirs_exist_ok=True)
    assert make_prior(clips=(str(moved),)).export() == kept, "where the same clips lie does not matter"


def test_a_chain_killed_in_pretraining_and_in_adaptation_gives_the_losses_of_an_unbroken_one(
    make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def dying(real: Callable[..., Any], at: int) -> Callable[..., Any]:
        calls = iter(range(at + 1))

        def step(*arguments: Any, **options: Any) -> Any:
            if next(calls) == at:
                raise KilledError
            return real(*arguments, **options)

        return step

    unbroken = adapted(make_prior("unbroken"))
    first = make_prior()
    shared = replace(first.run, shared=first.run.shared.with_name("of its own"))
    for module, name, at in ((pretraining, "code_losses", 2), (adaptation, "adaptation_losses", 5)):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, dying(real, at))
        with pytest.raises(KilledError):
            replace(first, run=shared).adapted()
        monkeypatch.setattr(module, name, real)
    prior = replace(first, run=shared)
    resumed = adapted(prior)
    assert losses(shared.adaptation) == losses(make_prior("unbroken").run.adaptation)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_clips_that_eyes_alone_learn_from_change_no_eyes_and_teach_no_code(
    make_prior: MakePrior, clip_packs: tuple[str, str]
) -> None:
    hands, more = clip_packs
    both, apart = make_prior("both"), make_prior("apart", clips=(hands,), still_clips=(more,))
    assert apart.eyes_directory == both.eyes_directory
    assert apart.latent_actions_directory != both.latent_actions_directory
    assert [pack.digest for pack in apart.labelled_clips.packs] == [ClipPack.open(hands).digest]
    assert apart.corpus.tokenizer.to_str() == both.corpus.tokenizer.to_str()
    video = Policy.from_checkpoint(apart.export()).manifest["video"]
    assert [len(video[name]) for name in ("clips", "still_clips")] == [1, 1]
    assert apart.export().is_dir()
    with pytest.raises(ValueError, match="is of another recipe: clips differ"):
        make_prior("apart", clips=(hands,)).export()


def test_arms_that_differ_in_what_the_decoder_reads_share_their_pretraining(make_prior: MakePrior) -> None:
    both, blind = make_prior(), make_prior("blind", intent=IntentRecipe(use_eyes=False))
    assert both.pretraining_directory == blind.pretraining_directory
    assert both.intent is not None and blind.intent is not None
    for name, value in both.intent.state_dict().items():
        assert torch.equal(value, blind.intent.state_dict()[name]), name
    other = make_prior("other", pretraining=replace(both.recipe.pretraining, batch_size=3))
    assert other.pretraining_directory != both.pretraining_directory
    assert other.latent_actions_directory == both.latent_actions_directory
    assert blind.corpus.config.intent is not None and blind.corpus.config.intent.visual is None
    adapted(blind, until=1)
    assert "intent" in (blind.run.adaptation / "metrics.jsonl").read_text()


def test_the_control_starts_at_random_and_trains_the_same_head(make_prior: MakePrior) -> None:
    recipe = make_prior().recipe
    none = replace(recipe.pretraining, schedule=replace(recipe.pretraining.schedule, num_steps=0))
    control = make_prior("control", pretraining=none, adaptation=AdaptationRecipe(intent_weight=0.0))
    assert control.intent is None and control.robot_codes is None
    start = adapted(control, until=0)
    fresh = build_model(control.corpus, control.eyes)
    # What its cameras see was measured.
    fresh.decoder.standardize_sight(start.decoder.visual_mean, start.decoder.visual_scale.reciprocal())
    assert changed(weights(fresh), start) == set()
    pretrained = adapted(make_prior("pretrained"), until=0)
    # The backbone has learned from clips, each body from video; all else starts as the control does.
    assert changed(weights(fresh), pretrained) == {"backbone", "head"}
    trained = adapted(control)
    assert changed(weights(fresh), trained) >= {"backbone", "head", "decoder", "encoder"}
    assert "intent" not in json.loads((control.run.adaptation / "metrics.jsonl").read_text().splitlines()[0])


def test_a_decoder_is_told_how_its_cameras_differ(make_prior: MakePrior) -> None:
    prior = make_prior()
    start = adapted(prior, until=0)
    (pack,), eyes = prior.corpus.stage2_packs, prior.eyes
    frames = np.unique(np.linspace(0, pack.num_frames - 1, 192).astype(np.int64))
    assert len(frames) == pack.num_frames
    seen = fold_patches(eyes(torch.from_numpy(np.array(pack.images["front"]))))
    differs = (seen - start.decoder.visual_mean[0, 0]) * start.decoder.visual_scale[0, 0]
    torch.testing.assert_close(differs.mean(0), torch.zeros_like(differs[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(differs.square().mean(), torch.tensor(1.0))
    trained = adapted(prior)
    torch.testing.assert_close(trained.decoder.visual_mean, start.decoder.visual_mean, atol=0, rtol=0)


def test_frozen_intent_and_eyes_stay_what_they_were(make_prior: MakePrior) -> None:
    base = make_prior().recipe.base
    still = replace(base, stage2=replace(base.stage2, history=False))
    prior = make_prior(base=still, adaptation=AdaptationRecipe(tuning="frozen"))
    before = weights(adapted(prior, until=0))
    assert changed(before, adapted(prior)) == {"decoder"}
    assert "intent" not in json.loads((prior.run.adaptation / "metrics.jsonl").read_text().splitlines()[0])


def test_a_backbone_that_reports_keypoints_learns_landmarks_as_in_stage_2(make_prior: MakePrior) -> None:
    recipe = make_prior().recipe
    none = replace(recipe.pretraining, schedule=replace(recipe.pretraining.schedule, num_steps=0))
    prior = make_prior(base=replace(recipe.base, size="tiny"), pretraining=none, adaptation=AdaptationRecipe())
    adapted(prior, until=2)
    first, second = (json.loads(line) for line in (prior.run.adaptation / "metrics.jsonl").read_text().splitlines())
    for step in (first, second):
        found = step["prediction"] + 0.1 * step["intent"] + step["landmarks"]
        assert step["loss"] == pytest.approx(found, rel=1e-4)


def test_stage_1_of_paper_a_starts_decoder_and_encoder(make_prior: MakePrior) -> None:
    base = make_prior().recipe.base
    stage1 = Stage1Recipe(schedule=Schedule(num_steps=2, warmup_steps=1), batch_size=4)
    prior = make_prior(base=replace(base, stage1=stage1))
    assert prior.prior is not None
    start = adapted(prior, until=0)
    torch.testing.assert_close(start.encoder.state_dict(), prior.prior.encoder.state_dict())
    torch.testing.assert_close(start.decoder.trunk.state_dict(), prior.prior.decoder.trunk.state_dict())


def test_lora_trains_additions_that_the_checkpoint_does_not_know(
    save_vlm: Callable[..., Path], toy_run: RunDirectory, recipe: VideoPriorRecipe, tmp_path: Path
) -> None:
    backbone = BackboneRecipe(directory=str(save_vlm(tmp_path / "model", "smolvlm")), tuning="lora", lora_rank=2)
    corpus = open_corpus(replace(recipe.base, backbone=backbone), toy_run)
    corpus = replace(corpus, config=replace(corpus.config, intent=IntentSettings(num_codes=4, num_tokens=2)))
    before = weights(build_model(corpus, None))
    tuning = AdaptationRecipe(tuning="lora")
    vla = adapt(corpus, Beginnings(eyes=None, made_by={}), None, tuning, tmp_path / "adaptation", until=2)
    assert vla.state_dict().keys() == before.keys()
    moved = {name for name, value in vla.state_dict().items() if not torch.equal(value, before[name])}
    assert any("text_model" in name for name in moved) and not any("vision_model" in name for name in moved)


@pytest.mark.parametrize("scale", [None, 2.0])
def test_with_lora_the_whole_model_is_pretrained_at_the_rate_of_full_tuning(
    scale: float | None,
    save_vlm: Callable[..., Path],
    toy_run: RunDirectory,
    recipe: VideoPriorRecipe,
    clip_packs: tuple[str, str],
    tmp_path: Path,
) -> None:
    """Paper B's stages: all of the model at 2e-5, then LoRA at the head's rate."""
    model = save_vlm(tmp_path / "model", "smolvlm")
    backbone = BackboneRecipe(directory=str(model), tuning="lora", lora_rank=2, learning_rate_scale=scale)
    base = replace(recipe.base, backbone=backbone)
    step = replace(base.stage2.schedule, num_steps=1, warmup_steps=0, learning_rate=1e-3, weight_decay=0.0)
    base = replace(base, stage2=replace(base.stage2, schedule=replace(step, num_steps=4)))
    corpus = open_corpus(base, toy_run)
    corpus = replace(corpus, config=replace(corpus.config, intent=IntentSettings(num_codes=4, num_tokens=2)))
    pack = ClipPack.open(clip_packs[0])
    clips = LabelledClips(packs=[pack], codes=[np.ones((pack.num_frames, 2), np.int64)])
    before = weights(intent_path(build_model(corpus, None)))
    pretraining_recipe = PretrainingRecipe(schedule=step, batch_size=4)
    intent = pretrain_intent(corpus, clips, pretraining_recipe, tmp_path / "intent", codes_made_by={})
    moved = {name: float((value - before[name]).abs().max()) for name, value in intent.state_dict().items()}
    of_model_names = [name for name in moved if name.startswith("backbone.vlm.")]
    assert 3e-5 < max(moved[name] for name in of_model_names) < 1.2e-4
    assert max(far for name, far in moved.items() if name.startswith("head.")) > 5e-4
    start, vla = (
        adapt(
            corpus,
            Beginnings(eyes=None, intent=intent, made_by={}),
            None,
            AdaptationRecipe(tuning="lora"),
            tmp_path / f"adaptation-{until}",
            until=until,
        )
        for until in (0, 4)
    )
    begun = intent_path(start).state_dict()
    for name in of_model_names:
        torch.testing.assert_close(begun[name], intent.state_dict()[name])
    added = {name for name, value in vla.state_dict().items() if not torch.equal(value, start.state_dict()[name])}
    assert any("text_model" in name for name in added) and not any("vision_model" in name for name in added)


def test_intent_is_learned_from_frames_and_words(corpus: Corpus, clip_packs: tuple[str, str], tmp_path: Path) -> None:
    packs = [ClipPack.open(directory) for directory in clip_packs]
    codes = []
    for pack in packs:
        right = np.array([clip.instruction.endswith("right") for clip in pack.clips])
        codes.append(np.repeat(np.where(right[:, None], [3, 0], [1, 2]), 12, axis=0))
        codes[-1][::5] = UNLABELLED
    clips = LabelledClips(packs=packs, codes=codes)
    assert len(clips.places) == sum((each != UNLABELLED).all(1).sum() for each in codes)
    observation, labels = clips.batch(clips.places[::7], corpus.config, None)
    assert (labels != UNLABELLED).all()
    assert not observation.state_mask.any() and observation.camera_mask[:, 0].all()
    assert set(observation.embodiment.tolist()) == {corpus.config.num_embodiments}
    assert NEUTRAL in clips.batch(clips.places[clips.places[:, 0] == 1][:1], corpus.config, None)[0].instructions
    schedule = Schedule(num_steps=40, warmup_steps=2, log_every=1)
    recipe = replace(corpus.recipe, seed=3)
    intent = pretrain_intent(
        replace(corpus, recipe=recipe),
        clips,
        PretrainingRecipe(schedule=schedule, batch_size=16),
        tmp_path,
        codes_made_by={},
    )
    found = losses(tmp_path, "intent")
    assert found[0] > 1.0 and np.mean(found[-5:]) < 0.5 * found[0]
    foreseen, blank = (foresee(each, clips, corpus.config) for each in (intent, intent_path(build_model(corpus, None))))
    assert list(foreseen) == ["hand"] and foreseen["hand"].num_frames == len(clips.places)
    share = np.mean([codes[pack][frame][0] == 3 for pack, frame in clips.places])
    entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    for each in (foreseen["hand"], blank["hand"]):
        assert each.guessed_cross_entropy == pytest.approx(entropy, rel=1e-4)
        assert each.guessed_accuracy == pytest.approx(max(share, 1 - share))
    assert foreseen["hand"].cross_entropy < 0.5 * entropy < entropy < blank["hand"].cross_entropy
    assert foreseen["hand"].accuracy > 0.9
    with pytest.raises(ValueError, match="no frame of the clips has a code"):
        _ = LabelledClips(packs=packs, codes=[np.full_like(each, UNLABELLED) for each in codes]).places


def test_code_losses_count_labelled_frames_alone() -> None:
    logits = torch.zeros(3, 2, 4)
    logits[0, :, 1] = 9.0
    codes = torch.tensor([[1, 1], [UNLABELLED, UNLABELLED], [1, 2]])
    found = code_losses(logits, codes)
    expected = torch.nn.functional.cross_entropy(logits[[0, 2]].flatten(0, 1), codes[[0, 2]].flatten())
    torch.testing.assert_close(found["intent"], expected)
    assert found["intent_accuracy"] == 0.5
    assert code_losses(logits, torch.full((3, 2), UNLABELLED))["intent"] == 0.0


def test_adaptation_is_flow_and_a_part_of_intent(corpus: Corpus) -> None:
    vla = build_model(corpus, None)
    nn.init.normal_(vla.decoder.velocity_out.weight)
    mixture = corpus.mixture(corpus.packs, landmarks=False)
    batch = mixture.vla([(0, np.array([3, 9, 14, 20]))], torch.tensor([True, True, False, True]))
    codes = torch.tensor([[1, 1], [0, 3], [UNLABELLED, UNLABELLED], [1, 2]])

    def found(intent_weight: float, codes: Tensor | None, **options: Any) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return adaptation_losses(vla, batch, codes, generator, intent_weight=intent_weight, **options)

    both = found(0.1, codes)
    torch.testing.assert_close(both["loss"], both["prediction"] + 0.1 * both["intent"])
    alone = found(0.1, None)
    assert set(alone) == {"loss", "prediction"}
    torch.testing.assert_close(alone["loss"], both["prediction"])
    more = found(0.1, codes, num_draws=3, history_pass="sampled", max_inference_delay=2)
    more["loss"].backward()
    assert all(value.grad is not None for value in vla.decoder.trunk.parameters())


def test_inspection_tells_whether_intent_or_sight_is_read(make_prior: MakePrior) -> None:
    prior = make_prior()
    vla, corpus = build_model(prior.corpus, prior.eyes), prior.corpus
    nn.init.normal_(vla.decoder.velocity_out.weight)
    mixture = corpus.mixture(corpus.packs, landmarks=False)

    def ratios() -> tuple[float, float, float]:
        (row,) = inspect(vla, mixture, num_frames=16)
        line = format_inspection([{**row, "frames": "training", "trained_with_history": False}]).splitlines()[-2]
        assert line == (
            f"shuffled for intent alone {row['intent_ratio']:.2f} to {row['intent_ratio']:.2f} times, for sight alone "
            f"{row['sight_ratio']:.2f} to {row['sight_ratio']:.2f}; 1 is not read"
        )
        assert row["sight_ratio_history"] != 1.0 or row["sight_ratio"] == 1.0
        return row["images_ratio"], row["intent_ratio"], row["sight_ratio"]

    with torch.no_grad():
        assert vla.decoder.visual_in is not None
        vla.head.tokens.weight.mul_(100.0)
        assert 1.0 not in ratios()
        vla.head.tokens.weight.zero_()  # all frames have one intent
        images, intent, sight = ratios()
        assert intent == 1.0 and images == sight != 1.0
        vla.decoder.visual_in.weight.zero_()
        assert ratios() == (1.0, 1.0, 1.0)


def test_in_a_part_of_adaptation_the_decoder_does_without_its_eyes(
    make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = make_prior()
    corpus = prior.corpus
    vla = build_model(corpus, prior.eyes)
    nn.init.normal_(vla.decoder.velocity_out.weight)
    batch = corpus.mixture(corpus.packs, landmarks=False).vla([(0, np.arange(16))], torch.ones(16, dtype=torch.bool))
    visual = vla.look(batch.observation)
    assert visual is not None

    def prediction(sight: Tensor, sight_dropout: float) -> Tensor:
        monkeypatch.setattr(vla, "look", lambda observation: sight)
        generator = torch.Generator().manual_seed(0)
        options = {"intent_weight": 0.0, "sight_dropout": sight_dropout, "history_pass": "both"}
        return adaptation_losses(vla, batch, None, generator, **options)["prediction"]

    other = torch.randn(visual.shape, generator=torch.Generator().manual_seed(1))
    changed = {part: (prediction(visual, part) - prediction(other, part)).abs().item() for part in (0.0, 0.5, 0.9999)}
    assert changed[0.0] > 0 and changed[0.5] > 0 and changed[0.9999] == 0
    # Some of the samples see and some do not.
    rows = torch.zeros(16, dtype=torch.bool)
    context = vla.decoder.context

    def seen(**given: Any) -> IntentContext:
        rows[:] = given["camera_mask"].any(1)
        return context(**given)

    monkeypatch.setattr(vla.decoder, "context", seen)
    prediction(visual, 0.5)
    assert 0 < rows.sum() < 16
    prediction(visual, 0.0)
    assert rows.all()


def test_a_checkpoint_with_intent_is_not_tuned_as_one_of_paper_a(
    make_prior: MakePrior, toy_recipe: Recipe, toy_run: RunDirectory
) -> None:
    checkpoint = make_prior().export()
    stage2 = replace(toy_recipe.stage2, start_from=str(checkpoint))
    with pytest.raises(ValueError, match="has an intent, and stage 2 tunes models without"):
        open_corpus(replace(toy_recipe, stage2=stage2), toy_run)
