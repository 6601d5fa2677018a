"""The real thing behind `VideoWork` at toy size: each part by its job, policies and probes that only read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policy.policy import Policy
from training.ego_video.motion_moments import flow_steps
from training.ego_video.pack import Clip, ClipPack, ClipPackWriter
from training.experiments.video.budget import ClipBudget, VideoBudget
from training.experiments.video.compute import step_seconds
from training.experiments.video.definitions.catalogue import VIDEO_EXPERIMENTS
from training.experiments.video.experiment import CodesTraining, PolicyTraining
from training.experiments.video.plan import EyesJob, parts_of, plan
from training.experiments.video.store import VideoStore
from training.experiments.video.work import ChainWork, opening
from training.experiments.work import Recordings
from training.latent_actions.eyes import MaskedAutoencoder
from training.latent_actions.train import eyes_digest, read_eyes
from training.recipe import RunDirectory
from training.suite import LowDataGroup, SuiteTask
from training.video_prior.joint_recipe import JointRecipe
from training.video_prior.recipe import VideoPriorRecipe

_SIZE, _FRAMES, _SIDE = 16, 10, 4
DECOUPLING = VIDEO_EXPERIMENTS["decoupling"]


def write_pack(directory: Path, bodies: tuple[str, ...], num_clips: int, seed: int) -> None:
    """A square that moves at a velocity of its clip, on grey of its clip."""
    generator = np.random.default_rng(seed)
    with ClipPackWriter(directory, _SIZE) as writer:
        for index in range(num_clips):
            frames = np.full((_FRAMES, _SIZE, _SIZE, 3), generator.integers(40, 120), np.uint8)
            masks = np.zeros((_FRAMES, _SIZE, _SIZE), np.uint8)
            places = generator.uniform(0, 12, 2) + np.arange(_FRAMES)[:, None] * generator.uniform(-1, 1, 2)
            corners = np.clip(np.rint(places), 0, _SIZE - _SIDE).astype(int)
            for frame, (x, y) in enumerate(corners):
                frames[frame, y : y + _SIDE, x : x + _SIDE] = (220, 160, 130)
                masks[frame, y : y + _SIDE, x : x + _SIDE] = 255
            effector = ((corners + _SIDE / 2) / _SIZE * 2 - 1).astype(np.float32)
            scenery = generator.normal(size=(_FRAMES, 2)).astype(np.float32)
            clip = Clip(
                name=str(index), source="toy", rate_hz=5.0, instruction="push", body=bodies[index % len(bodies)]
            )
            writer.add(clip, frames, masks, masks, effector, scenery)


@pytest.fixture(scope="module")
def store(toy_run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> VideoStore:
    """The cpu budget's experiments on the toy's data, with its clips where filming would leave them."""
    root = tmp_path_factory.mktemp("store")

    def schedule(num_steps: int) -> dict[str, Any]:
        return {"num_steps": num_steps, "warmup_steps": 1, "log_every": 1}

    recipe = VideoPriorRecipe.from_json(
        {
            "name": "toy",
            "clips": ["of the store"],
            "eyes": {
                "visual": {"image_size": 16, "patch": 4, "width": 32, "num_layers": 1},
                "decoder_layers": 1,
                "batch_size": 4,
                "schedule": schedule(2),
            },
            "latent_actions": {
                "gap_s": 0.4,
                "num_codes": 16,
                "num_tokens": 2,
                "latent_dim": 8,
                "width": 32,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "batch_size": 4,
                "schedule": schedule(2),
            },
            "pretraining": {"schedule": schedule(2), "batch_size": 4},
            "base": {
                "size": "tiny-vlm",
                "autocast": False,
                "data": {"root": str(toy_run.root), "tasks": ["slide"], "episodes_per_task": 4},
                "stage1": {"schedule": schedule(2), "batch_size": 4},
                "stage2": {
                    "schedule": schedule(2),
                    "batch_size": 4,
                    "decay_steps": 0,
                    "history": False,
                    "landmark_weight": 0.0,
                },
            },
        }
    )
    joint = JointRecipe.from_json(
        {"alignment": {"schedule": schedule(2), "batch_size": 4, "gap_s": 0.4}, "video_batch_size": 2}
    )
    budget = VideoBudget.load("cpu")
    suite = replace(
        budget.suite,
        tasks={**budget.suite.tasks, "slide": SuiteTask(body="slider", recording_s=1.0)},
        low_data_group=LowDataGroup(tasks=("slide",), demonstrations=4),
    )
    costs = replace(budget.costs, episode_s={"slide": 1.0})
    budget = replace(budget, suite=suite, recipe=recipe, joint=joint, costs=costs)
    store = VideoStore(root=root, budget=budget, data_identity=Recordings())
    for name, bodies in (("hands", ("hand",)), ("robots", ("panda", "sawyer"))):
        for seed, purpose in enumerate(("training", "testing")):
            write_pack(Path(store.clips[f"{name}-{purpose}"]), bodies, 12, seed)
    return store


def trained(store: VideoStore, part: str) -> dict[str, bytes]:
    """The weights of every part of a name."""
    found = sorted(store.parts.glob(f"{part}-*/*.safetensors")) + sorted(store.parts.glob(f"{part}-*/state/*"))
    return {str(path): path.read_bytes() for path in found}


def test_codes_are_trained_by_their_job_and_probed_by_another(store: VideoStore) -> None:
    work = ChainWork(device="cpu")
    hands, robots = (Path(store.clips[f"{name}-testing"]) for name in ("hands", "robots"))
    for training in (
        CodesTraining(),
        CodesTraining(num_codes=0),
        CodesTraining(masks="none"),
        CodesTraining(paper_loss=True),
        CodesTraining(no_motion_loss=True),
        CodesTraining(hands_only=True),
    ):
        run = store.codes_run(training, 0)
        where = store.prior_run(run.recipe, "codes")
        work.train_eyes(run.recipe, where)
        work.train_codes(run.recipe, run.settings, where)
        before = trained(store, "latent-actions") | trained(store, "continuous-latent-actions")
        found = work.probe(run.recipe, run.settings, where, hands, robots)
        assert trained(store, "latent-actions") | trained(store, "continuous-latent-actions") == before
        assert ("action_codes" in found["sums"]) == bool(training.num_codes)
        assert np.shape(found["sums"]["effector.action"]) == (12, 2)
        assert np.shape(found["sums"]["cka.as_is"]) == np.shape(found["sums"]["transfer.own"]) == (2, 201)
        assert found["bodies"] == ["panda", "sawyer"]
    assert len(list(store.parts.glob("eyes-*"))) == 1
    assert len(list(store.parts.glob("latent-actions-*"))) == 5


@pytest.mark.parametrize("joint", [False, True])
def test_a_policy_reads_the_parts_that_its_jobs_made(joint: bool, store: VideoStore) -> None:
    work = ChainWork(device="cpu")
    if joint:
        training = PolicyTraining(demonstrations=4, head="motion", state_prior=True, joint="regression")
        variant = "joint-prior"
    else:
        training = PolicyTraining(demonstrations=4, pretraining=True, learns_codes=True, state_prior=True)
        variant = "video-prior"
    run = store.policy_run(training, 0)
    work.train_eyes(run.recipe, store.prior_run(run.recipe, "eyes"))
    assert run.codes is not None
    work.train_codes(run.codes.recipe, run.codes.settings, store.prior_run(run.codes.recipe, "codes"))
    kinds = ("prior", "labels", "alignment") if joint else ("prior", "pretraining", "labels")
    for kind in kinds:
        made = work.make_part(kind, run.recipe, store.prior_run(run.recipe, kind))
        assert ("scores" in made) == (kind == "alignment")
    parts = {path.name for path in store.parts.iterdir()}
    before = {name: trained(store, name) for name in ("stage1", "pretraining", "alignment", "latent-actions")}
    where = store.prior_run(run.recipe, run.digest)
    outcome = work.train_policy(run.recipe, where)
    assert {path.name for path in store.parts.iterdir()} == parts
    assert {name: trained(store, name) for name in before} == before
    policy = Policy.from_checkpoint(store.checkpoint(run))
    assert policy.manifest["variant"] == variant and outcome["revision"] == policy.revision
    assert not (where.adaptation / "state").exists()
    assert set(step_seconds(run, store)) == ({"stage 2"} if joint else {"pretraining", "stage 2"})
    # A kill before the outcome was written costs nothing.
    assert work.train_policy(run.recipe, where)["revision"] == policy.revision


@pytest.mark.parametrize("state_prior", [False, True])
def test_paper_a_s_head_without_clips_learns_no_codes_and_aligns_nothing(state_prior: bool, store: VideoStore) -> None:
    work = ChainWork(device="cpu")
    run = store.policy_run(PolicyTraining(demonstrations=4, head="motion", state_prior=state_prior), 0)
    work.train_eyes(run.recipe, store.prior_run(run.recipe, "eyes"))
    assert [kind for kind, _ in parts_of(run)] == (["prior"] if state_prior else [])
    for kind, _ in parts_of(run):
        work.make_part(kind, run.recipe, store.prior_run(run.recipe, kind))
    before = {path.name for path in store.parts.iterdir()}
    work.train_policy(run.recipe, store.prior_run(run.recipe, run.digest))
    assert {path.name for path in store.parts.iterdir()} == before
    policy = Policy.from_checkpoint(store.checkpoint(run))
    assert policy.manifest["variant"] == ("state-prior" if state_prior else "no-prior")
    assert policy.config.intent is None and "2606.18955" not in policy.manifest["method"]
    assert policy.manifest["video"]["latent_actions_sha256"] is None and not policy.manifest["alignment"]


def test_intent_alone_without_pretraining_learns_nothing_from_clips(store: VideoStore) -> None:
    work = ChainWork(device="cpu")
    run = store.policy_run(PolicyTraining(demonstrations=4, use_eyes=False), 0)
    work.train_eyes(run.recipe, store.prior_run(run.recipe, "eyes"))
    assert parts_of(run) == [] and run.codes is None
    work.train_policy(run.recipe, store.prior_run(run.recipe, run.digest))
    policy = Policy.from_checkpoint(store.checkpoint(run))
    assert policy.config.intent is not None and policy.config.intent.visual is None
    video = policy.manifest["video"]
    assert video["eyes_sha256"] is None and video["latent_actions_sha256"] is None


def test_untrained_eyes_are_what_their_seed_makes_of_them(store: VideoStore) -> None:
    work = ChainWork(device="cpu")
    run = store.policy_run(PolicyTraining(demonstrations=4, untrained_eyes=True), 0)
    (eyes,) = [job for job in plan([DECOUPLING], store, (0,)).jobs if job.key == f"eyes {run.eyes_digest}"]
    assert isinstance(eyes, EyesJob) and eyes.run.recipe.eyes == run.recipe.eyes
    before = set(store.parts.glob("eyes-*"))
    work.train_eyes(run.recipe, store.prior_run(run.recipe, "untrained-eyes"))
    (made,) = set(store.parts.glob("eyes-*")) - before
    with torch.random.fork_rng():
        torch.manual_seed(run.recipe.video_seed)
        expected = MaskedAutoencoder(run.recipe.eyes.visual, run.recipe.eyes.decoder_layers).vit.state_dict()
    found = read_eyes(made).model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    work.train_policy(run.recipe, store.prior_run(run.recipe, run.digest))
    policy = Policy.from_checkpoint(store.checkpoint(run))
    assert policy.manifest["video"]["eyes_sha256"] == eyes_digest(read_eyes(made))
    assert policy.manifest["video"]["latent_actions_sha256"] is None


def test_one_process_at_a_time_opens_what_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.experiments.video.work.LOCK_DEADLINE_S", 0.0)
    with opening(tmp_path), pytest.raises(TimeoutError, match="another process holds"), opening(tmp_path):
        pass
    with opening(tmp_path):
        pass


CLIPS = ClipBudget(
    image_size=32, rate_hz=10.0, hands_training=1, hands_testing=1, first_hand_testing=1000, robot_tasks=("lift",),
    robots_training=1, robots_testing=1, first_robot_training=0, first_robot_testing=10, robot_steps_per_frame=12,
)  # fmt: skip


def test_hands_to_test_on_are_filmed_from_their_first_seed_on(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("cv2")
    ChainWork(device="cpu").film("hands-testing", CLIPS, tmp_path / "hands-testing")
    assert [clip.name for clip in ClipPack.open(tmp_path / "hands-testing").clips] == ["hand-1001000"]


def test_robots_are_filmed_once_and_whole(tmp_path: Path) -> None:
    pytest.importorskip("robosuite")
    pytest.importorskip("cv2")
    work, directory = ChainWork(device="cpu"), tmp_path / "robots-training"
    work.film("robots-training", CLIPS, directory)
    pack = ClipPack.open(directory)
    assert [clip.name for clip in pack.clips] == ["lift-0000000"]
    assert {clip.body for clip in pack.clips} == {"panda"}
    assert pack.masks is not None and pack.truth is not None and pack.scenery is not None
    assert pack.flow_steps is not None and pack.truth_steps is not None
    clip = np.asarray(pack.truth_steps), flow_steps(np.asarray(pack.frames), np.asarray(pack.truth))
    np.testing.assert_array_equal(*clip)
    assert not np.array_equal(pack.flow_steps, pack.truth_steps)
    changed = (directory / "clips.json").stat().st_mtime_ns
    work.film("robots-training", CLIPS, directory)
    assert (directory / "clips.json").stat().st_mtime_ns == changed
