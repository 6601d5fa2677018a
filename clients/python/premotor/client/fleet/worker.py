"""The process that robots live in: one event loop, all its robots' connections, nothing else.

Owns opening, running and closing the robots of one process, and the orders it takes. Does not own starting it
(processes.py), nor the proxy and the faults, which are kept out of it so that they cannot make robots late.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeAlias

from premotor.client.fleet.endpoint import Endpoint
from premotor.client.fleet.endpoints.lerobot import LerobotEndpoint, empty_pipe_s, lerobot_driver
from premotor.client.fleet.endpoints.openpi import OpenpiEndpoint
from premotor.client.fleet.endpoints.premotor import PremotorTarget, StreamEndpoint, UnaryEndpoint
from premotor.client.fleet.endpoints.triton import TritonEndpoint
from premotor.client.fleet.machine import pin
from premotor.client.fleet.pipe import PipeProgram
from premotor.client.fleet.questions import Questions
from premotor.client.fleet.robot import Robot, RobotLog
from premotor.client.fleet.schedule import question_times_s
from premotor.client.fleet.settings import FleetSettings
from premotor.client.identity import token_metadata

_MOST_OPENING = 8
# Of a question asked alone, which measures the answer however long it takes.
IN_TURN_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """The robots of one process. `addresses` are those to connect to, which may be a proxy's."""

    settings: FleetSettings
    robots: tuple[int, ...]
    addresses: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Ready:
    """All robots are connected. `driver_pipe_s` is what the way to the driver costs that asks in their place."""

    driver_pipe_s: float | None


@dataclass(frozen=True, kw_only=True)
class OpenLoop:
    """Ask as `settings` say, its first `num_robots` robots, from `start_s` on the monotonic clock, which all processes
    of a machine share."""

    settings: FleetSettings
    start_s: float


@dataclass(frozen=True, kw_only=True)
class InTurn:
    """One robot, one question after the other: these numbers."""

    numbers: tuple[int, ...]


Order: TypeAlias = OpenLoop | InTurn


def work(task: WorkerTask, connection: Connection) -> None:
    """The whole life of a process: connects, says so, obeys orders until the other end closes.

    What it sends is Ready, then for each order a list of RobotLog; or the exception that ended it.
    """
    try:
        pin(task.settings.pin)
        asyncio.run(_obey(task, connection))
    except EOFError:
        return
    except Exception as error:  # the edge of the process: whatever it was is for the one who started it
        connection.send(error)


async def _obey(task: WorkerTask, connection: Connection) -> None:
    questions = make_questions(task.settings)
    async with _endpoints(task.settings, questions, task.robots, task.addresses) as (opened, driver):
        driver_pipe_s = None if driver is None else await empty_pipe_s(driver, questions.question(0, 0))
        connection.send(Ready(driver_pipe_s=driver_pipe_s))
        while True:
            order = await asyncio.to_thread(connection.recv)
            # A collection in the middle of a run would make robots late.
            gc.collect()
            gc.disable()
            if isinstance(order, OpenLoop):
                logs = await asyncio.gather(
                    *(
                        _run_open_loop(order, questions, number, opened[number])
                        for number in task.robots
                        if number < order.settings.num_robots
                    )
                )
            else:
                number = task.robots[0]
                logs = [await _run_in_turn(questions, number, opened[number], order)]
            gc.enable()
            connection.send(list(logs))


def make_questions(settings: FleetSettings) -> Questions:
    return Questions(
        settings.description,
        settings.embodiment,
        image_encoding=settings.image_encoding,
        with_history=settings.with_history and settings.endpoint in ("premotor", "premotor-unary"),
        seed=settings.seed,
        policy_seed=settings.policy_seed,
    )


@contextlib.asynccontextmanager
async def _endpoints(
    settings: FleetSettings, questions: Questions, robots: Sequence[int], addresses: Sequence[str]
) -> AsyncIterator[tuple[dict[int, Endpoint], PipeProgram | None]]:
    """Open connections by robot, and the driver behind them where there is one; closed at the end."""
    async with contextlib.AsyncExitStack() as stack:
        driver = None
        if settings.endpoint == "lerobot":
            driver = lerobot_driver(settings.lerobot_python)
            stack.push_async_callback(driver.close)
            await driver.start(questions.views)
        made = {robot: _make(settings, robot, addresses[robot % len(addresses)], driver) for robot in robots}
        for endpoint in made.values():
            stack.push_async_callback(endpoint.close)
        limit = asyncio.Semaphore(_MOST_OPENING)

        async def open_one(endpoint: Endpoint) -> None:
            async with limit:
                await endpoint.open(timeout_s=settings.open_timeout_s)

        await asyncio.gather(*(open_one(endpoint) for endpoint in made.values()))
        yield made, driver


async def _run_open_loop(order: OpenLoop, questions: Questions, number: int, endpoint: Endpoint) -> RobotLog:
    settings = order.settings
    times_s = question_times_s(
        robot=number,
        num_robots=settings.num_robots,
        rate_hz=settings.rate_hz,
        duration_s=settings.duration_s,
        jitter=settings.jitter,
        seed=settings.seed,
    )
    robot = Robot(number, endpoint, questions, start_s=order.start_s, timeout_s=settings.answer_timeout_s)
    return await robot.run(times_s)


async def _run_in_turn(questions: Questions, number: int, endpoint: Endpoint, order: InTurn) -> RobotLog:
    robot = Robot(number, endpoint, questions, start_s=time.monotonic(), timeout_s=IN_TURN_TIMEOUT_S)
    return await robot.run_in_turn(order.numbers)


def _make(settings: FleetSettings, robot: int, address: str, driver: PipeProgram | None) -> Endpoint:
    if settings.endpoint == "openpi":
        return OpenpiEndpoint(address, token=settings.token, tls=settings.tls, generator=random.Random(robot))
    if settings.endpoint == "lerobot":
        assert driver is not None
        return LerobotEndpoint(driver, address, robot=robot)
    description, embodiment = settings.description, settings.embodiment
    if settings.endpoint == "triton":
        names = [each.name for each in description.embodiments]
        return TritonEndpoint(
            address,
            model=settings.triton_model,
            embodiment=embodiment,
            embodiment_index=names.index(embodiment.name),
            num_inference_steps=settings.num_inference_steps or description.num_inference_steps,
        )
    target = PremotorTarget(
        address=address,
        description=description,
        embodiment=embodiment.name,
        robot_id=f"fleet-{robot}",
        image_encoding=settings.image_encoding,
        num_inference_steps=settings.num_inference_steps,
        metadata=token_metadata(
            settings.token,
            address,
            tls=settings.tls,
            allow_token_without_tls=settings.allow_token_without_tls,
        ),
        tls=settings.tls,
    )
    return StreamEndpoint(target) if settings.endpoint == "premotor" else UnaryEndpoint(target)
