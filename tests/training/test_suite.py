"""Suites are strict: what is unknown, missing or would let a scene be for two things is refused by name."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training.names import UnknownNameError
from training.suite import SUITES, Suite

SHIPPED = sorted(path.stem for path in SUITES.glob("*.json"))


def values(**changes: Any) -> dict[str, Any]:
    """A small suite as its JSON says it; a change is named by its path, `seeds__tuning__first=5`."""
    suite = Suite.load("smoke").to_json()
    for path, value in changes.items():
        *parents, name = path.split("__")
        part = suite
        for parent in parents:
            part = part[parent]
        part[name] = value
    return suite


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_suite_loads_under_its_own_name_and_survives_json(name: str) -> None:
    suite = Suite.load(name)
    assert suite.name == name
    assert Suite.from_json(json.loads(json.dumps(suite.to_json()))) == suite


@pytest.mark.parametrize("name", SHIPPED)
def test_no_scene_of_a_shipped_suite_is_for_two_things(name: str) -> None:
    seeds = Suite.load(name).seeds
    ranges = [range(part.first, part.last + 1) for part in (seeds.training, seeds.motion, seeds.tuning, seeds.testing)]
    assert not any(set(one) & set(other) for one, other in itertools.combinations(ranges, 2))


def test_the_benchmark_has_thirteen_tasks_on_eight_bodies_and_a_group_with_little_data() -> None:
    suite = Suite.load("cross13")
    assert (len(suite.task_names), len(suite.bodies)) == (13, 8)
    group = suite.low_data_group.tasks
    assert len(group) >= 3
    assert len({suite.tasks[task].body for task in group}) == 1
    assert {suite.num_episodes(task) for task in group} == {10}
    assert {suite.num_episodes(task) for task in set(suite.task_names) - set(group)} == {50}
    assert not set(suite.tasks_of(suite.held_out_body)) & set(group)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_tasks_of_a_shipped_suite_are_played_by_the_bodies_it_names(name: str) -> None:
    suite = Suite.load(name)
    suite.check_registry(suite.task_names)


def test_a_suite_is_loaded_from_any_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values(name="mine", demonstrations=7)))
    assert Suite.load(str(path)).demonstrations == 7


def test_a_suite_that_is_nowhere_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown suite 'cross', did you mean 'cross13'\? Expected one of "):
        Suite.load("cross")


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("tsaks", "suite"),
        ("tasks__drawer-open__robot", r"tasks\.drawer-open"),
        ("low_data_group__task", "low_data_group"),
        ("seeds__validation", r"seeds"),
        ("seeds__tuning__stop", r"seeds\.tuning"),
    ],
)
def test_an_unknown_key_is_refused_at_any_depth(path: str, where: str) -> None:
    value = {"first": 1, "last": 2} if path == "seeds__validation" else 1
    with pytest.raises(ValueError, match=rf"^{where} has unknown keys \['{path.rpartition('__')[2]}'\], expected \["):
        Suite.from_json(values(**{path: value}))


@pytest.mark.parametrize("name", ["held_out_body", "low_data_group", "seeds", "tasks"])
def test_a_missing_key_is_named(name: str) -> None:
    suite = values()
    del suite[name]
    with pytest.raises(ValueError, match=rf"^suite: .*missing.*'{name}'"):
        Suite.from_json(suite)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seeds__tuning": {"first": 9999, "last": 60000}},
            r"seeds\.motion .*expected more than|no scene may be for both",
        ),
        ({"seeds__testing": {"first": 0, "last": 5}}, "no scene may be for both"),
        ({"seeds__testing": {"first": 200, "last": 100}}, "a range of seeds is 200 to 100"),
        ({"seeds__testing": {"first": -5, "last": 100}}, "a range of seeds is -5 to 100"),
        ({"seeds__testing": 5}, r"seeds\.testing is int, expected an object"),
        ({"demonstrations": 0}, "demonstrations is 0, expected 1 to 3333"),
        ({"demonstrations": 2.5}, "demonstrations is 2.5"),
        ({"demonstrations": 4000}, "demonstrations is 4000, expected 1 to 3333"),
        ({"motion_demonstrations": -1}, "motion_demonstrations is -1"),
        ({"low_data_group__demonstrations": 4}, r"low_data_group.demonstrations is 4, expected 1 to 3"),
        ({"low_data_group__tasks": ["lift"]}, r"low_data_group.tasks names \['lift'\]"),
        ({"disturbed_fraction": 1.5}, "disturbed_fraction is 1.5, expected 0 to 1"),
        ({"held_out_body": "panda"}, r"held_out_body is 'panda', expected one of \['sawyer'\]"),
        ({"tasks": {}}, "tasks is empty"),
        ({"tasks": ["drawer-open"]}, "tasks is list, expected an object"),
        ({"tasks__drawer-open__recording_s": 0}, "recording_s is 0, expected more than 0"),
    ],
)
def test_a_fault_is_named_with_what_was_expected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Suite.from_json(values(**changes))


def test_a_body_that_does_not_play_its_task_is_refused_when_the_registry_is_asked() -> None:
    suite = Suite.from_json(values(**{"tasks__button-press__body": "panda"}))
    suite.check_registry(["drawer-open"])
    with pytest.raises(ValueError, match=r"tasks\.button-press\.body is 'panda', the task is played by 'sawyer'"):
        suite.check_registry(["button-press"])


def test_a_task_that_is_not_of_the_suite_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown task 'drawer', did you mean 'drawer-open'"):
        Suite.load("smoke").check_registry(["drawer"])


def test_reading_a_suite_imports_neither_torch_nor_a_simulator() -> None:
    script = (
        "import sys; from training.suite import Suite; s = Suite.load('smoke'); s.check_registry(s.task_names); "
        "print([name for name in ('torch', 'mujoco', 'metaworld') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
