"""One block of a fleet: what a way gave its robots in a few seconds, as numbers, and some of its chunks.

Owns when a block counts: it is repeated once where the robots' own process could not keep its times, and counts for
nothing where it then still could not. Does not own which blocks there are.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from premotor.client.fleet.compare.ways import ServedWay
from premotor.client.fleet.figures import fleet_figures, robot_figures
from premotor.client.fleet.robot import RobotLog
from premotor.client.fleet.settings import FleetSettings

# Each is asked of the bare forward once for all rounds and ways.
_SAMPLED_CHUNKS = 16


class SampledChunk(NamedTuple):
    robot: int
    number: int
    actions: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """`numbers` are figures by their names, NaN where there is none; of a block that is not valid, all of them."""

    is_valid: bool
    was_repeated: bool
    num_stale: int
    # By kind, as often as each came.
    failures: dict[str, int]
    numbers: dict[str, float]
    sample: tuple[SampledChunk, ...]


async def run_block(served: ServedWay, settings: FleetSettings) -> Block:
    """Raises AskError when the robots' process ended, PolicyError for questions that nobody could answer."""
    block = await _run_once(served, settings, was_repeated=False)
    return block if block.is_valid else await _run_once(served, settings, was_repeated=True)


async def _run_once(served: ServedWay, settings: FleetSettings, *, was_repeated: bool) -> Block:
    logs, cpu_s = await served.ask_openly(settings)
    report = await asyncio.to_thread(_report, settings, logs)
    is_valid = report["valid"]
    numbers = _numbers(report["fleet"], cpu_s)
    return Block(
        is_valid=is_valid,
        was_repeated=was_repeated,
        num_stale=report["asserted"]["num_stale_actions"],
        failures=report["fleet"]["failures"] if is_valid else {},
        numbers=numbers if is_valid else dict.fromkeys(numbers, float("nan")),
        sample=_sample(logs, settings.seed),
    )


def _report(settings: FleetSettings, logs: list[RobotLog]) -> dict[str, Any]:
    return fleet_figures(settings, [robot_figures(settings, log) for log in logs], ())


def _numbers(fleet: dict[str, Any], cpu_s: float | None) -> dict[str, float]:
    latency, num_chunks = fleet["latency_ms"] or {}, fleet["num_chunks"]
    found = {
        "offered_per_s": fleet["offered_per_s"],
        "chunks_per_s": fleet["chunks_per_s"],
        "answered_share": fleet["chunks_per_s"] / fleet["offered_per_s"] if fleet["offered_per_s"] else None,
        "supplied_share": fleet["supplied_share"],
        "supplied_share_looking_again": fleet["supplied_share_looking_again"],
        "robots_supplied": float(fleet["robots_supplied"]),
        "deadline_miss_share": fleet["deadline_miss_share"],
        "failures": float(sum(fleet["failures"].values())),
        "latency_p50_ms": latency.get("p50"),
        "latency_p99_ms": latency.get("p99"),
        "server_cpu_us_per_chunk": 1e6 * cpu_s / num_chunks if cpu_s is not None and num_chunks else None,
    }
    return {name: float("nan") if value is None else value for name, value in found.items()}


def _sample(logs: list[RobotLog], seed: int) -> tuple[SampledChunk, ...]:
    answered = [
        SampledChunk(log.robot, number, ask.answer.actions)
        for log in logs
        for number, ask in enumerate(log.asks)
        if ask.answer is not None
    ]
    return tuple(random.Random(seed).sample(answered, min(_SAMPLED_CHUNKS, len(answered))))
