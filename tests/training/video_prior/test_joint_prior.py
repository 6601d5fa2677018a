"""One motion latent of trajectories and video: what V learns, what clips teach stage 2, and what they leave alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import training.video_prior.alignment as alignment
import training.video_prior.joint as joint
from policy.policy import Policy
from policy.prior import ActionPrior
from policy.vla import prior_config
from training.__main__ import main
from training.batches import Mixture
from training.corpus import Corpus, open_corpus
from training.ego_video.pack import ClipPack
from training.export import probe_request
from training.loop import Schedule
from training.objective import encode_motion
from training.recipe import RunDirectory
from training.stage2 import train_stage2
from training.video_prior.alignment import (
    MotionPairs,
    StandardizedLatents,
    VideoHead,
    align,
    alignment_losses,
    score_alignment,
    standardized,
)
from training.video_prior.intent_pretraining import NEUTRAL
from training.video_prior.joint import LatentClips, train_joint, video_loss, with_video_body, without_video_body
from training.video_prior.joint_pipeline import JOINT_METHOD, JointPrior, prior_of
from training.video_prior.joint_recipe import AlignmentLoss, AlignmentRecipe, JointRecipe
from training.video_prior.pipeline import VideoPrior
from training.video_prior.recipe import VideoPriorRecipe, VideoPriorRun


@pytest.fixture(scope="module")
def joint_values(recipe_values: dict[str, Any]) -> dict[str, Any]:
    """The JSON of the toy recipe with a joint latent in place of codes."""
    values = copy.deepcopy(recipe_values)
    del values["pretraining"]
    schedule = {"num_steps": 4, "warmup_steps": 1, "save_every": 2, "log_every": 1}
    values["variant"] = "joint-prior"
    values["joint"] = {
        "alignment": {"schedule": schedule, "batch_size": 8, "width": 16, "gap_s": 0.4, "held_out_fraction": 0.2},
        "video_batch_size": 3,
    }
    values["base"]["stage1"] = {"schedule": schedule, "batch_size": 4}
    values["base"]["stage2"]["decay_steps"] = 4
    return values


@pytest.fixture(scope="module")
def joint_recipe(joint_values: dict[str, Any]) -> VideoPriorRecipe:
    return VideoPriorRecipe.from_json(joint_values)


@pytest.fixture(scope="module")
def corpus(joint_recipe: VideoPriorRecipe, toy_run: RunDirectory) -> Corpus:
    return open_corpus(joint_recipe.base, toy_run, ["push it to the left", "push it to the right", NEUTRAL])


@pytest.fixture(scope="module")
def prior(corpus: Corpus) -> ActionPrior:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ActionPrior(prior_config(corpus.config))


@pytest.fixture
def clips(corpus: Corpus, clip_packs: tuple[str, str]) -> LatentClips:
    """Every frame but a clip's last two; what moves to the right has one latent, to the left another."""
    packs = [ClipPack.open(directory) for directory in clip_packs]
    features, paired = [], []
    for pack in packs:
        right = np.array([clip.instruction.endswith("right") for clip in pack.clips])
        features.append(np.repeat(np.where(right[:, None], [[6.0, 0.0]], [[0.0, 6.0]]), 12, 0).astype(np.float32))
        paired.append(np.tile(np.arange(12) < 10, len(pack.clips)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = VideoHead(2, 8, corpus.config.latent_dim)
    return LatentClips.of(packs, StandardizedLatents(features, paired), head)


def told_mixture(corpus: Corpus) -> tuple[Mixture, StandardizedLatents]:
    """Robots that go in circles, each episode its own; a frame's latents tell where on which circle it is, bent."""
    generator = np.random.default_rng(0)
    num_episodes, length = 24, 20
    phase = generator.uniform(0, 2 * np.pi, (num_episodes, 1)) + 0.25 * np.arange(length)
    radius = generator.uniform(0.5, 3.0, (num_episodes, 1, 1))
    states = (radius * np.stack([np.cos(phase), np.sin(phase)], 2)).astype(np.float32).reshape(-1, 2)
    starts = np.arange(num_episodes) * length
    pack = replace(
        corpus.packs[0],
        state=states,
        action=np.roll(states, -1, 0),
        executed_action=states,
        images={},
        episode_start=starts,
        episode_length=np.full(num_episodes, length),
        episode_seed=starts,
        episode_instruction=np.zeros(num_episodes, np.int64),
    )
    features = np.tanh(states @ generator.normal(0, 0.3, (2, 24))).astype(np.float32)
    paired = np.tile(np.arange(length) < 8, num_episodes)
    return corpus.mixture([pack], landmarks=False), StandardizedLatents([features], [paired])


def losses(directory: Path, name: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def dying(real: Callable[..., Any], at: int) -> Callable[..., Any]:
    calls = iter(range(at + 1))

    def step(*arguments: Any, **options: Any) -> Any:
        if next(calls) == at:
            raise KilledError
        return real(*arguments, **options)

    return step


class KilledError(Exception):
    pass


def test_who_moves_does_not_reach_the_head() -> None:
    generator = np.random.default_rng(0)
    motion = generator.normal(size=(40, 2, 3)).astype(np.float32)
    hand, arm = motion * 5 + 40, motion * 0.5 - 3
    hand[-4:] = 0
    found = standardized([hand, arm], [np.full(40, "hand"), np.full(40, "arm")])
    assert found.paired[0].tolist() == [True] * 36 + [False] * 4 and found.paired[1].all()
    assert not found.features[0][-4:].any()
    np.testing.assert_allclose(found.features[0][:36].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found.features[0][:36].std(0), 1, atol=1e-5)
    alone = standardized([arm[:36]], [np.full(36, "arm")])
    np.testing.assert_allclose(found.features[0][:36], alone.features[0], atol=1e-4)


def test_a_body_in_two_packs_is_one_body() -> None:
    motion = np.random.default_rng(0).normal(2.0, 1.0, (30, 1, 4)).astype(np.float32)
    whole = standardized([motion], [np.full(30, "arm")])
    parted = standardized([motion[:10], motion[10:]], [np.full(10, "arm"), np.full(20, "arm")])
    np.testing.assert_array_equal(np.concatenate(parted.features), whole.features[0])


@pytest.mark.parametrize("kind", ["regression", "contrastive"])
def test_v_learns_what_e_says_and_finds_it_in_episodes_it_never_saw(
    corpus: Corpus, prior: ActionPrior, tmp_path: Path, kind: AlignmentLoss
) -> None:
    pairs = MotionPairs.of(*told_mixture(corpus), prior, held_out_fraction=0.25)
    schedule = Schedule(num_steps=80, learning_rate=1e-2, warmup_steps=5, ema_decay=0.9, log_every=1)
    recipe = AlignmentRecipe(loss=kind, temperature=0.02, width=64, batch_size=32, schedule=schedule)
    before = score_alignment(align(corpus, pairs, recipe, tmp_path / "0", made_by={}, until=0), pairs)
    after = score_alignment(align(corpus, pairs, recipe, tmp_path / kind, made_by={}), pairs)
    found = losses(tmp_path / kind)
    assert np.mean(found[-5:]) < 0.6 * found[0]
    assert after["num_candidates"] == before["num_candidates"] == len(pairs.held_out[0]) == 48
    # Chance is 1 / 48.
    assert before["retrieval"] < 5 / 48 < after["retrieval"]
    if kind == "regression":
        assert after["distance"] < 0.5 * after["constant_distance"] < before["distance"]


def test_held_out_episodes_are_no_part_of_training(corpus: Corpus, prior: ActionPrior) -> None:
    mixture, latents = told_mixture(corpus)
    pairs, pack = MotionPairs.of(mixture, latents, prior, held_out_fraction=0.25), mixture.packs[0]
    assert set(pack.episode_of(pairs.training[0]).tolist()) == set(range(18))
    assert set(pack.episode_of(pairs.held_out[0]).tolist()) == set(range(18, 24))
    motion = mixture.motion([(0, np.array([3, 41]))])
    torch.testing.assert_close(pairs.batch([(0, np.array([3, 41]))]).z, encode_motion(prior, motion).detach())
    none = StandardizedLatents(latents.features, [np.zeros(pack.num_frames, bool)])
    with pytest.raises(ValueError, match="none has two frames a gap apart"):
        MotionPairs.of(mixture, none, prior, held_out_fraction=0.25)


def test_of_a_body_that_is_held_out_v_learns_nothing_and_is_scored_apart(
    corpus: Corpus, prior: ActionPrior, tmp_path: Path
) -> None:
    mixture, latents = told_mixture(corpus)
    (pack,) = mixture.packs
    other = replace(pack, spec=replace(pack.spec, name="other"))
    both = replace(
        mixture,
        packs=[other, pack],
        normalizers={**mixture.normalizers, "other": mixture.normalizers[pack.spec.name]},
        embodiments={**mixture.embodiments, "other": mixture.embodiments[pack.spec.name]},
    )
    # Of the other body latents say the opposite: what V learns of one is wrong for the other.
    told = StandardizedLatents([-latents.features[0], latents.features[0]], [latents.paired[0]] * 2)
    pairs = MotionPairs.of(both, told, prior, held_out_fraction=0.25, held_out_body="other")
    assert [len(frames) for frames in pairs.training] == [0, 144] and len(pairs.held_out[0]) == 0
    assert pairs.unseen[0].tolist() == np.flatnonzero(latents.paired[0]).tolist() and len(pairs.unseen[1]) == 0
    schedule = Schedule(num_steps=80, learning_rate=1e-2, warmup_steps=5, ema_decay=0.9)
    recipe = AlignmentRecipe(width=64, batch_size=32, schedule=schedule, held_out_body="other")
    scores = score_alignment(align(corpus, pairs, recipe, tmp_path, made_by={}), pairs)
    assert scores["unseen_num_candidates"] == 64
    assert scores["distance"] < 0.5 * scores["constant_distance"]
    assert scores["unseen_distance"] > scores["unseen_constant_distance"]
    assert scores["unseen_retrieval"] < 0.5 * scores["retrieval"]
    for body in ("nobody", pack.spec.name):
        with pytest.raises(ValueError, match=f"held_out_body is '{body}', expected one of several"):
            MotionPairs.of(mixture, latents, prior, held_out_fraction=0.25, held_out_body=body)


@pytest.mark.parametrize("kind", ["regression", "contrastive"])
def test_no_gradient_of_the_alignment_reaches_e(corpus: Corpus, prior: ActionPrior, kind: AlignmentLoss) -> None:
    mixture, latents = told_mixture(corpus)
    own, features = copy.deepcopy(prior), torch.from_numpy(latents.features[0][:6])
    z = encode_motion(own, mixture.motion([(0, np.arange(6))]))
    assert z.requires_grad
    head = VideoHead(features.shape[1], 8, corpus.config.latent_dim)
    alignment_losses(head(features), z, kind, 0.1)["loss"].backward()
    assert all(value.grad is None for value in own.parameters())
    assert all(value.grad is not None and value.grad.any() for value in head.parameters())


def test_alignment_in_closed_form() -> None:
    z = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0]])
    right = alignment_losses(z.clone(), z, "contrastive", 0.5)
    assert right["distance"] == 0 and right["retrieval"] == 1
    expected = -torch.log_softmax(torch.tensor([2.0, 0, 0]), 0)[0]
    torch.testing.assert_close(right["loss"], expected)
    wrong = alignment_losses(z.roll(1, 0), z, "regression", 0.5)
    assert wrong["retrieval"] == 0
    torch.testing.assert_close(wrong["loss"], torch.tensor(2.0))


