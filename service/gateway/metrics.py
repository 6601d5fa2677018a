"""What the gateway counts and times.

Owns the names and labels of its metrics. Does not own the registry (the service does), their exposition (the admin
plane's) or the last hour that the dashboard shows (observability/recent.py), which is told the same. No label's value
is chosen by a caller.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.errors import Reason, reason_name
from service.gateway.outcomes import Outcome
from service.observability.recent import PolicyTraffic, RecentTraffic, Stages
from service.observability.request_trace import current_trace

# What a request is counted under when it names no served policy.
UNKNOWN_POLICY = ""

_BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0
)  # fmt: skip
_BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
# How long the series of a revision stay once it is loaded no more, and those of a policy that was deleted: what it did
# last is scraped, and looked at.
KEPT_S = 600.0
# What a revision is to blame for.
_FAULTS = {Outcome.FAILED: "failed", Outcome.VIOLATION: "violation"}


@dataclass(kw_only=True, slots=True)
class _RevisionSeries:
    """The series of one revision of a policy."""

    chunks: Counter
    total: Histogram
    faults: Mapping[Outcome, Counter]
    # Whose limits it broke; empty for a wrong shape or type.
    violated: set[str] = field(default_factory=set)
    # Since when it is not loaded; None while it is.
    gone_s: float | None = None


class _ByRevision:
    """The metrics that have a revision for a label: what a guard compares, to be seen."""

    def __init__(self, registry: CollectorRegistry) -> None:
        of_revision = ("policy", "revision")
        self._chunks = Counter(
            "premotor_chunks",
            "Chunks that were sent, by the revision they are of.",
            of_revision,
            registry=registry,
        )
        self._faults = Counter(
            "premotor_failed_requests",
            "Requests without a chunk that their revision is to blame for: its model failed or was too slow for a "
            "deadline (failed), or its answer broke a limit (violation).",
            (*of_revision, "outcome"),
            registry=registry,
        )
        self._violations = Counter(
            "premotor_output_violations",
            "Chunks that broke a limit and were not sent, by the group of actions; empty for a wrong shape or type.",
            (*of_revision, "group"),
            registry=registry,
        )
        self._total = _histogram("total", "From a request's arrival to its chunk's departure.", registry, of_revision)

    def series(self, policy: str, revision: str) -> _RevisionSeries:
        """All that have no other label are there from now on, at 0: what is not there cannot be divided by."""
        return _RevisionSeries(
            chunks=self._chunks.labels(policy, revision),
            total=self._total.labels(policy, revision),
            faults={outcome: self._faults.labels(policy, revision, name) for outcome, name in _FAULTS.items()},
        )

    def count_violation(self, policy: str, revision: str, group: str) -> None:
        self._violations.labels(policy, revision, group).inc()

    def forget(self, policy: str) -> None:
        for metric in (self._chunks, self._faults, self._violations, self._total):
            metric.remove_by_labels({"policy": policy})

    def remove(self, policy: str, revision: str, series: _RevisionSeries) -> None:
        for metric in (self._chunks, self._total):
            metric.remove(policy, revision)
        for name in _FAULTS.values():
            self._faults.remove(policy, revision, name)
        for group in series.violated:
            self._violations.remove(policy, revision, group)


class GatewayMetrics:
    """The gateway's metrics, registered once in `registry`."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        recent: RecentTraffic | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`now_s` is monotonic."""
        self._recent = recent or RecentTraffic()
        self._now_s = now_s
        self._policies: dict[str, PolicyMetrics] = {}
        # Since when a policy of which something is kept is known no more.
        self._gone_s: dict[str, float] = {}
        self._by_revision = _ByRevision(registry)
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
        # In the order of Stages.
        self._stages = (
            _histogram("decode", "Validation and image decoding.", registry),
            _histogram("queue", "Waiting for a turn and a batch, and crossing to the model.", registry),
            _histogram("inference", "The model's forward passes for the request's batch.", registry),
        )

    def count(self, policy: str, code: grpc.StatusCode, reason: Reason) -> None:
        self._requests.labels(policy, code.name, reason_name(reason)).inc()
        if code is not grpc.StatusCode.OK:
            self._recent.of(policy).note_error(reason)

    def set_ready(self, ready: Mapping[str, bool]) -> None:
        """Of all policies there are."""
        self._ready.clear()
        for policy, one in ready.items():
            self._ready.labels(policy).set(one)

    def forget_unloaded(self, loaded: Collection[tuple[str, str]], *, known: Collection[str]) -> None:
        """Drops the series of revisions that have not been loaded for KEPT_S; `loaded` are policies and revisions.

        Of policies that have not been among `known` for so long, drops everything.
        """
        now_s = self._now_s()
        for policy, metrics in self._policies.items():
            metrics.forget_unloaded([revision for name, revision in loaded if name == policy], now_s)
        gone = {*self._policies, *self._recent}.difference(known, (UNKNOWN_POLICY,))
        self._gone_s = {policy: self._gone_s.get(policy, now_s) for policy in gone}
        for policy, gone_s in self._gone_s.items():
            if now_s - gone_s >= KEPT_S:
                self._forget(policy)

    def _forget(self, policy: str) -> None:
        for metric in (self._requests, self._in_flight, self._queued, self._underruns, self._batch, *self._stages):
            metric.remove_by_labels({"policy": policy})
        self._by_revision.forget(policy)
        self._policies.pop(policy, None)
        self._recent.forget(policy)

    def of_policy(self, policy: str, *, num_queued: Callable[[str], float]) -> PolicyMetrics:
        """The metrics of one policy. `num_queued` is asked for it whenever the metrics are read, from any thread."""
        metrics = self._policies.get(policy)
        return metrics if metrics is not None else self._made(policy, partial(num_queued, policy))

    def _made(self, policy: str, num_queued: Callable[[], float]) -> PolicyMetrics:
        """Kept, for looking them up costs more than writing them."""
        self._queued.labels(policy).set_function(num_queued)
        traffic = self._recent.of(policy)
        traffic.num_queued = num_queued
        metrics = self._policies[policy] = PolicyMetrics(
            policy,
            in_flight=self._in_flight.labels(policy),
            stages=tuple(histogram.labels(policy) for histogram in self._stages),
            batch=self._batch.labels(policy),
            underruns=self._underruns.labels(policy),
            by_revision=self._by_revision,
            traffic=traffic,
        )
        return metrics


