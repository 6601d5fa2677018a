"""The gateways that live, and waiting until all of them are as far as a change needs them to be.

Owns who counts as alive. Does not own what is changed (operations.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from service.registry import Gateway, Registry, RevisionState
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

    async def alive(self) -> list[Gateway]:
        """Judged by whether heartbeats go on, so that no two clocks are compared. The others leave the fleet."""
        now_s = asyncio.get_running_loop().time()
        alive = []
        for gateway in await self._follower.ask(self._registry.gateways):
            beats, since_s = self._seen.get(gateway.gateway_id, (-1, now_s))
            if beats != gateway.beats:
                since_s = now_s
            self._seen[gateway.gateway_id] = gateway.beats, since_s
            if now_s - since_s < self._lost_s:
                alive.append(gateway)
            else:
                _logger.error("gateway lost", extra={"fields": {"gateway": gateway.gateway_id}})
                await self._follower.ask(partial(self._registry.leave, gateway.gateway_id))
                self._seen.pop(gateway.gateway_id, None)
        return alive

    async def reached(self, policy: str, revision: str, state: RevisionState) -> None:
        """Waits until every gateway is as far. Raises OperationFailedError with the first reason of one that failed."""
        reached = LOADING_ORDER[LOADING_ORDER.index(state) :]
        while True:
            self._follower.wake()
            gateways = {gateway.gateway_id for gateway in await self.alive()}
            placements = await self._follower.ask(partial(self._registry.placements, policy, revision))
            for placement in placements:
                if placement.state is RevisionState.FAILED:
                    raise OperationFailedError(placement.error)
            if gateways <= {each.gateway_id for each in placements if each.state in reached}:
                return
            await asyncio.sleep(self._poll_interval_s)

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