def test_clips_teach_the_way_to_z_and_leave_e_and_d_alone(corpus: Corpus, clips: LatentClips) -> None:
    vla = with_video_body(corpus, corpus.build_model())
    rows = clips.batch(corpus, 4, 0)
    assert set(rows.observation.embodiment.tolist()) == {corpus.config.num_embodiments}
    assert not rows.observation.state_mask.any()
    z = rows.z.clone().requires_grad_()
    video_loss(vla, replace(rows, z=z)).backward()
    assert z.grad is None
    assert all(value.grad is None for value in vla.prior.parameters())
    assert vla.latent.weight.grad is not None and vla.latent.weight.grad.any()
    taught = vla.get_parameter("backbone.soft_tokens").grad
    assert taught is not None and taught[-1].any() and not taught[:-1].any()


def test_a_body_more_changes_nothing_for_robots_and_can_be_taken_away(corpus: Corpus) -> None:
    plain = corpus.build_model()
    wide = with_video_body(corpus, plain)
    mixture = corpus.mixture(corpus.packs, landmarks=False)
    rows = mixture.vla([(0, np.array([3, 9]))], torch.tensor([True, False]))
    seen, expected = (vla.eval().observe(rows.observation, rows.history) for vla in (wide, plain))
    torch.testing.assert_close(seen.without_history, expected.without_history, atol=1e-6, rtol=1e-6)
    again = without_video_body(corpus, wide)
    assert again.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_without_clips_stage_2_is_paper_as_bit_for_bit(corpus: Corpus, prior: ActionPrior, tmp_path: Path) -> None:
    expected = train_stage2(corpus, prior, tmp_path / "paper", until=5)
    alone = train_joint(corpus, prior, None, JointRecipe(), tmp_path / "joint", made_by={}, until=5)
    for name in ("loss", "prediction", "alignment", "reconstruction", "gradient_norm"):
        assert losses(tmp_path / "joint", name) == losses(tmp_path / "paper", name), name
    for name, value in expected.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name


