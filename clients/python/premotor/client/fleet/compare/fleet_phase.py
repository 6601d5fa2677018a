"""A fleet that asks for more than one server can give, open loop: chunks a second, supply, latencies, CPU a chunk.

Owns the rounds of this phase. It alone has batches, so here too chunks are compared with those of the bare forward,
which answers the same question alone.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from premotor.client.fleet.compare.block import Block, SampledChunk, run_block
from premotor.client.fleet.compare.equality import TOLERANCE, action_difference, are_equal
from premotor.client.fleet.compare.load import FleetLoad
from premotor.client.fleet.compare.ratios import bound, median_interval, round_ratios
from premotor.client.fleet.compare.settings import PEERS, CompareSettings
from premotor.client.fleet.compare.ways import BareWay, Ways

# A way that answered so much of what it was asked for could have answered more: how much, this load does not show.
_ANSWERED_WHEN_OPEN = 0.95


@dataclass(kw_only=True)
class _Blocks:
    """One figure a round, by its name."""

    numbers: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    num_invalid: int = 0
    num_repeated: int = 0
    num_stale: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    num_compared: int = 0
    difference: float = 0.0

    def enter(self, block: Block) -> None:
        self.num_invalid += not block.is_valid
        self.num_repeated += block.was_repeated
        self.num_stale += block.num_stale
        self.failures.update(block.failures)
        for name, value in block.numbers.items():
            self.numbers[name].append(value)

    async def compare(self, sample: tuple[SampledChunk, ...], bare: BareWay) -> None:
        for robot, number, actions in sample:
            self.num_compared += 1
            self.difference = max(self.difference, action_difference(actions, await bare.chunk(robot, number)))

    @property
    def is_saturated(self) -> bool:
        shares = [share for share in self.numbers["answered_share"] if np.isfinite(share)]
        return bool(shares) and float(np.median(shares)) < _ANSWERED_WHEN_OPEN


async def fleet_phase(settings: CompareSettings, ways: Ways, load: FleetLoad) -> dict[str, Any]:
    """Raises AskError when the bare forward stops answering; any other way that does has failed alone."""
    blocks = {way: _Blocks() for way in ways.served}
    order, rng = list(blocks), random.Random(settings.seed + 1)
    for number in range(settings.rounds):
        rng.shuffle(order)
        for way in order:
            if way not in ways.served:
                continue
            block = None
            with ways.failing_alone(way):
                asked = load.of(
                    ways.served[way].settings,
                    num_robots=settings.num_robots,
                    block_s=settings.block_s,
                    seed=settings.seed + number,
                )
                block = await run_block(ways.served[way], asked)
                blocks[way].enter(block)
            # Once nothing runs any more, and not as a failure of the way that is compared.
            if block is not None:
                await blocks[way].compare(block.sample, ways.bare)
        print(f"fleet: round {number + 1} of {settings.rounds}", file=sys.stderr)
    measured = {way: found for way, found in blocks.items() if way in ways.served}
    return {
        "num_robots": settings.num_robots,
        "rate_hz": load.rate_hz,
        "control_rate_hz": load.control_rate_hz,
        "offered_per_s": settings.num_robots * load.rate_hz,
        "bare_per_s": load.bare_per_s,
        "offered_over_bare": load.times_bare,
        "tolerance": TOLERANCE[settings.dtype],
        "ways": {way: _figures(settings, way, measured) for way in measured},
    }


def _figures(settings: CompareSettings, way: Any, blocks: dict[Any, _Blocks]) -> dict[str, Any]:
    found = blocks[way]
    cannot_tell = settings.sees_other_pixels(way) or not found.num_compared
    return {
        **{name: median_interval(values) for name, values in found.numbers.items()},
        "failures_by_kind": dict(found.failures),
        "saturated": found.is_saturated,
        "invalid_rounds": found.num_invalid,
        "repeated_blocks": found.num_repeated,
        "num_stale_actions": found.num_stale,
        "num_chunks_compared": found.num_compared,
        "max_action_difference": found.difference,
        "actions_equal": None if cannot_tell else are_equal(found.difference, dtype=settings.dtype),
        "over": {
            peer: {
                "chunks_per_s": round_ratios(
                    found.numbers["chunks_per_s"],
                    blocks[peer].numbers["chunks_per_s"],
                    bound=bound(own_is_open=not found.is_saturated, other_is_open=not blocks[peer].is_saturated),
                ),
                **{
                    name: round_ratios(found.numbers[name], blocks[peer].numbers[name])
                    for name in ("supplied_share", "supplied_share_looking_again")
                },
            }
            for peer in PEERS
            if peer in blocks and peer != way
        },
    }
