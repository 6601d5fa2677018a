"""A robot's trace goes on in the gateway, where the robot has one, and costs it no dependency where it has none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from premotor.client import AsyncPolicyClient, PolicyClient, RetryableError
from premotor.v1 import policy_pb2, policy_pb2_grpc

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Listener(policy_pb2_grpc.PolicyServiceServicer):
    """Keeps the traceparent of every call it gets."""

    def __init__(self) -> None:
        self.heard: list[str | None] = []

    def ListPolicies(self, request: Any, context: grpc.ServicerContext) -> policy_pb2.ListPoliciesResponse:
        self._hear(context)
        return policy_pb2.ListPoliciesResponse()

    def StreamChunks(self, requests: Any, context: grpc.ServicerContext) -> Iterator[policy_pb2.StreamChunksResponse]:
        next(requests)
        self._hear(context)
        yield from ()

    def _hear(self, context: grpc.ServicerContext) -> None:
        self.heard.append(dict(context.invocation_metadata()).get("traceparent"))


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def address(listener) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(listener, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    assert server.stop(None).wait(10)


def span() -> Any:
    context = SpanContext(int(TRACE_ID, 16), int(SPAN_ID, 16), is_remote=False, trace_flags=TraceFlags(1))
    return trace.use_span(NonRecordingSpan(context))


def test_calls_and_streams_carry_the_span_that_they_are_made_in(address, listener, arguments) -> None:
    with PolicyClient(address) as client:
        with span():
            client.list_policies()
            with client.stream() as stream:
                request_id = stream.send(**arguments)
                with pytest.raises(RetryableError, match="the server ended the stream"):
                    stream.receive(request_id)
        client.list_policies()
    traceparent = f"00-{TRACE_ID}-{SPAN_ID}-01"
    assert listener.heard == [traceparent, traceparent, None]


async def test_the_asyncio_client_carries_it_too(address, listener) -> None:
    async with AsyncPolicyClient(address) as client:
        with span():
            await client.list_policies()
        await client.list_policies()
    assert listener.heard == [f"00-{TRACE_ID}-{SPAN_ID}-01", None]


def test_a_robot_without_the_library_sends_none_and_does_not_load_it() -> None:
    program = (
        "import sys\n"
        "from premotor.client.trace_context import trace_metadata\n"
        "print(trace_metadata(), [name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "() []"
