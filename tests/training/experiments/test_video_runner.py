"""Carrying out a plan of experiments on video with a fake of the work: what is done, resumed, shared and left."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.experiments.fake_video_work import FakeVideoWork, video_store_of
from training.experiments.runner import ExperimentError
from training.experiments.video.budget import VideoBudget
from training.experiments.video.definitions.catalogue import VIDEO_EXPERIMENTS
from training.experiments.video.experiment import PolicyTraining
from training.experiments.video.plan import plan
from training.experiments.video.runner import carry_out
from training.experiments.video.store import VideoStore

DECOUPLING, QUALITY = VIDEO_EXPERIMENTS["decoupling"], VIDEO_EXPERIMENTS["latent-quality"]


@pytest.fixture
def store(tmp_path: Path) -> VideoStore:
    return video_store_of(replace(VideoBudget.load("cpu"), episodes=4), tmp_path / "experiments")


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def do(store: VideoStore, work: FakeVideoWork, executor: ThreadPoolExecutor, *experiments) -> None:
    carry_out(plan(experiments or (DECOUPLING,), store, (0,)), store, work, executor, num_workers=1)


def test_what_is_planned_is_done_and_then_nothing_is_left(store: VideoStore, executor: ThreadPoolExecutor) -> None:
    planned, work = plan([DECOUPLING, QUALITY], store, (0,)), FakeVideoWork()
    do(store, work, executor, DECOUPLING, QUALITY)
    assert len(work.calls) == len(planned.jobs) == len(planned.left)
    assert plan([DECOUPLING, QUALITY], store, (0,)).left == ()
    again = FakeVideoWork()
    do(store, again, executor, DECOUPLING, QUALITY)
    assert again.calls == []


@pytest.mark.parametrize("fails_at", [0, 3, 6, 12])
def test_after_a_kill_only_the_rest_of_the_video_jobs_is_done(
    fails_at: int, store: VideoStore, executor: ThreadPoolExecutor
) -> None:
    killed, rest = FakeVideoWork(fails_at=fails_at), FakeVideoWork()
    with pytest.raises(KeyboardInterrupt):
        do(store, killed, executor)
    do(store, rest, executor)
    assert len(killed.calls) == fails_at
    assert len(killed.calls) + len(rest.calls) == len(plan([DECOUPLING], store, (0,)).jobs)
    assert not set(killed.calls) & set(rest.calls)


def test_codes_of_the_policies_are_not_trained_again_for_probes(
    store: VideoStore, executor: ThreadPoolExecutor
) -> None:
    do(store, FakeVideoWork(), executor)
    work = FakeVideoWork()
    do(store, work, executor, QUALITY)
    trained = [call[1:3] for call in work.calls if call[0] == "codes"]
    masked = [("flow", "0"), ("flow", "16"), ("flow", "16"), ("flow", "64"), ("truth", "16")]
    assert sorted(trained) == sorted([*masked, ("none", "16"), ("none", "16")])
    assert [call[1] for call in work.calls if call[0] == "clips"] == ["hands-testing", "robots-testing"]


def test_a_failed_part_stops_only_the_policies_that_have_it(store: VideoStore, executor: ThreadPoolExecutor) -> None:
    class FailsAtPretraining(FakeVideoWork):
        def make_part(self, kind, recipe, run):
            if kind == "pretraining":
                raise FloatingPointError("loss is nan")
            return super().make_part(kind, recipe, run)

    work = FailsAtPretraining()
    with pytest.raises(ExperimentError, match=r"1 jobs failed; 15 jobs that need them were not tried.*: loss is nan"):
        do(store, work, executor)
    trained = [call[1] for call in work.calls if call[0] == "policy"]
    without = ("", "-no-eyes", "-untrained-eyes", "-codes", "-sight-dropout-0.5", "-no-intent")
    assert trained == [f"cpu-10-demonstrations{words}-seed-0" for words in without]


def test_probes_of_another_version_are_made_again_and_nothing_else(
    store: VideoStore, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(store, FakeVideoWork(), executor, QUALITY)
    monkeypatch.setattr("training.experiments.video.plan.PROBE_VERSION", 1000)
    left = plan([QUALITY], store, (0,)).left
    assert len(left) == len(QUALITY.arms) and {job.kind for job in left} == {"probe"}


def test_more_episodes_later_try_new_scenes_of_the_same_policy(store: VideoStore, executor: ThreadPoolExecutor) -> None:
    do(store, FakeVideoWork(), executor)
    more, work = replace(store, budget=replace(store.budget, episodes=6)), FakeVideoWork()
    do(more, work, executor)
    assert {call[0] for call in work.calls} == {"test"} and {call[-2:] for call in work.calls} == {("100004", "2")}
    run = more.policy_run(PolicyTraining(demonstrations=10), 0)
    assert more.evaluation(run, "lift").seeds == tuple(range(100_000, 100_006))


def test_other_scenes_later_are_all_tried_and_stand_in_place_of_those_before(
    store: VideoStore, executor: ThreadPoolExecutor
) -> None:
    do(store, FakeVideoWork(), executor)
    base = store.budget.recipe.base
    moved = replace(base, evaluation=replace(base.evaluation, first_seed=200_000))
    others = replace(store, budget=replace(store.budget, recipe=replace(store.budget.recipe, base=moved)))
    assert {job.kind for job in plan([DECOUPLING], others, (0,)).left} == {"test"}
    work = FakeVideoWork()
    do(others, work, executor)
    assert len(work.calls) == 2 * len(DECOUPLING.arms)
    assert {(call[0], *call[-2:]) for call in work.calls} == {("test", "200000", "4")}
    assert plan([DECOUPLING], others, (0,)).left == ()
    run = others.policy_run(PolicyTraining(demonstrations=10), 0)
    assert others.evaluation(run, "lift").seeds == tuple(range(200_000, 200_004))


def test_the_hours_left_follow_what_jobs_took(store: VideoStore, executor: ThreadPoolExecutor) -> None:
    before = plan([DECOUPLING], store, (0, 1)).hours(1)
    do(store, FakeVideoWork(), executor)
    after = plan([DECOUPLING], store, (0, 1))
    # Policies and tests took no time; of each other kind too few were done to tell.
    assert after.hours(1) < 0.5 * before
    assert {job.kind for job in after.left if after.seconds[job.key] > 5} == {"eyes", "codes", "pretraining", "labels"}
