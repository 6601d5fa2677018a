"""What the gateway counts beside requests: chunks by revision, batches, underruns, readiness, and the last hour."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.backend import BackendFailedError
from service.errors import Reason
from service.gateway import GatewayLimits
from service.gateway.metrics import KEPT_S, UNKNOWN_POLICY, GatewayMetrics
from service.gateway.outcomes import Outcome
from service.gateway.validation import MAX_UNDERRUNS
from service.observability.recent import RecentTraffic, Stages
from service.policies import ServedPolicies, ServedPolicy

TIMEOUT_S = 10.0


async def ask(gateway, request) -> None:
    await gateway.stub.PredictChunk(request, timeout=TIMEOUT_S)


async def test_chunks_are_counted_by_revision_and_batches_by_each_request_in_them(kit):
    async with kit.serve() as gateway:
        for _ in range(3):
            await ask(gateway, kit.request())
        value = gateway.registry.get_sample_value
        labels = {"policy": "tabletop", "revision": kit.revision.revision}
        assert value("premotor_chunks_total", labels) == 3
        assert value("premotor_batch_requests_sum", {"policy": "tabletop"}) == 3
        assert value("premotor_batch_requests_count", {"policy": "tabletop"}) == 3
        assert value("premotor_policy_ready", {"policy": "tabletop"}) == 1


async def test_latency_and_what_a_revision_is_to_blame_for_are_told_by_revision(kit):
    labels = {"policy": "tabletop", "revision": kit.revision.revision}
    async with kit.serve() as gateway:

        def counted() -> dict[str, float | None]:
            value = gateway.registry.get_sample_value
            return {
                "answered": value("premotor_chunks_total", labels),
                "timed": value("premotor_total_seconds_count", labels),
                **{
                    outcome: value("premotor_failed_requests_total", {**labels, "outcome": outcome})
                    for outcome in ("failed", "violation")
                },
            }

        await ask(gateway, kit.request())
        # From the first on, all can be divided by all.
        assert counted() == {"answered": 1, "timed": 1, "failed": 0, "violation": 0}
        gateway.backend.failure = BackendFailedError("out of memory")
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(gateway, kit.request())
        gateway.backend.failure = None
        gateway.backend.make_actions = lambda request: np.full((16, 8), np.nan, np.float32)
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(gateway, kit.request())
        # Who asks wrongly is no revision's fault.
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(gateway, kit.request(seed=-1))
        assert counted() == {"answered": 1, "timed": 1, "failed": 1, "violation": 2}
        record = gateway.server.outcomes.record("tabletop", kit.revision.revision, since_s=0.0, window_s=60.0)
        assert (record.num_requests, record.error_rate, record.violation_rate) == (4, 0.25, 0.5)


def test_the_series_of_a_revision_outlive_it_for_a_while_and_then_go() -> None:
    """Or a canary that was rolled back would be gone before it was seen, and every revision ever would be kept."""
    now_s, registry = 1000.0, CollectorRegistry()
    metrics = GatewayMetrics(registry, now_s=lambda: now_s)
    policy = metrics.of_policy("tabletop", num_queued=lambda _: 0)

    def revisions() -> set[str]:
        samples = [sample for family in registry.collect() for sample in family.samples]
        found = {sample.labels["revision"] for sample in samples if "revision" in sample.labels}
        # All of its series at once.
        for revision in found:
            names = {sample.name for sample in samples if sample.labels.get("revision") == revision}
            assert {"premotor_chunks_total", "premotor_total_seconds_sum", "premotor_failed_requests_total"} <= names
            assert "premotor_output_violations_total" in names
        return found

    for revision in ("old", "new"):
        policy.note_chunk(revision, Stages(0.0, 0.0, 0.01, 0.01), batch_size=1)
        policy.note_fault(revision, Outcome.FAILED)
        policy.note_fault(revision, Outcome.VIOLATION, group="arm")
    both, new = {("tabletop", "old"), ("tabletop", "new")}, {("tabletop", "new"), ("kitchen", "old")}

    def forget_unloaded(loaded: set[tuple[str, str]]) -> None:
        metrics.forget_unloaded(loaded, known={"tabletop", "kitchen"})

    forget_unloaded(both)
    forget_unloaded(new)
    now_s += KEPT_S - 1
    forget_unloaded(both)  # loaded again
    now_s += 1
    forget_unloaded(new)
    now_s += KEPT_S - 1
    forget_unloaded(new)
    assert revisions() == {"old", "new"}
    now_s += 1
    forget_unloaded(new)
    assert revisions() == {"new"}
    # It may come back, and begins at 0 then.
    policy.note_chunk("old", Stages(0.0, 0.0, 0.01, 0.01), batch_size=1)
    assert registry.get_sample_value("premotor_chunks_total", {"policy": "tabletop", "revision": "old"}) == 1


def test_of_a_policy_that_was_deleted_nothing_is_kept_for_longer_and_of_one_that_is_retired_all() -> None:
    """The last hour of each takes 5 MB."""
    now_s, registry = 1000.0, CollectorRegistry()
    recent = RecentTraffic(now_s=lambda: now_s)
    metrics = GatewayMetrics(registry, recent=recent, now_s=lambda: now_s)

    def counted() -> set[str]:
        return {sample.labels["policy"] for family in registry.collect() for sample in family.samples}

    for name in ("deleted", "retired"):
        policy = metrics.of_policy(name, num_queued=lambda _: 0)
        policy.note_chunk("old", Stages(0.0, 0.0, 0.01, 0.01), batch_size=1)
        policy.note_fault("old", Outcome.VIOLATION, group="arm")
        policy.note_underruns(1)
        metrics.count(name, grpc.StatusCode.INTERNAL, Reason.REASON_FAILED)
    metrics.count(UNKNOWN_POLICY, grpc.StatusCode.NOT_FOUND, Reason.REASON_UNKNOWN_POLICY)
    # A page asked for it, and nobody else.
    recent.of("deleted too")
    metrics.forget_unloaded((), known={"retired"})
    now_s += KEPT_S - 1
    metrics.forget_unloaded((), known={"retired"})
    assert set(recent) == {"deleted", "deleted too", "retired", ""} and counted() == {"deleted", "retired", ""}
    now_s += 1
    metrics.forget_unloaded((), known={"retired"})
    assert set(recent) == {"retired", ""} and counted() == {"retired", ""}
    # Another of that name begins at 0.
    again = metrics.of_policy("deleted", num_queued=lambda _: 0)
    again.note_underruns(1)
    assert registry.get_sample_value("premotor_underruns_total", {"policy": "deleted"}) == 1
    assert recent.of("deleted").window(60).num_underruns == 1


async def test_what_is_loaded_and_known_here_is_told_to_the_metrics(kit, monkeypatch):
    served = ServedPolicy(revisions={kit.revision.revision: kit.revision}, shares=((kit.revision.revision, 1.0),))
    policies = ServedPolicies({"tabletop": served})
    monkeypatch.setattr(kit, "policies", policies)
    async with kit.serve(limits=GatewayLimits(readiness_interval_s=0.01)) as gateway:
        told: list[tuple[frozenset, frozenset]] = []

        def forget_unloaded(loaded: frozenset, *, known: frozenset) -> None:
            told.append((loaded, known))

        monkeypatch.setattr(gateway.server._health._metrics, "forget_unloaded", forget_unloaded)
        key = ("tabletop", kit.revision.revision)
        ending = {"tabletop": {kit.revision.revision: kit.revision}}
        policies.apply({}, ending=ending, unpromoted=["tabletop"], waiting=["kitchen"])
        await gateway.until(lambda: bool(told) and told[-1] == ({key}, {"tabletop", "kitchen"}))
        policies.apply({})
        await gateway.until(lambda: told[-1] == (frozenset(), frozenset()))


async def test_a_backend_that_is_not_ready_is_told_by_the_metric(kit):
    async with kit.serve(backend=kit.backend(is_ready=False)) as gateway:
        assert gateway.registry.get_sample_value("premotor_policy_ready", {"policy": "tabletop"}) == 0


async def test_underruns_are_added_up_also_of_requests_that_then_fail(kit):
    async with kit.serve() as gateway:
        for num_underruns in (2, 0, None, 5):
            request = kit.request()
            if num_underruns is not None:
                request.num_underruns = num_underruns
            await ask(gateway, request)
        gateway.backend.failure = BackendFailedError("out of memory")
        request.num_underruns = 3
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(gateway, request)
        assert gateway.registry.get_sample_value("premotor_underruns_total", {"policy": "tabletop"}) == 10
        assert gateway.server.recent.of("tabletop").window(60).num_underruns == 10


@pytest.mark.parametrize("num_underruns", [-1, MAX_UNDERRUNS + 1, 2**63 - 1])
async def test_a_number_of_underruns_that_no_robot_meets_is_refused_and_not_counted(kit, num_underruns):
    request = kit.request()
    request.num_underruns = num_underruns
    async with kit.serve() as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(gateway, request)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"num_underruns: {num_underruns} came, expected 0 to {MAX_UNDERRUNS}" in refused.value.details()
        assert not gateway.registry.get_sample_value("premotor_underruns_total", {"policy": "tabletop"})


async def test_the_last_hour_is_told_what_the_metrics_are(kit):
    async with kit.serve() as gateway:
        await ask(gateway, kit.request())
        request = kit.request()
        request.policy = "chosen-by-a-caller"
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(gateway, request)
        gateway.backend.failure = BackendFailedError("out of memory")
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(gateway, kit.request())
        recent = gateway.server.recent
        window = recent.of("tabletop").window(60)
        assert (window.num_chunks, window.errors, window.batches) == (1, {"FAILED": 1}, {1: 1})
        assert window.latency["inference"].p50_s == pytest.approx(0.002, rel=0.05)
        # Under the name for unknown ones: no caller makes an entry.
        assert recent.of("").window(60).errors == {"UNKNOWN_POLICY": 1}
        assert set(recent) == {"tabletop", ""}
