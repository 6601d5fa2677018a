"""The line in front of a model."""

from __future__ import annotations

import asyncio

import pytest

from service.backend import BackendDeadlineError, BackendUnavailableError
from service.dispatch import DispatchLine

FAR_S = 60.0


def deadline_s(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def settle() -> None:
    """Lets every task that can run come to its next wait."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_no_more_than_the_capacity_are_inside() -> None:
    line = DispatchLine(2)
    entries = [asyncio.create_task(line.enter(deadline_s(FAR_S))) for _ in range(5)]
    await settle()
    assert [entry.done() for entry in entries] == [True, True, False, False, False]
    line.leave()
    await settle()
    assert sum(entry.done() for entry in entries) == 3
    line.dismiss(BackendUnavailableError("the test is over"))
    await asyncio.gather(*entries, return_exceptions=True)


async def test_those_who_wait_go_in_earliest_deadline_first() -> None:
    line, entered = DispatchLine(1), []

    async def go(name: str, seconds: float) -> None:
        await line.enter(deadline_s(seconds))
        entered.append(name)
        await settle()
        line.leave()

    await asyncio.gather(go("first", 30), go("late", 50), go("soon", 20), go("later", 55), go("sooner", 10))
    assert entered == ["first", "sooner", "soon", "late", "later"]


async def test_a_deadline_that_passes_while_waiting_ends_the_wait() -> None:
    line = DispatchLine(1)
    await line.enter(deadline_s(FAR_S))
    with pytest.raises(BackendDeadlineError, match="waited for the model"):
        await line.enter(deadline_s(0.02))
    assert line.num_waiting == 0
    line.leave()
    await asyncio.wait_for(line.enter(deadline_s(FAR_S)), timeout=1)


async def test_a_deadline_that_has_passed_is_turned_away_even_when_there_is_room() -> None:
    with pytest.raises(BackendDeadlineError, match="before the request was sent"):
        await DispatchLine(1).enter(deadline_s(-0.001))


async def test_a_cancelled_wait_keeps_no_place() -> None:
    line = DispatchLine(1)
    await line.enter(deadline_s(FAR_S))
    gone, next_one = (asyncio.create_task(line.enter(deadline_s(seconds))) for seconds in (10, 20))
    await settle()
    gone.cancel()
    line.leave()
    await asyncio.wait_for(next_one, timeout=1)
    assert gone.cancelled()


async def test_a_place_given_to_somebody_who_is_cancelled_goes_to_the_next() -> None:
    line = DispatchLine(1)
    await line.enter(deadline_s(FAR_S))
    chosen, next_one = (asyncio.create_task(line.enter(deadline_s(seconds))) for seconds in (10, 20))
    await settle()
    line.leave()
    # The place is already granted, the task has not run since.
    chosen.cancel()
    await asyncio.wait_for(next_one, timeout=1)
    assert chosen.cancelled()


async def test_dismiss_ends_every_wait_with_its_error() -> None:
    line = DispatchLine(1)
    await line.enter(deadline_s(FAR_S))
    waits = [asyncio.create_task(line.enter(deadline_s(FAR_S))) for _ in range(3)]
    await settle()
    line.dismiss(BackendUnavailableError("restarting"))
    assert [str(end) for end in await asyncio.gather(*waits, return_exceptions=True)] == ["restarting"] * 3
    line.leave()
    await asyncio.wait_for(line.enter(deadline_s(FAR_S)), timeout=1)


async def test_a_capacity_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity is 0"):
        DispatchLine(0)
