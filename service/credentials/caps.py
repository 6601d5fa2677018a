"""What each token uses of this gateway now, and the bounds on it.

Owns the counts and the token buckets. Does not own the bounds of the gateway as a whole (gateway/limits.py). Belongs to
one event loop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from service.credentials.token import TokenRecord
from service.errors import OverloadedError

# What a caller is told to wait for one of its own requests, or streams, to end.
_IN_FLIGHT_RETRY_S = 0.1
_STREAM_RETRY_S = 1.0


@dataclass
class _Use:
    in_flight: int = 0
    streams: int = 0
    # Requests that may be made at once, as of `filled_s`; None before the first.
    allowance: float | None = None
    filled_s: float = 0.0


class UsageByToken:
    """Counts what each token uses. Every bound holds on each gateway by itself."""

    def __init__(self, *, clock_s: Callable[[], float]) -> None:
        """`clock_s` is monotonic."""
        self._clock_s = clock_s
        # As many entries as an operator made tokens.
        self._uses: defaultdict[str, _Use] = defaultdict(_Use)

    def begin_request(self, token: TokenRecord) -> None:
        """Raises OverloadedError; otherwise `end_request` must follow."""
        use, most = self._uses[token.token_id], token.caps.max_in_flight
        if most is not None and use.in_flight >= most:
            raise OverloadedError(
                f"{most} requests of this token are in flight, the most that it may have",
                retry_after_s=_IN_FLIGHT_RETRY_S,
            )
        if token.caps.max_requests_per_s is not None:
            self._spend(use, token.caps.max_requests_per_s)
        use.in_flight += 1

    def end_request(self, token: TokenRecord) -> None:
        self._uses[token.token_id].in_flight -= 1

    def begin_stream(self, token: TokenRecord) -> None:
        """Raises OverloadedError; otherwise `end_stream` must follow."""
        use, most = self._uses[token.token_id], token.caps.max_streams
        if most is not None and use.streams >= most:
            raise OverloadedError(
                f"{most} streams of this token are open, the most that it may have", retry_after_s=_STREAM_RETRY_S
            )
        use.streams += 1

    def end_stream(self, token: TokenRecord) -> None:
        self._uses[token.token_id].streams -= 1

    def _spend(self, use: _Use, rate: float) -> None:
        """A bucket that holds a second's worth of requests, one at least, and fills at the token's rate."""
        now_s, most = self._clock_s(), max(rate, 1.0)
        allowance = most if use.allowance is None else min(most, use.allowance + (now_s - use.filled_s) * rate)
        use.filled_s = now_s
        if allowance < 1.0:
            use.allowance = allowance
            raise OverloadedError(
                f"more than {rate:g} requests a second of this token came, the most that it may make",
                retry_after_s=(1.0 - allowance) / rate,
            )
        use.allowance = allowance - 1.0
