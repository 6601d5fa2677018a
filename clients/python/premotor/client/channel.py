"""How a client connects and how long it waits.

Owns the channel options and the arithmetic of deadlines, shared by both clients.
"""

from __future__ import annotations

import math
import time

from premotor.client.errors import DeadlineExceededError

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
DEFAULT_TIMEOUT_S = 10.0
# A stream lives as long as a robot's session; it too has an end.
DEFAULT_STREAM_TIMEOUT_S = 3600.0

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A resent observation is a stale one: retrying, with a fresh one, is the caller's decision.
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    # gRPC backs off for up to two minutes by default; a restarted gateway answers within seconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # In spite of its name, how long one attempt may take: connecting far away takes several round trips.
    ("grpc.min_reconnect_backoff_ms", 2000),
    # Clients of one process otherwise share one connection, and one robot's large frame would delay another's.
    ("grpc.use_local_subchannel_pool", 1),
    # Robots talk to their gateway directly, whatever proxy the environment names for the web.
    ("grpc.enable_http_proxy", 0),
)


class Deadline:
    """A moment on the monotonic clock after which an answer is worthless. Zero seconds is none left, not no limit."""

    def __init__(self, timeout_s: float) -> None:
        if not math.isfinite(timeout_s):
            raise ValueError(f"timeout_s is {timeout_s}, expected a finite number of seconds")
        self.timeout_s = timeout_s
        self._expires_s = time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(self._expires_s - time.monotonic(), 0.0)

    def require_time(self, *, request_id: str = "") -> float:
        """Seconds left, more than 0. Raises DeadlineExceededError when there are none: nothing is sent then."""
        remaining_s = self.remaining_s()
        if remaining_s == 0:
            raise DeadlineExceededError(
                f"timeout_s {self.timeout_s:g} had passed before the request was sent", request_id=request_id
            )
        return remaining_s
