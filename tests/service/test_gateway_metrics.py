"""What the gateway counts beside requests: chunks by revision, batches, underruns, readiness, and the last hour."""

from __future__ import annotations

import grpc
import pytest

from service.backend import BackendFailedError
from service.gateway.validation import MAX_UNDERRUNS

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
