"""A gateway's CPU per request beside that of a bare gRPC echo of the same bytes: what our part of the wire costs.

Owns three servers, each a process of its own, and their turns: the echo; our servicer with credentials, parsing and
serialising, whose answer is ready (the wire's part); the whole gateway, whose backend has its answer ready, so that
neither Triton nor a model is in the figure. Decoding images is measured apart.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import psutil
from prometheus_client import CollectorRegistry

from premotor.v1 import policy_pb2, policy_pb2_grpc
from service.backend import BackendChunk, BackendRequest
from service.bench.overhead import median_interval
from service.bench.requests import chunk_requests
from service.bench.served import POLICY
from service.collection import exempt_what_is_there
from service.credentials import Credentials, Surface
from service.gateway import GatewayServer
from service.gateway.answers import ChunkAnswerer
from service.gateway.authentication import AuthenticationInterceptor
from service.gateway.images import decode_frames, inspect_image
from service.gateway.limits import GatewayLimits
from service.gateway.servicer import PolicyServicer
from service.policies import ServedPolicies
from service.probe import read_probe
from service.revision import read_revision

GOAL = 1.5
_ECHO = "/premotor.bench.Echo/Echo"
_PREDICT = "/premotor.v1.PolicyService/PredictChunk"
_TIMEOUT_S = 30.0
_START_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class WireSettings:
    checkpoint: Path
    rounds: int = 20
    calls_per_round: int = 200

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.calls_per_round < 1:
            raise ValueError(
                f"rounds is {self.rounds}, calls_per_round {self.calls_per_round}; expected at least 1 of each"
            )


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A Backend that has computed before it is asked."""

    actions: np.ndarray

    def capacity(self, revision: str) -> int:
        return 16

    async def predict(self, revision: str, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        return BackendChunk(actions=self.actions, inference_s=0.0, queue_s=0.0)

    async def ready(self, revision: str) -> bool:
        return True

    async def close(self) -> None: ...


def measure_wire(settings: WireSettings) -> dict[str, Any]:
    """Raises RevisionError."""
    revision = read_revision(settings.checkpoint, policy=POLICY)
    messages = chunk_requests(revision, read_probe(revision)[0], policy=POLICY)
    questions = [message.SerializeToString() for message in messages]
    with ExitStack() as running:
        gateway = running.enter_context(_server(_gateway, settings.checkpoint))
        with grpc.insecure_channel(gateway[1]) as channel:
            answer = policy_pb2_grpc.PolicyServiceStub(channel).PredictChunk(messages[0], timeout=_TIMEOUT_S)
        reply = answer.SerializeToString()
        sides = {
            "echo": (*running.enter_context(_server(_echo, reply)), _ECHO),
            "wire": (*running.enter_context(_server(_wire_alone, reply)), _PREDICT),
            "gateway": (*gateway, _PREDICT),
        }
        cpu_s: dict[str, list[float]] = {name: [] for name in sides}
        order = np.random.default_rng(0)
        for number in range(settings.rounds + 1):
            for name in order.permutation(list(sides)):
                spent_s = _round(*sides[name], questions, settings.calls_per_round)
                if number:  # the first warms up
                    cpu_s[name].append(spent_s)
    return _result(settings, cpu_s, _decoding_s(messages), len(questions[0]), len(reply))


def format_wire(result: dict[str, Any]) -> str:
    low, high = result["wire_ratio_interval"]
    return (
        f"CPU a request: bare gRPC echo {result['echo_ms']:.3f} ms; gRPC, credentials and messages "
        f"{result['wire_ms']:.3f} ms; the whole gateway {result['gateway_ms']:.3f} ms, of that decoding images "
        f"{result['decoding_ms']:.3f} ms\n"
        f"wire's part {result['wire_ratio']:.2f} times the echo (95 % {low:.2f} to {high:.2f}; goal {GOAL:g}), "
        f"the whole gateway {result['ratio']:.2f} times; {result['request_bytes']} bytes asked, "
        f"{result['response_bytes']} answered, {result['rounds']} rounds of {result['calls_per_round']} calls, "
        "one at a time"
    )


def _round(process: psutil.Process, address: str, method: str, questions: Sequence[bytes], calls: int) -> float:
    """CPU seconds of the server for a request."""
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(method)
        ask(questions[0], timeout=_TIMEOUT_S)
        before_s = _cpu_s(process)
        for number in range(calls):
            ask(questions[number % len(questions)], timeout=_TIMEOUT_S)
        return (_cpu_s(process) - before_s) / calls


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _decoding_s(messages: Sequence[policy_pb2.PredictChunkRequest]) -> float:
    """Of one request's images, as the gateway does it."""
    limits = GatewayLimits()
    frames = [
        tuple(inspect_image(image, field=name, limits=limits) for name, image in message.observation.images.items())
        for message in messages
    ]
    seconds = []
    for _ in range(20):
        for own in frames:
            started_s = time.perf_counter()
            decode_frames(own)
            seconds.append(time.perf_counter() - started_s)
    return float(np.median(seconds))


def _result(
    settings: WireSettings, cpu_s: dict[str, list[float]], decoding_s: float, request_bytes: int, response_bytes: int
) -> dict[str, Any]:
    # The system counts CPU time in steps of 10 ms: only means over many calls are finer.
    mean_s = {name: float(np.mean(spent_s)) for name, spent_s in cpu_s.items()}
    ratios = [own / max(other, 1e-9) for own, other in zip(cpu_s["wire"], cpu_s["echo"], strict=True)]
    return {
        **{f"{name}_ms": spent_s * 1e3 for name, spent_s in mean_s.items()},
        "decoding_ms": decoding_s * 1e3,
        "ratio": mean_s["gateway"] / mean_s["echo"],
        "wire_ratio": mean_s["wire"] / mean_s["echo"],
        "wire_ratio_interval": median_interval(ratios),
        "goal": GOAL,
        "request_bytes": request_bytes,
        "response_bytes": response_bytes,
        "rounds": settings.rounds,
        "calls_per_round": settings.calls_per_round,
        "num_cpus": os.cpu_count(),
    }


@contextmanager
def _server(serve: Any, argument: Any) -> Iterator[tuple[psutil.Process, str]]:
    """`serve` in a process of its own, once it listens; ended on exit."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(serve, argument, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(_START_TIMEOUT_S):
            raise TimeoutError(f"the server to measure did not listen within {_START_TIMEOUT_S:g} s")
        yield psutil.Process(process.pid), f"127.0.0.1:{ours.recv()}"
    finally:
        ours.close()
        process.join(5.0)
        if process.is_alive():
            process.kill()
            process.join()


def _run(serve: Any, argument: Any, pipe: Connection) -> None:
    asyncio.run(serve(argument, pipe))


async def _gateway(checkpoint: Path, pipe: Connection) -> None:
    revision = read_revision(checkpoint, policy=POLICY)
    gateway = GatewayServer(
        policies=ServedPolicies.fixed({POLICY: [revision]}),
        backend=_Ready(actions=read_probe(revision)[0].expected),
        metrics_registry=CollectorRegistry(),
    )
    port = await gateway.start()
    exempt_what_is_there()
    await _announce_and_wait(port, pipe)
    await gateway.stop(0)


@dataclass(frozen=True, kw_only=True)
class _Answered:
    """An answerer that has answered before it is asked."""

    response: policy_pb2.PredictChunkResponse
    draining: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(
        self,
        request: policy_pb2.PredictChunkRequest | None,
        *,
        timeout_s: float | None,
        caller: str = "",
        num_bytes: int = 0,
    ) -> policy_pb2.PredictChunkResponse:
        return self.response

    def refuse(self, error: Exception, request: policy_pb2.PredictChunkRequest | None) -> policy_pb2.RequestError:
        raise error


async def _wire_alone(reply: bytes, pipe: Connection) -> None:
    access = Credentials(metrics_registry=CollectorRegistry()).on(Surface.GRPC)
    servicer = PolicyServicer(
        policies=ServedPolicies(),
        backend=_Ready(actions=np.zeros(0)),
        answerer=cast(ChunkAnswerer, _Answered(response=policy_pb2.PredictChunkResponse.FromString(reply))),
        access=access,
        limits=GatewayLimits(),
    )
    server = grpc.aio.server(interceptors=[AuthenticationInterceptor(access)])
    server.add_generic_rpc_handlers((servicer.handlers(),))
    await _run_until_told(server, pipe)


async def _echo(reply: bytes, pipe: Connection) -> None:
    """The least that any Python server over asyncio can do."""

    async def answer(_question: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        return reply

    server = grpc.aio.server()
    service, method = _ECHO.strip("/").split("/")
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    await _run_until_told(server, pipe)


async def _run_until_told(server: grpc.aio.Server, pipe: Connection) -> None:
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    exempt_what_is_there()
    await _announce_and_wait(port, pipe)
    await server.stop(0)


async def _announce_and_wait(port: int, pipe: Connection) -> None:
    """Until the other end of the pipe is closed."""
    pipe.send(port)
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), closed.set)
    await closed.wait()
