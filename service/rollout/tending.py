"""What nobody asks for: revisions that have drained go, dead gateways leave the fleet, what they left unfinished ends.

Owns when that is due. Does not own the database's rules (registry/) nor operations of this process (operations.py).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial

from service.errors import ConflictError
from service.registry import (
    Operation,
    Placement,
    PolicyRecord,
    Registry,
    RegistryUnavailableError,
    RevisionRecord,
    RevisionState,
)
from service.rollout.follower import Follower
from service.rollout.gateways import LiveGateways
from service.rollout.running import RunningOperations

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
        running: RunningOperations,
        drain_timeout_s: float,
        interval_s: float,
        now: Callable[[], datetime],
    ) -> None:
        self._registry, self._follower, self._gateways, self._running = registry, follower, gateways, running
        self._drain_timeout_s, self._interval_s, self._now = drain_timeout_s, interval_s, now
        self._task: asyncio.Task[None] | None = None
        # When this process came, of the monotonic clock, and policy and revision of what answered before.
        self._came_s = -math.inf
        self._found: set[tuple[str, str]] = set()
        # Operations of this gateway that it did not carry out when it last looked.
        self._unheard: set[str] = set()

    async def start(self) -> None:
        """Ends what a process before this one left unfinished, then goes on looking. The follower has started."""
        fleet = self._follower.fleet
        records = [each for policy in fleet.policies.values() for each in policy.revisions.values()] if fleet else []
        self._came_s = time.monotonic()
        self._found = {(record.policy, record.revision) for record in records if record.state.answers}
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
        if waited_s < self._drain_timeout_s and (busy or await self._may_come_back(record, placements)):
            return
        is_previous = route is not None and record.revision == route.previous
        is_shadow = policy.shadow is not None and policy.shadow.revision == record.revision
        if record.kept or is_shadow or (is_previous and route is not None and route.keep_previous):
            await self._set(record, RevisionState.READY)
        # A roll-back that nobody asks for must take no time; afterwards nobody would unload what is merely ready.
        elif not (is_previous and policy.is_watched(self._now())):
            await self._set(record, RevisionState.UNLOADED)

    async def _may_come_back(self, record: RevisionRecord, placements: Sequence[Placement]) -> bool:
        """Whether robots may have episodes on it that no gateway counts: theirs has left, or is a new process since."""
        failed = bool(placements) and all(placement.state is RevisionState.FAILED for placement in placements)
        if failed or self._follower.is_left(record):
            return False
        # After the placements were read: they go with their gateway.
        await self._gateways.alive()
        came_s = self._came_s if (record.policy, record.revision) in self._found else -math.inf
        return time.monotonic() < max(came_s, self._gateways.left_s) + self._follower.episode_idle_s

    async def _end_orphans(self) -> None:
        operations = await self._follower.ask(partial(self._registry.operations, running=True))
        # Also when nothing runs: one that died is no company, and nothing is in progress there.
        alive = {gateway.gateway_id for gateway in await self._gateways.alive()}
        forsaken, running = self._forsaken(operations), set[str]()
        for operation in operations:
            if operation.gateway_id not in alive:
                error = "the process that carried it out ended"
            elif operation.operation_id in forsaken:
                error = "its process did not hear that it had begun"
            else:
                running.add(operation.policy)
                continue
            await self._follower.ask(partial(self._registry.end_operation, operation.operation_id, error=error))
        # What this process goes by, no more than a moment old: `_set` looks again, and asking costs every gateway.
        fleet = self._follower.fleet
        for policy in fleet.policies.values() if fleet is not None else ():
            if policy.name in running:
                continue
            if policy.route is not None and policy.route.switching:
                with suppress(ConflictError):
                    take_back = partial(self._registry.announce, policy.name, switching=False, only_idle=True)
                    await self._follower.ask(take_back)
            for record in policy.revisions.values():
                if record.state in (RevisionState.LOADING, RevisionState.WARMING):
                    with suppress(ConflictError):
                        await self._set(record, RevisionState.FAILED, error="the process that loaded it ended")

    def _forsaken(self, operations: Sequence[Operation]) -> set[str]:
        """Those of this gateway that it has not carried out for two looks.

        They were begun, and the registry's answer that said so was lost.
        """
        own = {each.operation_id for each in operations if each.gateway_id == self._follower.gateway_id}
        before, self._unheard = self._unheard, {each for each in own if not self._running.carries_out(each)}
        return before & self._unheard

    async def _set(self, record: RevisionRecord, state: RevisionState, *, error: str = "") -> None:
        """Of a record that was read a moment ago: others may have asked for the revision since."""
        change = partial(self._registry.set_state, record.policy, record.revision, state, error=error)
        await self._follower.ask(partial(change, actor=SERVICE_ACTOR, only_as=record, only_idle=True))
        self._follower.wake()
