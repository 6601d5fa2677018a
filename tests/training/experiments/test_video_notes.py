"""What the reports on policies from video say beside their figures is what budget, simulator and results say."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy.sizes import IMAGE_SIZES
from tests.training.experiments.fake_video_work import video_store_of
from training.experiments.video.budget import VideoBudget
from training.experiments.video.definitions.catalogue import VIDEO_EXPERIMENTS
from training.experiments.video.definitions.shared import DEMONSTRATIONS, RESOLUTION_NOTE, SAMPLE_NOTE, TASKS_NOTE
from training.experiments.video.store import VideoStore
from training.simulation.task import IMAGE_SIZE
from training.suite import Suite

RESULTS = Path(__file__).parents[3] / "results"


@pytest.fixture
def store(tmp_path: Path) -> VideoStore:
    return video_store_of(VideoBudget.load("cpu"), tmp_path)


def test_the_low_data_group_that_lift_leaves_is_the_suite_s(store: VideoStore) -> None:
    group = Suite.load(store.budget.suite.name).low_data_group.tasks
    assert f"({', '.join(group)})" in TASKS_NOTE
    assert [task for task in store.budget.tasks if task not in group] == ["lift"]


def test_clips_and_robots_are_seen_at_the_sizes_that_are_told(store: VideoStore) -> None:
    budget = store.budget
    assert RESOLUTION_NOTE.startswith(
        f"Clips have {budget.clips.image_size} pixels a side and are enlarged to the model's "
        f"{IMAGE_SIZES[budget.recipe.base.size]}, robots' pictures are reduced to these from {IMAGE_SIZE}"
    )


def test_the_distillation_and_the_dearer_steps_are_those_of_the_budget(store: VideoStore) -> None:
    adaptation, costs = VIDEO_EXPERIMENTS["adaptation"], store.budget.costs
    (arm,) = [arm for arm in adaptation.arms if arm.name == f"joint-prior, {DEMONSTRATIONS[0]} demonstrations"]
    stage2 = store.policy_run(arm.training, 0).recipe.base.stage2
    said = " ".join(adaptation.notes)
    assert f"the first {stage2.decay_steps} of the {stage2.schedule.num_steps} steps of stage 2" in said
    assert f"rises over the first {stage2.schedule.warmup_steps} of every arm" in said
    assert f"{costs.joint_step_s:.2f} s against {costs.motion_step_s:.2f} s by the budget's costs" in said


def test_seeds_share_demonstrations_and_clips_as_is_told(store: VideoStore) -> None:
    for name in ("adaptation", "decoupling"):
        experiment = VIDEO_EXPERIMENTS[name]
        assert {SAMPLE_NOTE, RESOLUTION_NOTE, TASKS_NOTE} <= set(experiment.notes)
        for arm in experiment.arms:
            first, other = (store.policy_run(arm.training, seed).recipe for seed in (0, 1))
            assert (first.base.data, first.clips) == (other.base.data, other.clips)
