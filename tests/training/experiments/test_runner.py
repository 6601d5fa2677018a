"""A toy of an experiment from plan to report: what is done is never done twice, what is equal is done once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.experiments.fake_work import FakeWork, store_of
from training.experiments.budget import Budget
from training.experiments.experiment import Arm, Comparison, Condition, Experiment, Training
from training.experiments.plan import plan
from training.experiments.runner import ExperimentError, carry_out, carry_out_jobs
from training.experiments.store import UNKNOWN_COMMIT, Evaluation, MadeWith, Store
from training.locked import BusyError
from training.simulation.rendering import NoisyFrameError
from training.time_spent import TimeSpent

PRIOR = Training(snapshots=True)
NO_PRIOR = Training(prior="none", snapshots=True)
TOY = Experiment(
    name="toy",
    title="A toy",
    question="Does a toy help?",
    arms=(Arm(name="no-prior", training=NO_PRIOR), Arm(name="state-prior", training=PRIOR)),
    comparisons=(Comparison(claim="it helps", arm="state-prior", baseline="no-prior"),),
    figure="curve",
    paper="Nothing.",
)
AT_THE_END = replace(TOY, name="toy-end", figure="arms")


@pytest.fixture
def budget() -> Budget:
    return replace(Budget.load("cpu"), episodes=4, curve_episodes=2, seeds=(0, 1))


@pytest.fixture
def store(budget: Budget, tmp_path: Path) -> Store:
    return store_of(budget, tmp_path / "experiments")


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def do(experiment: Experiment, store: Store, work: FakeWork, executor: ThreadPoolExecutor, seeds=(0, 1)) -> None:
    carry_out(plan([experiment], store, seeds), store, work, executor, num_workers=1)


def test_the_plan_is_what_is_carried_out(store: Store, executor: ThreadPoolExecutor) -> None:
    planned = plan([TOY], store, (0, 1))
    work = FakeWork()
    carry_out(planned, store, work, executor, num_workers=1)
    # Two arms and seeds: one stage 1 a seed, a stage 2 each, and five tasks at six checkpoints each.
    assert [len([call for call in work.calls if call[0] == kind]) for kind in ("stage 1", "stage 2", "evaluation")] == [
        2,
        4,
        2 * 2 * 5 * 6,
    ]
    assert len(planned.jobs) == len(planned.left) == len(work.calls)
    assert plan([TOY], store, (0, 1)).left == ()


def test_a_finished_experiment_is_not_repeated(store: Store, executor: ThreadPoolExecutor) -> None:
    do(TOY, store, FakeWork(), executor)
    again = FakeWork()
    do(TOY, store, again, executor)
    assert again.calls == []


@pytest.mark.parametrize("fails_at", [0, 1, 2, 30, 125])
def test_after_a_kill_only_the_rest_is_done(fails_at: int, store: Store, executor: ThreadPoolExecutor) -> None:
    killed = FakeWork(fails_at=fails_at)
    with pytest.raises(KeyboardInterrupt):
        do(TOY, store, killed, executor)
    assert len(killed.calls) == fails_at
    rest = FakeWork()
    do(TOY, store, rest, executor)
    assert len(rest.calls) == 126 - fails_at
    assert not set(rest.calls) & set(killed.calls)


def test_equal_trainings_of_two_experiments_are_one_run(store: Store, executor: ThreadPoolExecutor) -> None:
    do(TOY, store, FakeWork(), executor)
    again = FakeWork()
    do(AT_THE_END, store, again, executor)
    assert again.calls == []


def test_arms_whose_stage_1_is_equal_share_it_whatever_their_stage_2(store: Store) -> None:
    runs = [store.run(replace(PRIOR, decay=decay), 0) for decay in (PRIOR.decay, None)]
    assert len({run.digest for run in runs}) == 2
    assert len({run.stage1_digest for run in runs}) == 1
    assert store.run(replace(PRIOR, prior="action"), 0).stage1_digest != runs[0].stage1_digest
    assert store.run(NO_PRIOR, 0).stage1_digest == ""


def test_other_recordings_are_another_run(store: Store) -> None:
    other = replace(store, data_identity=lambda recipe: dict.fromkeys(recipe.data.tasks, "recorded again"))
    assert other.run(PRIOR, 0).digest != store.run(PRIOR, 0).digest


def test_neither_the_name_nor_the_place_of_the_data_makes_another_run(store: Store) -> None:
    bases = store.budget.bases
    moved = replace(bases["subset"], data=replace(bases["subset"].data, root="elsewhere"), name="renamed")
    other = replace(store, budget=replace(store.budget, name="other", bases={**bases, "subset": moved}))
    assert other.run(PRIOR, 0).digest == store.run(PRIOR, 0).digest


def test_more_episodes_later_try_new_scenes_only(store: Store, executor: ThreadPoolExecutor) -> None:
    do(AT_THE_END, store, FakeWork(), executor, seeds=(0,))
    more = replace(store, budget=replace(store.budget, episodes=7))
    work = FakeWork()
    do(AT_THE_END, more, work, executor, seeds=(0,))
    assert {call[0] for call in work.calls} == {"evaluation"}
    assert {call[-2:] for call in work.calls} == {("100004", "3")}
    run = more.run(PRIOR, 0)
    evaluation = more.evaluation(run, run.recipe.stage2.schedule.num_steps, Condition(), "lift")
    assert evaluation.seeds == tuple(range(100_000, 100_007))


def test_a_run_that_stopped_early_goes_on_when_its_end_is_asked_for(store: Store, executor: ThreadPoolExecutor) -> None:
    logged = replace(TOY, arms=tuple(replace(arm, until=500) for arm in TOY.arms))
    work = FakeWork()
    do(logged, store, work, executor, seeds=(0,))
    assert {call[2] for call in work.calls if call[0] == "stage 2"} == {"500"}
    do(TOY, store, work, executor, seeds=(0,))
    end = str(store.run(PRIOR, 0).recipe.stage2.schedule.num_steps)
    assert [call[2] for call in work.calls if call[0] == "stage 2"] == ["500", "500", end, end]
    assert plan([logged], store, (0,)).left == ()


def test_an_adapted_policy_is_trained_after_the_one_it_starts_from(store: Store, executor: ThreadPoolExecutor) -> None:
    adapted = Arm(name="adapted", training=Training(left_out="everything", adapted_episodes=5), tasks="held-out")
    work = FakeWork()
    do(replace(TOY, arms=(adapted,), comparisons=(), figure="arms"), store, work, executor, seeds=(0,))
    run = store.run(adapted.training, 0)
    assert run.parent is not None
    assert [call[1] for call in work.calls if call[0] == "stage 2"] == [run.parent.digest, run.digest]
    assert run.recipe.stage2.start_from == str(store.checkpoint(run.parent, None))
    assert {call[3] for call in work.calls if call[0] == "evaluation"} == {"stack-ur5e"}


def test_a_failed_job_stops_only_what_needs_it(store: Store, executor: ThreadPoolExecutor) -> None:
    class FailsWithPrior(FakeWork):
        def train_stage1(self, recipe, directory):
            raise FloatingPointError("loss is nan")

    work = FailsWithPrior()
    with pytest.raises(ExperimentError, match=r"1 jobs failed; 31 jobs that need them.*: loss is nan"):
        do(TOY, store, work, executor, seeds=(0,))
    assert len([call for call in work.calls if call[0] == "evaluation"]) == 5 * 6


def test_a_job_that_ends_without_being_done_is_said_to_have_failed(store: Store) -> None:
    planned, ended = plan([AT_THE_END], store, (0,)), Future()
    ended.set_result(None)
    with pytest.raises(ExperimentError, match=r"stage 1 \w+: it ended and is not done"):
        carry_out_jobs(planned.left, lambda job: ended, lambda job: False, num_workers=1)


def test_a_test_that_failed_leaves_nothing_and_is_done_again(store: Store, executor: ThreadPoolExecutor) -> None:
    class SeesNoise(FakeWork):
        def evaluate(self, checkpoint, condition, task, first_seed, num_episodes):
            if task == "lift":
                raise NoisyFrameError("lift, seed 100000, step 0: camera 'front' has pixel noise 85.1")
            return super().evaluate(checkpoint, condition, task, first_seed, num_episodes)

    with pytest.raises(
        ExperimentError, match=r"2 jobs failed.* lift: NoisyFrameError: lift, seed 100000, step 0: camera"
    ):
        do(AT_THE_END, store, SeesNoise(), executor, seeds=(0,))
    assert {job.key.split()[-1] for job in plan([AT_THE_END], store, (0,)).left} == {"lift"}
    work = FakeWork()
    do(AT_THE_END, store, work, executor, seeds=(0,))
    assert [call[3:] for call in work.calls] == 2 * [("lift", "100000", "4")]


def test_a_checkpoint_that_changed_under_its_results_is_refused(store: Store, executor: ThreadPoolExecutor) -> None:
    class Retrained(FakeWork):
        def evaluate(self, *arguments):
            return {**super().evaluate(*arguments), "revision": "another"}

    do(AT_THE_END, store, FakeWork(), executor, seeds=(0,))
    more = replace(store, budget=replace(store.budget, episodes=7))
    with pytest.raises(ExperimentError, match="is revision another, its first 4 scenes were tried with of-"):
        do(AT_THE_END, more, Retrained(), executor, seeds=(0,))


def test_two_processes_do_not_carry_out_the_same_jobs(store: Store) -> None:
    with store.locked(), pytest.raises(BusyError, match="another process carries out experiments"), store.locked():
        pass


def test_the_hours_left_follow_what_was_measured(store: Store, executor: ThreadPoolExecutor) -> None:
    before = plan([TOY], store, (0, 1, 2, 3)).hours(1)
    do(TOY, store, FakeWork(), executor, seeds=(0, 1))
    left = plan([TOY], store, (0, 1, 2, 3))
    assert len(left.left) == len(left.jobs) / 2
    # Four policies took 360 s each and tests no time at all.
    assert left.hours(1) == pytest.approx(4 * 360 / 3600, rel=0.3)
    assert left.hours(1) < before / 2


def test_two_workers_take_no_longer_than_one_and_no_less_than_half(store: Store) -> None:
    planned = plan([TOY], store, (0, 1))
    assert planned.hours(1) / 2 <= planned.hours(2) <= planned.hours(1)
    assert planned.hours(1) == pytest.approx(sum(planned.seconds.values()) / 3600)


def test_outcomes_written_as_measured_are_told_without_standstills(store: Store) -> None:
    run = store.run(PRIOR, 0)
    intervals = [0.25] * 8 + [60.0]
    rows = [{"step": step, "seconds": s, "steps_per_s": 1 / s} for step, s in enumerate(intervals)]
    for directory in (store.run_directory(run).stage2, store.stage1_directory(run.stage1_digest) / "stage1"):
        directory.mkdir(parents=True)
        (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store.write_run_outcome(run, {"steps": 9, "seconds": 62.0, "revision": "r"})
    store.write_stage1_outcome(run.stage1_digest, run.recipe, {"seconds": 62.0})
    assert store.run_outcome(run) == {"steps": 9, "revision": "r", "seconds": 4.5, "left_out_seconds": 57.5}
    assert store.stage1_outcome(run.stage1_digest) == {"seconds": 4.5, "left_out_seconds": 57.5}
    # What was written without standstills, or has no log, is as it was written.
    store.write_run_outcome(run, {"steps": 9, "seconds": 7.0, "left_out_seconds": 1.0})
    assert store.run_outcome(run) == {"steps": 9, "seconds": 7.0, "left_out_seconds": 1.0}
    other = store.run(NO_PRIOR, 0)
    store.write_run_outcome(other, {"steps": 9, "seconds": 62.0})
    assert store.run_outcome(other) == {"steps": 9, "seconds": 62.0, "left_out_seconds": 0.0}


def test_a_test_that_took_many_times_the_usual_counts_ten(store: Store) -> None:
    run = store.run(PRIOR, 0)
    tests = [Evaluation(revision="r", seeds=(0,), solved=(True,), num_steps=200.0, seconds=s) for s in (1.0, 1.2, 90.0)]
    for step, test in enumerate(tests):
        store.write_evaluation(run, step, Condition(), "lift", test)
    (step_s,) = store.test_step_s().values()
    assert step_s == pytest.approx(1.2 / 200)
    assert tests[0].spent(step_s) == TimeSpent(seconds=1.0, left_out_seconds=0.0)
    assert tests[2].spent(step_s).to_json() == {"seconds": 12.0, "left_out_seconds": 78.0}
    # Resuming adds to what was measured.
    assert store.evaluation(run, 2, Condition(), "lift").seconds == 90.0
    assert Evaluation().spent(0.0).seconds == 0.0


def test_a_test_says_which_code_and_versions_made_it(store: Store) -> None:
    run, kept = store.run(PRIOR, 0), (store.run(PRIOR, 0), 0, Condition(), "lift")
    row = FakeWork().evaluate(store.checkpoint(run, None), Condition(), "lift", 100_000, 2)
    store.write_evaluation(*kept, Evaluation().plus(row, 1.0).plus({**row, "seeds": [100_002]}, 1.0))
    first = MadeWith(git_commit="c0ffee", versions={"mujoco": "3.3.0"})
    assert store.evaluation(*kept).made_with == (first,)
    later = store.evaluation(*kept).plus({**row, "seeds": [100_003], "git_commit": "decaf"}, 1.0)
    assert later.made_with == (first, replace(first, git_commit="decaf"))


def test_a_test_that_did_not_say_what_made_it_is_read_and_gone_on_with(store: Store) -> None:
    row = {"seeds": [7], "solved_seeds": [7], "mean_steps": 1.0, "revision": "r", "git_commit": "", "versions": {}}
    unknown = MadeWith(git_commit=UNKNOWN_COMMIT, versions={})
    before = Evaluation.from_json(
        {"revision": "r", "first_seed": 6, "outcomes": "0", "num_steps": 9.0, "seconds": 1.0},
    )
    assert before.made_with == (unknown,)
    # Outside a repository there is no commit either.
    assert before.plus(row, 1.0).made_with == (unknown,)
    known = before.plus({**row, "git_commit": "c0ffee"}, 1.0)
    assert [made.git_commit for made in known.made_with] == [UNKNOWN_COMMIT, "c0ffee"]
    assert Evaluation.from_json(known.to_json()) == known
    assert Evaluation().made_with == ()
