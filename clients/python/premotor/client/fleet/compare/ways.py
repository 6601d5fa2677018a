"""The ways to the same model, all running at once and asked in turns.

Owns starting them and the ones that are missing. Does not own rounds (rounds.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from premotor.client.description import PolicyDescription
from premotor.client.fleet.compare.servers import RunningServer, run_command, running
from premotor.client.fleet.compare.settings import POLICY, SERVED_WAYS, CompareSettings
from premotor.client.fleet.endpoint import AskError, MissingPeerError
from premotor.client.fleet.machine import tree_cpu_s
from premotor.client.fleet.pipe import PipeProgram
from premotor.client.fleet.processes import FleetProcesses
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


class BareWay:
    """The forward in a process of its own, without a server."""

    def __init__(self, program: PipeProgram, questions: Questions) -> None:
        self._program = program
        self._questions = questions

    async def ask_in_turn(self, numbers: tuple[int, ...]) -> Turn:
        turn = Turn()
        before_s = tree_cpu_s(self._program.pid)
        for number in numbers:
            question = self._questions.question(0, number)
            header = {
                "verb": "ask",
                "view": question.view,
                "state": [float(value) for value in question.state],
                "instruction": question.instruction,
                "seed": question.seed,
            }
            told, content = await self._program.call(header, b"", timeout_s=IN_TURN_TIMEOUT_S)
            turn.latencies_s.append(told["seconds"])
            turn.chunks.append(np.frombuffer(content, "<f4").reshape(told["shape"]))
        turn.cpu_s = _spent_s(before_s, tree_cpu_s(self._program.pid))
        return turn


class ServedWay:
    """A server and the processes that its robots live in."""

    def __init__(self, server: RunningServer, robots: FleetProcesses, settings: FleetSettings) -> None:
        self._server = server
        self._robots = robots
        self.settings = settings

    async def ask_in_turn(self, numbers: tuple[int, ...]) -> Turn:
        """Raises AskError when one failed: what is compared must have answered."""
        before_s = tree_cpu_s(self._server.pid)
        log = await self._robots.run_in_turn(numbers)
        turn = Turn(cpu_s=_spent_s(before_s, tree_cpu_s(self._server.pid)))
        for ask in log.asks:
            if ask.answer is None or ask.latency_s is None:
                raise AskError(ask.failure, f"{self.settings.endpoint} did not answer: {log.messages}")
            turn.latencies_s.append(ask.latency_s)
            turn.chunks.append(ask.answer.actions)
        return turn

    async def ask_openly(self, settings: FleetSettings, start_delay_s: float) -> tuple[list[RobotLog], float | None]:
        """One block of a fleet, and the server's CPU seconds for it."""
        before_s = tree_cpu_s(self._server.pid)
        start_s = time.monotonic() + start_delay_s
        logs = await self._robots.run(OpenLoop(settings=settings, start_s=start_s))
        return logs, _spent_s(before_s, tree_cpu_s(self._server.pid))


@dataclass(frozen=True, kw_only=True, eq=False)
class Ways:
    """What runs, what does not and why, and what is asked."""

    description: PolicyDescription
    bare: BareWay
    served: dict[EndpointKind, ServedWay]
    missing: dict[str, str]


@contextlib.asynccontextmanager
async def running_ways(settings: CompareSettings) -> AsyncIterator[Ways]:
    """Raises MissingPeerError when our own service or the bare forward does not start; peers are listed as missing."""
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
        program = PipeProgram(_frames_aside(settings, "bare", checkpoint, asked), remedy="run `make setup`")
        stack.push_async_callback(program.close)
        questions = make_questions(asked)
        await program.start(questions.views)
        served: dict[EndpointKind, ServedWay] = {}
        missing: dict[str, str] = {}
        for way in SERVED_WAYS:
            if way not in settings.ways:
                continue
            try:
                server = service
                if not way.startswith("premotor"):
                    command = _frames_aside(settings, way, checkpoint, asked)
                    server = await stack.enter_async_context(
                        running(command, source=settings.source, cpus=settings.server_cpus)
                    )
                way_settings = _way_settings(settings, asked, way, server.ready)
                robots = await stack.enter_async_context(FleetProcesses(way_settings, way_settings.addresses))
            except (MissingPeerError, AskError) as error:
                missing[way] = str(error)
            else:
                served[way] = ServedWay(server, robots, way_settings)
        yield Ways(description=description, bare=BareWay(program, questions), served=served, missing=missing)


def _asked(settings: CompareSettings, description: PolicyDescription) -> FleetSettings:
    """What every way is asked: the same questions, without history and with one seed, as every wire can carry them."""
    embodiment = description.embodiment(settings.embodiment)
    if settings.cameras is not None:
        embodiment = with_frames(embodiment, *settings.cameras)
    return FleetSettings(
        endpoint="premotor",
        addresses=("",),
        description=description,
        embodiment=embodiment,
        num_robots=settings.most_robots,
        rate_hz=settings.rate_hz,
        duration_s=settings.block_s + 1.0,
        settle_s=1.0,
        control_rate_hz=settings.control_rate_hz or description.action_horizon * settings.rate_hz / 2,
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


def _frames_aside(settings: CompareSettings, way: Any, checkpoint: Path, asked: FleetSettings) -> tuple[str, ...]:
    camera = asked.embodiment.cameras[0]
    return settings.peer_command(way, checkpoint, camera.height, camera.width)


def _describe(address: str) -> PolicyDescription:
    with PolicyClient(address) as client:
        return client.get_policy(POLICY)


def _spent_s(before_s: float | None, after_s: float | None) -> float | None:
    return None if before_s is None or after_s is None else after_s - before_s
