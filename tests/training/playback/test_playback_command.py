"""`python -m training playback` on an untrained policy and a few steps of a real task, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from training.__main__ import main
from training.playback import lock_step
from training.simulation.registry import make_simulation
from training.simulation.task import Simulation

NUM_STEPS = 9


@pytest.fixture(scope="module")
def button() -> Iterator[Simulation]:
    """One for all rows: making it takes longer than playing it."""
    simulation = make_simulation("button-press")
    close, simulation.close = simulation.close, lambda: None
    simulation.max_steps = NUM_STEPS
    yield simulation
    close()


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch, button: Simulation) -> list[str]:
    """The task of every row that was played."""
    tasks: list[str] = []

    def make(task: str) -> Simulation:
        tasks.append(task)
        return button

    monkeypatch.setattr(lock_step, "make_simulation", make)
    return tasks


def playback(checkpoint: Path, out: Path, *arguments: str, episodes: int = 2) -> int:
    return main(
        ["playback", "--checkpoint", str(checkpoint), "--tasks", "button-press", "--episodes", str(episodes)]
        + ["--workers", "1", "--out", str(out), *arguments]
    )


def results(out: Path) -> Any:
    return json.loads((out / "results.json").read_text())


def test_every_rule_and_delay_is_played_or_listed_with_its_reason(
    sawyer_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert playback(sawyer_checkpoint, tmp_path, "--delays", "0", "1", "2", "3") == 0
    found = results(tmp_path)
    played = {(row["rule"], row["delay_steps"]) for row in found["rows"]}
    assert played == {(rule, delay) for rule in ("replace", "guidance") for delay in (0, 1, 2)} | {
        ("prefix", 0),
        ("prefix", 1),
    }
    reasons = {(each["rule"], each["delay_steps"]): each["reason"] for each in found["not_applicable"]}
    assert len(reasons) + len(played) == 16
    assert reasons["prefix", 2] == "2 steps late, and the policy was trained for at most 1"
    assert reasons["replace", 3].endswith("take 5")
    assert "average nothing" in reasons["ensemble", 0]
    for row in found["rows"]:
        hand = row["seams"]["hand"]
        # Two scenes of nine steps: chunks take over at steps 2, 4, 6 and 8 and the delay, as far as there are steps.
        assert hand["num_seams"] == 2 * sum(step + row["delay_steps"] < NUM_STEPS for step in (2, 4, 6, 8))
        assert (hand["unit"], row["mean_steps"], len(row["outcomes"])) == ("cm", NUM_STEPS, 2)
        assert hand["action_rms"] > 0
    assert (found["scenes"], found["measurement"]["first_seed"], found["num_left"]) == ("testing", 100_000, 0)
    report = (tmp_path / "report.md").read_text()
    for said in ("## button-press", "## Not applicable", "hand, action, cm", "prefix at a delay of 4 steps", "not run"):
        assert said in report
    assert (tmp_path / "plot.png").stat().st_size > 0
    assert "prefix" in (tmp_path / "plot.svg").read_text()
    assert "not applicable: button-press, ensemble at 0" in capsys.readouterr().err


def test_a_second_run_plays_only_what_is_left(
    sawyer_checkpoint: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    only_replace = ("--rules", "replace", "--delays")
    real = lock_step.run_episode

    def dies_when_late(*arguments: Any, inference_delay: int, **options: Any) -> Any:
        if inference_delay:
            raise RuntimeError("the power went")
        return real(*arguments, inference_delay=inference_delay, **options)

    monkeypatch.setattr(lock_step, "run_episode", dies_when_late)
    assert playback(sawyer_checkpoint, tmp_path, *only_replace, "0", "1") == 1
    partial = results(tmp_path)
    assert (len(partial["rows"]), partial["num_left"]) == (1, 1)
    assert "**Partial.** 1 rows are left." in (tmp_path / "report.md").read_text()
    monkeypatch.setattr(lock_step, "run_episode", real)
    made.clear()
    assert playback(sawyer_checkpoint, tmp_path, *only_replace, "0", "1") == 0
    whole = results(tmp_path)
    assert len(made) == 1
    assert (len(whole["rows"]), whole["num_left"], whole["rows"][0]) == (2, 0, partial["rows"][0])
    made.clear()
    also = tmp_path / "also" / "figures.json"
    assert playback(sawyer_checkpoint, tmp_path, *only_replace, "0", "1", "--json", str(also)) == 0
    assert (made, results(tmp_path), json.loads(also.read_text())) == ([], whole, whole)


def test_rows_of_another_measurement_are_not_gone_on_with(
    sawyer_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--rules", "replace", "--delays", "0")
    assert playback(sawyer_checkpoint, tmp_path, *asked, episodes=1) == 0
    assert playback(sawyer_checkpoint, tmp_path, *asked, episodes=2) == 1
    assert "was measured with {'episodes': 1}, this run has {'episodes': 2}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--first-seed", "0"], "scenes 0 to 1 came, expected some of 50000 to 50999 (tuning) or 100000 to 100999"),
        (["--first-seed", "50999"], "scenes 50999 to 51000 came"),
        (["--delays", "0", "-1"], "--delays has -1"),
        (["--delays", "4", "4"], "--delays names one twice: 4 4"),
        (["--tasks", "buton-press"], "did you mean 'button-press'?"),
        (["--policy", "tabletop"], "go with --real-time"),
        (["--real-time"], "--real-time needs --address and --policy"),
        (["--real-time", "--address", "127.0.0.1:1", "--policy", "x"], "not a --checkpoint: serve it"),
    ],
)
def test_a_wrong_playback_is_named(
    sawyer_checkpoint: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert playback(sawyer_checkpoint, tmp_path, *arguments) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--history"], "--history is for lock step"),
        (["--workers", "2"], "one scene at a time"),
        (["--tls"], "measure without TLS"),
        (["--token-file", "nowhere"], "nowhere cannot be read"),
    ],
)
def test_what_real_time_cannot_do_is_named(
    tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["playback", "--real-time", "--address", "127.0.0.1:1", "--policy", "x", "--tasks", "button-press"]
    assert main([*asked, "--out", str(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_body_that_the_policy_does_not_move_is_named(
    sawyer_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert playback(sawyer_checkpoint, tmp_path, "--tasks", "lift") == 1
    assert "task 'lift' is played by 'panda', the policy moves sawyer" in capsys.readouterr().err
