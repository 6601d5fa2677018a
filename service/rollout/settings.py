"""How long an operation and its parts may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    # Fetching, loading, warming and probing a revision on every gateway.
    load_timeout_s: float = 300.0
    # How long every gateway may take to route by a change. One that is silent for longer is out of the fleet.
    apply_timeout_s: float = 5.0
    poll_interval_s: float = 0.1
    # A gateway whose heartbeat stood still for this long is gone.
    gateway_lost_s: float = 10.0
    # Episodes in progress get this long to end on a revision that drains; then they are moved.
    drain_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("load_timeout_s", "apply_timeout_s", "poll_interval_s", "gateway_lost_s", "drain_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
