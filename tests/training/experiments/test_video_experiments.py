"""The four experiments on video: recipes that are valid, arms that differ in what they say, costs that add up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.experiments.fake_video_work import video_store_of
from training.experiments.definitions.catalogue import EXPERIMENTS
from training.experiments.plan_of_jobs import format_plan
from training.experiments.video.budget import BUDGETS, VideoBudget
from training.experiments.video.definitions.catalogue import PILOT, VIDEO_EXPERIMENTS
from training.experiments.video.definitions.shared import DEMONSTRATIONS
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
from training.latent_actions.settings import LatentActionSettings
from training.video_prior.recipe import VideoPriorRecipe, differences

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
        assert control.recipe.base.stage2.image_shift == latent.recipe.pretraining.image_shift == 4
        assert control.recipe.base.data == latent.recipe.base.data
        assert set(control.recipe.base.data.episodes.values()) == {count}
        assert latent.recipe.pretraining.schedule.num_steps and latent.recipe.has_intent_loss


def test_the_joint_prior_s_control_differs_in_the_clips_alone(store: VideoStore) -> None:
    found = policies(store, "adaptation")
    joint, control = (found[f"{name}, 10 demonstrations"].recipe for name in ("joint-prior", "paper A's policy"))
    assert joint.joint is not None and control.joint is not None
    assert (joint.joint.video_weight, control.joint.video_weight) == (1.0, 0.0)
    assert joint.needs_codes and not control.needs_codes and not control.needs_eyes
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


def test_the_pilot_s_policies_are_adaptation_s_controls_of_both_heads(store: VideoStore) -> None:
    found = policies(store, "adaptation")
    assert [arm.name for arm in PILOT.arms] == [
        f"{family}, {count} demonstrations"
        for family, counts in (
            ("no pretraining", DEMONSTRATIONS),
            ("paper A's head, no prior", DEMONSTRATIONS[:1]),
            ("paper A's policy", DEMONSTRATIONS),
        )
        for count in counts
    ]
    assert all(store.policy_run(arm.training, 0).digest == found[arm.name].digest for arm in PILOT.arms)
    assert PILOT.name not in VIDEO_EXPERIMENTS
    everything = {job.key for job in plan(list(VIDEO_EXPERIMENTS.values()), store, (0,)).jobs}
    assert {job.key for job in plan([PILOT], store, (0,)).jobs} <= everything


def test_added_compute_is_as_much_as_pretraining_takes(store: VideoStore) -> None:
    costs, recipe = store.budget.costs, store.budget.recipe
    added = store.budget.added_steps * costs.policy_step_s
    assert added == pytest.approx(costs.pretraining_step_s * recipe.pretraining.schedule.num_steps, rel=0.02)


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
        "10-demonstrations-state-prior-motion-head-joint-regression-seed-0")]  # fmt: skip
    assert [need.split()[0] for need in joint.needs] == ["eyes", "prior", "labels", "alignment"]
    alignment = next(job for job in jobs if job.key == joint.needs[-1])
    assert [need.split()[0] for need in alignment.needs] == ["codes", "prior", "labels"]


def test_the_budget_says_how_long_its_own_estimates_of_three_seeds_of_fifty_episodes_take(store: VideoStore) -> None:
    budget = store.budget
    assert (len(budget.seeds), budget.episodes) == (3, 50)
    everything = plan(list(VIDEO_EXPERIMENTS.values()), store, budget.seeds)
    assert everything.hours(budget.num_workers) == pytest.approx(budget.hours, rel=0.02)
    assert f"{budget.hours:g} hours" in budget.what
    assert f"{len(everything.jobs)} jobs left" in format_plan(everything, budget.num_workers)
    assert list(store.root.iterdir()) == []


def test_no_clip_is_for_two_things_and_none_is_of_a_tested_scene(budget: VideoBudget) -> None:
    clips = budget.clips
    assert clips.first_robot_testing >= clips.first_robot_training + clips.robots_training
    assert not set(clips.robot_tasks) & set(budget.tasks)
    assert set(budget.tasks) <= set(budget.suite.tasks)
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
        ({"joint": "regression", "state_prior": True}, "joint is of the head 'motion'"),
        ({"joint": "regression", "head": "motion"}, "joint is of the head 'motion' and starts from state_prior"),
        ({"head": "motion", "pretraining": True}, "the head 'motion' learns no codes"),
        ({"head": "motion", "use_eyes": False}, "the head 'motion' learns no codes and reads neither"),
        ({"untrained_eyes": True, "use_eyes": False}, "untrained_eyes are of a head that reads eyes"),
        ({"untrained_eyes": True, "pretraining": True}, "untrained_eyes are of .* no codes: these need trained ones"),
        ({"pretraining": True, "added_compute": True}, "added_compute is in the place of pretraining"),
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
        ({"seeds": 3}, "budget.seeds is 3, expected a list of numbers"),
        ({"seeds": []}, r"budget cpu: seeds are \[\], expected different whole numbers"),
        ({"seeds": [0, 0]}, r"budget cpu: seeds are \[0, 0\], expected"),
        ({"num_workers": 0}, "budget cpu: num_workers is 0, expected at least 1"),
        ({"episodes": "50"}, "budget cpu: episodes is '50', expected at least 1"),
    ],
)
def test_a_wrong_video_budget_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    values = json.loads((BUDGETS / "cpu.json").read_text())
    with pytest.raises(ValueError, match=message):
        VideoBudget.from_json({**values, **change})


def test_clips_for_two_things_and_tested_tasks_among_them_are_refused(budget: VideoBudget) -> None:
    with pytest.raises(ValueError, match="no scene may be for both"):
        replace(budget.clips, first_robot_testing=3)
    with pytest.raises(ValueError, match=r"robot_tasks names \['lift'\], which policies are tested on"):
        replace(budget, clips=replace(budget.clips, robot_tasks=("lift",)))


def test_no_policy_has_a_loss_that_another_cannot_have(budget: VideoBudget, store: VideoStore) -> None:
    for name in ("adaptation", "decoupling"):
        assert {run.recipe.base.stage2.landmark_weight for run in policies(store, name).values()} == {0.0}
    base = budget.recipe.base
    told = replace(base, stage2=replace(base.stage2, landmark_weight=1.0))
    with pytest.raises(ValueError, match=r"landmark_weight is 1\.0, expected 0"):
        replace(budget, recipe=replace(budget.recipe, base=told))


def test_pictures_that_pretraining_alone_shifts_are_refused(budget: VideoBudget) -> None:
    still = replace(budget.recipe.base, stage2=replace(budget.recipe.base.stage2, image_shift=0))
    with pytest.raises(ValueError, match=r"image_shift is 4 in pretraining and 0 in base\.stage2, expected the same"):
        replace(budget, recipe=replace(budget.recipe, base=still))


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


def test_policies_of_different_heads_are_compared_where_a_claim_says_so_alone() -> None:
    experiment = VIDEO_EXPERIMENTS["adaptation"]
    assert isinstance(experiment, PolicyExperiment)
    (of_heads,) = [claim for claim in experiment.claims if claim.about_heads]
    assert of_heads.baseline == "no pretraining, 10 demonstrations"
    for claim in (replace(of_heads, about_heads=False), replace(experiment.claims[0], about_heads=True)):
        with pytest.raises(ValueError, match="has about_heads"):
            replace(experiment, claims=(claim,))


PRETRAINING, CODES = "pretraining.schedule.num_steps", "adaptation.intent_weight"
STAGE_1, DISTILLATION = "base.stage1.schedule.num_steps", "base.stage2.decay_steps"
CLIPS = {"variant", "joint.video_weight"}
# Of each claim, told by its words, what the recipes of its two arms differ in; of a difference of two, both pairs'.
DIFFERENCES: dict[str, list[set[str]]] = {
    "latent pretraining helps the same head at": [{PRETRAINING, CODES}],
    "latent pretraining is worth more than its compute": [{PRETRAINING, CODES, "base.stage2.schedule.num_steps"}],
    "D's weights from stage 1 help": [{STAGE_1}],
    "both help the same head": [{PRETRAINING, CODES, STAGE_1}],
    "latent pretraining adds to D's weights": [{PRETRAINING, CODES}],
    "paper A's prior helps its own head": [{"variant", STAGE_1, DISTILLATION}],
    "clips help paper A's policy": [CLIPS],
    # Paper B's adaptation is at its defaults where paper A's head has no part in it.
    "paper A's head solves more than the one that reads intent and has eyes trained": [{"variant", "joint", CODES}],
    "video of hands alone helps": [{PRETRAINING, CODES, "clips", "still_clips"}],
    "clips give paper A's policy more than latent pretraining": [CLIPS, {PRETRAINING, CODES}],
    "latent pretraining helps more at 10": [{PRETRAINING, CODES}, {PRETRAINING, CODES}],
    "alignment by contrast beats": [{"joint.alignment.loss"}],
    "the whole helps over no pretraining": [{PRETRAINING, CODES}],
    "the visual encoder adds to intent": [{"intent.use_eyes"}],
    "pretraining and the loss on codes help where no eyes were trained": [{PRETRAINING, CODES}],
    "a visual encoder adds to the head without pretraining": [{"intent.use_eyes"}],
    "eyes trained on the clips' frames beat eyes": [{"eyes.schedule.num_steps"}],
    "words and pictures through a VLM that nothing taught": [{"intent.use_intent"}],
    "pretraining alone helps over none": [{PRETRAINING}],
    "adapting the VLM beats freezing it": [{"adaptation.tuning"}],
    "the loss on codes adds while adapting": [{CODES}],
    "pretraining adds to the loss on codes": [{PRETRAINING}],
    "hiding half of its sight in training helps the whole": [{"adaptation.sight_dropout"}],
    "the whole helps over no pretraining where half the sight": [{PRETRAINING, CODES}],
    "adapting the VLM, with the loss on codes, beats": [{"adaptation.tuning", CODES}],
}
PAPERS = {"masked_frames", "elsewhere", "motion_weight", "mask_weight", "continuous_part", "vary"}
FIGURE_DIFFERENCES: dict[str, set[str]] = {
    "flow masks and the losses made of them make the action code follow": {"masks"},
    "with the paper's loss alone, flow masks make the action code follow": {"masks"},
    "what we add to the paper's loss makes": PAPERS,
    "flow masks and the losses made of them keep the camera's motion out": {"masks"},
    "true masks are better than flow's": {"masks"},
    "the motion loss makes the action code follow": {"motion_weight"},
    "64 codes of 8 numbers follow the hand better than 16": {"num_codes", "latent_dim"},
    "continuous latents of 8 numbers, read as they are, follow the hand better": {"num_codes", "latent_dim"},
    "masks and the losses made of them align bodies, the body subspace removed": {"masks"},
    "with the paper's loss alone, masks align bodies": {"masks"},
    "masks and the losses made of them align bodies as they are": {"masks"},
}


def told_by(claim: str, table: dict[str, Any]) -> Any:
    return table[max((words for words in table if claim.startswith(words)), key=len)]


@pytest.mark.parametrize("name", ["adaptation", "decoupling"])
def test_the_policies_of_a_claim_differ_in_what_is_declared_and_nothing_else(name: str, store: VideoStore) -> None:
    experiment, runs = VIDEO_EXPERIMENTS[name], policies(store, name)
    assert isinstance(experiment, PolicyExperiment)
    for claim in experiment.claims:
        pairs = [(claim.arm, claim.baseline), *([claim.than] if claim.than else [])]
        found = [
            set(differences(runs[arm].recipe.to_json(), runs[baseline].recipe.to_json())) - {"name", "base.name"}
            for arm, baseline in pairs
        ]
        assert found == told_by(claim.claim, DIFFERENCES), claim.claim


@pytest.mark.parametrize("name", ["latent-quality", "alignment"])
def test_the_codes_of_a_claim_differ_in_what_is_declared_and_nothing_else(name: str, store: VideoStore) -> None:
    experiment = VIDEO_EXPERIMENTS[name]
    assert isinstance(experiment, ProbeExperiment)

    def settings_of(term: Term) -> LatentActionSettings:
        (training,) = [arm.training for arm in experiment.arms if arm.name == term.arm]
        run = store.codes_run(training, 0)
        assert run.recipe == store.codes_run(CodesTraining(), 0).recipe
        return run.settings

    for claim in experiment.claims:
        if claim.second is not None and claim.second.arm != claim.first.arm:
            first, second = (settings_of(term).to_json() for term in claim.terms)
            found = set(differences(first, second))
            assert found == told_by(claim.claim, FIGURE_DIFFERENCES), claim.claim
