"""What a split leaves to the stable revision, and what its end means to the guard."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from service.registry import Guard
from service.rollout.operations import Promotion

POLICY = "tabletop"
GUARD = Guard(max_error_rate=0.1)


async def serving(fleet, process, *names: str) -> list[str]:
    """Registers them and promotes the first two, one after the other."""
    await process.start()
    revisions = [await process.registered(fleet.checkpoint(name, variant=name)) for name in names]
    for revision in revisions[:2]:
        await process.carried_out(process.rollout.promote(POLICY, revision, Promotion(guard=GUARD), actor="ada"))
    return revisions


def is_watched(process) -> bool:
    return process.registry.policy(POLICY).is_watched(datetime.now(UTC))


@pytest.mark.parametrize("end", ["drain", "split", "promote"])
async def test_who_served_before_a_split_is_not_judged_once_it_ends(fleet, end):
    process = fleet.process("a")
    _, stable, canary = await serving(fleet, process, "first", "stable", "canary")
    await process.carried_out(process.rollout.split(POLICY, {canary: 0.5}, actor="ada"))
    assert is_watched(process)
    endings = {
        "drain": lambda: process.rollout.drain(POLICY, canary, actor="ada"),
        "split": lambda: process.rollout.split(POLICY, {canary: 0.0}, actor="ada"),
        "promote": lambda: process.rollout.promote(POLICY, stable, actor="ada"),
    }
    await process.carried_out(endings[end]())
    route = process.registry.policy(POLICY).route
    assert (route.shares, route.guard) == (((stable, 1.0),), GUARD)
    assert not is_watched(process)


async def test_promoting_again_what_serves_changes_nothing_of_whether_it_is_watched(fleet):
    process = fleet.process("a")
    old, new = await serving(fleet, process, "old", "new")
    await process.carried_out(process.rollout.promote(POLICY, new, actor="ada"))
    assert is_watched(process)
    await process.carried_out(process.rollout.roll_back(POLICY, actor="ada"))
    await process.carried_out(process.rollout.promote(POLICY, old, actor="ada"))
    assert process.registry.policy(POLICY).route.previous == new
    assert not is_watched(process)


async def test_shares_of_which_rounding_makes_more_than_a_whole_leave_the_stable_one_nothing(fleet):
    process = fleet.process("a")
    _, stable, *others = await serving(fleet, process, "first", "stable", "third", "fourth", "fifth")
    shares = dict(zip(others, (0.33, 0.56, 0.11), strict=True))
    assert sum(shares.values()) > 1.0
    await process.carried_out(process.rollout.split(POLICY, shares, actor="ada"))
    assert process.registry.policy(POLICY).route.shares == ((stable, 0.0), *shares.items())