class PolicyMetrics:
    """What is kept of one policy's requests."""

    def __init__(
        self,
        policy: str,
        *,
        in_flight: Gauge,
        stages: tuple[Histogram, ...],
        batch: Histogram,
        underruns: Counter,
        by_revision: _ByRevision,
        traffic: PolicyTraffic,
    ) -> None:
        """`stages` are in the order of Stages, without the last, the total, which is kept by revision."""
        self.in_flight = in_flight
        self._policy = policy
        self._stages = stages
        self._batch = batch
        self._underruns = underruns
        self._by_revision = by_revision
        self._revisions: dict[str, _RevisionSeries] = {}
        self._traffic = traffic

    def note_chunk(self, revision: str, stages_s: Stages, *, batch_size: int) -> None:
        """A chunk is on its way; a trace that records it is named beside its times."""
        trace = current_trace()
        exemplar = {"trace_id": trace.trace_id} if trace is not None else None
        series = self._revisions.get(revision) or self._series(revision)
        for histogram, seconds in zip(self._stages, stages_s, strict=False):
            histogram.observe(seconds, exemplar)
        series.total.observe(stages_s.total_s, exemplar)
        self._batch.observe(batch_size)
        series.chunks.inc()
        self._traffic.note_chunk(stages_s, batch_size)

    def note_fault(self, revision: str, outcome: Outcome, *, group: str = "") -> None:
        """A request has no chunk, and its revision is to blame; `group` of a violation is of its description."""
        series = self._revisions.get(revision) or self._series(revision)
        series.faults[outcome].inc()
        if outcome is Outcome.VIOLATION:
            series.violated.add(group)
            self._by_revision.count_violation(self._policy, revision, group)

    def forget_unloaded(self, loaded: Collection[str], now_s: float) -> None:
        for revision, series in tuple(self._revisions.items()):
            if revision in loaded:
                series.gone_s = None
            elif series.gone_s is None:
                series.gone_s = now_s
            elif now_s - series.gone_s >= KEPT_S:
                del self._revisions[revision]
                self._by_revision.remove(self._policy, revision, series)

    def _series(self, revision: str) -> _RevisionSeries:
        """Looking them up costs more than writing them."""
        series = self._revisions[revision] = self._by_revision.series(self._policy, revision)
        return series

    def note_underruns(self, num_underruns: int) -> None:
        self._underruns.inc(num_underruns)
        self._traffic.note_underruns(num_underruns)


def _histogram(
    span: str, documentation: str, registry: CollectorRegistry, labels: tuple[str, ...] = ("policy",)
) -> Histogram:
    return Histogram(f"premotor_{span}_seconds", documentation, labels, buckets=_BUCKETS_S, registry=registry)
