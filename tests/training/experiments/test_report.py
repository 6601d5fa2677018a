"""From outcomes to words: verdicts follow intervals, shortfalls are said, reports are made of JSON alone."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.experiments.fake_work import FakeWork, store_of
from training.experiments.budget import Budget
from training.experiments.definitions import EXPERIMENTS, experiment
from training.experiments.plan import plan
from training.experiments.report import write_reports
from training.experiments.results import HOLDS, NOT_RUN, NOT_SHOWN, OPPOSITE, collect, verdict, write_results
from training.experiments.runner import carry_out
from training.experiments.statistics import Estimate
from training.experiments.store import Store
from training.recipe import Recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/ of all eight experiments, one of them partial."""
    root = tmp_path_factory.mktemp("all")
    budget = replace(Budget.load("cpu"), episodes=2, curve_episodes=1, fewer_episodes={}, seeds=(0, 1))
    store = store_of(budget, root / "experiments")
    for each in EXPERIMENTS.values():
        seeds = (0,) if each.name == "decay" else (0, 1)
        with ThreadPoolExecutor(1) as executor:
            carry_out(plan([each], store, seeds), store, FakeWork(), executor, num_workers=1)
        write_results(each, collect(each, store, (0, 1)), root / "results", store, (0, 1))
    write_reports(root / "results")
    return root


def estimate(low: float, high: float, num_seeds: int = 3) -> Estimate:
    return Estimate(value=(low + high) / 2, low=low, high=high, num_seeds=num_seeds, num_tasks=5, num_episodes=50)


@pytest.mark.parametrize(
    ("low", "high", "expected", "said"),
    [
        (0.01, 0.1, "higher", HOLDS),
        (-0.01, 0.1, "higher", NOT_SHOWN),
        (0.0, 0.1, "higher", NOT_SHOWN),
        (-0.1, -0.01, "higher", OPPOSITE),
        (-0.1, -0.01, "lower", HOLDS),
        (0.01, 0.1, "lower", OPPOSITE),
    ],
)
def test_a_verdict_is_what_the_interval_excludes(low: float, high: float, expected, said: str) -> None:
    assert verdict(estimate(low, high), expected) == said


def test_a_ratio_is_judged_against_1_and_not_at_all_from_one_seed() -> None:
    assert verdict(estimate(1.5, 4.0), "higher", neutral=1.0) == HOLDS
    assert verdict(estimate(0.5, 4.0), "higher", neutral=1.0) == NOT_SHOWN
    assert verdict(estimate(2.0, 2.0, num_seeds=1), "higher", neutral=1.0) == NOT_SHOWN


def test_what_has_no_outcome_is_not_run() -> None:
    assert verdict(None, "higher") == NOT_RUN


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_an_experiment_leaves_results_recipes_report_and_figures(name: str, finished: Path) -> None:
    directory = finished / "results" / name
    values = json.loads((directory / "results.json").read_text())
    assert values["experiment"] == name
    assert len(list((directory / "recipes").glob("*.json"))) == len(values["arms"])
    for path in (directory / "recipes").glob("*.json"):
        Recipe.from_json(json.loads(path.read_text()))
    report = (directory / "report.md").read_text()
    assert "![" in report and f"`python -m training experiment {name}`" in report
    assert (directory / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (directory / "plot.svg").read_text()
    for claim in (*experiment(name).comparisons, *experiment(name).ratios):
        assert claim.claim in report


def test_every_claim_stands_in_the_summary_beside_the_paper_s_figure(finished: Path) -> None:
    text = (finished / "RESULTS.md").read_text()
    for each in EXPERIMENTS.values():
        for claim in (*each.comparisons, *each.ratios):
            assert f"| {claim.claim} |" in text
    assert "+9.6 points" in text and "about 16 times" in text


def test_partial_results_are_called_partial(finished: Path) -> None:
    report = (finished / "results/decay/report.md").read_text()
    # Of the second seed it has what other experiments share with it.
    assert "**Partial.** 2 of 2 priors trained, 5 of 8 policies trained, 25 of 40 tests done" in report
    assert "**Partial.**" not in (finished / "results/prior-kind/report.md").read_text()
    assert "decay: Shortfall: 2 of 2 priors trained, 5 of 8 policies trained" in (finished / "RESULTS.md").read_text()


def test_fewer_seeds_and_episodes_than_asked_are_said(finished: Path) -> None:
    report = (finished / "results/prior/report.md").read_text()
    assert "Shortfall: 2 seeds of training, 3 were asked for." in report
    assert "Shortfall: 2 test episodes a task and seed, 50 were asked for." in report


def test_one_seed_stands_as_a_caveat_beside_the_claims(finished: Path) -> None:
    assert "Caveat: one seed of training" in (finished / "results/decay/report.md").read_text()


def test_reports_are_made_again_from_json_alone(finished: Path, tmp_path: Path) -> None:
    for name in ("prior-kind", "optimisation"):
        (tmp_path / "results" / name).mkdir(parents=True)
        shutil.copy(finished / "results" / name / "results.json", tmp_path / "results" / name)
    write_reports(tmp_path / "results")
    for name in ("prior-kind/report.md", "prior-kind/plot.svg", "optimisation/report.md", "optimisation/plot.svg"):
        assert (tmp_path / "results" / name).read_bytes() == (finished / "results" / name).read_bytes()


def test_the_whole_of_the_outcomes_is_kept(finished: Path) -> None:
    values = json.loads((finished / "results/prior/results.json").read_text())
    for arm in values["arms"]:
        assert [checkpoint["step"] for checkpoint in arm["checkpoints"]] == [400, 800, 1200, 1600, 2000, 2400]
        for checkpoint in arm["checkpoints"]:
            assert len(checkpoint["tasks"]) == 13
            for found in checkpoint["tasks"].values():
                assert found["successes"] == sum(map(int, "".join(found["outcomes"].values())))
                assert found["low"] <= found["successes"] / found["episodes"] <= found["high"]


def test_a_ratio_is_over_the_steps_it_names(finished: Path) -> None:
    values = json.loads((finished / "results/optimisation/results.json").read_text())
    # The fake's losses are a quarter with a prior.
    assert [ratio["ratio"]["value"] for ratio in values["ratios"]] == pytest.approx([4.0] * 4)
    assert {ratio["verdict"] for ratio in values["ratios"]} == {HOLDS}


def test_an_experiment_without_any_run_is_reported_as_not_run(tmp_path: Path) -> None:
    store: Store = store_of(Budget.load("cpu"), tmp_path / "experiments")
    each = experiment("prior")
    write_results(each, collect(each, store, (0, 1, 2)), tmp_path / "results", store, (0, 1, 2))
    write_reports(tmp_path / "results")
    values = json.loads((tmp_path / "results/prior/results.json").read_text())
    assert {claim["verdict"] for claim in values["comparisons"]} == {NOT_RUN}
    assert not (tmp_path / "results/prior/plot.png").exists()
    text = (tmp_path / "RESULTS.md").read_text()
    assert "7 were not run" in text and "- copycat, budget cpu: not run." in text
