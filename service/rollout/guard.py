"""Rolls a change back when the revision that was given traffic does worse than the operator allows.

Owns the judgement and its timing. Does not own the counts (gateway/outcomes.py) nor how a roll-back is done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from service.errors import ServiceError
from service.gateway.outcomes import Outcomes, Record
from service.registry import Fleet, Guard, Operation, PolicyRecord, RegistryUnavailableError, Route

GUARD_ACTOR = "guard"
_INTERVAL_S = 1.0

_logger = logging.getLogger(__name__)


class RollsBack(Protocol):
    async def roll_back(
        self, policy: str, *, actor: str, reason: str = "", only_change: int | None = None
    ) -> Operation: ...


class GuardWatch:
    """One per process: each gateway judges what it answered itself, and any of them may roll back."""

    def __init__(
        self,
        *,
        outcomes: Outcomes,
        rollout: RollsBack,
        fleet: Callable[[], Fleet | None],
        interval_s: float = _INTERVAL_S,
        now_s: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`now_s` is the clock of the outcomes, `now` that of the registry."""
        self._outcomes, self._rollout, self._fleet, self._now_s, self._now = outcomes, rollout, fleet, now_s, now
        self._interval_s = interval_s
        # Policy to the change of its route that was seen last, and since when: what ended before tells nothing of it.
        self._seen: dict[str, tuple[datetime | None, float]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="guard")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Judges every policy once."""
        fleet = self._fleet()
        for policy in fleet.policies.values() if fleet is not None else ():
            if policy.route is not None and (reason := self._fault(policy, policy.route)) is not None:
                await self._roll_back(policy.name, policy.route.changes, reason)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.look()
            except Exception:  # the edge: watching goes on
                _logger.exception("guard failed")

    def _fault(self, policy: PolicyRecord, route: Route) -> str | None:
        """Why the last change is to be undone; None while it may stay."""
        changed_at, since_s = self._seen.get(policy.name, (None, 0.0))
        if changed_at != policy.route_changed_at:
            since_s = self._now_s()
            self._seen[policy.name] = policy.route_changed_at, since_s
        # Counted from the change itself, whichever process has seen it and for how long.
        if not policy.is_watched(self._now()):
            return None
        suspects = route.revisions[1:] or ((route.stable,) if route.previous else ())
        for revision in suspects:
            record = self._outcomes.record(policy.name, revision, since_s=since_s, window_s=route.guard.window_s)
            if (reason := judge(record, route.guard)) is not None:
                return f"revision {revision}: {reason}"
        return None

    async def _roll_back(self, policy: str, change: int, reason: str) -> None:
        _logger.warning("guard rolls back", extra={"fields": {"policy": policy, "reason": reason}})
        try:
            await self._rollout.roll_back(policy, actor=GUARD_ACTOR, reason=reason, only_change=change)
        except (ServiceError, RegistryUnavailableError) as error:
            # Another gateway was first, or it is tried again with the next look.
            _logger.warning("guard could not roll back", extra={"fields": {"policy": policy, "error": str(error)}})


def judge(record: Record, guard: Guard) -> str | None:
    """What of a record breaks a limit, for a person; None when nothing does, or there is too little to tell."""
    if record.num_requests < guard.min_requests:
        return None
    for name, value, limit, unit in (
        ("error rate", record.error_rate, guard.max_error_rate, ""),
        ("output violation rate", record.violation_rate, guard.max_violation_rate, ""),
        ("latency p95", record.latency_p95_s, guard.max_latency_p95_s, " s"),
    ):
        if limit is not None and value > limit:
            return f"{name} {value:.3g}{unit} over {record.num_requests} requests, allowed {limit:.3g}{unit}"
    return None
