"""An operation that nobody carries out ends; one that is carried out is not taken for it."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import ConflictError
from service.registry import OperationState, RegistryUnavailableError, RevisionState

S = RevisionState
POLICY = "tabletop"


async def registered(fleet, process, *names: str) -> list[str]:
    return [await process.registered(fleet.checkpoint(name, variant=name)) for name in names]


async def promoted(process, revision: str) -> None:
    await process.carried_out(process.rollout.promote(POLICY, revision, actor="ada"))


async def test_an_operation_of_whose_beginning_nobody_heard_ends_and_is_in_nobody_s_way(fleet):
    process = fleet.process("a")
    await process.start()
    old, new = await registered(fleet, process, "old", "new")
    await promoted(process, old)
    await promoted(process, new)
    registry, start = process.registry, process.registry.start_operation

    def start_unheard(**what):
        start(**what)
        raise RegistryUnavailableError("the network is gone")

    registry.start_operation = start_unheard
    with pytest.raises(RegistryUnavailableError):
        await process.rollout.roll_back(POLICY, actor="ada")
    del registry.start_operation
    (forgotten,) = registry.operations(POLICY, running=True)
    with pytest.raises(ConflictError, match=f"runs as operation {forgotten.operation_id}"):
        await process.rollout.roll_back(POLICY, actor="guard")
    await process.until(lambda: registry.operation(forgotten.operation_id).done)
    assert registry.operation(forgotten.operation_id).error == "its process did not hear that it had begun"
    await process.carried_out(process.rollout.roll_back(POLICY, actor="guard"))
    assert registry.policy(POLICY).route.stable == old


async def test_an_operation_that_takes_long_is_not_taken_for_forgotten(fleet):
    process = fleet.process("a")
    await process.start()
    (new,) = await registered(fleet, process, "new")
    process.models.holds[new] = asyncio.Event()
    operation = await process.rollout.promote(POLICY, new, actor="ada")
    looks, look = [], process.registry.operations
    process.registry.operations = lambda *what, **options: looks.append(what) or look(*what, **options)
    await process.until(lambda: len(looks) > 3)
    assert process.registry.operation(operation.operation_id).state is OperationState.RUNNING
    process.models.holds[new].set()
    assert (await process.rollout.ended(operation.operation_id)).error == ""


async def test_what_began_a_moment_ago_is_not_tidied_up_after_a_dead_gateway(fleet):
    process = fleet.process("a")
    await process.start()
    old, new = await registered(fleet, process, "old", "new")
    await promoted(process, old)
    # Each of its looks is made here.
    await process.rollout._tending.stop()
    registry, look = process.registry, process.registry.operations
    registry.set_state(POLICY, new, S.LOADING, actor="ada")
    registry.announce(POLICY, switching=True)
    await process.follower.applied(registry.generation(), timeout_s=5)

    def look_and_begin(*what, **options):
        found = look(*what, **options)
        registry.start_operation(kind="promote", policy=POLICY, revision=new, actor="ada", gateway_id="b")
        return found

    registry.operations = look_and_begin
    await process.rollout._tending._end_orphans()
    assert registry.revision(POLICY, new).state is S.LOADING
    assert registry.policy(POLICY).route.switching
    # Of a gateway that there is not.
    registry.operations = look
    await process.rollout._tending._end_orphans()
    assert registry.revision(POLICY, new).state is S.FAILED
    assert not registry.policy(POLICY).route.switching
