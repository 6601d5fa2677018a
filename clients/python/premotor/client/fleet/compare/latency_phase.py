"""One robot that asks in turn: how long each way takes over the bare forward, and what its server's CPU does meanwhile.

Owns the rounds of this phase. Every way has the same questions, whose chunks are compared with the bare ones.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from premotor.client.fleet.compare.equality import TOLERANCE, action_difference, are_equal
from premotor.client.fleet.compare.ratios import median_interval, round_ratios
from premotor.client.fleet.compare.settings import CompareSettings
from premotor.client.fleet.compare.ways import Turn, Ways

BARE = "bare"
# Asked of a way before the next one has its turn: a machine's speed drifts within seconds, which all ways must have
# alike.
_QUESTIONS_A_TURN = 4
# The first of a turn finds the caches as the way before left them.
_SETTLING_QUESTIONS = 1
_FEWEST_QUESTIONS = 5


@dataclass(kw_only=True)
class _Blocks:
    """One figure a round."""

    p50_ms: list[float] = field(default_factory=list)
    p90_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    difference: float = 0.0

    def enter(self, turn: Turn, bare: Turn) -> None:
        p50_ms, p90_ms = (1e3 * np.percentile(turn.latencies_s, (50, 90))).tolist()
        self.p50_ms.append(p50_ms)
        self.p90_ms.append(p90_ms)
        if turn.cpu_s is not None:
            self.cpu_us.append(1e6 * turn.cpu_s / len(turn.latencies_s))
        for chunk, expected in zip(turn.chunks, bare.chunks, strict=True):
            self.difference = max(self.difference, action_difference(chunk, expected))


async def latency_phase(settings: CompareSettings, ways: Ways) -> dict[str, Any]:
    """Raises AskError when the bare forward stops answering; any other way that does has failed alone."""
    calibration = await ways.bare.ask_in_turn(range(_FEWEST_QUESTIONS))
    count = max(_FEWEST_QUESTIONS, int(settings.block_s / float(np.median(calibration.latencies_s))))
    blocks = {way: _Blocks() for way in (BARE, *ways.served)}
    order, rng = list(blocks), random.Random(settings.seed)
    for number in range(settings.rounds):
        await ways.rest()
        turns = {way: Turn(cpu_s=0.0) for way in blocks}
        for first in range(number * count, (number + 1) * count, _QUESTIONS_A_TURN):
            rng.shuffle(order)
            asked = range(first, min(first + _QUESTIONS_A_TURN, (number + 1) * count))
            for way in order:
                await _have_turn(ways, way, asked, turns[way])
        for way, turn in turns.items():
            if way == BARE or way in ways.served:
                blocks[way].enter(turn, turns[BARE])
        print(f"latency: round {number + 1} of {settings.rounds}", file=sys.stderr)
    return {
        "questions_a_block": count,
        "tolerance": TOLERANCE[settings.dtype],
        "ways": {way: _figures(settings, ways, way, blocks) for way in blocks if way == BARE or way in ways.served},
    }


async def _have_turn(ways: Ways, way: str, numbers: range, turn: Turn) -> None:
    """Asks these of a way, and adds what came to its `turn` of the round; a way that fails is out."""
    if way == BARE:
        await ways.bare.ask_in_turn(range(_SETTLING_QUESTIONS))
        turn.add(await ways.bare.ask_in_turn(numbers))
    elif way in ways.served:
        with ways.failing_alone(way):
            await ways.served[way].ask_in_turn(range(_SETTLING_QUESTIONS))
            turn.add(await ways.served[way].ask_in_turn(numbers))


def _figures(settings: CompareSettings, ways: Ways, way: str, blocks: dict[str, _Blocks]) -> dict[str, Any]:
    found = blocks[way]
    driver_pipe_s = ways.served[way].driver_pipe_s if way in ways.served else None
    return {
        "p50_ms": median_interval(found.p50_ms),
        "p90_ms": median_interval(found.p90_ms),
        "over_bare": round_ratios(found.p50_ms, blocks[BARE].p50_ms),
        "server_cpu_us_per_request": median_interval(found.cpu_us),
        # In each latency, and no part of what is compared.
        "driver_pipe_ms": None if driver_pipe_s is None else 1e3 * driver_pipe_s,
        "max_action_difference": found.difference,
        "actions_equal": None if settings.sees_other_pixels(way) else are_equal(found.difference, dtype=settings.dtype),
    }
