"""Rolls a change back when the revision that was given traffic does worse than the operator allows.

Owns the judgement and its timing. Does not own the counts (gateway/outcomes.py) nor how a roll-back is done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from service.errors import ServiceError
from service.gateway.outcomes import Outcomes, Record
from service.registry import Fleet, Guard, Operation, PolicyRecord, RegistryUnavailableError

GUARD_ACTOR = "guard"
_INTERVAL_S = 1.0

_logger = logging.getLogger(__name__)


class RollsBack(Protocol):
    async def roll_back(self, policy: str, *, actor: str, reason: str = "") -> Operation: ...


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
    ) -> None:
        self._outcomes, self._rollout, self._fleet, self._now_s = outcomes, rollout, fleet, now_s
        self._interval_s = interval_s
        # Policy to the change of its route that is watched, and since when.
        self._watched: dict[str, tuple[int, float]] = {}
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
            if (reason := self._fault(policy)) is not None:
                await self._roll_back(policy.name, reason)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.look()
            except Exception:  # the edge: watching goes on
                _logger.exception("guard failed")

    def _fault(self, policy: PolicyRecord) -> str | None:
        """Why the last change is to be undone; None while it may stay."""
        route, now_s = policy.route, self._now_s()
        if route is None:
            return None
        changes, since_s = self._watched.get(policy.name, (-1, now_s))
        if changes != route.changes:
            since_s = now_s
            self._watched[policy.name] = route.changes, since_s
        if not (route.watched and route.guard.watches and now_s - since_s <= route.guard.watch_s):
            return None
        suspects = route.revisions[1:] or ((route.stable,) if route.previous else ())
        for revision in suspects:
            record = self._outcomes.record(policy.name, revision, since_s=since_s, window_s=route.guard.window_s)
            if (reason := judge(record, route.guard)) is not None:
                return f"revision {revision}: {reason}"
        return None

    async def _roll_back(self, policy: str, reason: str) -> None:
        _logger.warning("guard rolls back", extra={"fields": {"policy": policy, "reason": reason}})
        try:
            await self._rollout.roll_back(policy, actor=GUARD_ACTOR, reason=reason)
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
