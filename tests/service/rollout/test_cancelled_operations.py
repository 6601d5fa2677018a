"""Nobody waits for an operation that is no longer wanted: it can be cancelled, and a roll-back takes its place."""

from __future__ import annotations

import asyncio

import pytest

from service.episodes import Episode
from service.errors import ConflictError
from service.registry import OperationState, RevisionState
from service.rollout.operations import Promotion

S = RevisionState
POLICY = "tabletop"


def episode(number: int) -> Episode:
    return Episode(policy=POLICY, robot_id=f"robot-{number}", episode_id="1")


async def serving(fleet, process, *names: str) -> list[str]:
    """Promotes one after the other; what served before stays loaded."""
    revisions = []
    for name in names:
        revision = await process.registered(fleet.checkpoint(name, variant=name))
        how = Promotion(keep_previous=True)
        await process.carried_out(process.rollout.promote(POLICY, revision, how, actor="ada"))
        revisions.append(revision)
    return revisions


def beginnings(rollout, revision: str):
    return {
        "load": lambda: rollout.load(POLICY, revision, actor="ada"),
        "promote": lambda: rollout.promote(POLICY, revision, actor="ada"),
        "split": lambda: rollout.split(POLICY, {revision: 0.5}, actor="ada"),
        "shadow": lambda: rollout.shadow(POLICY, revision, 0.5, actor="ada"),
    }


@pytest.mark.parametrize("kind", ["load", "promote", "split", "shadow"])
async def test_a_roll_back_takes_the_place_of_what_runs(fleet, kind):
    process = fleet.process("a")
    await process.start()
    old, bad = await serving(fleet, process, "old", "bad")
    new = await process.registered(fleet.checkpoint("new", variant="new"))
    process.models.holds[new] = asyncio.Event()
    running = await beginnings(process.rollout, new)[kind]()
    await process.until(lambda: ("load", new) in process.models.calls)
    await process.carried_out(process.rollout.roll_back(POLICY, actor="bob", reason="it shakes"))
    assert process.policies.routed(episode(1)).revision == old
    overtaken = await process.rollout.ended(running.operation_id)
    assert (overtaken.state, overtaken.error) == (OperationState.FAILED, "a roll back by bob took its place")
    # What it was loading is given up, and nothing of it comes later.
    assert process.registry.revision(POLICY, new).state is S.UNLOADED
    process.models.holds[new].set()
    await process.until(lambda: ("unload", new) in process.models.calls)
    route = process.registry.policy(POLICY).route
    assert (route.shares, route.previous, route.shadow, route.switching) == (((old, 1.0),), bad, None, False)


async def test_a_roll_back_takes_the_place_of_what_another_gateway_carries_out(fleet):
    first, second = fleet.process("a"), fleet.process("b")
    await first.start()
    await second.start()
    old, _ = await serving(fleet, first, "old", "bad")
    new = await first.registered(fleet.checkpoint("new", variant="new"))
    second.models.holds[new] = asyncio.Event()
    running = await second.rollout.promote(POLICY, new, actor="ada")
    await second.until(lambda: ("load", new) in second.models.calls)
    await first.carried_out(first.rollout.roll_back(POLICY, actor="bob"))
    assert {process.policies.routed(episode(1)).revision for process in (first, second)} == {old}
    # Its task has heard of it, too.
    overtaken = await asyncio.wait_for(second.rollout.ended(running.operation_id), 5)
    assert overtaken.error == "a roll back by bob took its place"


async def test_what_an_overtaken_operation_still_asks_for_is_refused(fleet):
    process = fleet.process("a")
    await process.start()
    old, bad = await serving(fleet, process, "old", "bad")
    registry = process.registry
    running = registry.start_operation(kind="promote", policy=POLICY, revision=old, actor="ada", gateway_id="a")
    registry.cancel_operation(running.operation_id, actor="bob")
    late = {"operation_id": running.operation_id}
    for ask in (
        lambda: registry.change_route(POLICY, lambda now: now.route, actor="ada", action="promote", **late),
        lambda: registry.set_state(POLICY, old, S.UNLOADED, actor="ada", **late),
        lambda: registry.announce(POLICY, switching=True, **late),
        lambda: registry.prove_again(POLICY, old, **late),
        lambda: registry.advance(running.operation_id, "probed, ready"),
    ):
        with pytest.raises(ConflictError, match="has failed: bob cancelled it"):
            ask()
    assert registry.policy(POLICY).route.stable == bad


async def test_two_roll_backs_of_one_change_undo_it_once(fleet):
    process = fleet.process("a")
    await process.start()
    old, _ = await serving(fleet, process, "old", "bad")
    change = process.registry.policy(POLICY).route.changes
    process.models.loaded.discard(old)
    await process.carried_out(process.rollout.roll_back(POLICY, actor="guard", only_change=change))
    with pytest.raises(ConflictError, match="has changed since"):
        await process.rollout.roll_back(POLICY, actor="guard", only_change=change)
    assert process.registry.policy(POLICY).route.stable == old


async def test_a_roll_back_does_not_take_the_place_of_another(fleet):
    process = fleet.process("a")
    await process.start()
    await serving(fleet, process, "old", "bad")
    running = process.registry.start_operation(kind="roll back", policy=POLICY, actor="guard", gateway_id="a")
    with pytest.raises(ConflictError, match=f"runs as operation {running.operation_id}"):
        await process.rollout.roll_back(POLICY, actor="bob")


@pytest.mark.parametrize("owner", ["a", "b"])
async def test_an_operation_is_cancelled_from_any_gateway_and_gives_up_what_it_loads(fleet, owner):
    first, second = fleet.process("a"), fleet.process("b")
    await first.start()
    await second.start()
    (old,) = await serving(fleet, first, "old")
    new = await first.registered(fleet.checkpoint("new", variant="new"))
    for process in (first, second):
        process.models.holds[new] = asyncio.Event()
    owning = first if owner == "a" else second
    operation = await owning.rollout.promote(POLICY, new, actor="ada")
    await first.until(lambda: all(("load", new) in process.models.calls for process in (first, second)))
    cancelled = await first.rollout.cancel(operation.operation_id, actor="bob")
    assert (cancelled.state, cancelled.error) == (OperationState.FAILED, "bob cancelled it")
    await asyncio.wait_for(owning.rollout.ended(operation.operation_id), 5)
    for process in (first, second):
        await process.until(lambda process=process: ("unload", new) in process.models.calls)
        assert process.policies.routed(episode(1)).revision == old
    said = [(entry.actor, entry.action, entry.outcome) for entry in first.registry.audit(POLICY, most=3)]
    assert ("bob", "cancel", "succeeded") in said
    assert ("ada", "promote", "bob cancelled it") in said
    entry = next(entry for entry in first.registry.audit(POLICY) if entry.action == "cancel")
    assert entry.detail == {"operation": operation.operation_id, "kind": "promote"}
    # Nothing is in the way of the next.
    for process in (first, second):
        process.models.holds.clear()
    await first.carried_out(first.rollout.promote(POLICY, new, actor="ada"))


async def test_what_has_ended_cannot_be_cancelled(fleet):
    process = fleet.process("a")
    await process.start()
    await serving(fleet, process, "old")
    (operation, *_) = process.registry.operations(POLICY)
    with pytest.raises(ConflictError, match="has succeeded"):
        await process.rollout.cancel(operation.operation_id, actor="bob")
