"""Which rules and delays a policy can be played with, and the reason where it cannot."""

from __future__ import annotations

import pytest

from premotor.client import Group
from training.playback.cells import Cell, PlayedPolicy, all_cells, reason_in_lock_step, reason_in_real_time
from training.rollout import RuleName

POLICY = PlayedPolicy(action_horizon=16, execution_horizon=8, max_inference_delay=4)
UNTRAINED = PlayedPolicy(action_horizon=16, execution_horizon=8, max_inference_delay=0)
SHORT = PlayedPolicy(action_horizon=16, execution_horizon=3, max_inference_delay=0)
JOINTS = (Group(name="joints", dim=2, kind="joint_position", unit="rad", representation="absolute"),)
HAND = (Group(name="hand", dim=3, kind="end_effector_position", unit="cm", representation="delta"),)


def cell(rule: RuleName, delay_steps: int) -> Cell:
    return Cell(rule=rule, delay_steps=delay_steps, task="lift")


def test_cells_come_task_by_task() -> None:
    found = all_cells(["replace", "prefix"], [0, 4], ["lift", "pick-can"])
    assert [(each.task, each.rule, each.delay_steps) for each in found[:5]] == [
        ("lift", "replace", 0),
        ("lift", "replace", 4),
        ("lift", "prefix", 0),
        ("lift", "prefix", 4),
        ("pick-can", "replace", 0),
    ]
    assert len(found) == 8


@pytest.mark.parametrize("rule", ["replace", "ensemble", "guidance", "prefix"])
@pytest.mark.parametrize("delay", [0, 4])
def test_what_can_be_played_has_no_reason_against_it(rule: RuleName, delay: int) -> None:
    assert reason_in_lock_step(cell(rule, delay), POLICY, JOINTS) == ""


@pytest.mark.parametrize(
    ("asked", "policy", "groups", "reason"),
    [
        (cell("replace", 9), POLICY, JOINTS, "16 actions, and 8 played from 9 steps after its observation on take 17"),
        (cell("guidance", 4), SHORT, JOINTS, "continue one that is still to come: at most 3 steps"),
        (cell("prefix", 0), UNTRAINED, JOINTS, "was not trained to continue a prefix"),
        (cell("prefix", 5), POLICY, JOINTS, "5 steps late, and the policy was trained for at most 4"),
        (cell("ensemble", 0), POLICY, HAND, "would average nothing: no action group of hand"),
    ],
)
def test_in_lock_step_the_reason_is_named(
    asked: Cell, policy: PlayedPolicy, groups: tuple[Group, ...], reason: str
) -> None:
    assert reason in reason_in_lock_step(asked, policy, groups)


def test_replace_may_be_later_than_the_execution_horizon() -> None:
    assert reason_in_lock_step(cell("replace", 4), SHORT, JOINTS) == ""


def test_against_the_clock_an_answer_is_a_step_later_than_what_is_added() -> None:
    assert reason_in_real_time(cell("prefix", 3), POLICY, JOINTS) == ""
    assert reason_in_real_time(cell("prefix", 4), POLICY, JOINTS).startswith("5 steps late")
    assert reason_in_real_time(cell("replace", 14), POLICY, JOINTS) == ""
    assert "comes 16 steps late at best" in reason_in_real_time(cell("replace", 15), POLICY, JOINTS)
