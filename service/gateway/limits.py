"""How much the gateway takes on: sizes, counts and times.

Owns the numbers and their sanity. Does not own their enforcement, which is beside what they bound.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class GatewayLimits:
    """Every field must be more than 0."""

    # One gRPC message, either way.
    max_message_bytes: int = 64 * 1024 * 1024
    # One JPEG or PNG file.
    max_compressed_image_bytes: int = 8 * 1024 * 1024
    # One frame after decoding, height times width; checked from the header, before anything is allocated.
    max_image_pixels: int = 4096 * 4096
    max_instruction_bytes: int = 1024
    max_id_bytes: int = 128
    # Requests of one policy between arrival and answer, over all connections and streams.
    max_in_flight_per_policy: int = 256
    max_in_flight_per_stream: int = 32
    # What a request without a deadline gets, and the most that any request gets.
    default_timeout_s: float = 10.0
    max_timeout_s: float = 60.0
    # What an overloaded gateway tells a caller to wait.
    overload_retry_s: float = 0.1
    # What a caller is told to wait while a policy is loading or the gateway stops.
    unavailable_retry_s: float = 1.0
    # How often, and for how long, the backend is asked whether it is ready.
    readiness_interval_s: float = 0.5
    readiness_timeout_s: float = 2.0
    num_decode_threads: int = 2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} is {value}, expected more than 0")
        if self.default_timeout_s > self.max_timeout_s:
            raise ValueError(f"default_timeout_s {self.default_timeout_s} exceeds max_timeout_s {self.max_timeout_s}")
