"""A guarded promotion keeps the revision before it for as long as it may be undone, and no longer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from service.registry import Guard, RevisionState
from service.rollout.operations import Promotion

S = RevisionState
POLICY = "tabletop"
GUARDED = Promotion(guard=Guard(max_error_rate=0.1, watch_s=600.0))


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.ahead_s)


async def promoted(fleet, process, name: str, how: Promotion) -> str:
    revision = await process.registered(fleet.checkpoint(name, variant=name))
    await process.carried_out(process.rollout.promote(POLICY, revision, how, actor="ada"))
    return revision


def states(process) -> dict[str, RevisionState]:
    return {name: record.state for name, record in process.registry.policy(POLICY).revisions.items()}


async def test_the_one_before_stays_while_the_guard_watches_and_is_then_unloaded(fleet):
    clock = Clock()
    process = fleet.process("a", now=clock.now)
    await process.start()
    old = await promoted(fleet, process, "old", GUARDED)
    new = await promoted(fleet, process, "new", GUARDED)
    await process.look_at_drains()
    assert states(process) == {old: S.DRAINING, new: S.SERVING}
    assert old in process.models.loaded
    clock.ahead_s = 601.0
    await process.until(lambda: old not in process.models.loaded)
    assert states(process) == {old: S.UNLOADED, new: S.SERVING}


async def test_a_row_of_guarded_promotions_keeps_one_copy_beside_the_one_that_serves(fleet):
    process = fleet.process("a")
    await process.start()
    names = [await promoted(fleet, process, f"number-{number}", GUARDED) for number in range(4)]
    await process.until(lambda: process.models.loaded == {*names[-2:]})


async def test_what_was_kept_by_hand_goes_once_a_roll_back_would_go_elsewhere(fleet):
    process = fleet.process("a")
    await process.start()
    kept = Promotion(keep_previous=True)
    first = await promoted(fleet, process, "first", kept)
    second = await promoted(fleet, process, "second", kept)
    await process.until(lambda: states(process)[first] is S.READY)
    third = await promoted(fleet, process, "third", kept)
    await process.until(lambda: states(process) == {first: S.UNLOADED, second: S.READY, third: S.SERVING})


async def test_a_roll_back_within_the_watch_loads_nothing(fleet):
    process = fleet.process("a")
    await process.start()
    old = await promoted(fleet, process, "old", GUARDED)
    new = await promoted(fleet, process, "new", GUARDED)
    await process.look_at_drains()
    process.models.calls.clear()
    operation = await process.rollout.roll_back(POLICY, actor="guard", reason="it shakes")
    assert (await process.rollout.ended(operation.operation_id)).error == ""
    assert ("load", old) not in process.models.calls
    # The guard undoes nothing twice: what was rolled back is not kept.
    await process.until(lambda: states(process) == {old: S.SERVING, new: S.UNLOADED})
