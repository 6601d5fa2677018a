"""Interleaved rounds over the ways, and what they add up to.

Owns the three phases: one robot and its latency, a fleet and its supply, and how many robots a way can supply. In each
round every way has one block, in another order; ratios are taken inside rounds.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from premotor.client.fleet.compare.ratios import median_interval, round_ratios
from premotor.client.fleet.compare.settings import CompareSettings
from premotor.client.fleet.compare.ways import ServedWay, Turn, Ways, running_ways
from premotor.client.fleet.figures import SUPPLIED_GOAL, fleet_figures, robot_figures
from premotor.client.fleet.machine import describe_machine, describe_versions, pin
from premotor.client.fleet.processes import START_DELAY_S
from premotor.client.fleet.settings import FleetSettings

BARE = "bare"
# The peers that a ratio is taken to.
_PEERS = ("openpi", "lerobot", "triton")
# The first of a block find the caches as the block before left them.
_SETTLING_QUESTIONS = 3
_FEWEST_QUESTIONS = 5
# Relative to 1 + the value: what batching and another process may change by rounding.
_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


@dataclass(kw_only=True)
class _Blocks:
    """One figure a round."""

    p50_ms: list[float] = field(default_factory=list)
    p90_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    difference: float = 0.0


async def compare(settings: CompareSettings) -> dict[str, Any]:
    """All phases. Raises MissingPeerError when our own service does not start, AskError when a way stops answering."""
    pin(settings.client_cpus)
    async with running_ways(settings) as ways:
        for way, reason in ways.missing.items():
            print(f"missing: {way}: {reason}", file=sys.stderr)
        latency = await _latency_phase(settings, ways)
        fleet = await _fleet_phase(settings, ways)
        capacity = await _capacity_phase(settings, ways) if settings.robot_counts else None
    return {
        "settings": _plain(settings),
        "missing": ways.missing,
        "policy": {
            "revision": ways.description.revision,
            "action_horizon": ways.description.action_horizon,
            "num_inference_steps": ways.description.num_inference_steps,
        },
        "latency": latency,
        "fleet": fleet,
        "capacity": capacity,
        "machine": describe_machine(),
        "versions": describe_versions(),
    }


async def _latency_phase(settings: CompareSettings, ways: Ways) -> dict[str, Any]:
    """One robot that asks in turn. Every way has the same questions, whose chunks are compared with the bare ones."""
    askers = {BARE: ways.bare, **ways.served}
    calibration = await ways.bare.ask_in_turn(tuple(range(_FEWEST_QUESTIONS)))
    count = max(_FEWEST_QUESTIONS, int(settings.block_s / float(np.median(calibration.latencies_s))))
    blocks = {way: _Blocks() for way in askers}
    order, rng = list(askers), random.Random(settings.seed)
    for number in range(settings.rounds):
        first = number * count
        rng.shuffle(order)
        turns: dict[str, Turn] = {}
        for way in order:
            await askers[way].ask_in_turn(tuple(range(_SETTLING_QUESTIONS)))
            turns[way] = await askers[way].ask_in_turn(tuple(range(first, first + count)))
        for way, turn in turns.items():
            _enter(blocks[way], turn, turns[BARE])
        print(f"latency: round {number + 1} of {settings.rounds}", file=sys.stderr)
    bare = blocks[BARE]
    return {
        "questions_a_block": count,
        "tolerance": _TOLERANCE[settings.dtype],
        "ways": {
            way: {
                "p50_ms": median_interval(found.p50_ms),
                "p90_ms": median_interval(found.p90_ms),
                "over_bare": round_ratios(found.p50_ms, bare.p50_ms),
                "server_cpu_us_per_request": median_interval(found.cpu_us),
                "max_action_difference": found.difference,
                "actions_equal": found.difference <= _TOLERANCE[settings.dtype],
            }
            for way, found in blocks.items()
        },
    }


async def _fleet_phase(settings: CompareSettings, ways: Ways) -> dict[str, Any]:
    """`num_robots` robots, open loop."""
    found: dict[str, dict[str, list[float]]] = {way: defaultdict(list) for way in ways.served}
    invalid: dict[str, int] = dict.fromkeys(ways.served, 0)
    order, rng = list(ways.served), random.Random(settings.seed + 1)
    for number in range(settings.rounds):
        rng.shuffle(order)
        for way in order:
            served = ways.served[way]
            block = replace(served.settings, num_robots=settings.num_robots, seed=settings.seed + number)
            figures = await _block(served, block)
            invalid[way] += not figures["valid"]
            for name, value in figures["numbers"].items():
                found[way][name].append(value)
        print(f"fleet: round {number + 1} of {settings.rounds}", file=sys.stderr)
    return {
        "num_robots": settings.num_robots,
        "rate_hz": settings.rate_hz,
        "ways": {
            way: {
                **{name: median_interval(values) for name, values in numbers.items()},
                "invalid_rounds": invalid[way],
                "over": {
                    peer: {
                        name: round_ratios(numbers[name], found[peer][name])
                        for name in ("chunks_per_s", "supplied_share")
                    }
                    for peer in _PEERS
                    if peer in found and peer != way
                },
            }
            for way, numbers in found.items()
        },
    }


async def _capacity_phase(settings: CompareSettings, ways: Ways) -> dict[str, Any]:
    """The most robots of which each way supplies the goal's share of control steps; counts rise until one fails."""
    most: dict[str, list[float]] = {way: [] for way in ways.served}
    order, rng = list(ways.served), random.Random(settings.seed + 2)
    for number in range(settings.capacity_rounds):
        rng.shuffle(order)
        for way in order:
            most[way].append(await _most_supplied(settings, ways.served[way], number))
        print(f"capacity: round {number + 1} of {settings.capacity_rounds}", file=sys.stderr)
    return {
        "robot_counts": list(settings.robot_counts),
        "supplied_goal": SUPPLIED_GOAL,
        "ways": {
            way: {
                "robots": median_interval(counts),
                "over": {peer: round_ratios(counts, most[peer]) for peer in _PEERS if peer in most and peer != way},
            }
            for way, counts in most.items()
        },
    }


