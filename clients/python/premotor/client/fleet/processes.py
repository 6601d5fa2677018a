"""The processes that robots live in, from the outside: started, told what to do, ended.

Owns them. What goes between is multiprocessing's own; nothing of it comes from a wire or a disk.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any

from premotor.client.fleet.endpoint import AskError
from premotor.client.fleet.robot import RobotLog
from premotor.client.fleet.settings import FleetSettings
from premotor.client.fleet.worker import IN_TURN_TIMEOUT_S, InTurn, OpenLoop, Order, Ready, WorkerTask, work

# From an order to its first question: every process has read it by then.
START_DELAY_S = 0.3
# Interpreter, imports, frames; and LeRobot's own imports where its driver is started.
_READY_TIMEOUT_S = 150.0
_SLACK_S = 30.0
_END_TIMEOUT_S = 10.0


class FleetProcesses:
    """The processes of one endpoint's robots; entering the `async with` block returns once all have connected."""

    def __init__(self, settings: FleetSettings, addresses: tuple[str, ...]) -> None:
        self._settings = settings
        self._addresses = addresses
        self._processes: list[tuple[SpawnProcess, Connection]] = []
        # Until a question is in the hands of the driver that asks in a robot's place; None where there is none.
        self.driver_pipe_s: float | None = None

    async def __aenter__(self) -> FleetProcesses:
        """Raises what connecting did: AskError, MissingPeerError."""
        settings = self._settings
        count = min(settings.processes, settings.num_robots)
        # Spawned, not forked: gRPC's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        try:
            for number in range(count):
                ours, theirs = context.Pipe()
                task = WorkerTask(
                    settings=settings,
                    robots=tuple(range(number, settings.num_robots, count)),
                    addresses=self._addresses,
                )
                process = context.Process(target=work, args=(task, theirs), name=f"fleet-{number}", daemon=False)
                await asyncio.to_thread(process.start)
                theirs.close()
                self._processes.append((process, ours))
            timeout_s = _READY_TIMEOUT_S + settings.open_timeout_s
            ready: list[Ready] = await asyncio.gather(*(_receive(ours, timeout_s) for _, ours in self._processes))
            self.driver_pipe_s = max(
                (each.driver_pipe_s for each in ready if each.driver_pipe_s is not None), default=None
            )
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._end()

    async def run(self, order: Order) -> list[RobotLog]:
        """What every robot noted, by number. Raises what a robot raised, AskError when a process ended."""
        if isinstance(order, OpenLoop):
            timeout_s = START_DELAY_S + order.settings.duration_s + 3 * order.settings.answer_timeout_s + _SLACK_S
            asked = self._processes
        else:
            timeout_s = len(order.numbers) * IN_TURN_TIMEOUT_S + _SLACK_S
            asked = self._processes[:1]
        for _, connection in asked:
            connection.send(order)
        logs = await asyncio.gather(*(_receive(connection, timeout_s) for _, connection in asked))
        return sorted((log for found in logs for log in found), key=lambda log: log.robot)

    async def run_in_turn(self, numbers: tuple[int, ...]) -> RobotLog:
        """What the first robot noted."""
        (log,) = await self.run(InTurn(numbers=numbers))
        return log

    async def _end(self) -> None:
        for _, connection in self._processes:
            connection.close()
        for process, _ in self._processes:
            await asyncio.to_thread(process.join, _END_TIMEOUT_S)
            if process.is_alive():
                process.kill()
                await asyncio.to_thread(process.join, _END_TIMEOUT_S)
        self._processes.clear()


async def _receive(connection: Connection, timeout_s: float) -> Any:
    def wait() -> Any:
        if not connection.poll(timeout_s):
            raise AskError("NotReady", f"the process of the robots said nothing for {timeout_s:.0f} s")
        return connection.recv()

    try:
        told = await asyncio.to_thread(wait)
    except EOFError:
        raise AskError("ProcessDied", "the process of the robots ended without a word") from None
    if isinstance(told, Exception):
        raise told
    return told
