"""A process that is told to stop does so, also while its database is away and an operation runs."""

from __future__ import annotations

import asyncio

import pytest

from service.registry import OperationState
from service.rollout import running

POLICY = "tabletop"


async def test_an_operation_whose_end_cannot_be_noted_keeps_no_process_and_is_ended_by_another(fleet, monkeypatch):
    monkeypatch.setattr(running, "_STOP_S", 0.1)
    process = fleet.process("a")
    await process.start()
    revision = await process.registered(fleet.checkpoint("new", variant="new"))
    process.models.holds[revision] = asyncio.Event()
    operation = await process.rollout.promote(POLICY, revision, actor="ada")
    await process.until(lambda: ("load", revision) in process.models.calls)
    process.lose_registry("operation", "advance", "end_operation", "leave")
    async with asyncio.timeout(5):
        await process.stop()
    again = fleet.process("b", gateway_lost_s=0.3)
    assert again.registry.operation(operation.operation_id).state is OperationState.RUNNING
    await again.start()
    await again.until(lambda: again.registry.operation(operation.operation_id).done)
    assert again.registry.operation(operation.operation_id).error == "the process that carried it out ended"


@pytest.mark.parametrize("num_cancelled", [1, 2])
async def test_what_an_operation_undoes_as_it_is_cancelled_has_its_time_and_no_more(fleet, monkeypatch, num_cancelled):
    monkeypatch.setattr(running, "_STOP_S", 0.1)
    process = fleet.process("a")
    await process.start()
    cancelled = []

    async def work(_operation) -> None:
        for _ in range(num_cancelled):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(len(cancelled))
        raise asyncio.CancelledError

    operation = await process.rollout._running.begin("load", POLICY, "ada", work)
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await process.rollout.stop()
    assert len(cancelled) == num_cancelled
    ended = process.registry.operation(operation.operation_id)
    assert (ended.state, ended.error) == (OperationState.FAILED, "the process that carried it out is stopping")
