"""The ways to the same model, all running at once and asked in turns.

Owns starting them, asking them, and which of them are missing or have failed. Does not own rounds (rounds.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from premotor.client.description import PolicyDescription
from premotor.client.errors import FixRequestError, PolicyError
from premotor.client.fleet.compare.rest import Rest
from premotor.client.fleet.compare.servers import RunningServer, run_command, running
from premotor.client.fleet.compare.settings import POLICY, SERVED_WAYS, CompareSettings, Way
from premotor.client.fleet.endpoint import AskError, MissingPeerError
from premotor.client.fleet.machine import pinned, tree_cpu_s
from premotor.client.fleet.pipe import PipeProgram
from premotor.client.fleet.processes import START_DELAY_S, FleetProcesses
from premotor.client.fleet.questions import Questions, with_frames
from premotor.client.fleet.robot import RobotLog
from premotor.client.fleet.settings import EndpointKind, FleetSettings
from premotor.client.fleet.worker import IN_TURN_TIMEOUT_S, OpenLoop, make_questions
from premotor.client.sync_client import PolicyClient


@dataclass(kw_only=True, eq=False)
class Turn:
    """Some questions, one after the other: seconds each, the chunks, and the server's CPU seconds for all of them."""

    latencies_s: list[float] = field(default_factory=list)
    chunks: list[np.ndarray] = field(default_factory=list)
    cpu_s: float | None = None

    def add(self, further: Turn) -> None:
        """Those of another turn of the same way."""
        self.latencies_s += further.latencies_s
        self.chunks += further.chunks
        self.cpu_s = None if self.cpu_s is None or further.cpu_s is None else self.cpu_s + further.cpu_s


class BareWay:
    """The forward in a process of its own, without a server."""

    def __init__(self, program: PipeProgram, questions: Questions) -> None:
        self._program = program
        self._questions = questions
        self._chunks: dict[tuple[int, int], np.ndarray] = {}

    async def ask_in_turn(self, numbers: Sequence[int]) -> Turn:
        turn = Turn()
        before_s = tree_cpu_s(self._program.pid)
        for number in numbers:
            seconds, chunk = await self._ask(0, number)
            turn.latencies_s.append(seconds)
            turn.chunks.append(chunk)
        turn.cpu_s = _spent_s(before_s, tree_cpu_s(self._program.pid))
        return turn

    async def chunk(self, robot: int, number: int) -> np.ndarray:
        """What the model says to a question of a fleet's robot: one forward for it alone, kept for the next round."""
        if (robot, number) not in self._chunks:
            _, self._chunks[robot, number] = await self._ask(robot, number)
        return self._chunks[robot, number]

    async def _ask(self, robot: int, number: int) -> tuple[float, np.ndarray]:
        question = self._questions.question(robot, number)
        header = {
            "verb": "ask",
            "view": question.view,
            "state": [float(value) for value in question.state],
            "instruction": question.instruction,
            "seed": question.seed,
        }
        told, content = await self._program.call(header, b"", timeout_s=IN_TURN_TIMEOUT_S)
        return told["seconds"], np.frombuffer(content, "<f4").reshape(told["shape"])


