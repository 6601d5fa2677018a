"""How long a gateway that hears nothing from its registry may go on beginning episodes.

Owns the rule. Every answer of the registry renews the lease; while a route is about to change, for a second alone. When
it has run out, episodes in progress go on and new ones are refused, so that a change which this gateway cannot see is
never contradicted by it for longer. A gateway that is alone contradicts nobody: the fence is up when another is known,
or when the operator says so. Does not own asking (follower.py) nor refusing (policies.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from typing import Literal

from service.policies import ServedPolicies

_logger = logging.getLogger(__name__)
Fence = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class LeaseSettings:
    # "auto" is on while the registry has another gateway.
    fence: Fence = "auto"
    # Shorter by more than a heartbeat than what makes a gateway count as lost (FollowerSettings.check_lost_after).
    lease_s: float = 8.0
    # While a route is about to change: two gateways may differ for no longer than this.
    switching_lease_s: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.switching_lease_s <= self.lease_s:
            raise ValueError(f"switching_lease_s is {self.switching_lease_s}, expected more than 0, at most lease_s")


class Lease:
    """One per process; belongs to its event loop."""

    def __init__(self, policies: ServedPolicies, settings: LeaseSettings) -> None:
        self._policies, self._settings = policies, settings
        self._length_s, self._ends_s = settings.lease_s, math.inf
        self._end: asyncio.TimerHandle | None = None
        self._ran_out = False

    @property
    def left_s(self) -> float | None:
        """Seconds, 0 once it has run out; None without a fence."""
        if self._ends_s == math.inf:
            return None
        return max(0.0, self._ends_s - time.monotonic())

    def renew(self, asked_s: float, *, num_gateways: int, switching: bool) -> None:
        """The registry answered what it was asked at `asked_s` of the monotonic clock, and this process goes by it."""
        settings = self._settings
        fenced = settings.fence == "on" or (settings.fence == "auto" and num_gateways > 1)
        self._length_s = settings.switching_lease_s if switching else settings.lease_s
        self._ends_s = asked_s + self._length_s if fenced else math.inf
        self._policies.begin_episodes_until(self._ends_s)
        self.stop()
        if fenced:
            self._end = asyncio.get_running_loop().call_later(self._ends_s - time.monotonic(), self._run_out)
        if self._ran_out:
            self._ran_out = False
            _logger.info("lease renewed, new episodes are taken again")

    def stop(self) -> None:
        if self._end is not None:
            self._end.cancel()

    def _run_out(self) -> None:
        self._ran_out = True
        _logger.error(
            "cut off from the registry: new episodes are refused, those in progress go on",
            extra={"fields": {"lease_s": self._length_s}},
        )