def test_the_clips_term_is_added_and_ends_with_its_decay(
    corpus: Corpus, prior: ActionPrior, clips: LatentClips, tmp_path: Path
) -> None:
    recipe = JointRecipe(video_weight=0.5, video_decay_steps=3, video_batch_size=4)
    train_joint(corpus, prior, clips, recipe, tmp_path / "joint", made_by={}, until=5)
    train_stage2(corpus, prior, tmp_path / "paper", until=1)
    lines = [json.loads(line) for line in (tmp_path / "joint" / "metrics.jsonl").read_text().splitlines()]
    assert ["video" in line for line in lines] == [True] * 3 + [False] * 2
    # The first step sees the same robots, noise and weights.
    torch.testing.assert_close(lines[0]["prediction"], losses(tmp_path / "paper", "prediction")[0])
    for line, weight, distillation in zip(lines[:3], (0.5, 1 / 3, 1 / 6), (1, 0.75, 0.5), strict=True):
        expected = line["prediction"] + distillation * (line["alignment"] + line["reconstruction"])
        assert line["loss"] == pytest.approx(expected + weight * line["video"], rel=1e-5)


def test_z_of_a_clips_frame_comes_to_say_what_moves_next(
    corpus: Corpus, prior: ActionPrior, clips: LatentClips, tmp_path: Path
) -> None:
    schedule = Schedule(num_steps=40, learning_rate=5e-3, warmup_steps=2, log_every=1)
    longer = replace(corpus, recipe=replace(corpus.recipe, stage2=replace(corpus.recipe.stage2, schedule=schedule)))
    train_joint(longer, prior, clips, JointRecipe(video_weight=4.0, video_batch_size=12), tmp_path, made_by={})
    found = losses(tmp_path, "video")
    # Words alone tell right from left: one answer for both would leave half of the distance between their latents.
    right, left = (torch.from_numpy(np.unique(each, axis=0)) for each in (clips.z[0][12:24], clips.z[0][:12]))
    assert np.mean(found[-5:]) < 0.5 * ((right - left) / 2).square().mean().item() < found[0]


