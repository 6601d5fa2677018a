"""From played scenes to figures: pooled jumps, rows that a clock made invalid, and claims with their intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy.embodiment import Group, GroupKind
from training.playback.cells import Cell
from training.playback.claims import claims
from training.playback.report import format_report
from training.playback.scenes import PlayedScene, RealTimeCounts, Row, is_valid, summary
from training.rollout import RuleName
from training.seams import SeamMeter, pooled

GROUPS = (
    Group(name="arm", dim=2, kind=GroupKind.JOINT_POSITION, unit="rad"),
    Group(name="gripper", dim=1, kind=GroupKind.GRIPPER, unit="1"),
)
NUM_SCENES = 40
PUBLISHED = Path(__file__).resolve().parents[3] / "docs/measured/playback"


def figures(jump: float, seed: int = 0) -> Any:
    """Two seams of about this size among five steps that move by a tenth."""
    generator, meter = np.random.default_rng(seed), SeamMeter(GROUPS)
    action = np.zeros(3, np.float32)
    meter.note(action, takes_over=False)
    for step in range(1, 6):
        takes_over = step in (2, 4)
        size = jump * generator.uniform(0.9, 1.1) if takes_over else 0.1
        action = action + np.float32(size)
        meter.note(action, takes_over=takes_over)
    return meter.figures()


def row(
    rule: RuleName, delay: int, *, jump: float, solved: Sequence[bool], task: str = "lift", stalled: int | None = None
) -> Row:
    clock = None
    if stalled is not None:
        clock = RealTimeCounts(
            delays_steps=(3, 4),
            num_held_steps=1,
            num_late_steps=0,
            num_stalled_steps=stalled,
            num_skipped_periods=0,
            num_failures=0,
            methods={"guidance": 1, "none": 1},
        )
    return Row(
        cell=Cell(rule=rule, delay_steps=delay, task=task),
        scenes=[
            PlayedScene(
                seed=seed,
                succeeded=succeeded,
                num_steps=100,
                latencies_s=(0.01,),
                seams=figures(jump, seed),
                real_time=clock,
            )
            for seed, succeeded in enumerate(solved)
        ],
    )


def claimed(*rows: Row, tasks: Sequence[str] = ("lift",), rules: Sequence[RuleName] = ("guidance",)) -> list[Any]:
    return claims({each.cell: each for each in rows}, tasks, rules, lambda cell: "not played yet")


ALL, NONE = [True] * NUM_SCENES, [False] * NUM_SCENES


def test_pooled_figures_are_those_of_one_meter_that_saw_it_all() -> None:
    generator, one, several = np.random.default_rng(0), SeamMeter(GROUPS), []
    for num_steps in (1, 2, 7, 12):
        each = SeamMeter(GROUPS)
        one.start()
        for step in range(num_steps):
            action, takes_over = generator.normal(size=3).astype(np.float32), step % 3 == 1
            one.note(action, takes_over=takes_over)
            each.note(action, takes_over=takes_over)
        several.append(each.figures())
    for name, expected in one.figures().items():
        found = pooled(several)[name]
        assert found.keys() == expected.keys()
        for figure, value in expected.items():
            assert found[figure] == (value if isinstance(value, str | int) else pytest.approx(value, rel=1e-6)), figure


def test_a_row_is_the_same_after_it_was_written_and_read() -> None:
    played = row("guidance", 4, jump=0.2, solved=[True, False], stalled=0)
    written = json.loads(json.dumps(played.to_json()))
    again = Row.from_json(written)
    assert again.cell == played.cell
    assert summary(again) == summary(played)


def test_a_row_says_success_with_its_interval_and_what_the_clock_did() -> None:
    found = summary(row("guidance", 4, jump=0.2, solved=[True, False, True, True], stalled=1))
    assert (found["successes"], found["episodes"], found["outcomes"]) == (3, 4, "1011")
    assert found["success_low"] < 0.75 < found["success_high"]
    clock = found["real_time"]
    assert (clock["delay_steps_mean"], clock["num_held_steps"], clock["num_stalled_steps"]) == (3.5, 4, 4)
    assert clock["methods"] == {"guidance": 4, "none": 4}


@pytest.mark.parametrize(("stalled", "valid"), [(None, True), (0, True), (1, True), (2, False)])
def test_a_row_is_invalid_when_its_simulator_stalled_on_more_than_a_hundredth(stalled: int | None, valid: bool) -> None:
    # 100 steps a scene were simulated; 1 of 101 is less than 1 %.
    assert is_valid(summary(row("replace", 0, jump=0.2, solved=[True], stalled=stalled))) is valid


def test_jumps_of_half_the_size_hold_and_of_the_same_size_are_the_opposite() -> None:
    replace, baseline = row("replace", 4, jump=1.0, solved=NONE), row("replace", 0, jump=1.0, solved=ALL)
    small, _, _ = claimed(replace, baseline, row("guidance", 4, jump=0.4, solved=ALL))
    assert small["verdict"] == "holds"
    assert small["estimate"]["value"] == pytest.approx(0.4, rel=1e-4)
    assert {(part["group"], part["unit"]) for part in small["parts"]} == {("arm", "rad"), ("gripper", "1")}
    assert [part["group"] for part in small["parts"] if part["in_mean"]] == ["arm"]
    for part in small["parts"]:
        assert part["low"] <= part["ratio"] <= part["high"]
        assert part["ratio"] == pytest.approx(0.4, rel=1e-4)
    large, _, _ = claimed(replace, baseline, row("guidance", 4, jump=1.0, solved=ALL))
    assert large["verdict"] == "the opposite"


def test_a_mean_ratio_weighs_tasks_of_other_units_alike() -> None:
    rows = [
        row(rule, delay, jump=jump * scale, solved=ALL, task=task)
        for task, scale in (("lift", 1.0), ("pick-can", 50.0))
        for rule, delay, jump in (("replace", 4, 1.0), ("replace", 0, 1.0), ("guidance", 4, 0.25))
    ]
    found, _, _ = claimed(*rows, tasks=("lift", "pick-can"))
    assert found["estimate"]["value"] == pytest.approx(0.25, rel=1e-3)
    assert found["estimate"]["num_tasks"] == 2


def test_success_is_compared_with_replace_without_a_delay_scene_by_scene() -> None:
    late = row("replace", 4, jump=1.0, solved=NONE)
    half = [index % 2 == 0 for index in range(NUM_SCENES)]
    most = [index != 0 for index in range(NUM_SCENES)]
    verdicts = {}
    for name, baseline, solved in (("more", half, ALL), ("fewer", most, half), ("same", most, most)):
        undelayed = row("replace", 0, jump=1.0, solved=baseline)
        *_, success = claimed(late, undelayed, row("guidance", 4, jump=1.0, solved=solved))
        verdicts[name] = success["verdict"]
        assert success["estimate"]["value"] == pytest.approx((sum(solved) - sum(baseline)) / NUM_SCENES)
    # Pairs that are all alike leave Wilson's intervals, which 40 scenes leave wider than 5 points.
    assert verdicts == {"more": "holds", "fewer": "the opposite", "same": "not shown"}


def test_a_claim_without_both_sides_is_not_run_and_says_why() -> None:
    invalid = row("replace", 4, jump=1.0, solved=ALL, stalled=50)
    jump, _, success = claimed(invalid, row("guidance", 4, jump=0.1, solved=ALL))
    assert (jump["verdict"], success["verdict"]) == ("not run", "not run")
    assert jump["missing"] == ["lift, replace at 4: invalid, its simulator stalled"]
    assert success["missing"] == ["lift, replace at 0: not played yet"]


def test_a_group_that_never_jumps_is_left_out_and_named() -> None:
    still = row("replace", 4, jump=0.0, solved=ALL)
    found, *_ = claimed(still, row("guidance", 4, jump=0.0, solved=ALL), row("replace", 0, jump=0.0, solved=ALL))
    assert found["verdict"] == "not run"
    assert found["missing"] == ["lift, arm: no jump to compare", "lift, gripper: no jump to compare"]


def test_a_gripper_that_flips_at_seams_decides_nothing() -> None:
    def flipping(rule: RuleName, delay: int, grip: float) -> Row:
        played = row(rule, delay, jump=1.0, solved=ALL)
        for scene in played.scenes:
            scene.seams["gripper"]["action_rms"] = grip  # type: ignore[index]
        return played

    found, *_ = claimed(flipping("replace", 4, 1.0), flipping("replace", 0, 1.0), flipping("guidance", 4, 0.01))
    assert found["estimate"]["value"] == pytest.approx(1.0)
    assert {part["group"]: part["ratio"] for part in found["parts"]}["gripper"] == pytest.approx(0.01)


def test_a_few_scenes_show_nothing() -> None:
    few = [True] * 9
    rows = (row("replace", 4, jump=1.0, solved=few), row("replace", 0, jump=1.0, solved=few))
    found, *_ = claimed(*rows, row("guidance", 4, jump=0.1, solved=few))
    assert found["estimate"]["high"] < 0.5
    assert found["verdict"] == "not shown"


def test_only_methods_that_were_asked_for_are_claimed() -> None:
    assert claimed(rules=("replace", "ensemble")) == []
    assert len(claimed(rules=("replace", "guidance", "prefix"))) == 6


def test_the_published_report_says_what_its_results_do() -> None:
    values = json.loads((PUBLISHED / "results.json").read_text())
    assert format_report(values, ["plot.png", "plot.svg"]) == (PUBLISHED / "report.md").read_text()