async def _most_supplied(settings: CompareSettings, served: ServedWay, number: int) -> float:
    supplied = 0
    for count in settings.robot_counts:
        # Twice as long as a block: what a queue grows to shows late.
        duration_s = served.settings.settle_s + 2 * settings.block_s
        block = replace(served.settings, num_robots=count, seed=settings.seed + number, duration_s=duration_s)
        figures = await _block(served, block)
        if figures["numbers"]["supplied_share"] < SUPPLIED_GOAL * block.most_supplied_share:
            break
        supplied = count
    return float(supplied)


async def _block(served: ServedWay, block: FleetSettings) -> dict[str, Any]:
    logs, cpu_s = await served.ask_openly(block, START_DELAY_S)
    report = await asyncio.to_thread(fleet_figures, block, [robot_figures(block, log) for log in logs], ())
    fleet, latency = report["fleet"], report["fleet"]["latency_ms"]
    num_chunks = sum(ask.answer is not None for log in logs for ask in log.asks)
    numbers = {
        "chunks_per_s": fleet["chunks_per_s"],
        "supplied_share": fleet["supplied_share"],
        "robots_supplied": float(fleet["robots_supplied"]),
        "deadline_miss_share": fleet["deadline_miss_share"],
        "failures": float(sum(fleet["failures"].values())),
        "latency_p50_ms": latency["p50"] if latency else float("nan"),
        "latency_p99_ms": latency["p99"] if latency else float("nan"),
        "server_cpu_us_per_chunk": 1e6 * cpu_s / num_chunks if cpu_s is not None and num_chunks else float("nan"),
    }
    return {"valid": report["valid"], "numbers": numbers}


def _enter(blocks: _Blocks, turn: Turn, bare: Turn) -> None:
    p50_ms, p90_ms = (1e3 * np.percentile(turn.latencies_s, (50, 90))).tolist()
    blocks.p50_ms.append(p50_ms)
    blocks.p90_ms.append(p90_ms)
    if turn.cpu_s is not None:
        blocks.cpu_us.append(1e6 * turn.cpu_s / len(turn.latencies_s))
    for chunk, expected in zip(turn.chunks, bare.chunks, strict=True):
        difference = float((np.abs(chunk - expected) / (1 + np.abs(expected))).max())
        blocks.difference = max(blocks.difference, difference)


def _plain(settings: CompareSettings) -> dict[str, Any]:
    """Without paths, which are a machine's."""
    hidden = ("checkpoint", "source", "python", "peers")
    return {name: value for name, value in asdict(settings).items() if name not in hidden}