def test_a_chain_killed_in_alignment_and_in_stage_2_gives_the_losses_of_an_unbroken_one(
    joint_recipe: VideoPriorRecipe, run_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chain(name: str) -> VideoPrior:
        (tmp_path / name).mkdir(exist_ok=True)
        robots = RunDirectory(root=tmp_path / name, shared=run_root)
        return prior_of(joint_recipe, VideoPriorRun(robots=robots, shared=tmp_path / "shared"))

    unbroken = chain("unbroken")
    expected, aligned = unbroken.adapted(), unbroken.aligned()
    assert aligned is not None
    kept = aligned.rename(tmp_path / "alignment")
    for module, name, at in ((alignment, "alignment_losses", 3), (joint, "video_loss", 4)):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, dying(real, at))
        with pytest.raises(KilledError):
            chain("broken").adapted()
        monkeypatch.setattr(module, name, real)
    resumed = chain("broken")
    for name, value in resumed.adapted().state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    assert losses(aligned) == losses(kept)
    for name in ("loss", "video"):
        assert losses(resumed.run.adaptation, name) == losses(unbroken.run.adaptation, name)


def test_the_chain_ends_in_a_checkpoint_of_paper_as_model(joint_recipe: VideoPriorRecipe, run_root: Path) -> None:
    prior = prior_of(joint_recipe, VideoPriorRun.of(joint_recipe, run_root))
    assert isinstance(prior, JointPrior)
    policy = Policy.from_checkpoint(prior.export())
    manifest = policy.manifest
    assert (manifest["method"], manifest["variant"]) == (JOINT_METHOD, "joint-prior")
    assert VideoPriorRecipe.from_json(manifest["recipe"]) == joint_recipe
    assert [clips["digest"] for clips in manifest["video"]["clips"]] == [pack.digest for pack in prior.clips]
    assert len(manifest["video"]["latent_actions_sha256"]) == 64
    assert set(manifest["alignment"]) == {
        "num_pairs",
        "num_candidates",
        "distance",
        "constant_distance",
        "retrieval",
    }
    assert manifest["training"].items() >= {"alignment_steps": 4, "stage1_steps": 4, "adaptation_steps": 8}.items()
    assert policy.config == prior.corpus.config and policy.config.intent is None
    assert policy.config.num_embodiments == len(policy.embodiments) == 1
    asked = probe_request(prior.corpus.packs[0], policy.config)
    others = [replace(asked, seed=seed, instruction="push it to the left") for seed in range(3)]
    alone = policy.predict_chunk([asked])[0]
    torch.testing.assert_close(policy.predict_chunk([*others, asked])[-1], alone, atol=1e-5, rtol=1e-5)
    assert len(losses(prior.run.adaptation, "video")) == 8


