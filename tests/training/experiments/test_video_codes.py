"""What the experiments on codes film and train is what their arms and notes say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.experiments.fake_video_work import video_store_of
from training.experiments.video.budget import CLIPS, VideoBudget
from training.experiments.video.definitions.catalogue import VIDEO_EXPERIMENTS
from training.experiments.video.experiment import CodesTraining, ProbeExperiment
from training.experiments.video.store import VideoStore
from training.simulation.hand_seeds import TESTING_SEEDS

METHODS = Path(__file__).parents[3] / "docs/methods.md"


@pytest.fixture
def budget() -> VideoBudget:
    return VideoBudget.load("cpu")


@pytest.fixture
def store(budget: VideoBudget, tmp_path: Path) -> VideoStore:
    return video_store_of(budget, tmp_path)


def test_robots_are_a_sawyer_that_moves_every_way_and_a_panda(budget: VideoBudget) -> None:
    assert budget.clips.robot_tasks == ("pick-place", "pick-can")
    assert [budget.suite.tasks[task].body for task in budget.clips.robot_tasks] == ["sawyer", "panda"]


def test_no_test_clip_is_one_that_the_losses_were_developed_on(budget: VideoBudget) -> None:
    (number,) = re.findall(r"--clips (\d+) --seeds testing", METHODS.read_text())
    seeds = budget.clips.hand_seeds("hands-testing")
    assert len(seeds) == budget.clips.hands_testing and set(seeds) <= set(TESTING_SEEDS)
    assert not set(seeds) & set(TESTING_SEEDS[: int(number)])
    assert not set(seeds) & set(budget.clips.hand_seeds("hands-training"))


def test_other_test_clips_of_hands_are_filmed_and_probed_anew_and_nothing_else(store: VideoStore) -> None:
    clips = replace(store.budget.clips, first_hand_testing=2000)
    other = replace(store, budget=replace(store.budget, clips=clips))
    assert {name for name in CLIPS if store.clips[name] != other.clips[name]} == {"hands-testing"}
    assert store.codes_run(CodesTraining(), 0).digest == other.codes_run(CodesTraining(), 0).digest


@pytest.mark.parametrize("first", [-1, len(TESTING_SEEDS) - 99])
def test_test_clips_beyond_the_seeds_for_testing_are_refused(first: int, budget: VideoBudget) -> None:
    with pytest.raises(ValueError, match=rf"clips\.first_hand_testing is {first}, expected 0 to 999900: "):
        replace(budget.clips, first_hand_testing=first)
    last = replace(budget.clips, first_hand_testing=len(TESTING_SEEDS) - 100)
    assert last.hand_seeds("hands-testing").stop == TESTING_SEEDS.stop


def test_without_the_motion_loss_all_else_is_ours(store: VideoStore) -> None:
    ours, without = (store.codes_run(CodesTraining(no_motion_loss=each), 0) for each in (False, True))
    assert ours.settings.motion_weight > 0
    assert without.settings == replace(ours.settings, motion_weight=0.0)
    assert without.digest != ours.digest and without.eyes_digest == ours.eyes_digest


@pytest.mark.parametrize("training", [{"masks": "none"}, {"paper_loss": True}])
def test_an_arm_without_any_motion_loss_has_none_to_leave_out(training: dict) -> None:
    with pytest.raises(ValueError, match="no_motion_loss needs masks and our loss"):
        CodesTraining(no_motion_loss=True, **training)


def test_every_arm_of_latent_quality_is_another_training(store: VideoStore) -> None:
    experiment = VIDEO_EXPERIMENTS["latent-quality"]
    assert isinstance(experiment, ProbeExperiment)
    assert len({store.codes_run(arm.training, 0).digest for arm in experiment.arms}) == len(experiment.arms)


def test_claims_on_more_codes_and_on_none_say_how_wide_latents_are(store: VideoStore) -> None:
    experiment = VIDEO_EXPERIMENTS["latent-quality"]
    assert isinstance(experiment, ProbeExperiment)
    widths = {arm.name: store.codes_run(arm.training, 0).settings.latent_dim for arm in experiment.arms}
    compared = [
        claim for claim in experiment.claims if claim.second and widths[claim.first.arm] != widths[claim.second.arm]
    ]
    assert len(compared) == 2
    for claim in compared:
        assert claim.second is not None
        assert f" {widths[claim.first.arm]} numbers" in claim.claim and f"of {widths[claim.second.arm]}" in claim.claim
