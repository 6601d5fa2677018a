"""A policy that is no longer wanted ends like any other change: episodes first, then memory, then its name."""

from __future__ import annotations

import shutil

import pytest
from prometheus_client import CollectorRegistry

from service.episodes import Episode
from service.errors import ConflictError, NotReadyError, UnknownPolicyError
from service.gateway.health import HealthFollower, policy_service
from service.gateway.limits import GatewayLimits
from service.gateway.metrics import GatewayMetrics
from service.registry import RevisionState

S = RevisionState


def episode(policy: str, number: int) -> Episode:
    return Episode(policy=policy, robot_id=f"robot-{number}", episode_id="1")


async def served(fleet, process, policy: str) -> str:
    revision = await process.registered(fleet.checkpoint(policy, variant=policy), policy=policy)
    await process.carried_out(process.rollout.promote(policy, revision, actor="ada"))
    return revision


async def health(process) -> dict[str, bool]:
    follower = HealthFollower(
        policies=process.policies,
        backend=process.models,
        limits=GatewayLimits(),
        metrics=GatewayMetrics(CollectorRegistry()),
    )
    await follower.refresh()
    return dict(follower.servicer._serving)


async def test_episodes_in_progress_end_on_a_retired_policy_and_none_begins(fleet):
    first, second = fleet.process("a"), fleet.process("b")
    await first.start()
    await second.start()
    revision = await served(fleet, first, "tabletop")
    kitchen = await served(fleet, first, "kitchen")
    for process in (first, second):
        assert process.policies.routed(episode("tabletop", 1)).revision == revision
    await first.carried_out(first.rollout.retire("tabletop", actor="ada"))
    for process in (first, second):
        assert process.policies.routed(episode("tabletop", 1)).revision == revision
        with pytest.raises(NotReadyError):
            process.policies.routed(episode("tabletop", 2))
        # The others are as they were, and nobody misses what nobody wants.
        assert process.policies.routed(episode("kitchen", 1)).revision == kitchen
        assert process.policies.names == ("kitchen",)
        assert await health(process) == {"": True, "premotor.v1.PolicyService": True, policy_service("kitchen"): True}
    assert first.registry.revision("tabletop", revision).state is S.DRAINING
    for process in (first, second):
        process.now_s[0] = 61.0
    await first.until(lambda: first.registry.revision("tabletop", revision).state is S.UNLOADED)
    for process in (first, second):
        await process.until(lambda process=process: revision not in process.models.loaded)
        with pytest.raises(NotReadyError):
            process.policies.routed(episode("tabletop", 1))
    entry = next(entry for entry in first.registry.audit("tabletop") if entry.action == "retire")
    assert (entry.actor, entry.from_revision, entry.to_revision) == ("ada", revision, "")


async def test_a_policy_whose_checkpoint_is_gone_can_be_retired_and_forgotten(fleet):
    first = fleet.process("a")
    await first.start()
    await served(fleet, first, "tabletop")
    revision = await served(fleet, first, "kitchen")
    await first.stop()
    shutil.rmtree(fleet.store / "kitchen")
    process = fleet.process("b")
    await process.start()
    await process.until(lambda: process.follower.missing().get("kitchen"))
    await process.until(lambda: len(process.models.loaded) == 1)
    assert (await health(process))[""] is False
    await process.carried_out(process.rollout.retire("kitchen", actor="ada"))
    await process.until(lambda: process.registry.revision("kitchen", revision).state is S.UNLOADED)
    assert (await health(process))[""] is True
    await process.rollout.delete_policy("kitchen", actor="ada")
    await process.until(lambda: "kitchen" not in process.follower.fleet.policies)
    with pytest.raises(UnknownPolicyError):
        process.policies.serving("kitchen")
    assert process.registry.audit("kitchen")[0].action == "delete policy"


async def test_a_name_that_was_mistyped_is_forgotten_at_once(fleet):
    process = fleet.process("a")
    await process.start()
    revision = await process.registered(fleet.checkpoint("tabeltop", variant="tabeltop"), policy="tabeltop")
    await process.rollout.delete_policy("tabeltop", actor="ada")
    assert process.registry.fleet().policies == {}
    entry = process.registry.audit("tabeltop")[0]
    assert (entry.actor, entry.action, entry.detail) == ("ada", "delete policy", {"revisions": [revision]})


async def test_what_serves_drains_or_is_being_changed_is_not_forgotten(fleet):
    process = fleet.process("a")
    await process.start()
    revision = await served(fleet, process, "tabletop")
    with pytest.raises(ConflictError, match=f"serves {revision}, expected it to be retired first"):
        await process.rollout.delete_policy("tabletop", actor="ada")
    process.policies.routed(episode("tabletop", 1))
    await process.until(lambda: process.registry.placements("tabletop", revision)[0].num_in_progress == 1)
    await process.carried_out(process.rollout.retire("tabletop", actor="ada"))
    with pytest.raises(ConflictError, match=f"revision {revision} is draining, expected it to be unloaded first"):
        await process.rollout.delete_policy("tabletop", actor="ada")
    running = process.registry.start_operation(kind="load", policy="tabletop", actor="ada", gateway_id="a")
    with pytest.raises(ConflictError, match="an operation of policy 'tabletop' runs"):
        await process.rollout.delete_policy("tabletop", actor="ada")
    process.registry.end_operation(running.operation_id)
    with pytest.raises(ConflictError, match="serves nothing"):
        await process.rollout.retire("tabletop", actor="ada")


async def test_a_retired_policy_can_be_served_again(fleet):
    process = fleet.process("a")
    await process.start()
    revision = await served(fleet, process, "tabletop")
    changes = process.registry.policy("tabletop").route.changes
    await process.carried_out(process.rollout.retire("tabletop", actor="ada"))
    await process.carried_out(process.rollout.promote("tabletop", revision, actor="ada"))
    assert process.policies.routed(episode("tabletop", 1)).revision == revision
    assert (process.registry.policy("tabletop").route.previous, changes) == ("", 1)
