"""What this gateway can say of the revisions that a guard judges.

Owns what counts: from the change on, within the guard's window, by the guard's limit. Does not own the counting
(gateway/outcomes.py), the sum over all gateways, nor the judgement (guard.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime

from service.gateway.outcomes import Outcome, Outcomes
from service.registry import PolicyRecord, Tally


class Tallies:
    """One per process, for its heartbeats."""

    def __init__(
        self,
        outcomes: Outcomes,
        *,
        now_s: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`now_s` is the clock of the outcomes, `now` that of the registry."""
        self._outcomes, self._now_s, self._now = outcomes, now_s, now
        # Policy to the change of its route that was seen last, and since when: what ended before tells nothing of it.
        self._seen: dict[str, tuple[datetime | None, float]] = {}

    def of(self, policy: PolicyRecord, revision: str) -> Tally | None:
        """None for one that no guard judges."""
        since_s = self._since_s(policy)
        route = policy.route
        if route is None or revision not in route.suspects or not policy.is_watched(self._now()):
            return None
        guard = route.guard
        ended = self._outcomes.ended(policy.name, revision, since_s=since_s, window_s=guard.window_s)
        outcomes = [outcome for outcome, _ in ended]
        slow_s = guard.max_latency_p95_s if guard.max_latency_p95_s is not None else math.inf
        return Tally(
            change=route.changes,
            guard=guard,
            num_requests=len(ended),
            num_errors=outcomes.count(Outcome.FAILED),
            num_violations=outcomes.count(Outcome.VIOLATION),
            num_slow=sum(outcome is Outcome.ANSWERED and latency_s > slow_s for outcome, latency_s in ended),
        )

    def _since_s(self, policy: PolicyRecord) -> float:
        changed_at, since_s = self._seen.get(policy.name, (None, 0.0))
        if changed_at != policy.route_changed_at:
            since_s = self._now_s()
            self._seen[policy.name] = policy.route_changed_at, since_s
        return since_s
