"""How each revision did lately: what a guard judges by, kept in memory for a while.

Owns counting by policy and revision. Does not own limits (rollout/tallies.py) or what follows from them
(rollout/guard.py). Written by the event loop that answers robots.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np


class Outcome(Enum):
    """How a request ended, as far as the revision is to blame.

    A robot that hung up before its deadline is none of these: it is counted by its status, CANCELLED, alone.
    """

    ANSWERED = auto()
    # The model failed, or was too slow for a deadline.
    FAILED = auto()
    # The answer broke a limit and was not sent.
    VIOLATION = auto()


@dataclass(frozen=True, kw_only=True)
class Record:
    """A revision over a window. Rates are 0 without requests."""

    num_requests: int
    error_rate: float
    violation_rate: float
    # Of what was answered; 0 when nothing was.
    latency_p95_s: float


class Outcomes:
    """Keeps the last `max_requests` of each revision, and no longer than `max_age_s`."""

    def __init__(
        self, *, max_requests: int = 4096, max_age_s: float = 3600.0, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_requests, self._max_age_s, self._now_s = max_requests, max_age_s, now_s
        self._ended: dict[tuple[str, str], deque[tuple[float, Outcome, float]]] = {}

    def note(self, policy: str, revision: str, outcome: Outcome, latency_s: float) -> None:
        key = policy, revision
        ended = self._ended.get(key)
        if ended is None:
            self._forget_old()
            ended = self._ended[key] = deque(maxlen=self._max_requests)
        ended.append((self._now_s(), outcome, latency_s))

    def ended(self, policy: str, revision: str, *, since_s: float, window_s: float) -> list[tuple[Outcome, float]]:
        """How, and after how many seconds, requests ended: in the last `window_s`, not before `since_s` of the clock.

        May be asked from a thread.
        """
        first_s = max(since_s, self._now_s() - window_s)
        # In one step: what is written meanwhile must not be walked over.
        kept = tuple(self._ended.get((policy, revision), ()))
        return [(outcome, latency_s) for ended_s, outcome, latency_s in kept if ended_s >= first_s]

    def record(self, policy: str, revision: str, *, since_s: float, window_s: float) -> Record:
        """Over the requests of `ended`."""
        ended = self.ended(policy, revision, since_s=since_s, window_s=window_s)
        answered = [latency_s for outcome, latency_s in ended if outcome is Outcome.ANSWERED]
        outcomes = [outcome for outcome, _ in ended]
        return Record(
            num_requests=len(ended),
            error_rate=outcomes.count(Outcome.FAILED) / max(1, len(ended)),
            violation_rate=outcomes.count(Outcome.VIOLATION) / max(1, len(ended)),
            latency_p95_s=float(np.percentile(answered, 95)) if answered else 0.0,
        )

    def _forget_old(self) -> None:
        oldest_s = self._now_s() - self._max_age_s
        for key in [key for key, ended in self._ended.items() if not ended or ended[-1][0] < oldest_s]:
            del self._ended[key]
