"""OpenTelemetry: a request as a span with its stages below it, sent to a collector by OTLP over gRPC.

Owns the set-up of the exporter and what is said of a request: names, ids and times, never what a robot saw, did or was
told. Does not own where spans are made (gateway/tracing.py, gateway/answers.py). The libraries are those of the extra
`otel` and are imported when an endpoint is given, so that without one nothing is loaded and nothing is recorded.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import grpc

from premotor.v1 import policy_pb2
from service.errors import Reason, reason_name
from service.observability.request_trace import recorded

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

Answer = policy_pb2.PredictChunkResponse | policy_pb2.RequestError
SERVICE_NAME = "premotor-gateway"
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
# An id may have 128 bytes; a request that is refused may carry a longer one.
_MAX_ATTRIBUTE_CHARS = 128
_CLOSE_TIMEOUT_S = 5.0
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Tracing:
    """Records requests; `close` sends what is left."""

    def __init__(
        self, exporter: SpanExporter, *, resource: Mapping[str, str] | None = None, endpoint: str = ""
    ) -> None:
        """`endpoint` is the collector's, for further processes of the service to send theirs to."""
        self.endpoint = endpoint
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        attributes = {"service.name": SERVICE_NAME, **(resource or {})}
        # Which requests are recorded is the robot's decision where it made one, else OTEL_TRACES_SAMPLER's.
        self._provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer: Tracer = self._provider.get_tracer("premotor")

    @contextmanager
    def request(self, method: str, traceparent: str) -> Iterator[RequestSpan]:
        """The span of one request, below the robot's where it sent one; current_trace() finds it inside."""
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(method, context=_parent(traceparent), kind=SpanKind.SERVER)
        request = RequestSpan(self._tracer, span)
        try:
            with recorded(request):
                yield request
        except asyncio.CancelledError:
            request.fail("CANCELLED", "")
            raise
        finally:
            span.end()

    async def close(self) -> None:
        """Sends what is left, for at most some seconds."""

        def end() -> None:
            self._provider.force_flush(int(1000 * _CLOSE_TIMEOUT_S))
            self._provider.shutdown()

        await asyncio.to_thread(end)


class RequestSpan:
    """A RequestTrace on OpenTelemetry's spans."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._recorded = span.is_recording()
        # Of the epoch, at time.perf_counter() = 0.
        self._zero_ns = time.time_ns() - time.perf_counter_ns()

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def stage(
        self, name: str, started_s: float, ended_s: float, attributes: Mapping[str, str | int | float] | None = None
    ) -> None:
        if not self._recorded:
            return
        from opentelemetry.trace import set_span_in_context

        span = self._tracer.start_span(
            name, context=set_span_in_context(self._span), start_time=self._epoch_ns(started_s), attributes=attributes
        )
        span.end(self._epoch_ns(ended_s))

    def describe(self, request: policy_pb2.PredictChunkRequest | None, answer: Answer) -> None:
        """Who asked which policy for what, and how it ended."""
        if not self._recorded:
            return
        if request is not None:
            named = {
                "premotor.policy": request.policy,
                "premotor.embodiment": request.embodiment,
                "premotor.robot_id": request.robot_id,
                "premotor.episode_id": request.episode_id,
                "premotor.request_id": request.request_id,
            }
            self._span.set_attributes({name: value[:_MAX_ATTRIBUTE_CHARS] for name, value in named.items()})
        if isinstance(answer, policy_pb2.RequestError):
            self.fail(_CODES[answer.code].name, reason_name(answer.reason))
        else:
            self._span.set_attributes({"premotor.revision": answer.revision, "rpc.grpc.status_code": "OK"})

    def fail(self, code: str, reason: str) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attributes({"rpc.grpc.status_code": code, "premotor.reason": reason})
        # A robot that asks faster than it is answered has not met an error.
        if reason != reason_name(Reason.REASON_SUPERSEDED):
            self._span.set_status(StatusCode.ERROR, reason or code)

    def _epoch_ns(self, perf_counter_s: float) -> int:
        return self._zero_ns + int(perf_counter_s * 1e9)


def otlp_tracing(endpoint: str) -> Tracing:
    """Tracing to the collector at `endpoint`, http://HOST:PORT or https://HOST:PORT.

    Raises ValueError when it is no such thing, or when the extra `otel` is not installed.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{endpoint!r} is no address of a collector, expected for example http://127.0.0.1:4317")
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ValueError("traces need the extra `otel`: pip install 'premotor[otel]'") from None
    return Tracing(OTLPSpanExporter(endpoint=endpoint, insecure=parts.scheme == "http"), endpoint=endpoint)


def _parent(traceparent: str):
    """What the robot says it works on; an own trace begins where that is nothing, or no traceparent."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return Context()
    trace_id, span_id, flags = (int(part, 16) for part in match.groups())
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags & 1))
    if not context.is_valid:
        return Context()
    return set_span_in_context(NonRecordingSpan(context), Context())
