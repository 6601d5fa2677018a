"""The control with added compute has beside its claim what pretraining and its own steps took, by logs or as told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.experiments.fake_video_work import FakeVideoWork, video_store_of
from tests.training.experiments.fake_work import recorded_here, took
from training.experiments.plan_of_jobs import Plan
from training.experiments.video.budget import VideoBudget
from training.experiments.video.compute import step_seconds
from training.experiments.video.definitions.catalogue import VIDEO_EXPERIMENTS
from training.experiments.video.experiment import PolicyExperiment, PolicyTraining
from training.experiments.video.finished_jobs import take_up_finished_jobs
from training.experiments.video.plan import Job, plan
from training.experiments.video.report import format_report
from training.experiments.video.results import collect, write_results
from training.experiments.video.runner import carry_out
from training.experiments.video.store import VideoStore
from training.json_file import append_line, write_json
from training.video_prior.recipe import VideoPriorRecipe, VideoPriorRun

SEEDS = (0, 1)
WHOLE = VIDEO_EXPERIMENTS["adaptation"]
assert isinstance(WHOLE, PolicyExperiment)
CLAIM = "latent pretraining is worth more than its compute at 10 demonstrations"
ARMS = ("no pretraining, added compute, 10 demonstrations", "latent pretraining, 10 demonstrations")
ADAPTATION = replace(
    WHOLE,
    arms=tuple(arm for arm in WHOLE.arms if arm.name in ARMS),
    claims=tuple(claim for claim in WHOLE.claims if claim.claim == CLAIM),
)


class LoggedWork(FakeVideoWork):
    """Leaves logs as training/loop.py does: a start, steps, a standstill; those of seed 1 had company."""

    def train_policy(self, recipe: VideoPriorRecipe, run: VideoPriorRun) -> Mapping[str, Any]:
        factor = 1 + recipe.base.seed
        starts_from = {}
        if recipe.pretraining.schedule.num_steps:
            starts_from["pretraining"] = f"pretraining-of-seed-{recipe.base.seed}"
            log(run.shared / starts_from["pretraining"], [9.0, 0.4 * factor, 0.4 * factor, 500.0])
        write_json(run.adaptation / "run.json", {"starts_from": {**starts_from, "eyes": "e1e5"}})
        log(run.adaptation, [9.0, 0.5 * factor, 0.5 * factor, 500.0])
        return super().train_policy(recipe, run)


def log(directory: Path, steps_s: list[float]) -> None:
    for index, step_s in enumerate(steps_s):
        append_line(directory / "metrics.jsonl", {"step": 20 * index, **took(step_s, 20)})


@pytest.fixture
def store(tmp_path: Path) -> VideoStore:
    return video_store_of(replace(VideoBudget.load("cpu"), episodes=2, seeds=SEEDS), tmp_path / "experiments")


def do(store: VideoStore, work: FakeVideoWork) -> None:
    planned: Plan[Job] = plan([ADAPTATION], store, SEEDS)
    with ThreadPoolExecutor(1) as executor:
        carry_out(planned, store, work, executor, num_workers=1)


def measured(store: VideoStore) -> list[str]:
    report = format_report(collect(ADAPTATION, store, SEEDS), [])
    return [line.strip() for line in report.splitlines() if line.startswith("Measured: ")]


MEASURED = [
    "Measured: pretraining takes 240 s (600 steps of 0.400 s), what no pretraining, added compute, 10 demonstrations, "
    "has more of stage 2 takes 300 s (600 steps of 0.500 s)."
]


def test_pretraining_and_added_steps_have_their_measured_seconds_beside_the_claim(store: VideoStore) -> None:
    do(store, LoggedWork())
    assert measured(store) == MEASURED


def test_a_step_s_seconds_are_those_of_its_own_log(store: VideoStore) -> None:
    do(store, LoggedWork())
    added, latent = (store.policy_run(arm.training, 1) for arm in ADAPTATION.arms)
    assert step_seconds(added, store) == pytest.approx({"stage 2": 1.0})
    assert step_seconds(latent, store) == pytest.approx({"pretraining": 0.8, "stage 2": 1.0})
    assert step_seconds(store.policy_run(PolicyTraining(demonstrations=50), 0), store) == {}


def test_without_logs_the_seconds_are_unknown(store: VideoStore) -> None:
    do(store, FakeVideoWork())
    (line,) = measured(store)
    assert line.count("unknown seconds (600 steps, no log of them is here)") == 2


def test_measured_seconds_go_on_to_another_machine(store: VideoStore, tmp_path: Path) -> None:
    do(store, LoggedWork())
    results = tmp_path / "results"
    write_results(ADAPTATION, collect(ADAPTATION, store, SEEDS), results, store, SEEDS)
    there = VideoStore(root=tmp_path / "there", budget=store.budget, data_identity=recorded_here)
    take_up_finished_jobs([ADAPTATION], there, SEEDS, results)
    assert plan([ADAPTATION], there, SEEDS).left == () and measured(there) == MEASURED
    # Older files have none.
    path = results / "adaptation/jobs.json"
    values = json.loads(path.read_text())
    for outcome in values["jobs"].values():
        outcome.pop("step_s", None)
    path.write_text(json.dumps(values))
    older = replace(there, root=tmp_path / "older")
    take_up_finished_jobs([ADAPTATION], older, SEEDS, results)
    assert plan([ADAPTATION], older, SEEDS).left == () and "unknown seconds" in measured(older)[0]


def test_told_seconds_that_are_no_numbers_are_refused_by_name(store: VideoStore, tmp_path: Path) -> None:
    do(store, LoggedWork())
    results = tmp_path / "results"
    write_results(ADAPTATION, collect(ADAPTATION, store, SEEDS), results, store, SEEDS)
    path = results / "adaptation/jobs.json"
    path.write_text(path.read_text().replace('"stage 2": 0.5', '"stage 2": "0.5"'))
    with pytest.raises(ValueError, match=r"step_s\.stage 2 is str, expected a number"):
        take_up_finished_jobs([ADAPTATION], store, SEEDS, results)
