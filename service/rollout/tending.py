"""What nobody asks for: revisions that have drained go, dead gateways leave the fleet, what they left unfinished ends.

Owns when that is due. Does not own the database's rules (registry/) nor operations of this process (operations.py).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial

from service.errors import ConflictError
from service.registry import PolicyRecord, Registry, RegistryUnavailableError, RevisionRecord, RevisionState
from service.rollout.follower import Follower
from service.rollout.gateways import LiveGateways

_logger = logging.getLogger(__name__)
SERVICE_ACTOR = "service"
# Of the looks at what drains: a dead process is no hurry.
_ORPHANS_EVERY = 5


class Tending:
    """One per process; any gateway may be the first to tend to something."""

    def __init__(
        self,
        *,
        registry: Registry,
        follower: Follower,
        gateways: LiveGateways,
        drain_timeout_s: float,
        interval_s: float,
        now: Callable[[], datetime],
    ) -> None:
        self._registry, self._follower, self._gateways = registry, follower, gateways
        self._drain_timeout_s, self._interval_s, self._now = drain_timeout_s, interval_s, now
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Ends what a process before this one left unfinished, then goes on looking."""
        await self._end_orphans()
        self._task = asyncio.create_task(self._run(), name="tending")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        for round_ in itertools.count(1):
            await asyncio.sleep(self._interval_s)
            try:
                await self._end_drains()
                if round_ % _ORPHANS_EVERY == 0:
                    await self._end_orphans()
            except RegistryUnavailableError:
                continue
            except Exception:  # the edge: tending goes on
                _logger.exception("tending failed")

    async def _end_drains(self) -> None:
        fleet = self._follower.fleet
        for policy in fleet.policies.values() if fleet is not None else ():
            for record in policy.revisions.values():
                if record.state is RevisionState.DRAINING:
                    # Another gateway may have been first, or an operation may want it.
                    with suppress(ConflictError):
                        await self._end_drain(policy, record)

    async def _end_drain(self, policy: PolicyRecord, record: RevisionRecord) -> None:
        route = policy.route
        waited_s = (self._now() - record.changed_at).total_seconds()
        placements = await self._follower.ask(partial(self._registry.placements, policy.name, record.revision))
        # Of episodes that were told to move, those requests are left that were asked before.
        busy = sum(placement.num_in_progress for placement in placements)
        if busy and waited_s < self._drain_timeout_s:
            return
        is_previous = route is not None and record.revision == route.previous
        is_shadow = policy.shadow is not None and policy.shadow.revision == record.revision
        if is_shadow or (is_previous and route is not None and route.keep_previous):
            await self._set(record, RevisionState.READY, only_idle=True)
        # A roll-back that nobody asks for must take no time; afterwards nobody would unload what is merely ready.
        elif not (is_previous and policy.is_watched(self._now())):
            await self._set(record, RevisionState.UNLOADED, only_idle=True)

    async def _end_orphans(self) -> None:
        operations = await self._follower.ask(partial(self._registry.operations, running=True))
        # Also when nothing runs: one that died is no company, and nothing is in progress there.
        alive = {gateway.gateway_id for gateway in await self._gateways.alive()}
        for operation in operations:
            if operation.gateway_id not in alive:
                error = "the process that carried it out ended"
                await self._follower.ask(partial(self._registry.end_operation, operation.operation_id, error=error))
        running = {operation.policy for operation in operations if operation.gateway_id in alive}
        # What this process goes by, no more than a moment old: `_set` looks again, and asking costs every gateway.
        fleet = self._follower.fleet
        for policy in fleet.policies.values() if fleet is not None else ():
            if policy.name in running:
                continue
            if policy.route is not None and policy.route.switching:
                await self._follower.ask(partial(self._registry.announce, policy.name, switching=False))
            for record in policy.revisions.values():
                if record.state in (RevisionState.LOADING, RevisionState.WARMING):
                    with suppress(ConflictError):
                        await self._set(record, RevisionState.FAILED, error="the process that loaded it ended")

    async def _set(
        self, record: RevisionRecord, state: RevisionState, *, error: str = "", only_idle: bool = False
    ) -> None:
        """Of a record that was read a moment ago: others may have asked for the revision since."""
        change = partial(self._registry.set_state, record.policy, record.revision, state, error=error)
        await self._follower.ask(partial(change, actor=SERVICE_ACTOR, only_from=record.state, only_idle=only_idle))
        self._follower.wake()
