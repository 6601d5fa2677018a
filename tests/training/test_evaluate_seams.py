"""`python -m training evaluate --rule --inference-delay --inference-steps`: what is played, and the jumps it prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy.embodiment import Group, GroupKind
from training import evaluate as evaluation
from training.__main__ import main
from training.evaluate import Target
from training.rollout import Episode, summarise
from training.seams import SeamMeter

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints" / "tabletop"


class Asked:
    """Stands for the evaluation itself: keeps whom it was to ask and how; a seam of half a radian."""

    target: Target

    def __call__(self, target: Target, *, tasks: Sequence[str], **others: Any) -> list[Mapping[str, Any]]:
        self.target = target
        meter = SeamMeter([Group(name="arm", dim=1, kind=GroupKind.JOINT_POSITION, unit="rad")])
        for position, takes_over in ((0.0, False), (0.125, False), (0.625, True)):
            meter.note(np.array([position], np.float32), takes_over=takes_over)
        episode = Episode(seed=0, succeeded=True, num_steps=3, latencies_s=(0.01,))
        return [{**summarise("panda", task, [episode], elapsed_s=1.0), "seams": meter.figures()} for task in tasks]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    stand_in = Asked()
    monkeypatch.setattr(evaluation, "evaluate", stand_in)
    return stand_in


def evaluate(run: Path, *arguments: str) -> int:
    asked = ["evaluate", "--threads", "1", "--run", str(run), "--tasks", "lift", "--episodes", "1", *arguments]
    return main(asked if "--address" in arguments else [*asked, "--checkpoint", str(SHIPPED)])


def test_a_rule_and_a_delay_reach_the_target_and_the_jumps_are_printed(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path, "--rule", "guidance", "--inference-delay", "4") == 0
    assert (asked.target.rule, asked.target.inference_delay) == ("guidance", 4)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[-2:] == [
        ["lift", "arm", "action", "1", "0.5", "0.125", "0.5", "rad"],
        ["lift", "arm", "difference", "1", "0.375", "-", "0.375", "rad"],
    ]
    written = json.loads((tmp_path / "evaluation" / "results-guidance-4.json").read_text())
    assert (written[0]["rule"], written[0]["inference_delay"]) == ("guidance", 4)


def test_without_either_nothing_is_late_and_no_jump_is_printed(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path) == 0
    assert (asked.target.rule, asked.target.inference_delay) == ("replace", 0)
    assert "rad" not in capsys.readouterr().out
    assert "rule" not in json.loads((tmp_path / "evaluation" / "results.json").read_text())[0]


def test_a_delay_below_zero_is_a_wrong_call(asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path, "--inference-delay", "-1") == 2
    assert "--inference-delay is -1, expected 0 or more" in capsys.readouterr().err


def test_euler_steps_reach_the_target_and_their_results_lie_beside_the_checkpoints_own(
    asked: Asked, tmp_path: Path
) -> None:
    assert evaluate(tmp_path) == 0
    assert asked.target.num_inference_steps is None
    assert evaluate(tmp_path, "--inference-steps", "4") == 0
    assert asked.target.num_inference_steps == 4
    own, four = (
        json.loads((tmp_path / "evaluation" / f"{name}.json").read_text())[0] for name in ("results", "results-4-steps")
    )
    assert "num_inference_steps" not in own and four["num_inference_steps"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inference-steps", "0"], "--inference-steps is 0, expected at least 1"),
        (
            ["--inference-steps", "4", "--address", "127.0.0.1:1", "--policy", "tabletop"],
            "--inference-steps is for a checkpoint, and --address names a policy that has its own",
        ),
    ],
)
def test_euler_steps_that_cannot_be_are_a_wrong_call(
    asked: Asked, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
