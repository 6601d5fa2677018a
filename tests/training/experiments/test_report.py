"""From outcomes to words: verdicts follow intervals, shortfalls are said, reports are made of JSON alone."""

from __future__ import annotations

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.experiments.fake_work import FakeWork, store_of
from training.experiments.budget import Budget
from training.experiments.definitions.catalogue import EXPERIMENTS, experiment
from training.experiments.experiment import EULER_STEPS
from training.experiments.markdown import sample_cell
from training.experiments.method import method, shortfalls
from training.experiments.plan import plan
from training.experiments.plots import title_of
from training.experiments.report import write_reports
from training.experiments.results import collect, file_name, write_results
from training.experiments.runner import carry_out
from training.experiments.statistics import Estimate
from training.experiments.store import Store
from training.experiments.success_tables import floors, goal, success_table
from training.experiments.summary import format_summary
from training.experiments.verdict import HOLDS, NOT_RUN, NOT_SHOWN, OPPOSITE, verdict
from training.recipe import Recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/ of all eight experiments, one of them partial."""
    root = tmp_path_factory.mktemp("all")
    budget = replace(unrecorded(root), episodes=2, curve_episodes=1, fewer_episodes={}, seeds=(0, 1))
    store = store_of(budget, root / "experiments")
    for each in EXPERIMENTS.values():
        seeds = (0,) if each.name == "decay" else (0, 1)
        with ThreadPoolExecutor(1) as executor:
            carry_out(plan([each], store, seeds), store, FakeWork(), executor, num_workers=1)
        write_results(each, collect(each, store, (0, 1)), root / "results", store, (0, 1))
    write_reports(root / "results")
    return root


def unrecorded(root: Path) -> Budget:
    """The CPU budget with nothing of its recordings there, wherever this runs."""
    budget = Budget.load("cpu")
    bases = {
        name: replace(base, data=replace(base.data, root=str(root / "bench"))) for name, base in budget.bases.items()
    }
    return replace(budget, bases=bases)


def values_of(root: Path, name: str) -> dict[str, Any]:
    return json.loads((root / "results" / name / "results.json").read_text())


def report_of(root: Path, name: str) -> str:
    return (root / "results" / name / "report.md").read_text()


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


def test_one_seed_of_training_shows_nothing() -> None:
    assert verdict(estimate(0.2, 0.4, num_seeds=1), "higher") == NOT_SHOWN
    assert verdict(estimate(-0.4, -0.2, num_seeds=1), "higher") == NOT_SHOWN
    assert verdict(estimate(0.2, 0.4, num_seeds=2), "higher") == HOLDS


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
    report = report_of(finished, "prior")
    assert "Shortfall: 2 seeds of training, 3 were asked for." in report
    assert "Shortfall: 2 test episodes a task and seed, 50 were asked for." in report
    curve = "Shortfall: 1 test episode a task and seed at earlier checkpoints, 10 were asked for."
    assert curve in report and curve in report_of(finished, "scaling")
    assert curve not in report_of(finished, "prior-kind")


def test_what_stands_behind_a_claim_stands_beside_it_marked_where_it_is_less_than_asked(finished: Path) -> None:
    for text in (report_of(finished, "prior"), (finished / "RESULTS.md").read_text()):
        assert "| seeds x tasks x episodes |" in text
        rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if " x " in line}
        rows |= {line.split(" | ")[1]: line for line in text.splitlines() if line.startswith("| [prior]")}
        assert r"| 2 x 13 x 2 \* |" in rows["the prior raises success over all tasks"]
        assert r"| 2 x 3 x 2 \* |" in rows["the prior raises success of the low-data group"]
        assert r"| 2 x 13 x 1 \* |" in rows["the prior is ahead at the first checkpoint"]
        assert r"\* fewer than the 3 seeds or 50 episodes that were asked for." in text
    assert r"| 2 seeds x 100 steps \* |" in report_of(finished, "optimisation")
    enough = {"num_seeds": 3, "num_tasks": 5, "num_episodes": 50}
    assert sample_cell(enough) == "3 x 5 x 50"
    assert sample_cell({**enough, "num_episodes": 49}) == r"3 x 5 x 49 \*"
    assert sample_cell({**enough, "num_seeds": 2}) == r"2 x 5 x 50 \*"


def test_each_group_of_tasks_has_the_seeds_that_are_complete_in_it(finished: Path) -> None:
    values = values_of(finished, "prior")
    values["arms"][0]["checkpoints"][-1]["groups"]["low-data"]["num_seeds"] = 3
    header, _, row, *_ = success_table(values)[0].splitlines()
    titles, cells = ([cell.strip("| ") for cell in line.split(" | ")] for line in (header, row))
    assert titles[1::3] == ["13 tasks, %", "low-data group, %", "other tasks, %"]
    assert titles[2::3] == ["seeds"] * 3 and cells[2::3] == [r"2 \*", "3", r"2 \*"]


def test_a_figure_says_how_many_seeds_it_is_of(finished: Path) -> None:
    assert title_of(values_of(finished, "prior")).endswith("(cpu, 2 seeds)")
    assert title_of(values_of(finished, "optimisation")).endswith("(cpu, 2 seeds)")
    # Of decay's second seed there is what other experiments share with it.
    assert title_of(values_of(finished, "decay")).endswith("(cpu, 1 to 2 of 2 seeds, partial)")


def test_how_policies_are_tested_is_said(finished: Path) -> None:
    testing = values_of(finished, "prior")["testing"]
    assert testing == {
        "num_inference_steps": EULER_STEPS,
        "rule": "replace",
        "execution_horizon": 8,
        "action_horizon": 16,
        "first_seed": 100_000,
    }
    assert (
        f"Policies take {EULER_STEPS} Euler steps a chunk; 8 actions of each chunk of 16 are played, then the next one "
        "takes over (rule replace). Scenes are seeds 100000 to 100001 of the range for testing"
    ) in report_of(finished, "prior")
    assert "Euler" not in report_of(finished, "optimisation")


def test_a_subset_of_the_low_data_group_is_said_to_be_one(finished: Path) -> None:
    line = "Of the low-data group's 3 tasks 2 are here: pick-place, drawer-open."
    assert line in report_of(finished, "prior-kind") and line in report_of(finished, "low-data")
    assert "Of the low-data group's" not in report_of(finished, "prior")


def test_how_much_more_motion_stage_1_sees_is_said_where_there_is_more(finished: Path) -> None:
    values = values_of(finished, "scaling")
    assert {arm["stage1_windows"] for arm in values["arms"]} == {None}
    _, once, more = values["arms"]
    once["stage1_windows"] = {"motion_episodes": 0, "windows": 1000, "drawn": 1200, "distinct": 800}
    more["stage1_windows"] = {"motion_episodes": 9, "windows": 4000, "drawn": 1200, "distinct": 1200}
    text = "\n".join(method(values))
    assert "motion x1 sees 800 different ones of 1000 (1.20 passes over its data)" in text
    assert "4.0 times the data is 1.50 times as many different windows" in text
    more["stage1_windows"] |= {"drawn": 4000, "distinct": 3200}
    assert "partly a property of the budget" not in "\n".join(method(values))


def test_compute_is_told_as_steps_at_their_measured_seconds(finished: Path) -> None:
    report = report_of(finished, "prior-kind")
    # The fake's stage 1 takes 0.17 s a step, distilling 0.326 s and other steps 0.228 s, but for one standstill.
    assert "| no-prior | - | - | 1200 x 0.228 | 274 | 1.00 |" in report
    assert "| state-prior | 180 x 0.170 | 120 x 0.326 | 1080 x 0.228 | 316 | 1.15 |" in report
    assert "| random decoder, added compute | - | - | 1385 x 0.228 | 316 | 1.15 |" in report
    assert "Measured: random decoder, added compute computes 100 % of what state-prior does." in report
    # Policies that start from another have its steps, too.
    assert "| no prior, 5 demonstrations | - | - | 1200 x 0.228 + 300 x 0.228 |" in report_of(finished, "unseen-body")
    assert "| state-prior | 180 x 0.170 | 120 x 0.326 | 380 x 0.228 |" in report_of(finished, "optimisation")
    assert "| history and 9 arms more |" in report_of(finished, "copycat")


def test_stage_1_s_share_of_stage_2_is_told_of_runs_that_reach_their_end(finished: Path) -> None:
    # 180 steps of 0.17 s over 120 of 0.326 s and 1080 of 0.228 s.
    assert "| 1080 x 0.228 | 316 | 1.15 | 10.7 % |" in report_of(finished, "prior-kind")
    assert "| 1200 x 0.228 | 274 | 1.00 | - |" in report_of(finished, "prior-kind")
    (row,) = (line for line in report_of(finished, "optimisation").splitlines() if "| 380 x 0.228 |" in line)
    assert row.endswith("| - |")


def test_what_a_reader_of_a_row_would_miss_is_a_footnote_of_it(finished: Path) -> None:
    compute = "The arm's training computes 1.15 times what its baseline's does, as measured."
    norm = "The norm is of the whole objective's gradient: the landmark loss, which paper A does not have,"
    units = "Paper A's figure is, by all signs, a mean over its simulated tasks alone"
    for name, claim, said in (
        ("prior-kind", "a prior from states and actions helps", (compute, units)),
        ("optimisation", "the prior lowers the gradient norm at the start", (norm,)),
        ("prior", "prior and history together raise success", ("The arm's training computes", "History is not all")),
        ("scaling", "four times the motion raises final success", (units,)),
        ("prior-kind", "the prior is worth more than its compute", ()),
    ):
        for text, note in ((report_of(finished, name), -2), ((finished / "RESULTS.md").read_text(), -3)):
            (row,) = (line for line in text.splitlines() if f"| {claim} |" in line)
            numbers = row.split("|")[note].replace(",", " ").split()
            footnotes = dict(line.split(". ", 1) for line in text.splitlines() if line[:1].isdigit())
            assert len(numbers) == len(said)
            assert all(footnotes[number].startswith(begins) for number, begins in zip(numbers, said, strict=True))


def test_tasks_that_no_arm_solves_are_named(finished: Path) -> None:
    values = values_of(finished, "prior-kind")
    assert floors(values) == []
    for index, arm in enumerate(values["arms"]):
        arm["checkpoints"][-1]["tasks"]["pick-place"] |= {"successes": index, "episodes": 50}
    (line,) = floors(values)
    assert line.startswith("**Floor.** Below 10 % in every arm, the best one's in brackets: pick-place (6 %). ")
    values["arms"][0]["checkpoints"][-1]["tasks"]["pick-place"]["successes"] = 5
    assert floors(values) == []


def test_a_body_that_is_hardly_played_when_it_was_never_left_out_is_said_to_be(finished: Path) -> None:
    values = values_of(finished, "unseen-body")
    assert values["references"] == ["never left out, no prior", "never left out, prior"]
    for arm in values["arms"]:
        arm["checkpoints"][-1]["groups"]["all"] |= {"value": 0.5}
    references = [arm["checkpoints"][-1]["groups"]["all"] for arm in values["arms"][-2:]]
    for estimate in references:
        estimate |= {"value": 0.04, "low": 0.01, "high": 0.08}
    (line,) = floors(values)
    assert "Arms that lack nothing: never left out, no prior 4.0 (1.0 to 8.0) %, never left out, prior 4.0" in line
    references[1]["value"] = 0.1
    assert floors(values) == []


def test_the_plan_of_the_whole_set_stands_beside_what_was_measured(finished: Path) -> None:
    hours = values_of(finished, "prior")["planned_hours_of_all"]
    assert hours == values_of(finished, "decay")["planned_hours_of_all"]
    apart = sum(values_of(finished, name)["planned_hours"] for name in EXPERIMENTS)
    assert 0 < hours < apart
    assert f"Planned for all 8: {hours:.2f} hours with its 2 worker processes." in (finished / "RESULTS.md").read_text()


def test_what_differs_from_the_paper_stands_at_the_head(finished: Path) -> None:
    head, _ = (finished / "RESULTS.md").read_text().split("| experiment | claim |")
    assert "also sees the present state, hidden for 30 % of the samples" in head
    assert "([docs/methods.md](docs/methods.md))" in head


def test_commits_and_versions_of_tests_are_listed_where_they_differ_or_are_unknown(finished: Path) -> None:
    values = values_of(finished, "prior-kind")
    num_tests = sum(len(arm["checkpoints"][-1]["tasks"]) for arm in values["arms"]) * 2
    assert values["tested_at"] == {"c0ffee": {"tests": num_tests, "versions": {"mujoco": ["3.3.0"]}}}
    assert not any(line.startswith("Commits") for line in shortfalls(values))
    values["tested_at"]["unknown"] = {"tests": 1, "versions": {}}
    assert f"Commits at which the tests ran: c0ffee ({num_tests} tests, mujoco 3.3.0); unknown (1 test)." in shortfalls(
        values
    )
    del values["tested_at"]["c0ffee"]
    assert "Commits at which the tests ran: unknown (1 test)." in shortfalls(values)


def test_a_control_with_less_compute_is_no_control_of_all_of_it(tmp_path: Path) -> None:
    budget = replace(unrecorded(tmp_path), episodes=2, seeds=(0,), added_steps=80)
    store, each = store_of(budget, tmp_path / "experiments"), experiment("prior-kind")
    with ThreadPoolExecutor(1) as executor:
        carry_out(plan([each], store, (0,)), store, FakeWork(), executor, num_workers=1)
    claims = {claim["claim"]: claim for claim in collect(each, store, (0,))["comparisons"]}
    assert "the prior is worth more than its compute" not in claims
    found = claims["the prior is worth more than 92 % of its compute put into stage 2"]
    assert found["share_of_compute"] == pytest.approx(1280 * 0.228 / 315.96, rel=1e-3)
    assert found["arm"] == "state-prior" and found["difference"] is not None


def test_the_best_arm_is_held_against_the_goal_and_its_slope_is_told(finished: Path) -> None:
    values = values_of(finished, "prior")
    text = goal(values)
    assert text.startswith("**Goal.** At least 60 % mean success over 13 tasks: the best arm, ")
    assert text in report_of(finished, "prior") and text in (finished / "RESULTS.md").read_text()
    best = max(values["arms"], key=lambda arm: arm["checkpoints"][-1]["groups"]["all"]["value"])
    assert f"the best arm, {best['name']}, has" in text and "not reached" in text
    assert "From step 1600 to 2400" in text and "on the same 1 scene a task and seed" in text
    outcomes = {
        tested["step"]: "".join(of[0] for task in tested["tasks"].values() for of in task["outcomes"].values())
        for tested in best["checkpoints"]
    }
    change = (outcomes[2400].count("1") - outcomes[1600].count("1")) / 26
    assert best["trend"]["difference"]["value"] == pytest.approx(change)
    best["checkpoints"][-1]["groups"]["all"]["value"] = 0.6
    best["trend"]["difference"] |= {"value": 0.08, "low": 0.02}
    assert ": reached." in goal(values) and "+10.0 a thousand steps" in goal(values)
    assert goal(values).count("it was still rising.") == 1
    assert goal(values_of(finished, "scaling")) == ""


def test_notes_by_hand_stand_below_the_claims_word_for_word(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "results" / "decay").mkdir(parents=True)
    shutil.copy(finished / "results/decay/results.json", tmp_path / "results/decay")
    notes = "## Notes\n\n- Four Euler steps | eight: *no* difference.\n"
    (tmp_path / "results" / "notes.md").write_text(notes)
    write_reports(tmp_path / "results")
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.replace(notes + "\n", "") == format_summary([values_of(finished, "decay")])
    claims, joint = text.rindex("`python -m training experiment decay`"), text.index("## Joint success")
    assert claims < text.index(notes) < joint


def test_a_recipe_that_starts_from_another_names_it_and_no_path(finished: Path) -> None:
    directory = finished / "results/unseen-body"
    digests = {arm["name"]: arm["runs"][0] for arm in values_of(finished, "unseen-body")["arms"]}
    for family in ("no prior", "prior without the body", "prior with the body's motion"):
        parent, adapted = f"{family}, 0 demonstrations", f"{family}, 5 demonstrations"
        recipe = Recipe.from_json(json.loads((directory / "recipes" / f"{file_name(adapted)}.json").read_text()))
        assert recipe.stage2.start_from == f"{parent} ({digests[parent]['digest']})"
        assert digests[adapted]["parent_digest"] == digests[parent]["digest"]
    assert "and in the digest of the policy that they start from" in report_of(finished, "unseen-body")
    assert "those of other seeds differ in the seed and the name that says it." in report_of(finished, "prior")


def test_one_seed_stands_as_a_caveat_beside_the_claims(finished: Path) -> None:
    assert "Caveat: one seed of training" in (finished / "results/decay/report.md").read_text()


def test_reports_are_made_again_from_json_alone(finished: Path, tmp_path: Path) -> None:
    for name in ("prior-kind", "optimisation"):
        (tmp_path / "results" / name).mkdir(parents=True)
        shutil.copy(finished / "results" / name / "results.json", tmp_path / "results" / name)
    write_reports(tmp_path / "results")
    for name in ("prior-kind/report.md", "prior-kind/plot.svg", "optimisation/report.md", "optimisation/plot.svg"):
        assert (tmp_path / "results" / name).read_bytes() == (finished / "results" / name).read_bytes()


def test_results_of_no_experiment_are_named_and_nothing_is_written(finished: Path, tmp_path: Path) -> None:
    for name in ("decay", "priors"):
        (tmp_path / "results" / name).mkdir(parents=True)
        values = {**values_of(finished, "decay"), "experiment": name}
        (tmp_path / "results" / name / "results.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"results/priors/results\.json is of 'priors', expected one of prior, "):
        write_reports(tmp_path / "results")
    assert not (tmp_path / "RESULTS.md").exists()
    assert not (tmp_path / "results/decay/report.md").exists()


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
    values = values_of(finished, "optimisation")
    # The fake's losses start at a quarter with a prior and fall half as fast; the first step is before any update.
    steps = range(100)
    expected = [4 * math.exp(-sum(steps) / len(steps) / 600), 4 * math.exp(-sum(steps) / len(steps) / 400)]
    assert [ratio["ratio"]["value"] for ratio in values["ratios"]] == pytest.approx([*expected * 2, 4, 4], rel=1e-9)
    assert [tuple(ratio["steps"]) for ratio in values["ratios"]] == [(1, 100)] * 4 + [(1, 1)] * 2
    assert r"| 2 seeds x 1 step \* |" in report_of(finished, "optimisation")
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
