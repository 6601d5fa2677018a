"""What the gateway counts and times.

Owns the names and labels of its metrics. Does not own the registry (the service does), their exposition (the admin
plane's) or the last hour that the dashboard shows (observability/recent.py), which is told the same. No label's value
is chosen by a caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.errors import Reason, reason_name
from service.observability.recent import PolicyTraffic, RecentTraffic, Stages
from service.observability.request_trace import current_trace

# What a request is counted under when it names no served policy.
UNKNOWN_POLICY = ""

_BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0
)  # fmt: skip
_BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class GatewayMetrics:
    """The gateway's metrics, registered once in `registry`."""

    def __init__(self, registry: CollectorRegistry, *, recent: RecentTraffic | None = None) -> None:
        self._recent = recent or RecentTraffic()
        self._requests = Counter(
            "premotor_requests",
            "Chunk requests that ended, by the status they ended in and the reason that goes with it, empty for none.",
            ("policy", "status", "reason"),
            registry=registry,
        )
        self._in_flight = Gauge(
            "premotor_requests_in_flight",
            "Chunk requests between admission and answer.",
            ("policy",),
            registry=registry,
        )
        self._queued = Gauge(
            "premotor_requests_queued",
            "Chunk requests that wait for their turn in the model.",
            ("policy",),
            registry=registry,
        )
        self._chunks = Counter(
            "premotor_chunks",
            "Chunks that were sent, by the revision they are of.",
            ("policy", "revision"),
            registry=registry,
        )
        self._underruns = Counter(
            "premotor_underruns",
            "How often robots had no action to play, as they say themselves.",
            ("policy",),
            registry=registry,
        )
        self._ready = Gauge(
            "premotor_policy_ready",
            "1 while the revision that a policy serves has passed its probe and answers.",
            ("policy",),
            registry=registry,
        )
        self._batch = Histogram(
            "premotor_batch_requests",
            "How many requests ran together in the model, said by each of them.",
            ("policy",),
            buckets=_BATCH_SIZES,
            registry=registry,
        )
        self._violations = Counter(
            "premotor_output_violations",
            "Chunks that broke a limit and were not sent, by the group of actions; empty for a wrong shape or type.",
            ("policy", "revision", "group"),
            registry=registry,
        )
        self._decode = _histogram("decode", "Validation and image decoding.", registry)
        self._queue = _histogram("queue", "Waiting for a turn and a batch, and crossing to the model.", registry)
        self._inference = _histogram("inference", "The model's forward passes for the request's batch.", registry)
        self._total = _histogram("total", "From a request's arrival to its chunk's departure.", registry)

    def count(self, policy: str, code: grpc.StatusCode, reason: Reason) -> None:
        self._requests.labels(policy, code.name, reason_name(reason)).inc()
        if code is not grpc.StatusCode.OK:
            self._recent.of(policy).note_error(reason)

    def count_violation(self, policy: str, revision: str, group: str) -> None:
        """`group` is a name from the revision's description."""
        self._violations.labels(policy, revision, group).inc()

    def set_ready(self, ready: Mapping[str, bool]) -> None:
        """Of all policies there are."""
        self._ready.clear()
        for policy, one in ready.items():
            self._ready.labels(policy).set(one)

    def of_policy(self, policy: str, *, num_queued: Callable[[], float]) -> PolicyMetrics:
        """The metrics of one policy, to be kept: looking them up costs more than writing them.

        `num_queued` is asked whenever the metrics are read, from any thread.
        """
        self._queued.labels(policy).set_function(num_queued)
        traffic = self._recent.of(policy)
        traffic.num_queued = num_queued
        histograms = (self._decode, self._queue, self._inference, self._total)
        return PolicyMetrics(
            in_flight=self._in_flight.labels(policy),
            stages=tuple(histogram.labels(policy) for histogram in histograms),
            batch=self._batch.labels(policy),
            underruns=self._underruns.labels(policy),
            chunks=lambda revision: self._chunks.labels(policy, revision),
            traffic=traffic,
        )


class PolicyMetrics:
    """What is kept of one policy's requests."""

    def __init__(
        self,
        *,
        in_flight: Gauge,
        stages: tuple[Histogram, ...],
        batch: Histogram,
        underruns: Counter,
        chunks: Callable[[str], Counter],
        traffic: PolicyTraffic,
    ) -> None:
        """`stages` are in the order of Stages; `chunks` finds a revision's counter."""
        self.in_flight = in_flight
        self._stages = stages
        self._batch = batch
        self._underruns = underruns
        self._find_chunks = chunks
        # By revision.
        self._chunks: dict[str, Counter] = {}
        self._traffic = traffic

    def note_chunk(self, revision: str, stages_s: Stages, *, batch_size: int) -> None:
        """A chunk is on its way; a trace that records it is named beside its times."""
        trace = current_trace()
        exemplar = {"trace_id": trace.trace_id} if trace is not None else None
        for histogram, seconds in zip(self._stages, stages_s, strict=True):
            histogram.observe(seconds, exemplar)
        self._batch.observe(batch_size)
        chunks = self._chunks.get(revision)
        if chunks is None:
            chunks = self._chunks[revision] = self._find_chunks(revision)
        chunks.inc()
        self._traffic.note_chunk(stages_s, batch_size)

    def note_underruns(self, num_underruns: int) -> None:
        self._underruns.inc(num_underruns)
        self._traffic.note_underruns(num_underruns)


def _histogram(span: str, documentation: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(f"premotor_{span}_seconds", documentation, ("policy",), buckets=_BUCKETS_S, registry=registry)
