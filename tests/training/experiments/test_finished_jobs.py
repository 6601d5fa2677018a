"""What one machine did of the experiments is done on another: whole policies, by recipe, and nothing is mixed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.training.experiments.fake_work import FakeWork, recorded_here, store_of
from training.__main__ import main
from training.experiments.budget import Budget
from training.experiments.definitions.catalogue import EXPERIMENTS, experiment
from training.experiments.experiment import Arm, Condition, Training
from training.experiments.finished_jobs import take_up_finished_jobs
from training.experiments.plan import EvaluationJob, Job, Stage2Job, is_done, plan
from training.experiments.results import collect, write_results
from training.experiments.runner import carry_out, perform
from training.experiments.store import Evaluation, Run, Store
from training.experiments.verdict import NOT_RUN

SEEDS = (0, 1)
ALL = tuple(EXPERIMENTS.values())


@pytest.fixture(scope="module")
def budget() -> Budget:
    return replace(Budget.load("cpu"), episodes=2, curve_episodes=1, fewer_episodes={}, seeds=SEEDS)


@pytest.fixture(scope="module")
def elsewhere(budget: Budget, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/ that another machine wrote when it had carried out everything."""
    root = tmp_path_factory.mktemp("elsewhere")
    store = store_of(budget, root / "experiments")
    with ThreadPoolExecutor(1) as executor:
        carry_out(plan(ALL, store, SEEDS), store, FakeWork(), executor, num_workers=1)
    for each in ALL:
        write_results(each, collect(each, store, SEEDS), root / "results", store, SEEDS)
    return root / "results"


@pytest.fixture
def here(budget: Budget, tmp_path: Path) -> Store:
    """Without anything but recordings, whose bits are other ones."""
    return Store(root=tmp_path / "experiments", budget=budget, data_identity=recorded_here)


def jobs_of(store: Store, *names: str, seeds: tuple[int, ...] = SEEDS) -> tuple[Job, ...]:
    return plan([experiment(name) for name in names], store, seeds).jobs


def kept(results: Path, name: str) -> dict[str, Any]:
    return json.loads((results / name / "jobs.json").read_text())


def recipes(results: Path, name: str) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in (results / name / "recipes").iterdir()}


def some(elsewhere: Path, tmp_path: Path, *names: str) -> Path:
    """results/ with jobs.json of these experiments alone."""
    for name in names:
        (tmp_path / "some" / name).mkdir(parents=True)
        shutil.copy(elsewhere / name / "jobs.json", tmp_path / "some" / name)
    return tmp_path / "some"


def do(store: Store, *names: str, work: FakeWork | None = None) -> None:
    with ThreadPoolExecutor(1) as executor:
        carry_out(plan([experiment(name) for name in names], store, SEEDS), store, work or FakeWork(), executor, 1)


def without_where(values: Mapping[str, Any]) -> Any:
    """A result without what says on which machine it came about."""
    plain = json.loads(json.dumps({key: value for key, value in values.items() if key != "collected_at"}))
    for arm in plain["arms"]:
        for run in arm["runs"]:
            run["elsewhere"] = None
    return plain


def test_all_that_another_machine_did_is_done_and_gives_its_results(elsewhere: Path, here: Store) -> None:
    jobs = plan(ALL, here, SEEDS).jobs
    assert take_up_finished_jobs(jobs, here, elsewhere) == len(jobs)
    for each in ALL:
        values = collect(each, here, SEEDS)
        assert without_where(values) == without_where(json.loads((elsewhere / each.name / "results.json").read_text()))
        assert all(run["elsewhere"] for arm in values["arms"] for run in arm["runs"])
        # And it goes on to a third machine as it came.
        write_results(each, values, here.root / "results", here, SEEDS)
        assert kept(here.root / "results", each.name) == kept(elsewhere, each.name)
        assert recipes(here.root / "results", each.name) == recipes(elsewhere, each.name)