def test_arms_share_eyes_stage_1_and_what_they_agree_on(
    joint_recipe: VideoPriorRecipe, run_root: Path, tmp_path: Path
) -> None:
    def chain(recipe: VideoPriorRecipe) -> JointPrior:
        prior = prior_of(recipe, VideoPriorRun.of(recipe, run_root, tmp_path / "shared"))
        assert isinstance(prior, JointPrior)
        return prior

    first, settings = chain(joint_recipe), joint_recipe.joint
    assert settings is not None
    weaker = chain(replace(joint_recipe, joint=replace(settings, video_weight=0.1)))
    assert weaker.alignment_directory == first.alignment_directory
    other = replace(settings.alignment, loss="contrastive")
    contrastive = chain(replace(joint_recipe, joint=replace(settings, alignment=other)))
    assert contrastive.alignment_directory != first.alignment_directory
    assert contrastive.stage1_directory == first.stage1_directory
    control = chain(replace(joint_recipe, joint=replace(settings, video_weight=0.0)))
    assert control.latent_clips is None and control.aligned() is None and not control.alignment_scores
    assert control.stage1_directory == first.stage1_directory and not control.recipe.needs_codes


def test_without_clips_and_stage_1_it_is_paper_as_head_with_no_prior_bit_for_bit(
    joint_recipe: VideoPriorRecipe, run_root: Path, tmp_path: Path
) -> None:
    base = joint_recipe.base
    base = replace(
        base,
        stage1=replace(base.stage1, schedule=replace(base.stage1.schedule, num_steps=0)),
        stage2=replace(base.stage2, decay_steps=0),
    )
    alone = replace(joint_recipe, base=base, joint=JointRecipe(video_weight=0.0))
    with pytest.raises(ValueError, match="which is paper A's head alone"):
        replace(alone, joint=JointRecipe())
    robots = RunDirectory(root=tmp_path / "alone", shared=run_root)
    chain = prior_of(alone, VideoPriorRun(robots=robots, shared=tmp_path / "shared"))
    found = chain.adapted()
    expected = train_stage2(chain.corpus, None, tmp_path / "paper")
    for name, value in expected.state_dict().items():
        assert torch.equal(value, found.state_dict()[name]), name
    assert not (tmp_path / "shared").exists()


