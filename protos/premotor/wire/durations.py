"""Seconds <-> google.protobuf.Duration."""

from __future__ import annotations

import math

from google.protobuf.duration_pb2 import Duration

from premotor.wire.errors import WireError

# The range that google.protobuf.Duration allows: ten thousand years.
MAX_SECONDS = 315_576_000_000
_NANOS_PER_SECOND = 1_000_000_000


def encode_duration(seconds: float, *, field: str = "duration") -> Duration:
    """The nearest representable span. Raises WireError for NaN, infinity and more than ten thousand years."""
    if not math.isfinite(seconds) or abs(seconds) > MAX_SECONDS:
        raise WireError(field, f"{seconds} seconds came, expected a finite number up to {MAX_SECONDS}")
    whole = math.trunc(seconds)
    nanos = round((seconds - whole) * _NANOS_PER_SECOND)
    if abs(nanos) == _NANOS_PER_SECOND:
        whole, nanos = whole + int(math.copysign(1, nanos)), 0
    return Duration(seconds=whole, nanos=nanos)


def decode_duration(duration: Duration, *, field: str) -> float:
    """The span in seconds. Raises WireError when it is outside the range of the type or its parts differ in sign."""
    seconds, nanos = duration.seconds, duration.nanos
    if abs(seconds) > MAX_SECONDS or abs(nanos) >= _NANOS_PER_SECOND or seconds * nanos < 0:
        raise WireError(
            field,
            f"{seconds} s and {nanos} ns came, expected parts of one sign, at most {MAX_SECONDS} s and 999999999 ns",
        )
    return seconds + nanos / _NANOS_PER_SECOND