class ServedWay:
    """A server and the processes that its robots live in. A block of a fleet waits until all servers are at rest."""

    def __init__(self, server: RunningServer, robots: FleetProcesses, settings: FleetSettings, rest: Rest) -> None:
        self._server = server
        self._robots = robots
        self._rest = rest
        self.settings = settings

    @property
    def end(self) -> str:
        """How its server ended; empty while it runs."""
        return self._server.end

    @property
    def driver_pipe_s(self) -> float | None:
        """Until a question is with the driver that asks in a robot's place; None where robots ask themselves."""
        return self._robots.driver_pipe_s

    async def ask_in_turn(self, numbers: Sequence[int]) -> Turn:
        """Raises AskError when one failed: what is compared must have answered."""
        before_s = tree_cpu_s(self._server.pid)
        log = await self._robots.run_in_turn(tuple(numbers))
        turn = Turn(cpu_s=_spent_s(before_s, tree_cpu_s(self._server.pid)))
        for ask in log.asks:
            if ask.answer is None or ask.latency_s is None:
                raise AskError(ask.failure, f"{self.settings.endpoint} did not answer: {log.messages}")
            turn.latencies_s.append(ask.latency_s)
            turn.chunks.append(ask.answer.actions)
        return turn

    async def ask_openly(self, settings: FleetSettings) -> tuple[list[RobotLog], float | None]:
        """One block of a fleet, and the server's CPU seconds in the window whose chunks are counted."""
        await self._rest()
        start_s = time.monotonic() + START_DELAY_S
        window_s = (start_s + settings.settle_s, start_s + settings.duration_s)
        spending = asyncio.create_task(_spent_between(self._server.pid, *window_s))
        try:
            logs = await self._robots.run(OpenLoop(settings=settings, start_s=start_s))
            return logs, await spending
        finally:
            spending.cancel()
            await asyncio.gather(spending, return_exceptions=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ways:
    """What runs, what does not and why, and what is asked: `asked` is what one question holds.

    `served` loses what fails on the way, which `failed` then has the reason of: the others go on.
    """

    description: PolicyDescription
    asked: dict[str, Any]
    bare: BareWay
    served: dict[EndpointKind, ServedWay]
    missing: dict[str, str]
    rest: Rest = field(default_factory=Rest)
    failed: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def failing_alone(self, way: EndpointKind) -> Iterator[None]:
        """What goes wrong inside is this way's failure; so is a server that has ended."""
        try:
            yield
            if end := self.served[way].end:
                raise AskError("ServerEnded", end)
        except (AskError, PolicyError) as error:
            del self.served[way]
            self.failed[way] = f"{type(error).__name__}: {error}" if isinstance(error, PolicyError) else str(error)
            print(f"failed: {way}: {self.failed[way]}", file=sys.stderr)


@contextlib.asynccontextmanager
async def running_ways(settings: CompareSettings) -> AsyncIterator[Ways]:
    """Peers that do not start are listed as missing.

    Raises MissingPeerError when our own service or the bare forward does not start, FixRequestError for a body or
    frames that the policy has not.
    """
    rest = Rest()
    async with contextlib.AsyncExitStack() as stack:
        checkpoint = settings.checkpoint.resolve()
        if settings.size:
            made = Path(stack.enter_context(tempfile.TemporaryDirectory())) / settings.size
            await run_command(settings.untrained_command(made), source=settings.source)
            checkpoint = made
        service = await stack.enter_async_context(
            running(settings.service_command(checkpoint), source=settings.source, cpus=settings.server_cpus)
        )
        description = await asyncio.to_thread(_describe, service.ready["grpc"])
        asked = _asked(settings, description)
        program = PipeProgram(_peer_command(settings, "bare", checkpoint), remedy="run `make setup`")
        stack.push_async_callback(program.close)
        questions = make_questions(asked)
        # Where the servers are: it is what they are measured by.
        with pinned(settings.server_cpus):
            await program.start(questions.views)
        rest.pids |= {service.pid, program.pid}
        served: dict[EndpointKind, ServedWay] = {}
        missing: dict[str, str] = {}
        for way in SERVED_WAYS:
            if way not in settings.ways:
                continue
            try:
                server = service
                if not way.startswith("premotor"):
                    command = _peer_command(settings, way, checkpoint)
                    server = await stack.enter_async_context(
                        running(command, source=settings.source, cpus=settings.server_cpus)
                    )
                    rest.pids.add(server.pid)
                way_settings = _way_settings(settings, asked, way, server.ready)
                robots = await stack.enter_async_context(FleetProcesses(way_settings, way_settings.addresses))
            except (MissingPeerError, AskError) as error:
                missing[way] = str(error)
            else:
                served[way] = ServedWay(server, robots, way_settings, rest)
        yield Ways(
            description=description,
            asked=questions.describe(),
            bare=BareWay(program, questions),
            served=served,
            missing=missing,
            rest=rest,
        )


def _asked(settings: CompareSettings, description: PolicyDescription) -> FleetSettings:
    """What every way is asked: the same questions, without history and with one seed, as every wire can carry them.

    How often is only known once the bare forward has been timed (load.py). Raises FixRequestError.
    """
    embodiment = description.embodiment(settings.embodiment)
    if settings.cameras is not None:
        try:
            embodiment = with_frames(embodiment, *settings.cameras)
        except ValueError as error:
            raise FixRequestError(str(error), field="cameras") from error
    return FleetSettings(
        endpoint="premotor",
        addresses=("",),
        description=description,
        embodiment=embodiment,
        num_robots=settings.most_robots,
        with_history=False,
        policy_seed=0,
        pin=settings.client_cpus,
        seed=settings.seed,
        lerobot_python=settings.lerobot_python,
    )


def _way_settings(
    settings: CompareSettings, asked: FleetSettings, way: EndpointKind, ready: dict[str, Any]
) -> FleetSettings:
    if way.startswith("premotor"):
        return replace(asked, endpoint=way, addresses=(ready["grpc"],), image_encoding=settings.image_encoding)
    return replace(asked, endpoint=way, addresses=tuple(ready["addresses"]), triton_model=ready.get("model", ""))


def _peer_command(settings: CompareSettings, way: Way, checkpoint: Path) -> tuple[str, ...]:
    _, height, width = settings.cameras or (0, 0, 0)
    return settings.peer_command(way, checkpoint, height, width)


def _describe(address: str) -> PolicyDescription:
    with PolicyClient(address) as client:
        return client.get_policy(POLICY)


async def _spent_between(pid: int, first_s: float, end_s: float) -> float | None:
    """CPU seconds of a tree of processes between two moments of the monotonic clock."""
    await asyncio.sleep(first_s - time.monotonic())
    before_s = await asyncio.to_thread(tree_cpu_s, pid)
    await asyncio.sleep(end_s - time.monotonic())
    return _spent_s(before_s, await asyncio.to_thread(tree_cpu_s, pid))


def _spent_s(before_s: float | None, after_s: float | None) -> float | None:
    return None if before_s is None or after_s is None else after_s - before_s