def test_the_recipe_survives_json_and_refuses_what_cannot_be(joint_values: dict[str, Any]) -> None:
    recipe = VideoPriorRecipe.from_json(joint_values)
    assert VideoPriorRecipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    # Latents are continuous anyway: a model without codes has them as well.
    values = copy.deepcopy(joint_values)
    values["latent_actions"]["num_codes"] = 0
    assert VideoPriorRecipe.from_json(values).needs_codes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joint": {"video": 1}}, r"joint has unknown keys \['video'\]"),
        ({"joint": {"video_weight": -1}}, "video_weight is -1"),
        ({"joint": {"video_decay_steps": 0}}, "video_decay_steps is 0"),
        ({"joint": {"alignment": {"loss": "cosine"}}}, "loss is 'cosine', expected one of"),
        ({"joint": {"alignment": {"temperature": 0}}}, "temperature is 0"),
        ({"joint": {"alignment": {"held_out_fraction": 1}}}, "held_out_fraction is 1"),
        ({"pretraining": {"schedule": {"num_steps": 2}}}, "joint learns no codes"),
        ({"intent": {"use_eyes": False}}, "joint learns no codes"),
        ({"adaptation": {"intent_weight": 0.2}}, "joint learns no codes"),
        ({"stage1": {"schedule": {"num_steps": 0}}}, "stage 1's motion latent"),
    ],
)
def test_a_joint_recipe_that_cannot_be_is_refused(
    joint_values: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    values = copy.deepcopy(joint_values)
    if "stage1" in change:
        values["base"] |= change
    else:
        values |= change
    with pytest.raises(ValueError, match=message):
        VideoPriorRecipe.from_json(values)


def test_the_verb_makes_the_alignment_and_the_checkpoint(
    joint_values: dict[str, Any], run_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(joint_values))
    arguments = ["--recipe", str(path), "--threads", "1", "--run", str(run_root)]
    assert main(["video-prior", "pretraining", *arguments]) == 0
    assert "the recipe has none" in capsys.readouterr().out
    assert main(["video-prior", "alignment", *arguments]) == 0
    where, *scores = capsys.readouterr().out.splitlines()
    assert Path(where.split(": ", 1)[1]).is_dir()
    assert [line.split(":")[0].strip() for line in scores][-1] == "retrieval"
    assert main(["video-prior", "alignment", "--held-out-body", "nobody", *arguments]) == 1
    assert "held_out_body is 'nobody', expected one of several: ['slider']" in capsys.readouterr().err
    assert main(["video-prior", *arguments]) == 0
    assert Policy.from_checkpoint(run_root / "checkpoint").manifest["variant"] == "joint-prior"