def test_only_another_seed_is_left_to_do(elsewhere: Path, here: Store) -> None:
    seeds = (*SEEDS, 2)
    take_up_finished_jobs(jobs_of(here, "decay", seeds=seeds), here, elsewhere)
    work = FakeWork()
    planned = plan([experiment("decay")], here, seeds)
    with ThreadPoolExecutor(1) as executor:
        carry_out(planned, here, work, executor, num_workers=1)
    third = plan([experiment("decay")], replace(here, root=here.root / "none"), (2,)).jobs
    assert [job.key for job in planned.left] == [job.key for job in third]
    assert len(work.calls) == len(third)
    values = collect(experiment("decay"), here, seeds)
    assert {claim["difference"]["num_seeds"] for claim in values["comparisons"]} == {3}
    assert {(run["seed"], run["elsewhere"]) for arm in values["arms"] for run in arm["runs"]} == {
        (0, True),
        (1, True),
        (2, False),
    }


def test_a_policy_that_is_to_be_tested_more_is_trained_and_tested_here(elsewhere: Path, here: Store) -> None:
    more = replace(here, budget=replace(here.budget, episodes=3))
    assert take_up_finished_jobs(jobs_of(more, "decay"), more, elsewhere) == 0
    assert not more.root.exists()


def test_what_was_trained_here_is_not_mixed(elsewhere: Path, here: Store) -> None:
    jobs = jobs_of(here, "decay")
    trained = next(job for job in jobs if isinstance(job, Stage2Job))
    perform(trained, here, FakeWork())
    outcome = here.run_outcome(trained.run)
    tests = [job for job in jobs if isinstance(job, EvaluationJob) and job.run.digest == trained.run.digest]
    assert take_up_finished_jobs(jobs, here, elsewhere) == len(jobs) - 1 - len(tests)
    assert {job.key for job in plan([experiment("decay")], here, SEEDS).left} == {job.key for job in tests}
    assert here.run_outcome(trained.run) == outcome


def test_one_experiment_after_another_is_taken_up_as_all_at_once(elsewhere: Path, here: Store) -> None:
    """Their policies are the same ones, of which each has other tests."""
    for name in ("prior", "copycat", "low-data", "unseen-body", "decay", "optimisation"):
        take_up_finished_jobs(jobs_of(here, name), here, elsewhere)
        assert plan([experiment(name)], here, SEEDS).left == ()


def test_tests_of_another_training_of_a_policy_are_not_added(elsewhere: Path, here: Store, tmp_path: Path) -> None:
    take_up_finished_jobs(jobs_of(here, "prior"), here, elsewhere)
    values = kept(elsewhere, "copycat")
    for policy in values["runs"].values():
        policy["outcome"]["digest"] = "again"
    (tmp_path / "copycat").mkdir()
    (tmp_path / "copycat/jobs.json").write_text(json.dumps(values))
    jobs = jobs_of(here, "copycat")
    left = [job for job in jobs if not is_done(job, here)]
    assert left
    assert take_up_finished_jobs(jobs, here, tmp_path) == 0


def test_first_steps_that_were_trained_here_are_no_reason_to_train_the_rest(elsewhere: Path, here: Store) -> None:
    do(here, "optimisation")
    ratios = collect(experiment("optimisation"), here, SEEDS)["ratios"]
    jobs = jobs_of(here, "decay", "optimisation")
    take_up_finished_jobs(jobs, here, elsewhere)
    assert plan([experiment("decay"), experiment("optimisation")], here, SEEDS).left == ()
    assert collect(experiment("optimisation"), here, SEEDS)["ratios"] == ratios


def test_first_steps_that_nobody_logged_are_logged_here_and_no_test_is_lost(
    elsewhere: Path, here: Store, tmp_path: Path
) -> None:
    known = some(elsewhere, tmp_path, "decay", "prior-kind")
    take_up_finished_jobs(jobs_of(here, "decay", "optimisation"), here, known)
    tested = collect(experiment("decay"), here, SEEDS)
    values = collect(experiment("optimisation"), here, SEEDS)
    assert {claim["verdict"] for claim in values["ratios"]} == {NOT_RUN}
    assert values["jobs"]["stage 2"] == {"all": 6, "left": 6}
    work = FakeWork()
    do(here, "decay", "optimisation", work=work)
    # The priors' weights are not here, either: they are trained first, and each once.
    assert [call[0] for call in work.calls if call[0] != "stage 2"] == ["stage 1"] * 2
    assert [call[2] for call in work.calls if call[0] == "stage 2"] == ["500"] * 6
    assert plan([experiment("decay"), experiment("optimisation")], here, SEEDS).left == ()
    logged = json.loads((elsewhere / "optimisation/results.json").read_text())
    assert collect(experiment("optimisation"), here, SEEDS)["ratios"] == logged["ratios"]
    again = collect(experiment("decay"), here, SEEDS)
    assert again["comparisons"] == tested["comparisons"] and again["tested_at"] == tested["tested_at"]
    assert all(run["elsewhere"] and run["steps"] == 1200 for arm in again["arms"] for run in arm["runs"])


