"""What is measured: a rule, a delay and a task each; and which of them a policy can be measured with at all.

Owns the cells and the reasons against them. Plays nothing and imports no simulator.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from premotor.client import ActionBuffer, Group, RealTimeChunkingRule
from training.rollout import RULES, RuleName


@dataclass(frozen=True, kw_only=True)
class Cell:
    """`delay_steps` in lock step is when a chunk takes over, in real time what is added to the way to the policy."""

    rule: RuleName
    delay_steps: int
    task: str


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A cell that cannot be measured."""

    cell: Cell
    reason: str


@dataclass(frozen=True, kw_only=True)
class PlayedPolicy:
    """What of a policy decides how it can be played; `max_inference_delay` is 0 without a trained prefix."""

    action_horizon: int
    execution_horizon: int
    max_inference_delay: int


def all_cells(rules: Sequence[RuleName], delays_steps: Sequence[int], tasks: Sequence[str]) -> list[Cell]:
    """Task by task, so that the first rows are whole tables."""
    return [
        Cell(rule=rule, delay_steps=delay, task=task)
        for task, rule, delay in itertools.product(tasks, rules, delays_steps)
    ]


def reason_in_lock_step(cell: Cell, policy: PlayedPolicy, action: Sequence[Group]) -> str:
    """Why a cell cannot be played in lock step, empty where it can. `action` are the body's groups."""
    delay, horizon = cell.delay_steps, policy.execution_horizon
    if delay + horizon > policy.action_horizon:
        return (
            f"a chunk has {policy.action_horizon} actions, and {horizon} played from {delay} steps after its "
            f"observation on take {delay + horizon}"
        )
    if isinstance(RULES[cell.rule], RealTimeChunkingRule) and delay > horizon:
        return f"a chunk would continue one that is still to come: at most {horizon} steps, the execution horizon"
    return _reason(cell, delay, policy, action)


def reason_in_real_time(cell: Cell, policy: PlayedPolicy, action: Sequence[Group]) -> str:
    """The same against the clock, where an answer is at least a step later than what is added to its way."""
    delay = cell.delay_steps + 1
    if delay >= policy.action_horizon:
        return f"a chunk has {policy.action_horizon} actions and comes {delay} steps late at best"
    return _reason(cell, delay, policy, action)


def _reason(cell: Cell, delay_steps: int, policy: PlayedPolicy, action: Sequence[Group]) -> str:
    if cell.rule == "prefix" and not policy.max_inference_delay:
        return "the policy was not trained to continue a prefix"
    if cell.rule == "prefix" and delay_steps > policy.max_inference_delay:
        return f"{delay_steps} steps late, and the policy was trained for at most {policy.max_inference_delay}"
    try:
        ActionBuffer(action, RULES[cell.rule])
    except ValueError as error:
        return str(error)
    return ""
