"""How long a run took: every part over all sittings, repeated work once, and what `demo` says of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.__main__ import main
from training.loop import Schedule
from training.recipe import Recipe, RunDirectory
from training.record import Report, print_report
from training.sittings import PARTS, Sittings


class KilledError(Exception):
    pass


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def write_log(directory: Path, *, seconds: float) -> None:
    """A stage's, of two intervals."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [{"step": step, "seconds": seconds / 2, "steps_per_s": 2 / seconds} for step in range(2)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_work_that_goes_on_adds_up_over_sittings_however_they_end(tmp_path: Path) -> None:
    clock = Clock()
    sittings = Sittings(run=RunDirectory(root=tmp_path), clock=clock)
    for task, seconds in (("lift", 30.0), ("pick-can", 5.0), ("lift", 12.0)):
        with pytest.raises(KilledError), sittings.resumes(f"record {task}"):
            clock.now_s += seconds
            raise KilledError
        clock.now_s += 1000.0  # between two sittings
    assert sittings.seconds()["record"] == 47.0
    assert sittings.has_recorded("lift") and not sittings.has_recorded("assembly")


def test_a_kill_loses_only_the_time_since_it_was_last_kept(tmp_path: Path) -> None:
    clock = Clock()
    run = RunDirectory(root=tmp_path)
    with Sittings(run=run, clock=clock).resumes("record lift") as keep_time:
        clock.now_s += 30.0
        keep_time()
        clock.now_s += 7.0
        # What a process that dies here leaves behind:
        assert Sittings(run=run).seconds()["record"] == 30.0


def test_work_that_is_done_anew_counts_once(tmp_path: Path) -> None:
    clock = Clock()
    sittings = Sittings(run=RunDirectory(root=tmp_path), clock=clock)
    with pytest.raises(KilledError), sittings.starts_again("evaluate"):
        clock.now_s += 500.0
        raise KilledError
    for seconds in (300.0, 200.0):
        with sittings.starts_again("evaluate"):
            clock.now_s += seconds
    assert sittings.seconds()["evaluate"] == 200.0


def test_stages_take_what_their_logs_say(tmp_path: Path) -> None:
    run = RunDirectory(root=tmp_path)
    assert Sittings(run=run).seconds() == dict.fromkeys(PARTS, 0.0)
    write_log(run.stage1, seconds=60.0)
    write_log(run.stage2, seconds=600.0)
    assert Sittings(run=run).seconds() == {**dict.fromkeys(PARTS, 0.0), "stage1": 60.0, "stage2": 600.0}


@pytest.fixture
def recipe(toy_recipe: Recipe) -> Recipe:
    schedule = Schedule(num_steps=2, warmup_steps=1)
    return replace(
        toy_recipe,
        stage1=replace(toy_recipe.stage1, schedule=schedule),
        stage2=replace(toy_recipe.stage2, schedule=schedule),
    )


class Simulators:
    """In the place of recording and evaluating: each dies once, as make train-demo may at any point."""

    def __init__(self, dataset: Path) -> None:
        self._dataset = dataset
        self._to_die = {"record", "evaluate"}

    def record(self, *, directory: Path, report: Report = print_report, **_asked: Any) -> None:
        report({"event": "episode"})
        self._die_once("record")
        if not directory.exists():
            shutil.copytree(self._dataset, directory)

    def evaluate(self, *_asked: Any, **_options: Any) -> list[Mapping[str, Any]]:
        self._die_once("evaluate")
        speed = {"latency_p50_ms": 1, "latency_p99_ms": 2, "chunks_per_s": 3}
        interval = {"success_low": 0.4, "success_high": 1.0}
        return [{"embodiment": "slider", "task": "slide", "episodes": 2, "successes": 2, **interval, **speed}]

    def _die_once(self, name: str) -> None:
        if name in self._to_die:
            self._to_die.remove(name)
            raise KilledError(name)


def test_demo_says_how_close_all_its_sittings_came_to_the_goal(
    recipe: Recipe,
    toy_run: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    simulators = Simulators(toy_run.dataset("slide"))
    monkeypatch.setattr("training.record.record", simulators.record)
    monkeypatch.setattr("training.evaluate.evaluate", simulators.evaluate)
    (tmp_path / "toy.json").write_text(json.dumps(recipe.to_json()))
    run = RunDirectory(root=tmp_path / "run")
    demo = ["demo", "--recipe", str(tmp_path / "toy.json"), "--run", str(run.root), "--threads", "1"]
    with pytest.raises(KilledError, match="record"):
        main(demo)
    sittings = Sittings(run=run)
    assert sittings.has_recorded("slide")
    with pytest.raises(KilledError, match="evaluate"):
        main(demo)
    kept = json.loads(sittings.path.read_text())
    assert kept.keys() == {"record slide", "stats", "inspect", "export", "evaluate"}
    # The two sittings before took an hour and a half.
    sittings.path.write_text(json.dumps({**kept, "record slide": 1800.0}))
    write_log(run.stage1, seconds=600.0)
    write_log(run.stage2, seconds=3000.0)
    capsys.readouterr()
    assert main(demo) == 0
    said = capsys.readouterr().out
    told = re.search(r"(\d+) of the goal's 90 minutes, in all sittings \((.*)\)\n", said)
    assert told is not None, said
    assert 90 <= int(told[1]) <= 91
    assert told[2].startswith("record 30, stats 0, stage1 10, stage2 50, inspect 0, export 0, evaluate ")
    assert f"the checkpoint is {run.checkpoint}\n" in said
    assert "recordings that were there" not in said


def test_demo_says_which_recordings_it_has_from_others(
    recipe: Recipe,
    toy_run: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    simulators = Simulators(toy_run.dataset("slide"))
    simulators._to_die.clear()
    monkeypatch.setattr("training.record.record", lambda **_asked: None)
    monkeypatch.setattr("training.evaluate.evaluate", simulators.evaluate)
    shared = replace(recipe, data=replace(recipe.data, root=str(toy_run.root)))
    (tmp_path / "toy.json").write_text(json.dumps(shared.to_json()))
    assert main(["demo", "--recipe", str(tmp_path / "toy.json"), "--run", str(tmp_path), "--threads", "1"]) == 0
    assert re.search(
        r"0 of the goal's 90 minutes, .*\); without the recordings that were there: slide\n", capsys.readouterr().out
    )