def test_a_prior_without_weights_is_trained_once_before_what_needs_it(elsewhere: Path, here: Store) -> None:
    take_up_finished_jobs(jobs_of(here, "decay"), here, elsewhere)
    arms = tuple(
        Arm(name=f"decay over {share}", training=replace(Training(), decay=share))
        for share in (Fraction(1, 3), Fraction(2, 3))
    )
    further = replace(experiment("decay"), arms=arms, comparisons=())
    planned, work = plan([further], here, (0,)), FakeWork()
    assert planned.counts()["stage 1"] == {"all": 1, "left": 1}
    assert planned.seconds[planned.left[0].key] > 0
    with ThreadPoolExecutor(1) as executor:
        carry_out(planned, here, work, executor, num_workers=1)
    assert [call[0] for call in work.calls][:2] == ["stage 1", "stage 2"]
    assert [call[0] for call in work.calls].count("stage 1") == 1
    assert plan([further], here, (0,)).left == ()


@pytest.mark.parametrize("num_written", [0, 1, 7])
def test_after_a_kill_it_goes_on_and_no_test_lies_there_without_its_policy(
    num_written: int, elsewhere: Path, here: Store
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Killed(Store):
        def write_evaluation(
            self, run: Run, step: int, condition: Condition, task: str, evaluation: Evaluation
        ) -> None:
            if len(list(self.root.glob("runs/*/evaluations/*/*/*.json"))) == num_written:
                raise KeyboardInterrupt
            super().write_evaluation(run, step, condition, task, evaluation)

    jobs = jobs_of(here, "decay", "optimisation")
    killed = Killed(root=here.root, budget=here.budget, data_identity=here.data_identity)
    with pytest.raises(KeyboardInterrupt):
        take_up_finished_jobs(jobs, killed, elsewhere)
    assert all(here.is_told(job.run) for job in jobs if isinstance(job, EvaluationJob) and is_done(job, here))
    take_up_finished_jobs(jobs, here, elsewhere)
    assert plan([experiment("decay"), experiment("optimisation")], here, SEEDS).left == ()
    values = collect(experiment("optimisation"), here, SEEDS)
    assert values["ratios"] == json.loads((elsewhere / "optimisation/results.json").read_text())["ratios"]


def test_of_two_trainings_of_a_recipe_the_one_that_leaves_nothing_to_do_is_taken(
    elsewhere: Path, here: Store, tmp_path: Path
) -> None:
    known = some(elsewhere, tmp_path, "low-data", "prior-kind")
    values = kept(known, "low-data")
    for policy in values["runs"].values():
        policy["outcome"]["digest"] = "again"
    (known / "low-data/jobs.json").write_text(json.dumps(values))
    # Which tests fewer tasks.
    jobs = jobs_of(here, "prior-kind")
    assert take_up_finished_jobs(jobs, here, known) == len(jobs)
    assert "again" not in {
        run["digest"] for arm in collect(experiment("prior-kind"), here, SEEDS)["arms"] for run in arm["runs"]
    }
    other = replace(here, root=here.root / "other")
    assert take_up_finished_jobs(jobs_of(other, "low-data"), other, known) == len(jobs_of(other, "low-data"))


def test_tests_of_other_scenes_are_not_taken(elsewhere: Path, here: Store, tmp_path: Path) -> None:
    values = kept(some(elsewhere, tmp_path, "decay"), "decay")
    for policy in values["runs"].values():
        for test in policy["tests"].values():
            test["first_seed"] += 1
    (tmp_path / "some/decay/jobs.json").write_text(json.dumps(values))
    assert take_up_finished_jobs(jobs_of(here, "decay"), here, tmp_path / "some") == 0


def test_a_policy_that_one_here_starts_from_is_trained_here(elsewhere: Path, here: Store, tmp_path: Path) -> None:
    jobs = jobs_of(here, "unseen-body")
    adapted = next(job.run for job in jobs if isinstance(job, Stage2Job) and job.run.parent)
    values = kept(elsewhere, "unseen-body")
    del values["runs"][adapted.recipe_digest]
    (tmp_path / "some/unseen-body").mkdir(parents=True)
    (tmp_path / "some/unseen-body/jobs.json").write_text(json.dumps(values))
    take_up_finished_jobs(jobs, here, tmp_path / "some")
    assert adapted.parent is not None
    left = {job.key for job in plan([experiment("unseen-body")], here, SEEDS).left if isinstance(job, Stage2Job)}
    assert left == {f"stage 2 {adapted.digest}", f"stage 2 {adapted.parent.digest}"}


def test_the_log_of_first_steps_may_be_another_trainings(elsewhere: Path, here: Store, tmp_path: Path) -> None:
    """As when only the logs were made again: neither they nor the tests are lost."""
    for name in ("optimisation", "prior-kind", "decay"):
        values = kept(elsewhere, name)
        if name == "optimisation":
            for policy in values["runs"].values():
                policy["outcome"] |= {"steps": 500, "digest": "again", "revision": ""}
        (tmp_path / "some" / name).mkdir(parents=True)
        (tmp_path / "some" / name / "jobs.json").write_text(json.dumps(values))
    jobs = jobs_of(here, "optimisation", "prior-kind", "decay")
    assert take_up_finished_jobs(jobs, here, tmp_path / "some") == len(jobs)
    values = collect(experiment("optimisation"), here, SEEDS)
    assert values["ratios"] == json.loads((elsewhere / "optimisation/results.json").read_text())["ratios"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"stage1": {}, ', "Expecting property name"),
        ("[]", "it is list, expected an object"),
        ('{"runs": {}}', "it has no stage1"),
        ('{"stage1": [], "runs": {}}', "stage1 is list"),
        ('{"stage1": {"a": {}}, "runs": {}}', "stage1.a has no digest and no seconds"),
        ('{"stage1": {}, "runs": {"b": {"outcome": {}, "tests": {}}}}', "runs.b has no log"),
        (
            '{"stage1": {}, "runs": {"b": {"outcome": {"digest": "b"}, "log": [], "tests": {}}}}',
            "runs.b.outcome has no revision and no steps",
        ),
        (
            '{"stage1": {}, "runs": {"b": {"outcome": {"digest": "", "revision": "", "steps": 1}, "log": [],'
            ' "tests": {"lift": {"first_seed": 7}}}}}',
            "runs.b.tests['lift'] has no revision",
        ),
        (
            '{"stage1": {}, "runs": {"b": {"outcome": {"digest": "", "revision": "", "steps": "all"}, "log": [],'
            ' "tests": {}}}}',
            "runs.b.outcome.steps is str, expected a whole number",
        ),
        (
            '{"stage1": {}, "runs": {"b": {"outcome": {"digest": "", "revision": "", "steps": 1}, "log": [],'
            ' "tests": {"lift": {"revision": "", "first_seed": 7, "outcomes": "1", "num_steps": 1, "seconds": 1,'
            ' "made_with": [{"commit": ""}]}}}}}',
            "runs.b.tests['lift'].made_with has unknown keys ['commit']",
        ),
    ],
)
def test_a_file_of_another_form_is_named_with_what_is_wrong(text: str, said: str, here: Store, tmp_path: Path) -> None:
    (tmp_path / "decay").mkdir()
    (tmp_path / "decay/jobs.json").write_text(text)
    with pytest.raises(ValueError, match=rf"decay/jobs\.json is not what .* writes: {re.escape(said)}"):
        take_up_finished_jobs(jobs_of(here, "decay"), here, tmp_path)
    assert not here.root.exists()


def test_the_command_says_how_many_jobs_are_done_elsewhere(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("training.experiments.command.RESULTS", elsewhere)
    arguments = ["experiment", "optimisation", "--seeds", "0,1,2", "--plan"]
    assert main(arguments) == 0
    before = capsys.readouterr().out
    assert "12 jobs left" in before and "jobs.json" not in before
    assert main([*arguments, "--from-results"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"8 jobs are done by {elsewhere}/*/jobs.json\n") and "4 jobs left" in said
