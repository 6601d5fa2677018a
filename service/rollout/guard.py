"""Rolls a change back when the revision that was given traffic does worse than the operator allows.

Owns the judgement, over what all gateways together have counted, and its timing. Does not own what a gateway counts
(tallies.py) nor how a roll-back is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from service.errors import ServiceError
from service.registry import Fleet, Guard, Operation, Placement, RegistryUnavailableError, Route, Tally

GUARD_ACTOR = "guard"
_INTERVAL_S = 1.0
# A 95 % quantile is above a limit when more than this share is.
_MAX_SLOW_SHARE = 0.05

_logger = logging.getLogger(__name__)


class RollsBack(Protocol):
    async def roll_back(
        self, policy: str, *, actor: str, reason: str = "", only_change: int | None = None
    ) -> Operation: ...


class GuardWatch:
    """One per process: each judges by the heartbeats of all gateways, and any of them may roll back."""

    def __init__(
        self,
        *,
        placements: Callable[[str, str], Awaitable[Sequence[Placement]]],
        rollout: RollsBack,
        fleet: Callable[[], Fleet | None],
        interval_s: float = _INTERVAL_S,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`placements` are those of a policy's revision; `now` is the clock of the registry."""
        self._placements, self._rollout, self._fleet, self._now = placements, rollout, fleet, now
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="guard")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Judges every policy once. Raises RegistryUnavailableError."""
        fleet = self._fleet()
        for policy in fleet.policies.values() if fleet is not None else ():
            # Counted from the change itself, whichever process has seen it and for how long.
            if policy.route is None or not policy.is_watched(self._now()):
                continue
            if (reason := await self._fault(policy.name, policy.route)) is not None:
                await self._roll_back(policy.name, policy.route.changes, reason)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.look()
            except RegistryUnavailableError:
                continue
            except Exception:  # the edge: watching goes on
                _logger.exception("guard failed")

    async def _fault(self, policy: str, route: Route) -> str | None:
        """Why the last change is to be undone; None while it may stay."""
        for revision in route.suspects:
            tallies = [placement.tally for placement in await self._placements(policy, revision)]
            counted = [each for each in tallies if each and (each.change, each.guard) == (route.changes, route.guard)]
            if (reason := judge(counted, route.guard)) is not None:
                return f"revision {revision}: {reason}"
        return None

    async def _roll_back(self, policy: str, change: int, reason: str) -> None:
        _logger.warning("guard rolls back", extra={"fields": {"policy": policy, "reason": reason}})
        try:
            await self._rollout.roll_back(policy, actor=GUARD_ACTOR, reason=reason, only_change=change)
        except (ServiceError, RegistryUnavailableError) as error:
            # Another gateway was first, or it is tried again with the next look.
            _logger.warning("guard could not roll back", extra={"fields": {"policy": policy, "error": str(error)}})


def judge(tallies: Sequence[Tally], guard: Guard) -> str | None:
    """What of the sum of a revision's tallies breaks a limit, for a person.

    None when nothing does, or there is too little to tell. A quantile of latencies cannot be summed; how many are above
    a limit can.
    """
    num_requests = sum(each.num_requests for each in tallies)
    if num_requests < guard.min_requests:
        return None
    num_errors = sum(each.num_errors for each in tallies)
    num_violations = sum(each.num_violations for each in tallies)
    for name, number, limit in (
        ("error rate", num_errors, guard.max_error_rate),
        ("output violation rate", num_violations, guard.max_violation_rate),
    ):
        if limit is not None and number / num_requests > limit:
            return f"{name} {number / num_requests:.3g} over {num_requests} requests, allowed {limit:.3g}"
    num_answered, num_slow = num_requests - num_errors - num_violations, sum(each.num_slow for each in tallies)
    if guard.max_latency_p95_s is not None and num_slow > _MAX_SLOW_SHARE * num_answered:
        return f"latency p95 above {guard.max_latency_p95_s:.3g} s: {num_slow} of {num_answered} answers took longer"
    return None
