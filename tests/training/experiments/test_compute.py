"""What arms compute, by logs: medians against standstills, the least of runs against company, and whose steps count."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.experiments.fake_work import store_of, took
from training.experiments.budget import Budget
from training.experiments.compute import seconds_a_step, to_json, training_steps
from training.experiments.experiment import Training
from training.experiments.store import Run, Store

NO_PRIOR, PRIOR = Training(prior="none"), Training()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_of(Budget.load("cpu"), tmp_path)


def write_log(directory: Path, seconds: list[float]) -> None:
    directory.mkdir(parents=True)
    rows = [{"step": step, **took(each)} for step, each in enumerate(seconds)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def parts_of(run: Run, store: Store, until: int | None = None) -> list[tuple[str, int]]:
    return [(each.kind.phase, each.num_steps) for each in training_steps(run, store, until)]


def test_a_training_s_steps_are_those_of_both_stages_and_of_distillation_apart(store: Store) -> None:
    assert parts_of(store.run(NO_PRIOR, 0), store) == [("stage 2", 1200)]
    assert parts_of(store.run(PRIOR, 0), store) == [("stage 1", 180), ("distilling", 120), ("stage 2", 1080)]
    assert parts_of(store.run(replace(PRIOR, decay=None), 0), store) == [("stage 1", 180), ("distilling", 1200)]
    assert parts_of(store.run(PRIOR, 0), store, until=100) == [("stage 1", 180), ("distilling", 100)]
    adapted = store.run(replace(PRIOR, left_out="everything", adapted_episodes=5), 0)
    assert parts_of(adapted, store)[-2:] == [("stage 2", 1080), ("stage 2", 300)]


def test_arms_take_alike_long_over_steps_that_do_the_same_work(store: Store) -> None:
    kinds = {
        name: {each.kind.phase: each.kind for each in training_steps(store.run(training, 0), store)}
        for name, training in {
            "none": NO_PRIOR,
            "prior": PRIOR,
            "more": replace(PRIOR, more_motion=True),
            "action": replace(PRIOR, prior="action"),
            "history": replace(PRIOR, history=True),
        }.items()
    }
    assert kinds["none"]["stage 2"] == kinds["prior"]["stage 2"] == kinds["action"]["stage 2"]
    assert kinds["prior"]["stage 1"] == kinds["more"]["stage 1"] == kinds["history"]["stage 1"]
    assert kinds["prior"]["stage 1"] != kinds["action"]["stage 1"]
    assert kinds["prior"]["stage 2"] != kinds["history"]["stage 2"]


def test_neither_a_standstill_nor_company_makes_a_step_dearer(store: Store) -> None:
    alone, beside = store.run(NO_PRIOR, 0), store.run(NO_PRIOR, 1)
    # A start, and 40 of 100 steps through which the machine stood still.
    write_log(store.run_directory(alone).stage2, [9.0, *([0.2] * 60), *([500.0] * 40)])
    write_log(store.run_directory(beside).stage2, [0.5] * 100)
    steps = [each for run in (alone, beside) for each in training_steps(run, store)]
    (step_s,) = seconds_a_step(steps).values()
    assert step_s == pytest.approx(0.2)


def test_steps_that_distil_are_measured_apart(store: Store) -> None:
    run = store.run(PRIOR, 0)
    write_log(store.run_directory(run).stage2, [0.3] * 120 + [0.2] * 500)
    write_log(store.stage1_directory(run.stage1_digest) / "stage1", [0.1] * 9)
    steps = training_steps(run, store)
    assert to_json(steps, seconds_a_step(steps)) == {
        "parts": [
            {"phase": "stage 1", "steps": 180, "step_s": 0.1},
            {"phase": "distilling", "steps": 120, "step_s": 0.3},
            {"phase": "stage 2", "steps": 1080, "step_s": 0.2},
        ],
        "seconds": pytest.approx(18 + 36 + 216),
    }


def test_what_was_never_logged_has_no_seconds(store: Store) -> None:
    run = store.run(PRIOR, 0)
    write_log(store.run_directory(run).stage2, [0.3] * 120)
    steps = training_steps(run, store)
    found = to_json(steps, seconds_a_step(steps))
    assert found["seconds"] is None
    assert [part["step_s"] for part in found["parts"]] == [None, 0.3, None]
