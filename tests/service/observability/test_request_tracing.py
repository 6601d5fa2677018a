"""A request as a trace: below the robot's span, with its stages, named by logs and metrics, silent on what was seen."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from concurrent import futures
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from premotor.v1 import policy_pb2, policy_pb2_grpc
from service.__main__ import main
from service.backend import BackendFailedError
from service.gateway import GatewayServer
from service.logs import JsonFormatter
from service.observability.request_trace import current_trace, recorded
from service.observability.tracing import Tracing, otlp_tracing

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
TIMEOUT_S = 10.0


class Traced:
    """A gateway whose spans are kept in memory."""

    def __init__(self, kit: Any, tracing: Tracing | None) -> None:
        self.backend, self.metrics, self.tracing = kit.backend(), CollectorRegistry(), tracing
        self.server = GatewayServer(
            policies=kit.policies, backend=self.backend, metrics_registry=self.metrics, tracing=tracing
        )


@asynccontextmanager
async def traced(kit: Any, tracing: Tracing | None) -> AsyncIterator[tuple[Traced, Any]]:
    gateway = Traced(kit, tracing)
    address = f"127.0.0.1:{await gateway.server.start()}"
    options = [("grpc.use_local_subchannel_pool", 1)]
    try:
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            yield gateway, policy_pb2_grpc.PolicyServiceStub(channel)
    finally:
        await gateway.server.stop(0)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def spans(exporter) -> AsyncIterator[tuple[Tracing, Callable[[], Any]]]:
    """Tracing, and what ends it and returns its spans by name."""
    tracing = Tracing(exporter)

    async def ended() -> dict[str, ReadableSpan]:
        await tracing.close()
        return {span.name: span for span in exporter.get_finished_spans()}

    yield tracing, ended
    await tracing.close()


def root(spans: dict[str, ReadableSpan], method: str = "PredictChunk") -> ReadableSpan:
    return spans[f"premotor.v1.PolicyService/{method}"]


async def test_a_request_is_a_span_below_the_robots_with_its_stages_in_order(kit, spans):
    tracing, ended = spans
    async with traced(kit, tracing) as (_, stub):
        answer = await stub.PredictChunk(kit.request(), metadata=(("traceparent", TRACEPARENT),), timeout=TIMEOUT_S)
    found = await ended()
    request = root(found)
    assert f"{request.context.trace_id:032x}" == TRACE_ID and f"{request.parent.span_id:016x}" == SPAN_ID
    assert request.kind is SpanKind.SERVER and request.status.status_code is not StatusCode.ERROR
    assert dict(request.attributes) == {
        "premotor.policy": "tabletop",
        "premotor.embodiment": "panda",
        "premotor.robot_id": "robot-1",
        "premotor.episode_id": "episode-1",
        "premotor.request_id": "request-1",
        "premotor.revision": answer.revision,
        "rpc.grpc.status_code": "OK",
    }
    stages = [found[name] for name in ("check", "queue", "decode", "inference")]
    assert all(stage.parent.span_id == request.context.span_id for stage in stages)
    times = [time for stage in stages for time in (stage.start_time, stage.end_time)]
    # Two clocks: the root's own times are the library's.
    assert times == sorted(times)
    assert abs(times[0] - request.start_time) < 50e6 and abs(times[-1] - request.end_time) < 50e6
    assert dict(found["inference"].attributes) == {"premotor.forward_s": 0.002, "premotor.batch_size": 1}


async def test_no_span_holds_what_a_robot_saw_did_or_was_told(kit, spans, exporter):
    tracing, ended = spans
    request = kit.request()
    request.observation.instruction = "a secret errand"
    async with traced(kit, tracing) as (_, stub):
        await stub.PredictChunk(request, timeout=TIMEOUT_S)
    await ended()
    told = " ".join(span.to_json() for span in exporter.get_finished_spans())
    assert "robot-1" in told and "errand" not in told
    assert not {"state", "image", "action", "instruction"} & set(json.dumps(told).replace('"', " ").split())


async def test_a_refusal_names_its_status_and_reason_and_ends_no_later_stage(kit, spans):
    tracing, ended = spans
    request = kit.request()
    request.seed = -1
    async with traced(kit, tracing) as (_, stub):
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.PredictChunk(request, timeout=TIMEOUT_S)
    found = await ended()
    assert found.keys() == {root(found).name}
    assert root(found).status.status_code is StatusCode.ERROR
    assert root(found).attributes["rpc.grpc.status_code"] == "INVALID_ARGUMENT"
    assert root(found).attributes["premotor.reason"] == "INVALID"


async def test_requests_of_a_stream_are_spans_below_the_one_that_opened_it(kit, spans, exporter):
    tracing, ended = spans
    async with traced(kit, tracing) as (_, stub):
        call = stub.StreamChunks(timeout=TIMEOUT_S, metadata=(("traceparent", TRACEPARENT),))
        for number in range(2):
            await call.write(policy_pb2.StreamChunksRequest(request=kit.request(request_id=f"request-{number}")))
            assert (await call.read()).HasField("chunk")
        await call.done_writing()
    await ended()
    requests = [span for span in exporter.get_finished_spans() if span.name.endswith("/StreamChunks")]
    assert [span.attributes["premotor.request_id"] for span in requests] == ["request-0", "request-1"]
    assert {f"{span.parent.span_id:016x}" for span in requests} == {SPAN_ID}


@pytest.mark.parametrize(
    "traceparent", ["", "nonsense", f"00-{'0' * 32}-{SPAN_ID}-01", f"01-{TRACE_ID}-{SPAN_ID}-01", f"{TRACEPARENT}-more"]
)
async def test_what_is_no_traceparent_begins_a_trace_of_its_own(kit, spans, traceparent):
    tracing, ended = spans
    async with traced(kit, tracing) as (_, stub):
        await stub.PredictChunk(kit.request(), metadata=(("traceparent", traceparent),), timeout=TIMEOUT_S)
    request = root(await ended())
    assert request.parent is None and f"{request.context.trace_id:032x}" != TRACE_ID


async def test_a_robot_that_records_nothing_is_not_recorded(kit, spans):
    tracing, ended = spans
    metadata = (("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00"),)
    async with traced(kit, tracing) as (_, stub):
        await stub.PredictChunk(kit.request(), metadata=metadata, timeout=TIMEOUT_S)
    assert await ended() == {}


async def test_latencies_carry_the_trace_as_an_exemplar_where_the_scraper_asks_for_it(kit, spans):
    tracing, _ = spans
    async with traced(kit, tracing) as (gateway, stub):
        await stub.PredictChunk(kit.request(), metadata=(("traceparent", TRACEPARENT),), timeout=TIMEOUT_S)
        exposed = generate_latest(gateway.metrics).decode()
    for stage in ("decode", "queue", "inference", "total"):
        lines = [line for line in exposed.splitlines() if line.startswith(f"premotor_{stage}_seconds_bucket")]
        assert sum(f'# {{trace_id="{TRACE_ID}"}}' in line for line in lines) == 1


async def test_what_is_logged_for_a_request_names_its_trace(kit, spans):
    tracing, _ = spans
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("service.gateway.answers")
    logger.addHandler(handler)
    try:
        async with traced(kit, tracing) as (gateway, stub):
            gateway.backend.failure = BackendFailedError("out of memory")
            for metadata in ((("traceparent", TRACEPARENT),), ()):
                with pytest.raises(grpc.aio.AioRpcError):
                    await stub.PredictChunk(kit.request(), metadata=metadata, timeout=TIMEOUT_S)
    finally:
        logger.removeHandler(handler)
    first, second = map(json.loads, written.getvalue().splitlines())
    assert first["trace_id"] == TRACE_ID and first["event"] == "request failed"
    assert second["trace_id"] not in ("", TRACE_ID)


async def test_without_tracing_no_request_has_a_trace_and_no_metric_an_exemplar(kit):
    seen = []
    async with traced(kit, None) as (gateway, stub):
        gateway.backend.make_actions = lambda request: (seen.append(current_trace()), kit.expected_actions(request))[1]
        await stub.PredictChunk(kit.request(), metadata=(("traceparent", TRACEPARENT),), timeout=TIMEOUT_S)
        assert b"trace_id" not in generate_latest(gateway.metrics)
    assert seen == [None]


def test_without_an_endpoint_no_tracing_library_is_loaded_by_us():
    program = (
        "import sys, service.serve\n"
        "from service.__main__ import main\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OpenTelemetry collector, as far as it takes traces."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_spans_reach_a_collector_by_otlp_before_the_service_has_stopped(kit):
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        tracing = otlp_tracing(f"http://127.0.0.1:{port}")
        async with traced(kit, tracing) as (_, stub):
            await stub.PredictChunk(kit.request(), metadata=(("traceparent", TRACEPARENT),), timeout=TIMEOUT_S)
        await tracing.close()
        assert {span.trace_id.hex() for span in collector.spans} == {TRACE_ID}
        assert {span.name for span in collector.spans} >= {"queue", "decode", "inference"}
    finally:
        assert server.stop(None).wait(TIMEOUT_S)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "ftp://127.0.0.1", "http://"])
def test_an_endpoint_that_is_none_is_a_wrong_call(endpoint, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--policy", "tabletop=nowhere", "--otlp-endpoint", endpoint])
    assert ended.value.code == 2
    assert "no address of a collector" in capsys.readouterr().err


def test_tritons_part_of_a_trace_needs_the_gateways(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--policy", "tabletop=nowhere", "--otlp-http-url", "http://127.0.0.1:4318/v1/traces"])
    assert ended.value.code == 2
    assert "needs those of the gateway" in capsys.readouterr().err


def test_a_trace_is_the_current_one_only_inside() -> None:
    class Trace:
        trace_id, traceparent = TRACE_ID, TRACEPARENT

        def stage(self, *_: Any) -> None: ...

    assert current_trace() is None
    with recorded(Trace()):
        assert current_trace().trace_id == TRACE_ID
    assert current_trace() is None
