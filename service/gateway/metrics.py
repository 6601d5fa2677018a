"""What the gateway counts and times.

Owns the names and labels of its metrics. Does not own the registry (the service does) or their exposition (the admin
plane's). No label's value is chosen by a caller.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# What a request is counted under when it names no served policy.
UNKNOWN_POLICY = ""

_BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0
)  # fmt: skip


class GatewayMetrics:
    """The gateway's metrics, registered once in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "premotor_requests",
            "Chunk requests that ended, by the status they ended in.",
            ("policy", "status"),
            registry=registry,
        )
        self._in_flight = Gauge(
            "premotor_requests_in_flight",
            "Chunk requests between admission and answer.",
            ("policy",),
            registry=registry,
        )
        self._decode = _histogram("decode", "Validation and image decoding.", registry)
        self._queue = _histogram("queue", "Waiting for a batch and crossing to the model.", registry)
        self._inference = _histogram("inference", "The model's forward passes for the request's batch.", registry)
        self._total = _histogram("total", "From a request's arrival to its chunk's departure.", registry)

    def count(self, policy: str, code: grpc.StatusCode) -> None:
        self._requests.labels(policy, code.name).inc()

    def of_policy(self, policy: str) -> PolicyMetrics:
        """The metrics of one policy, to be kept: looking them up costs more than writing them."""
        return PolicyMetrics(
            in_flight=self._in_flight.labels(policy),
            decode=self._decode.labels(policy),
            queue=self._queue.labels(policy),
            inference=self._inference.labels(policy),
            total=self._total.labels(policy),
        )


@dataclass(frozen=True, kw_only=True)
class PolicyMetrics:
    """What is kept of one policy's requests; spans in seconds."""

    in_flight: Gauge
    decode: Histogram
    queue: Histogram
    inference: Histogram
    total: Histogram


def _histogram(span: str, documentation: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(f"premotor_{span}_seconds", documentation, ("policy",), buckets=_BUCKETS_S, registry=registry)
