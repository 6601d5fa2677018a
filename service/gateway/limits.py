"""How much the gateway takes on: sizes, counts and times.

Owns the numbers and their sanity. Does not own their enforcement, which is beside what they bound. All bounds there
are, and what comes of going beyond (tests/service/test_gateway_limits.py goes beyond each):

| bound | of what | beyond it |
|---|---|---|
| max_message_bytes | a gRPC message either way, an openpi frame | RESOURCE_EXHAUSTED, by gRPC itself |
| max_images | frames of one observation | INVALID_ARGUMENT |
| max_compressed_image_bytes | one JPEG or PNG file | INVALID_ARGUMENT |
| max_image_pixels | one decoded frame | INVALID_ARGUMENT, from the header |
| MAX_JPEG_SCANS (images.py) | passes over one JPEG | INVALID_ARGUMENT |
| max_instruction_bytes | an instruction | INVALID_ARGUMENT |
| max_id_bytes | an id | INVALID_ARGUMENT |
| max_abs_value | a number of state, history or previous actions, in its own unit | INVALID_ARGUMENT |
| Policy.history_steps | rows of history | INVALID_ARGUMENT |
| Policy.max_inference_steps | Euler steps | INVALID_ARGUMENT |
| max_timeout_s | a request's wait | shortened to it |
| max_queued_per_policy | requests that wait for a policy's model | RESOURCE_EXHAUSTED with a delay |
| max_queued_bytes_per_policy | what came of those requests, in all | RESOURCE_EXHAUSTED with a delay |
| max_in_flight_per_stream | requests open on one stream | RESOURCE_EXHAUSTED with a delay |
| max_streams | streams open on the gateway | RESOURCE_EXHAUSTED with a delay |
| max_watches | watches of its health, which need no token | RESOURCE_EXHAUSTED with a delay |
| max_calls | calls open on the gateway, streams among them | RESOURCE_EXHAUSTED, by gRPC itself |
| Caps (credentials/token.py) | a token's requests a second, in flight (128) and streams (128) | the same |

The openpi wire adds its own (openpi/limits.py), the admin plane a cap on bodies (admin/app.py).
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
    # Frames of one observation, counted before any name of a camera is compared.
    max_images: int = 16
    max_instruction_bytes: int = 1024
    max_id_bytes: int = 128
    # A number of state, history or previous actions, whatever its unit: no counter of 32 bits, such as an encoder's,
    # goes further, and no model overflows on it.
    max_abs_value: float = 2.0**31
    # Requests of one policy that wait for its model, over all connections and streams. Those inside the model are
    # bounded by what the backend takes at a time.
    max_queued_per_policy: int = 256
    # Of those in all, as they came: 1 MiB each on average, and as many large ones as there is memory for.
    max_queued_bytes_per_policy: int = 256 * 1024 * 1024
    max_in_flight_per_stream: int = 32
    # StreamChunks calls that are open, over all connections.
    max_streams: int = 1024
    # Health/Watch calls that are open: one of each robot that has its client watch for it.
    max_watches: int = 1024
    # Calls of any kind, over all connections: of each a message may be on its way.
    max_calls: int = 4096
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
    # A stream, or a connection of openpi's, whose token has ended is ended within this long, silent or not.
    credential_check_s: float = 2.0
    num_decode_threads: int = 2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} is {value}, expected more than 0")
        if self.max_queued_bytes_per_policy < self.max_message_bytes:
            raise ValueError(
                f"max_queued_bytes_per_policy {self.max_queued_bytes_per_policy} is less than max_message_bytes "
                f"{self.max_message_bytes}: such a message could never wait"
            )
        if self.default_timeout_s > self.max_timeout_s:
            raise ValueError(f"default_timeout_s {self.default_timeout_s} exceeds max_timeout_s {self.max_timeout_s}")
