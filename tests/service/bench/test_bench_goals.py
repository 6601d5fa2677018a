"""What of its goal a measurement of the service missed, judged by made figures."""

from __future__ import annotations

import argparse

import pytest

from service.bench import batching, overhead
from service.bench.command import add_bench_verbs


def test_a_round_trip_above_the_goal_is_a_missed_one() -> None:
    assert overhead.missed_goals({"overhead_ratio": overhead.GOAL, "goal": overhead.GOAL}) == []
    assert overhead.missed_goals({"overhead_ratio": 1.204, "goal": overhead.GOAL}) == [
        "p50 of a round trip is 1.204 times the bare forward's, at most 1.1"
    ]


def test_batching_that_gains_nothing_is_a_missed_goal() -> None:
    assert batching.missed_goals({"batching_ratio": 1.01, "goal": batching.GOAL}) == []
    assert batching.missed_goals({"batching_ratio": 1.0, "goal": batching.GOAL}) == [
        "batching makes 1.00 times as many chunks a second, more than 1"
    ]


@pytest.mark.parametrize(
    ("what", "missing"),
    [("overhead", {"overhead_ratio": 2.0, "goal": 1.1}), ("batching", {"batching_ratio": 0.9, "goal": 1})],
)
def test_the_command_exits_1_and_says_so_when_its_goal_is_missed(
    what: str, missing: dict[str, float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = {"overhead": overhead, "batching": batching}[what]
    monkeypatch.setattr(module, f"measure_{what}", lambda settings: missing)
    monkeypatch.setattr(module, f"format_{what}", lambda result: "")
    parser = argparse.ArgumentParser()
    add_bench_verbs(parser.add_subparsers())
    options = parser.parse_args(["bench", what, "--policy", "somewhere"])
    assert options.verb(options)() == 1
    assert capsys.readouterr().err.startswith("goal missed: ")
