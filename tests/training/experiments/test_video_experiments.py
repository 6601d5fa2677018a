"""The four experiments on video: recipes that are valid, arms that differ in what they say, costs that add up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.experiments.fake_video_work import video_store_of
from training.experiments.definitions import EXPERIMENTS
from training.experiments.plan_of_jobs import format_plan
from training.experiments.video.budget import BUDGETS, VideoBudget
from training.experiments.video.definitions import DEMONSTRATIONS, VIDEO_EXPERIMENTS
from training.experiments.video.experiment import (
    CodesTraining,
    FigureClaim,
    PolicyArm,
    PolicyClaim,
    PolicyExperiment,
    PolicyTraining,
    ProbeExperiment,
    Term,
)
from training.experiments.video.figures import FIGURES
from training.experiments.video.plan import PartJob, PolicyJob, plan
from training.experiments.video.store import VideoStore
from training.video_prior.recipe import VideoPriorRecipe

NAMES = ("latent-quality", "alignment", "adaptation", "decoupling")


@pytest.fixture
def budget() -> VideoBudget:
    return VideoBudget.load("cpu")


@pytest.fixture
def store(budget: VideoBudget, tmp_path: Path) -> VideoStore:
    return video_store_of(budget, tmp_path)


def policies(store: VideoStore, name: str, seed: int = 0) -> dict[str, Any]:
    experiment = VIDEO_EXPERIMENTS[name]
    assert isinstance(experiment, PolicyExperiment)
    return {arm.name: store.policy_run(arm.training, seed) for arm in experiment.arms}


def test_there_are_four_and_none_has_a_name_of_paper_a_s() -> None:
    assert tuple(VIDEO_EXPERIMENTS) == NAMES
    assert not set(VIDEO_EXPERIMENTS) & set(EXPERIMENTS)


def test_the_control_comes_first() -> None:
    adaptation, decoupling = VIDEO_EXPERIMENTS["adaptation"], VIDEO_EXPERIMENTS["decoupling"]
    for experiment in (adaptation, decoupling):
        assert experiment.arms[0].training == PolicyTraining(demonstrations=DEMONSTRATIONS[0])
    assert isinstance(adaptation, PolicyExperiment)
    assert adaptation.claims[0].baseline == adaptation.arms[0].name


@pytest.mark.parametrize("name", ["adaptation", "decoupling"])
def test_every_policy_is_a_recipe_that_survives_json(name: str, store: VideoStore) -> None:
    for run in policies(store, name).values():
        assert VideoPriorRecipe.from_json(json.loads(json.dumps(run.recipe.to_json()))) == run.recipe


@pytest.mark.parametrize("name", ["adaptation", "decoupling"])
def test_every_policy_is_another_training(name: str, store: VideoStore) -> None:
    found = policies(store, name)
    assert len({run.digest for run in found.values()}) == len(found)
    assert not {run.digest for run in found.values()} & {run.digest for run in policies(store, name, 1).values()}


def test_the_control_of_the_head_has_neither_codes_nor_pretraining(store: VideoStore) -> None:
    for count in DEMONSTRATIONS:
        found = policies(store, "adaptation")
        control, latent = (
            found[f"{name}, {count} demonstrations"] for name in ("no pretraining", "latent pretraining")
        )
        assert not control.recipe.needs_codes and control.codes is None
        assert control.recipe.intent == latent.recipe.intent
        assert control.recipe.base.stage2 == latent.recipe.base.stage2
        assert control.recipe.base.data == latent.recipe.base.data
        assert set(control.recipe.base.data.episodes.values()) == {count}
        assert latent.recipe.pretraining.schedule.num_steps and latent.recipe.has_intent_loss


def test_the_joint_prior_s_control_differs_in_the_clips_alone(store: VideoStore) -> None:
    found = policies(store, "adaptation")
    joint, control = (found[f"{name}, 10 demonstrations"].recipe for name in ("joint-prior", "paper A's policy"))
    assert joint.joint is not None and control.joint is not None
    assert (joint.joint.video_weight, control.joint.video_weight) == (1.0, 0.0)
    assert replace(joint.joint, video_weight=0.0) == control.joint
    assert replace(joint.base, name="") == replace(control.base, name="")
    assert joint.base.stage2.decay_steps == joint.base.stage2.schedule.num_steps // 10
    contrast = found["joint-prior by contrast, 10 demonstrations"].recipe
    assert contrast.joint is not None and contrast.joint.alignment.loss == "contrastive"


def test_decoupling_shares_its_first_two_policies_with_adaptation(store: VideoStore) -> None:
    decoupling, adaptation = policies(store, "decoupling"), policies(store, "adaptation")
    assert decoupling["no pretraining"].digest == adaptation["no pretraining, 10 demonstrations"].digest
    assert decoupling["full"].digest == adaptation["latent pretraining, 10 demonstrations"].digest
    assert {run.pretraining_digest for run in decoupling.values()} == {"", decoupling["full"].pretraining_digest}
    assert decoupling["frozen VLM"].recipe.adaptation.tuning == "frozen"
    assert not decoupling["intent only"].recipe.intent.use_eyes
    assert not decoupling["visual encoder only"].recipe.intent.use_intent


def test_policies_learn_the_codes_that_are_probed(store: VideoStore) -> None:
    full = policies(store, "decoupling")["full"]
    assert full.codes == store.codes_run(CodesTraining(), 0)
    probed = VIDEO_EXPERIMENTS["latent-quality"].arms
    assert CodesTraining() in [arm.training for arm in probed]


def test_alignment_trains_nothing_of_its_own(store: VideoStore) -> None:
    seeds = store.budget.seeds
    both = plan([VIDEO_EXPERIMENTS["latent-quality"], VIDEO_EXPERIMENTS["alignment"]], store, seeds)
    alone = plan([VIDEO_EXPERIMENTS["latent-quality"]], store, seeds)
    assert {job.key for job in both.jobs} == {job.key for job in alone.jobs}


def test_a_part_is_made_once_for_all_policies_that_have_it(store: VideoStore) -> None:
    jobs = plan([VIDEO_EXPERIMENTS["adaptation"]], store, (0,)).jobs
    made = [job.kind for job in jobs if isinstance(job, PartJob)]
    # Pretraining knows no robot's data; a prior and labels are of as many demonstrations; an alignment of its loss too.
    # Codes of hands alone have a pretraining and labels of their own.
    assert {kind: made.count(kind) for kind in set(made)} == {
        "pretraining": 2,
        "prior": 2,
        "labels": 3,
        "alignment": 3,
    }


def test_every_job_comes_after_what_it_needs(store: VideoStore) -> None:
    seen: set[str] = set()
    for job in plan(list(VIDEO_EXPERIMENTS.values()), store, store.budget.seeds).jobs:
        assert set(job.needs) <= seen, job.key
        seen.add(job.key)


def test_a_policy_waits_for_all_of_its_parts(store: VideoStore) -> None:
    jobs = plan([VIDEO_EXPERIMENTS["adaptation"]], store, (0,)).jobs
    (joint,) = [job for job in jobs if isinstance(job, PolicyJob) and job.run.recipe.name.endswith(
        "10-demonstrations-state-prior-joint-regression-seed-0")]  # fmt: skip
    assert [need.split()[0] for need in joint.needs] == ["eyes", "prior", "labels", "alignment"]
    alignment = next(job for job in jobs if job.key == joint.needs[-1])
    assert [need.split()[0] for need in alignment.needs] == ["codes", "prior", "labels"]


def test_three_seeds_of_fifty_episodes_fit_the_hours(store: VideoStore) -> None:
    budget = store.budget
    assert (len(budget.seeds), budget.episodes) == (3, 50)
    everything = plan(list(VIDEO_EXPERIMENTS.values()), store, budget.seeds)
    assert everything.hours(budget.num_workers) <= 1.05 * budget.hours
    assert f"{len(everything.jobs)} jobs left" in format_plan(everything, budget.num_workers)
    assert list(store.root.iterdir()) == []


def test_no_clip_is_for_two_things_and_none_is_of_a_tested_scene(budget: VideoBudget) -> None:
    clips = budget.clips
    assert clips.first_robot_testing >= clips.first_robot_training + clips.robots_training
    assert not set(clips.robot_tasks) & set(budget.tasks)
    assert set(budget.tasks) <= set(budget.suite.low_data_group.tasks)
    assert budget.recipe.base.evaluation.first_seed == budget.suite.seeds.testing.first
    assert budget.recipe.base.data.root == f"build/bench/{budget.suite.name}"


def test_other_training_clips_make_other_codes_and_more_test_clips_do_not(store: VideoStore) -> None:
    clips, before = store.budget.clips, store.codes_run(CodesTraining(), 0)
    trained = replace(store, budget=replace(store.budget, clips=replace(clips, hands_training=5)))
    tested = replace(store, budget=replace(store.budget, clips=replace(clips, hands_testing=5)))
    assert trained.codes_run(CodesTraining(), 0).digest != before.digest
    assert tested.codes_run(CodesTraining(), 0).digest == before.digest
    assert tested.clips["hands-testing"] != store.clips["hands-testing"]
    assert tested.clips["robots-testing"] == store.clips["robots-testing"]


def test_every_figure_that_is_shown_or_claimed_is_known() -> None:
    for experiment in VIDEO_EXPERIMENTS.values():
        if isinstance(experiment, ProbeExperiment):
            named = {*experiment.shown, *experiment.drawn}
            named |= {term.figure for claim in experiment.claims for term in claim.terms}
            named |= {figure for arm in experiment.arms for figure in arm.paper}
            assert named <= set(FIGURES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joint": "regression"}, "joint starts from state_prior"),
        ({"joint": "regression", "state_prior": True, "pretraining": True}, "joint starts from state_prior"),
        ({"sees_clips": False}, "sees_clips is of joint"),
        ({"frozen": True}, "frozen needs pretraining"),
        ({"frozen": True, "pretraining": True, "learns_codes": True}, "frozen needs pretraining and learns no codes"),
    ],
)
def test_an_impossible_training_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyTraining(demonstrations=10, **changes)


def test_a_claim_about_no_arm_is_refused() -> None:
    experiment, probes = VIDEO_EXPERIMENTS["decoupling"], VIDEO_EXPERIMENTS["alignment"]
    assert isinstance(experiment, PolicyExperiment) and isinstance(probes, ProbeExperiment)
    with pytest.raises(ValueError, match=r"'x' compares \['nobody'\]"):
        replace(experiment, claims=(PolicyClaim(claim="x", arm="nobody", baseline="full"),))
    with pytest.raises(ValueError, match=r"'x' compares \['nobody'\]"):
        replace(probes, claims=(FigureClaim(claim="x", first=Term(arm="nobody", figure="CKA")),))
    twice = PolicyArm(name="full", training=PolicyTraining(demonstrations=50))
    with pytest.raises(ValueError, match="expected different names"):
        replace(experiment, arms=(*experiment.arms, twice))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsiodes": 5}, r"budget has unknown keys \['epsiodes'\]"),
        ({"clips": {}}, "budget.clips: .*missing"),
        ({"costs": {"hand_clip": 1}}, r"budget.costs has unknown keys \['hand_clip'\]"),
    ],
)
def test_a_wrong_video_budget_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    values = json.loads((BUDGETS / "cpu.json").read_text())
    with pytest.raises(ValueError, match=message):
        VideoBudget.from_json({**values, **change})


def test_clips_for_two_things_and_tested_tasks_among_them_are_refused(budget: VideoBudget) -> None:
    with pytest.raises(ValueError, match="no scene may be for both"):
        replace(budget.clips, first_robot_testing=3)
    with pytest.raises(ValueError, match=r"robot_tasks names \['assembly'\], which policies are tested on"):
        replace(budget, clips=replace(budget.clips, robot_tasks=("assembly",)))


def test_no_policy_has_a_loss_that_another_cannot_have(budget: VideoBudget, store: VideoStore) -> None:
    for name in ("adaptation", "decoupling"):
        assert {run.recipe.base.stage2.landmark_weight for run in policies(store, name).values()} == {0.0}
    base = budget.recipe.base
    told = replace(base, stage2=replace(base.stage2, landmark_weight=1.0))
    with pytest.raises(ValueError, match=r"landmark_weight is 1\.0, expected 0"):
        replace(budget, recipe=replace(budget.recipe, base=told))


def test_codes_with_the_papers_loss_have_nothing_of_ours(store: VideoStore) -> None:
    ours, papers = (store.codes_run(CodesTraining(paper_loss=each), 0).settings for each in (False, True))
    assert (papers.masked_frames, papers.elsewhere) == ("last", "anything")
    assert (papers.motion_weight, papers.mask_weight, papers.continuous_part, papers.vary) == (0, 0, 0, False)
    assert (ours.motion_weight, ours.vary) != (0, False)
    names = ("masked_frames", "elsewhere", "motion_weight", "mask_weight", "continuous_part", "vary")
    assert replace(papers, **{name: getattr(ours, name) for name in names}) == ours


def test_from_hands_alone_no_code_and_no_pretraining_sees_a_robot_move(store: VideoStore) -> None:
    found = policies(store, "adaptation")
    hands, both = (
        found[f"{name}, 10 demonstrations"] for name in ("latent pretraining from hands alone", "latent pretraining")
    )
    control = found["no pretraining, 10 demonstrations"]
    assert hands.recipe.clips == (store.clips["hands-training"],)
    assert hands.codes is not None and hands.codes.recipe.clips == hands.recipe.clips
    assert both.codes is not None and hands.codes.digest != both.codes.digest
    assert hands.pretraining_digest != both.pretraining_digest
    # The eyes, which the control has too, are the same.
    assert hands.eyes_digest == control.eyes_digest
    assert (*hands.recipe.clips, *hands.recipe.still_clips) == control.recipe.clips
    with pytest.raises(ValueError, match="hands_only is of pretraining"):
        PolicyTraining(demonstrations=10, hands_only=True)


def test_no_claim_compares_policies_of_different_heads() -> None:
    for name in ("adaptation", "decoupling"):
        experiment = VIDEO_EXPERIMENTS[name]
        assert isinstance(experiment, PolicyExperiment)
        heads = {arm.name: arm.training.joint is None for arm in experiment.arms}
        for claim in experiment.claims:
            for pair in ((claim.arm, claim.baseline), *((claim.than,) if claim.than else ())):
                assert heads[pair[0]] == heads[pair[1]], claim.claim
