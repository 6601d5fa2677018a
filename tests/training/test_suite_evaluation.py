"""`python -m training evaluate --suite`: a suite's tasks on the scenes that are for it, and its means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from training import evaluate as evaluation
from training.__main__ import main
from training.evaluate import format_table
from training.rollout import Episode, summarise

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints" / "tabletop"


def row(task: str, successes: int, episodes: int = 4) -> Mapping[str, Any]:
    played = [
        Episode(seed=seed, succeeded=seed < successes, num_steps=10, latencies_s=(0.01,)) for seed in range(episodes)
    ]
    return summarise("sawyer", task, played, elapsed_s=1.0)


class Asked:
    """Stands for the evaluation itself: keeps what it was asked, solves half of the drawers and all buttons."""

    tasks: Sequence[str]
    first_seed: int
    num_episodes: int

    def __call__(
        self, target: Any, *, tasks: Sequence[str], num_episodes: int, first_seed: int, **others: Any
    ) -> list[Mapping[str, Any]]:
        self.tasks, self.first_seed, self.num_episodes = tasks, first_seed, num_episodes
        return [row(task, 2 if task == "drawer-open" else 4) for task in tasks]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    stand_in = Asked()
    monkeypatch.setattr(evaluation, "evaluate", stand_in)
    return stand_in


def evaluate(run: Path, *arguments: str) -> int:
    return main(["evaluate", "--threads", "1", "--run", str(run), "--checkpoint", str(SHIPPED), *arguments])


@pytest.mark.parametrize(
    ("seeds", "first"), [([], 100_000), (["--seeds", "testing"], 100_000), (["--seeds", "tuning"], 50_000)]
)
def test_the_scenes_are_those_the_suite_keeps_for_it(
    asked: Asked, tmp_path: Path, seeds: list[str], first: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path, "--suite", "smoke", "--episodes", "4", *seeds) == 0
    assert (asked.tasks, asked.first_seed, asked.num_episodes) == (("drawer-open", "button-press"), first, 4)


def test_the_table_ends_with_the_means_over_tasks_and_over_the_low_data_group(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path, "--suite", "smoke", "--episodes", "4") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[-2:] == [["mean", "over", "tasks", "75%"], ["low-data", "group", "50%"]]
    written = json.loads((tmp_path / "evaluation" / "smoke-testing.json").read_text())
    assert [entry["task"] for entry in written] == ["drawer-open", "button-press"]


def test_a_part_of_a_suite_leaves_the_results_of_the_whole(asked: Asked, tmp_path: Path) -> None:
    for tasks in ([], ["--tasks", "drawer-open"], ["--tasks", "button-press", "drawer-open"]):
        assert evaluate(tmp_path, "--suite", "smoke", "--episodes", "4", *tasks) == 0
    names = sorted(path.name for path in (tmp_path / "evaluation").glob("*.json"))
    assert names == ["smoke-testing-drawer-open.json", "smoke-testing.json"]
    written = json.loads((tmp_path / "evaluation" / "smoke-testing.json").read_text())
    assert sorted(entry["task"] for entry in written) == ["button-press", "drawer-open"]


def test_a_group_none_of_whose_tasks_was_played_has_no_line() -> None:
    table = format_table([row("button-press", 4)], {"low-data group": ["drawer-open"]})
    assert table.splitlines()[-1].split() == ["mean", "over", "tasks", "100%"]


def test_long_names_keep_their_columns() -> None:
    rows = [{**row("stack-kinova3", 4), "embodiment": "pandaomron"}, row("lift", 4)]
    header, *lines = format_table(rows).splitlines()
    end = header.index("success") + len("success")
    assert {line[:end].split()[-1] for line in lines} == {"100%"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "smok"], "unknown suite 'smok', did you mean 'smoke'?"),
        (["--suite", "smoke", "--tasks", "lift"], "unknown task 'lift'"),
        (["--suite", "smoke", "--first-seed", "7"], "a suite's are chosen with --seeds"),
        (["--suite", "smoke", "--episodes", "1001"], "--episodes is 1001, suite 'smoke' has 1000 scenes for testing"),
        (["--seeds", "tuning"], "--seeds needs --suite"),
    ],
)
def test_a_wrong_call_is_named(
    asked: Asked, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
