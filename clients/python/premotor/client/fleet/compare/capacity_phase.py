"""How many robots a way can supply: counts rise until one is not, then the numbers between are tried by halves.

Owns the search and its rounds. Each robot asks as often as in the fleet's phase.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from premotor.client.fleet.compare.block import run_block
from premotor.client.fleet.compare.load import FleetLoad
from premotor.client.fleet.compare.ratios import bound, median_interval, round_ratios
from premotor.client.fleet.compare.settings import PEERS, CompareSettings
from premotor.client.fleet.compare.ways import ServedWay, Ways
from premotor.client.fleet.figures import SUPPLIED_GOAL


class _InvalidError(Exception):
    """The robots' own process could not keep its times, twice."""


@dataclass(kw_only=True)
class _Search:
    """One figure a round."""

    most: list[float] = field(default_factory=list)
    num_at_end: int = 0
    num_invalid: int = 0
    num_repeated: int = 0
    num_stale: int = 0


async def capacity_phase(settings: CompareSettings, ways: Ways, load: FleetLoad) -> dict[str, Any]:
    """The most robots of which each way supplies the goal's share of control steps."""
    searches = {way: _Search() for way in ways.served}
    order, rng = list(searches), random.Random(settings.seed + 2)
    for number in range(settings.capacity_rounds):
        rng.shuffle(order)
        for way in order:
            if way in ways.served:
                with ways.failing_alone(way):
                    await _search(settings, ways.served[way], load, settings.seed + number, searches[way])
        print(f"capacity: round {number + 1} of {settings.capacity_rounds}", file=sys.stderr)
    measured = {way: found for way, found in searches.items() if way in ways.served}
    return {
        "robot_counts": list(settings.robot_counts),
        "rate_hz": load.rate_hz,
        "supplied_goal": SUPPLIED_GOAL,
        "ways": {way: _figures(way, measured) for way in measured},
    }


async def most_supplied(counts: Sequence[int], is_supplied: Callable[[int], Awaitable[bool]]) -> tuple[int, bool]:
    """The number, to the unit, and whether it is only the largest of `counts`, beyond which nothing was tried."""
    supplied, failed = 0, None
    for count in counts:
        if not await is_supplied(count):
            failed = count
            break
        supplied = count
    if failed is None:
        return supplied, True
    while failed - supplied > 1:
        halfway = (supplied + failed) // 2
        if await is_supplied(halfway):
            supplied = halfway
        else:
            failed = halfway
    return supplied, False


async def _search(settings: CompareSettings, served: ServedWay, load: FleetLoad, seed: int, search: _Search) -> None:
    async def is_supplied(count: int) -> bool:
        # Twice as long as a block: what a queue grows to shows late.
        asked = load.of(served.settings, num_robots=count, block_s=2 * settings.block_s, seed=seed)
        block = await run_block(served, asked)
        search.num_repeated += block.was_repeated
        search.num_stale += block.num_stale
        if not block.is_valid:
            raise _InvalidError
        return block.numbers["supplied_share"] >= SUPPLIED_GOAL * asked.most_supplied_share

    try:
        most, is_at_end = await most_supplied(settings.robot_counts, is_supplied)
    except _InvalidError:
        search.num_invalid += 1
        search.most.append(math.nan)
    else:
        search.num_at_end += is_at_end
        search.most.append(float(most))


def _figures(way: Any, searches: dict[Any, _Search]) -> dict[str, Any]:
    found = searches[way]
    return {
        "robots": median_interval(found.most),
        "rounds_at_the_end": found.num_at_end,
        "invalid_rounds": found.num_invalid,
        "repeated_blocks": found.num_repeated,
        "num_stale_actions": found.num_stale,
        "over": {
            peer: round_ratios(
                found.most,
                searches[peer].most,
                bound=bound(own_is_open=found.num_at_end > 0, other_is_open=searches[peer].num_at_end > 0),
            )
            for peer in PEERS
            if peer in searches and peer != way
        },
    }
