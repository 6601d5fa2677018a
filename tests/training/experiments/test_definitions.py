"""The eight experiments in both budgets: recipes that are valid, tasks that span what is asked, costs that add up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from policy.prior import ActionDecoder, PriorConfig
from policy.trunk import TrunkConfig
from tests.training.experiments.fake_work import store_of
from training.experiments.budget import BUDGETS, Budget
from training.experiments.definitions.catalogue import EXPERIMENTS, experiment
from training.experiments.experiment import Arm, Comparison, Condition, Experiment, Training
from training.experiments.plan import plan
from training.experiments.plan_of_jobs import format_plan
from training.experiments.store import Run
from training.names import UnknownNameError
from training.recipe import Recipe

NAMES = ("prior", "optimisation", "prior-kind", "scaling", "decay", "low-data", "unseen-body", "copycat")
PRIOR, NO_PRIOR = Training(snapshots=True), Training(prior="none", snapshots=True)


@pytest.fixture(params=["cpu", "gpu"])
def budget(request: pytest.FixtureRequest) -> Budget:
    return Budget.load(request.param)


def runs(budget: Budget, name: str, root: Path) -> Mapping[str, Run]:
    store = store_of(budget, root)
    return {arm.name: store.run(arm.training, 0) for arm in experiment(name).arms}


def test_there_are_eight_experiments() -> None:
    assert tuple(EXPERIMENTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_is_a_recipe_that_survives_json(name: str, budget: Budget, tmp_path: Path) -> None:
    for run in runs(budget, name, tmp_path).values():
        assert Recipe.from_json(json.loads(json.dumps(run.recipe.to_json()))) == run.recipe


@pytest.mark.parametrize("name", NAMES)
def test_arms_with_another_name_and_condition_are_another_measurement(
    name: str, budget: Budget, tmp_path: Path
) -> None:
    found = runs(budget, name, tmp_path)
    measured = {(found[arm.name].digest, arm.condition, arm.until) for arm in experiment(name).arms}
    assert len(measured) == len(found)


def test_the_joint_policy_is_of_all_tasks_and_the_subset_spans_four_bodies_and_the_low_data_group(
    budget: Budget,
) -> None:
    suite = budget.suite
    assert set(budget.bases["all"].data.tasks) == set(suite.task_names)
    assert len(suite.task_names) == 13
    subset = budget.bases["subset"].data.tasks
    assert len({suite.tasks[task].body for task in subset}) >= 4
    assert len(budget.tasks("subset", "low-data")) >= 2
    assert budget.bases["adaptation"].data.tasks == (budget.held_out,)
    assert suite.tasks[budget.held_out].body == suite.held_out_body


def test_the_benchmark_s_demonstrations_and_scenes_are_the_budget_s(budget: Budget) -> None:
    suite = budget.suite
    for base in budget.bases.values():
        assert base.evaluation.first_seed == suite.seeds.testing.first
        assert base.evaluation.num_episodes <= len(suite.seeds.testing)
        assert base.data.first_seed == suite.seeds.training.first
        assert base.data.disturbed_fraction == suite.disturbed_fraction
        assert base.data.root == f"build/bench/{suite.name}"
        assert {base.data.num_episodes(task) for task in base.data.tasks if base is not budget.bases["adaptation"]} <= {
            suite.num_episodes(task) for task in suite.task_names
        }
    assert budget.motion_episodes <= suite.motion_demonstrations


@pytest.mark.parametrize(
    ("name", "stage1_s", "stage2_s"),
    [
        # Medians of one run's logs each: cross13-short's with two threads, whose steps cross13-history has too, and
        # demo's with one. cross13-state-prior's are the cpu budget's joint arm's, the least of its runs.
        ("cross13-history", 0.115, 0.419),
        ("cross13-short", 0.115, 0.419),
        ("cross13-state-prior", 0.212, 0.475),
        ("demo", 0.409, 0.878),
    ],
)
def test_a_default_recipe_spends_at_most_a_tenth_of_stage_2_on_stage_1(
    name: str, stage1_s: float, stage2_s: float
) -> None:
    recipe = Recipe.load(name)
    stage1, stage2 = recipe.stage1.schedule.num_steps * stage1_s, recipe.stage2.schedule.num_steps * stage2_s
    assert stage1 <= 0.1 * stage2


def test_the_control_gets_the_steps_that_fit_into_the_time_of_stage_1_and_of_distilling(
    budget: Budget, tmp_path: Path
) -> None:
    costs, base = budget.control_costs, budget.bases["subset"]
    prior = runs(budget, "prior-kind", tmp_path)["state-prior"].recipe
    stage1_s = prior.stage1.schedule.num_steps * costs.stage1_s
    distilling_s = (prior.stage2.decay_steps or 0) * (costs.distilled_s - costs.stage2_s)
    assert distilling_s > 0
    assert budget.added_steps == pytest.approx((stage1_s + distilling_s) / costs.stage2_s, rel=0.01)
    assert costs.source.startswith("measured" if budget.name == "cpu" else "estimated")
    control = runs(budget, "prior-kind", tmp_path)["random decoder, added compute"].recipe
    assert control.stage1.schedule.num_steps == 0
    assert control.stage2.schedule.num_steps == base.stage2.schedule.num_steps + budget.added_steps


def test_curves_have_at_least_six_checkpoints_and_three_seeds(budget: Budget) -> None:
    assert len(budget.bases["all"].stage2.snapshots) + 1 >= 6
    assert len(budget.seeds) >= 3


def test_the_cpu_budget_tests_as_many_episodes_as_was_asked() -> None:
    budget = Budget.load("cpu")
    assert (budget.episodes, budget.curve_episodes) == (50, 10)


def test_priors_differ_in_what_they_read(budget: Budget, tmp_path: Path) -> None:
    found = {name: run.recipe for name, run in runs(budget, "prior-kind", tmp_path).items()}
    assert found["action-prior"].stage1.inputs == "action"
    assert found["state-prior"].stage1.inputs == "state-action"
    assert found["no-prior"].stage1.schedule.num_steps == 0
    assert found["no-prior"].stage2.decay_steps == 0


def test_four_times_the_motion_is_four_times_the_episodes_with_the_same_stage_2(budget: Budget, tmp_path: Path) -> None:
    found = runs(budget, "scaling", tmp_path)
    once, more = found["motion x1"].recipe, found["motion x4"].recipe
    seen = sum(map(once.data.num_episodes, once.data.tasks))
    assert (seen + len(once.data.tasks) * more.stage1.motion_episodes) / seen == pytest.approx(4, rel=0.01)
    assert (once.stage2, once.stage1.schedule) == (more.stage2, more.stage1.schedule)


def test_decays_are_none_a_fiftieth_a_tenth_and_never(budget: Budget, tmp_path: Path) -> None:
    found = [run.recipe.stage2 for run in runs(budget, "decay", tmp_path).values()]
    num_steps = found[0].schedule.num_steps
    assert [stage2.decay_steps for stage2 in found] == [0, num_steps // 50, num_steps // 10, None]


def test_low_data_varies_the_demonstrations_of_its_group_alone(budget: Budget, tmp_path: Path) -> None:
    group = budget.tasks("subset", "low-data")
    for name, run in runs(budget, "low-data", tmp_path).items():
        wanted = int(name.split(", ")[1].split()[0])
        assert {run.recipe.data.num_episodes(task) for task in group} == {wanted}
        assert {run.recipe.data.num_episodes(task) for task in run.recipe.data.tasks if task not in group} == {50}


def test_a_left_out_body_is_seen_by_no_stage_or_by_stage_1_alone(budget: Budget, tmp_path: Path) -> None:
    found = runs(budget, "unseen-body", tmp_path)
    without, motion = (
        found["prior without the body, 0 demonstrations"],
        found["prior with the body's motion, 0 demonstrations"],
    )
    held_out = budget.held_out
    for recipe in (without.recipe, motion.recipe):
        assert held_out in recipe.data.tasks
        assert recipe.stage2.tasks and held_out not in recipe.stage2.tasks
    assert without.recipe.stage1.tasks and held_out not in without.recipe.stage1.tasks
    assert motion.recipe.stage1.tasks == ()


@pytest.mark.parametrize("count", [5, 10, 50])
def test_adaptation_starts_from_the_policy_without_the_body(count: int, budget: Budget, tmp_path: Path) -> None:
    found = runs(budget, "unseen-body", tmp_path)
    for family in ("no prior", "prior without the body", "prior with the body's motion"):
        adapted = found[f"{family}, {count} demonstrations"]
        assert adapted.parent == found[f"{family}, 0 demonstrations"]
        assert adapted.recipe.data.num_episodes(budget.held_out) == count
        assert adapted.recipe.data.tasks == (budget.held_out,)


def test_what_notes_say_of_the_recipes_is_so(budget: Budget, tmp_path: Path) -> None:
    history = runs(budget, "prior", tmp_path)["history"].recipe.stage2
    assert (history.history, history.history_pass) == (True, "both")
    assert Recipe.load("cross13-history").stage2.history_pass == "sampled"
    for name in ("prior", "copycat"):
        (note,) = (note for note in experiment(name).notes if "history_pass both" in note)
        assert "(sampled)" in note and "two draws of every chunk" in note and "1.34 times" in note
    adapted = runs(budget, "unseen-body", tmp_path)["prior without the body, 5 demonstrations"].recipe.stage2
    assert (adapted.decay_steps, adapted.history) == (0, False)
    assert any("decay_steps 0, no history" in note for note in experiment("unseen-body").notes)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_summary_says_of_the_paper_s_differences_is_so(name: str, budget: Budget, tmp_path: Path) -> None:
    stages = [run.recipe.stage2 for run in runs(budget, name, tmp_path).values()]
    assert {stage2.state_dropout for stage2 in stages} == {0.3}
    assert all(stage2.landmark_weight > 0 for stage2 in stages)


def test_the_gain_of_history_is_held_against_the_same_policy_without_it() -> None:
    copycat = experiment("copycat")
    compared = {(each.arm, each.baseline): each for each in copycat.comparisons}
    withheld, prior = copycat.arm("history withheld"), copycat.arm("state-prior")
    assert (withheld.training, withheld.condition) == (copycat.arm("history").training, prior.condition)
    assert "two draws of every chunk" in compared["history withheld", "state-prior"].note
    for corrupted in ("shuffled history", "frozen history"):
        assert compared[corrupted, "history withheld"].expected == "lower"
    for each in (*copycat.comparisons, *experiment("prior").comparisons):
        if each.arm.startswith("history") and each.baseline.startswith(("state-prior", "no-prior")):
            assert "draws" in each.note


def test_a_cell_that_is_zero_by_construction_is_said_to_be() -> None:
    said = [each.arm for each in experiment("unseen-body").comparisons if "by construction" in each.note]
    assert said == ["prior without the body, 0 demonstrations"]


def test_no_figure_of_paper_a_is_one_that_was_inferred() -> None:
    assert experiment("prior-kind").arm("action-prior").paper == {}


def test_a_body_that_was_never_trained_has_no_velocity() -> None:
    """As the notes of unseen-body say of 0 demonstrations."""
    trunk = TrunkConfig(width=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=32)
    config = PriorConfig(
        num_embodiments=2,
        max_state_dim=3,
        max_action_dim=2,
        latent_dim=8,
        num_soft_tokens=1,
        encoder=trunk,
        decoder=trunk,
    )
    noisy, latent = torch.ones(2, 4, 2), torch.ones(2, 8)
    assert not ActionDecoder(config)(noisy, torch.full((2,), 0.5), latent, torch.tensor([0, 1])).any()


def test_copycat_trains_nothing_of_its_own(budget: Budget, tmp_path: Path) -> None:
    of_prior = {run.digest for run in runs(budget, "prior", tmp_path).values()}
    assert {run.digest for run in runs(budget, "copycat", tmp_path).values()} <= of_prior
    delays = {arm.condition.inference_delay for arm in experiment("copycat").arms}
    assert delays == {0, 1, 2, 3, 4, 5}
    modes = {arm.condition.history_mode for arm in experiment("copycat").arms}
    assert modes == {"true", "shuffled", "frozen"}


def test_the_first_steps_are_those_of_runs_that_other_experiments_test(budget: Budget, tmp_path: Path) -> None:
    tested = {run.digest for name in ("prior-kind", "decay") for run in runs(budget, name, tmp_path).values()}
    logged = runs(budget, "optimisation", tmp_path)
    assert {run.digest for run in logged.values()} <= tested
    assert {run.recipe.stage2.schedule.log_every for run in logged.values()} == {1}


def test_the_whole_cpu_set_fits_its_hours_and_the_joint_policies_take_about_half(tmp_path: Path) -> None:
    budget = Budget.load("cpu")
    store = store_of(budget, tmp_path)
    everything = plan(list(EXPERIMENTS.values()), store, budget.seeds)
    assert everything.hours(budget.num_workers) <= 1.05 * budget.hours
    joint = plan([experiment("prior")], store, budget.seeds).hours(budget.num_workers)
    assert 0.3 <= joint / everything.hours(budget.num_workers) <= 0.6
    assert f"{len(everything.jobs)} jobs left" in format_plan(everything, budget.num_workers)


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_fits_the_gpu_s_minutes_as_estimated(name: str, tmp_path: Path) -> None:
    budget = Budget.load("gpu")
    assert "estimated, never measured" in budget.what
    planned = plan([experiment(name)], store_of(budget, tmp_path), budget.seeds)
    assert planned.hours(budget.num_workers) <= budget.hours


def test_shared_trainings_cost_once(tmp_path: Path) -> None:
    budget = Budget.load("cpu")
    store = store_of(budget, tmp_path)
    apart = sum(len(plan([each], store, (0,)).jobs) for each in EXPERIMENTS.values())
    assert len(plan(list(EXPERIMENTS.values()), store, (0,)).jobs) < apart


def test_an_unknown_experiment_or_budget_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown experiment 'priors', did you mean 'prior'"):
        experiment("priors")
    with pytest.raises(UnknownNameError, match="unknown budget 'gpus', did you mean 'gpu'"):
        Budget.load("gpus")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsiodes": 5}, r"budget has unknown keys \['epsiodes'\]"),
        ({"control_costs": {"stage1_s": 0.1}}, r"budget.control_costs: .*missing 3 required"),
        ({"step_costs": {}}, r"budget.step_costs has \[\], expected all, subset and adaptation"),
        ({"episode_s": {"lift": 1.0}}, r"episode_s says nothing of \['assembly'"),
        ({"episode_s": {"lfit": 1.0}}, r"episode_s names \['lfit'\]"),
        ({"seeds": 3}, "budget.seeds is 3, expected a list of numbers"),
        ({"seeds": []}, r"budget cpu: seeds are \[\], expected different whole numbers"),
        ({"seeds": [0, 0]}, r"budget cpu: seeds are \[0, 0\], expected"),
        ({"num_workers": 0}, "budget cpu: num_workers is 0, expected at least 1"),
        ({"episodes": "50"}, "budget cpu: episodes is '50', expected at least 1"),
        ({"curve_episodes": 0}, "budget cpu: curve_episodes is 0, expected at least 1"),
    ],
)
def test_a_wrong_budget_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    values = json.loads((BUDGETS / "cpu.json").read_text())
    with pytest.raises(ValueError, match=message):
        Budget.from_json({**values, **change})


@pytest.mark.parametrize(
    "wrong",
    [
        {"prior": "none", "decay": Fraction(0)},
        {"prior": "none", "more_motion": True},
        {"added_compute": True},
        {"adapted_episodes": 5},
        {"base": "adaptation"},
    ],
    ids=str,
)
def test_a_training_that_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"prior|adapt"):
        Training(**wrong)


def test_a_condition_without_history_has_none_to_spoil() -> None:
    with pytest.raises(ValueError, match="this condition has none"):
        Condition(history_mode="shuffled")


def test_a_comparison_of_an_arm_that_is_not_there_is_refused() -> None:
    toy = Experiment(name="toy", title="", question="", arms=(Arm(name="a", training=PRIOR),), figure="arms", paper="")
    with pytest.raises(ValueError, match=r"compares \['b'\], expected some of \['a'\]"):
        replace(toy, comparisons=(Comparison(claim="a is better", arm="a", baseline="b"),))
    with pytest.raises(ValueError, match=r"references are \['b'\], expected some of \['a'\]"):
        replace(toy, references=("b",))
