"""How much the openpi wire takes on, beside what GatewayLimits says for both wires.

Owns the numbers and their sanity. Does not own their enforcement, which is beside what they bound.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class OpenpiLimits:
    """Every field must be more than 0."""

    max_connections: int = 256
    # Of one frame: keys, values and list elements in all, and containers inside one another. An array counts as one.
    max_entries: int = 4096
    max_depth: int = 8
    # From an accepted TCP connection to the end of the handshake, the check of the credential included.
    handshake_timeout_s: float = 10.0
    # A robot that does not take its reply for this long is cut off.
    send_timeout_s: float = 10.0
    # How long a robot may take to agree that its connection closes.
    close_timeout_s: float = 1.0
    # Nobody is cut off for being silent, nor for being slow to answer a ping: a robot that is paused in a debugger
    # answers none. What ends a connection to a robot without power is its kernel, which acknowledges nothing any more.
    ping_interval_s: float = 20.0
    lost_peer_s: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} is {value}, expected more than 0")
