"""The gateways that live, and waiting until all of them are as far as a change needs them to be.

Owns who counts as alive. Does not own what is changed (operations.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from service.registry import Gateway, Placement, Registry, RevisionRecord, RevisionState
from service.rollout.follower import Follower

_logger = logging.getLogger(__name__)
LOADING_ORDER = (RevisionState.LOADING, RevisionState.WARMING, RevisionState.READY)
# Who is behind for this long is named.
_PATIENCE_S = 1.0

Say = Callable[[str], Awaitable[None]]


class OperationFailedError(Exception):
    """An operation could not be carried out; what served goes on serving."""


class LiveGateways:
    """As one process sees them."""

    def __init__(self, registry: Registry, follower: Follower, *, lost_s: float, poll_interval_s: float) -> None:
        """A gateway whose heartbeat stood still for `lost_s` is gone."""
        self._registry, self._follower = registry, follower
        self._lost_s, self._poll_interval_s = lost_s, poll_interval_s
        # By gateway: its heartbeats, and since when there have been so many.
        self._seen: dict[str, tuple[int, float]] = {}
        # When `alive` last found one to have left, or lost, of the monotonic clock.
        self.left_s = -math.inf

    async def alive(self) -> list[Gateway]:
        """Judged by whether heartbeats go on, so that no two clocks are compared. The others leave the fleet."""
        now_s = time.monotonic()
        alive, found = [], await self._follower.ask(self._registry.gateways)
        for gone in self._seen.keys() - {gateway.gateway_id for gateway in found}:
            del self._seen[gone]
            self.left_s = now_s
        for gateway in found:
            beats, since_s = self._seen.get(gateway.gateway_id, (-1, now_s))
            if beats != gateway.beats:
                since_s = now_s
            self._seen[gateway.gateway_id] = gateway.beats, since_s
            # A database that is away hears nobody's heart.
            if now_s - max(since_s, self._follower.reachable_since_s) < self._lost_s:
                alive.append(gateway)
            else:
                _logger.error("gateway lost", extra={"fields": {"gateway": gateway.gateway_id}})
                await self._follower.ask(partial(self._registry.leave, gateway.gateway_id))
                self._seen.pop(gateway.gateway_id, None)
                self.left_s = now_s
        return alive

    async def reached(self, record: RevisionRecord, state: RevisionState, *, say: Say | None = None) -> None:
        """Waits until every gateway is as far with the record's attempt; `say` is told of those that are not soon.

        Raises OperationFailedError with the first reason of one that failed.
        """
        reached = LOADING_ORDER[LOADING_ORDER.index(state) :]
        loop = asyncio.get_running_loop()
        named_s = loop.time() + _PATIENCE_S
        while True:
            self._follower.wake()
            gateways = await self.alive()
            placements = await self._placements(record)
            for placement in placements.values():
                if placement.state is RevisionState.FAILED:
                    raise OperationFailedError(placement.error)
            late = [
                _name(gateway)
                for gateway in gateways
                if gateway.gateway_id not in placements or placements[gateway.gateway_id].state not in reached
            ]
            if not late:
                return
            if say is not None and loop.time() >= named_s:
                named_s = float("inf")
                await say(f"waits for {', '.join(late)} to have {record.revision}")
            await asyncio.sleep(self._poll_interval_s)

    async def failed(self, record: RevisionRecord) -> bool:
        """Whether a gateway that lives has failed to have it, and waits before it tries again."""
        alive = {gateway.gateway_id for gateway in await self.alive()}
        placements = await self._placements(record)
        return any(each.state is RevisionState.FAILED for each in placements.values() if each.gateway_id in alive)

    async def proven(self, record: RevisionRecord) -> AsyncIterator[tuple[str, str]]:
        """The name of each gateway and what is wrong there, empty for nothing, as soon as it has proven it anew."""
        told = set[str]()
        while True:
            self._follower.wake()
            gateways = {gateway.gateway_id: gateway for gateway in await self.alive()}
            placements = await self._placements(record)
            for gateway_id in gateways.keys() & placements.keys() - told:
                placement = placements[gateway_id]
                if placement.state in (RevisionState.READY, RevisionState.FAILED):
                    told.add(gateway_id)
                    yield _name(gateways[gateway_id]), placement.error
            if gateways.keys() <= told:
                return
            await asyncio.sleep(self._poll_interval_s)

    async def _placements(self, record: RevisionRecord) -> dict[str, Placement]:
        """By gateway; what is left of an earlier attempt says nothing of this one."""
        found = await self._follower.ask(partial(self._registry.placements, record.policy, record.revision))
        return {placement.gateway_id: placement for placement in found if placement.attempt >= record.attempt}

    async def follow(self, generation: int, *, within_s: float, say: Say) -> list[str]:
        """Waits until every gateway that lives routes by `generation`; the names of those that were lost meanwhile.

        Raises TimeoutError when one that lives does not. `say` is told of those that keep the others waiting.
        """
        loop = asyncio.get_running_loop()
        named_s, behind = loop.time() + _PATIENCE_S, dict[str, str]()
        async with asyncio.timeout(within_s):
            while True:
                gateways = await self.alive()
                late = {each.gateway_id: _name(each) for each in gateways if each.generation < generation}
                lost = [behind[each] for each in behind if each not in {gateway.gateway_id for gateway in gateways}]
                behind |= late
                if not late:
                    return lost
                if loop.time() >= named_s:
                    named_s = float("inf")
                    await say(f"waits for {', '.join(late.values())}")
                await asyncio.sleep(self._poll_interval_s)


def _name(gateway: Gateway) -> str:
    return f"gateway {gateway.gateway_id}" + (f" ({gateway.address})" if gateway.address else "")
