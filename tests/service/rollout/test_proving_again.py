"""What a gateway could not load it tries again, no route names what one lacks, and a probe can be asked again."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from service.backend import BackendUnavailableError
from service.episodes import Episode
from service.errors import ConflictError
from service.memory import TooLittleMemoryError
from service.registry import OperationState, Placement, RevisionState
from service.revision import RevisionError

S = RevisionState
POLICY = "tabletop"


def episode(number: int) -> Episode:
    return Episode(policy=POLICY, robot_id=f"robot-{number}", episode_id="1")


async def ended(process, beginning):
    return await process.rollout.ended((await beginning).operation_id)


async def registered(fleet, process, *names: str) -> list[str]:
    locations = [fleet.probed_checkpoint(name, variant=name) for name in names]
    return [await process.registered(each) for each in locations]


def states(process, revision: str) -> dict[str, RevisionState]:
    return {each.gateway_id: each.state for each in process.registry.placements(POLICY, revision)}


@pytest.mark.parametrize("why", ["checkpoint", "memory", "backend", "disk"])
async def test_a_gateway_that_could_not_load_what_serves_tries_again_until_it_can(fleet, why):
    first = fleet.process("a")
    await first.start()
    (revision,) = await registered(fleet, first, "old")
    await first.carried_out(first.rollout.promote(POLICY, revision, actor="ada"))
    second = fleet.process("b")
    refusals: dict[str, Exception] = {
        "memory": TooLittleMemoryError("3 MB are free"),
        "backend": BackendUnavailableError("Triton is restarting"),
        "disk": OSError("the share is away"),
    }
    away = fleet.store.with_name("away")
    if why == "checkpoint":
        (fleet.store / "old").rename(away)
    else:
        second.models.refusals[revision] = refusals[why]
    await second.start()
    await first.until(lambda: states(first, revision).get("b") is S.FAILED)
    (placement,) = [each for each in first.registry.placements(POLICY, revision) if each.gateway_id == "b"]
    assert placement.error
    if why == "checkpoint":
        away.rename(fleet.store / "old")
    second.models.refusals.clear()
    await first.until(lambda: states(first, revision) == {"a": S.READY, "b": S.READY})
    assert second.policies.routed(episode(1)).revision == revision


async def test_loading_what_serves_has_a_gateway_that_gave_up_try_again_at_once(fleet):
    first = fleet.process("a")
    await first.start()
    (revision,) = await registered(fleet, first, "old")
    await first.carried_out(first.rollout.promote(POLICY, revision, actor="ada"))
    second = fleet.process("b", retry_s=3600.0)
    second.models.refusals[revision] = RevisionError("probe.npz: a chunk is off by 3")
    await second.start()
    await first.until(lambda: states(first, revision).get("b") is S.FAILED)
    failed = await ended(first, first.rollout.load(POLICY, revision, actor="ada"))
    assert (failed.state, failed.error) == (OperationState.FAILED, "probe.npz: a chunk is off by 3")
    # What serves elsewhere goes on serving.
    assert first.registry.revision(POLICY, revision).state is S.SERVING
    second.models.refusals.clear()
    await first.carried_out(first.rollout.load(POLICY, revision, actor="ada"))
    assert states(first, revision) == {"a": S.READY, "b": S.READY}


async def joins_without(first, second, revision: str, *, serving: str) -> None:
    """The second gateway comes later, has what serves and is kept from loading the other."""
    second.models.refusals[revision] = RevisionError("not yet")
    await second.start()
    await first.until(lambda: states(first, revision).get("b") is S.FAILED and serving in second.models.loaded)
    second.models.refusals.clear()
    second.models.holds[revision] = asyncio.Event()


@pytest.mark.parametrize("verb", ["promote", "split", "shadow", "roll back"])
async def test_no_route_names_a_revision_that_a_gateway_is_still_loading(fleet, verb):
    first, second = fleet.process("a"), fleet.process("b", retry_s=3600.0)
    await first.start()
    old, new = await registered(fleet, first, "old", "new")
    await first.carried_out(first.rollout.promote(POLICY, new, actor="ada"))
    await first.carried_out(first.rollout.promote(POLICY, old, actor="ada"))
    await first.carried_out(first.rollout.load(POLICY, new, actor="ada"))
    await joins_without(first, second, new, serving=old)
    rollout = first.rollout
    beginning = {
        "promote": rollout.promote(POLICY, new, actor="ada"),
        "split": rollout.split(POLICY, {new: 0.5}, actor="ada"),
        "shadow": rollout.shadow(POLICY, new, 0.5, actor="ada"),
        "roll back": rollout.roll_back(POLICY, actor="ada"),
    }
    operation = await beginning.pop(verb)
    for unused in beginning.values():
        unused.close()
    await first.until(lambda: first.registry.operation(operation.operation_id).steps)
    assert first.registry.operation(operation.operation_id).steps == (f"waits for gateway b to have {new}",)
    route = first.registry.policy(POLICY).route
    assert (route.shares, route.shadow) == (((old, 1.0),), None)
    assert {process.policies.routed(episode(1)).revision for process in (first, second)} == {old}
    second.models.holds[new].set()
    done = await first.rollout.ended(operation.operation_id)
    assert done.state is OperationState.SUCCEEDED, done.error
    assert new in second.models.loaded


async def test_a_promotion_that_waits_too_long_for_a_gateway_fails_and_leaves_the_route(fleet):
    first, second = fleet.process("a", load_timeout_s=0.5), fleet.process("b", retry_s=3600.0)
    await first.start()
    old, new = await registered(fleet, first, "old", "new")
    await first.carried_out(first.rollout.promote(POLICY, old, actor="ada"))
    await first.carried_out(first.rollout.load(POLICY, new, actor="ada"))
    await joins_without(first, second, new, serving=old)
    operation = await ended(first, first.rollout.promote(POLICY, new, actor="ada"))
    assert operation.error == f"{new} was not ready on every gateway within 0.5 s"
    assert first.registry.policy(POLICY).route.stable == old
    assert first.registry.revision(POLICY, new).state is S.READY


async def test_what_was_mended_is_promoted_whatever_a_gateway_said_of_the_attempt_before(fleet):
    process = fleet.process("a", gateway_lost_s=30.0)
    await process.start()
    old, new = await registered(fleet, process, "old", "new")
    await process.carried_out(process.rollout.promote(POLICY, old, actor="ada"))
    process.models.refusals[new] = RevisionError("too little memory")
    assert (await ended(process, process.rollout.load(POLICY, new, actor="ada"))).error == "too little memory"
    process.models.refusals.clear()

    def other_gateway_says(state: RevisionState, error: str, attempt: int) -> None:
        about_new = Placement(
            gateway_id="b",
            policy=POLICY,
            revision=new,
            state=state,
            error=error,
            attempt=attempt,
            num_in_progress=0,
        )
        process.registry.beat("b", address="", generation=process.registry.generation(), placements=[about_new])

    # It has not heard of the second attempt yet.
    other_gateway_says(S.FAILED, "too little memory", 1)
    operation = await process.rollout.promote(POLICY, new, actor="ada")
    await process.until(lambda: new in process.models.loaded)
    assert process.registry.operation(operation.operation_id).state is OperationState.RUNNING
    assert process.registry.policy(POLICY).route.stable == old

    def has_ended() -> bool:
        other_gateway_says(S.READY, "", 2)
        return process.registry.operation(operation.operation_id).done

    await process.until(has_ended)
    assert process.registry.policy(POLICY).route.stable == new


async def test_a_probe_asks_every_gateway_and_says_what_each_found(fleet):
    first, second = fleet.process("a"), fleet.process("b")
    await first.start()
    await second.start()
    (revision,) = await registered(fleet, first, "old")
    await first.carried_out(first.rollout.promote(POLICY, revision, actor="ada"))
    for process in (first, second):
        process.models.calls.clear()
    operation = await first.carried_out(first.rollout.probe(POLICY, revision, actor="ada"))
    assert sorted(operation.steps) == ["gateway a: passed", "gateway b: passed"]
    assert [process.models.calls for process in (first, second)] == [[("predict", revision)]] * 2
    second.models.answers[revision] = 3.0
    operation = await ended(first, first.rollout.probe(POLICY, revision, actor="ada"))
    assert operation.error == "gateway b: probe.npz: a chunk is off by 3, expected at most 0.001 in fp32"
    assert "gateway a: passed" in operation.steps
    # It is said, and nothing is changed: robots play by it.
    (said,) = [each for each in first.registry.placements(POLICY, revision) if each.gateway_id == "b"]
    assert said.state is S.READY and "off by 3" in said.error
    assert {process.policies.routed(episode(1)).revision for process in (first, second)} == {revision}
    second.models.answers.clear()
    await first.carried_out(first.rollout.probe(POLICY, revision, actor="ada"))
    assert {each.error for each in first.registry.placements(POLICY, revision)} == {""}


async def test_only_what_is_ready_or_serves_is_probed(fleet):
    process = fleet.process("a")
    await process.start()
    (revision,) = await registered(fleet, process, "old")
    operation = await ended(process, process.rollout.probe(POLICY, revision, actor="ada"))
    assert operation.error == f"revision {revision} is registered, expected it to be ready or serving"
    with pytest.raises(ConflictError, match="has failed"):
        process.registry.advance(operation.operation_id, "and on")


async def test_a_load_is_noted_as_its_operator_s(fleet):
    process = fleet.process("a")
    await process.start()
    (revision,) = await registered(fleet, process, "old")
    await process.carried_out(process.rollout.load(POLICY, revision, actor="bob"))
    shutil.rmtree(fleet.store / "old")
    said = {entry.action: entry.actor for entry in process.registry.audit(POLICY)}
    assert said == {"register": "ada", "loading": "bob", "warming": "bob", "ready": "bob"}
