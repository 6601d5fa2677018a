"""What one machine did of the experiments is done on another: whole policies, by recipe, and nothing is mixed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.experiments.fake_work import FakeWork, recorded, store_of
from training.__main__ import main
from training.experiments.budget import Budget
from training.experiments.definitions.catalogue import EXPERIMENTS, experiment
from training.experiments.finished_jobs import take_up_finished_jobs
from training.experiments.plan import Job, Stage2Job, plan
from training.experiments.results import collect, write_results
from training.experiments.runner import carry_out, perform
from training.experiments.store import Store
from training.recipe import Recipe

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


def recorded_here(recipe: Recipe) -> Mapping[str, str]:
    return {task: f"{digest}, recorded here" for task, digest in recorded(recipe).items()}


def jobs_of(store: Store, *names: str, seeds: tuple[int, ...] = SEEDS) -> tuple[Job, ...]:
    return plan([experiment(name) for name in names], store, seeds).jobs


def kept(results: Path, name: str) -> dict[str, Any]:
    return json.loads((results / name / "jobs.json").read_text())


def without_where(values: Mapping[str, Any]) -> Any:
    """A result without what says on which machine it came about."""
    plain = json.loads(json.dumps({key: value for key, value in values.items() if key != "collected_at"}))
    for arm in plain["arms"]:
        for run in arm["runs"]:
            run["elsewhere"] = run["parent_digest"] = None
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


def test_what_was_begun_here_is_not_mixed(elsewhere: Path, here: Store) -> None:
    jobs = jobs_of(here, "decay")
    begun = next(job for job in jobs if isinstance(job, Stage2Job))
    perform(begun, here, FakeWork())
    outcome = here.run_outcome(begun.run)
    of_it = [job for job in jobs if not isinstance(job, Stage2Job) and job.run.digest == begun.run.digest]
    # Its tests and its prior, which it may need again, are left to do.
    assert take_up_finished_jobs(jobs, here, elsewhere) == len(jobs) - 1 - len(of_it)
    assert {job.key for job in plan([experiment("decay")], here, SEEDS).left} == {job.key for job in of_it}
    assert here.run_outcome(begun.run) == outcome


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


def test_a_file_of_another_form_is_named(here: Store, tmp_path: Path) -> None:
    (tmp_path / "decay").mkdir()
    (tmp_path / "decay/jobs.json").write_text('{"jobs": []}')
    with pytest.raises(ValueError, match=r"decay/jobs\.json is not what"):
        take_up_finished_jobs(jobs_of(here, "decay"), here, tmp_path)


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
