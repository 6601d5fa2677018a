"""What no gateway could tell by what it answered itself, all of them together can."""

from __future__ import annotations

from functools import partial

from service.gateway.outcomes import Outcome
from service.registry import Guard
from service.rollout import FollowerSettings
from service.rollout.guard import GuardWatch

POLICY = "tabletop"
GUARD = Guard(max_error_rate=0.05, min_requests=20)


async def canary(fleet, *processes) -> tuple[str, str]:
    """The stable revision and the one beside it, which a guard judges."""
    first = processes[0]
    for process in processes:
        await process.start()
    old, new = [await first.registered(fleet.checkpoint(name, variant=name)) for name in ("old", "new")]
    await first.carried_out(first.rollout.promote(POLICY, old, actor="ada"))
    await first.carried_out(first.rollout.split(POLICY, {new: 0.05}, guard=GUARD, actor="ada"))
    for process in processes:
        await process.until(lambda process=process: tallied(process, new) == 0)
    return old, new


def tallied(process, revision: str) -> int | None:
    """The requests that the registry knows of for a guard, of one gateway."""
    for placement in process.registry.placements(POLICY, revision):
        if placement.gateway_id == process.follower.gateway_id and placement.tally is not None:
            return placement.tally.num_requests
    return None


def watch_of(process) -> GuardWatch:
    def placements(policy: str, revision: str):
        return process.follower.ask(partial(process.registry.placements, policy, revision))

    return GuardWatch(placements=placements, rollout=process.rollout, fleet=lambda: process.follower.fleet)


async def test_two_gateways_undo_a_change_of_which_each_has_seen_too_little(fleet):
    first, second = fleet.process("a"), fleet.process("b")
    old, new = await canary(fleet, first, second)
    watches = [watch_of(process) for process in (first, second)]
    for process in (first, second):
        for _ in range(12):
            process.outcomes.note(POLICY, new, Outcome.FAILED, 0.03)
        await process.until(lambda process=process: tallied(process, new) == 12)
        assert first.registry.policy(POLICY).route.revisions == (old, new)
        # Both look, and one change is undone once.
        for watch in watches:
            await watch.look()
    await first.until(lambda: first.registry.policy(POLICY).route.revisions == (old,))
    entries = [entry for entry in first.registry.audit(POLICY) if entry.action == "roll back"]
    said = f"revision {new}: error rate 1 over 24 requests, allowed 0.05"
    assert [(entry.actor, entry.detail["reason"]) for entry in entries] == [("guard", said)]


async def test_requests_cost_no_heartbeat_of_their_own(fleet):
    process = fleet.process("a", follower_settings=FollowerSettings(interval_s=0.01, beat_s=60.0))
    _, new = await canary(fleet, process)
    beats, beat = [], process.registry.beat
    process.registry.beat = lambda *arguments, **said: beats.append(said) or beat(*arguments, **said)
    looks, look = [], process.registry.generation
    process.registry.generation = lambda: looks.append(1) or look()
    process.outcomes.note(POLICY, new, Outcome.ANSWERED, 0.03)
    await process.until(lambda: len(looks) > 10)
    assert beats == []
