"""`chaos fairness`: robots at a steady rate, with and without one more that asks 50 times as fast.

Owns the two loads, in blocks that take turns so that a slow change of the machine favours neither, and the ratio of
what the steady robots wait. The loads share the machine with the service, so the ratio counts, not the milliseconds.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from premotor.v1 import policy_pb2, policy_pb2_grpc
from premotor.wire import decode_duration, read_error_metadata
from service.bench.requests import chunk_requests
from service.bench.served import POLICY, served
from service.model_settings import BackendKind, ModelSettings
from service.probe import read_probe
from service.revision import read_revision

GOAL = 1.2
FASTER = 50
_TIMEOUT_S = 10.0
_NUM_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class FairnessSettings:
    checkpoint: Path
    robots: int = 8
    # Of each steady robot.
    rate_hz: float = 2.0
    rounds: int = 8
    block_s: float = 5.0
    backend: BackendKind = "triton"
    model: ModelSettings

    def __post_init__(self) -> None:
        if self.robots < 1 or self.rounds < 1 or not (self.rate_hz > 0 and self.block_s > 0):
            raise ValueError(
                f"robots is {self.robots}, rounds {self.rounds}, rate_hz {self.rate_hz}, block_s {self.block_s}; "
                "expected more than 0"
            )


@dataclass(kw_only=True)
class _Block:
    """What came of the requests of one stretch of time."""

    # Of the steady robots' chunks: round trips, and what the service says of each.
    latencies_s: list[float] = field(default_factory=list)
    service_latencies_s: list[float] = field(default_factory=list)
    # Their requests that got none, by reason; and how the fast robot's ended.
    failures: Counter[str] = field(default_factory=Counter)
    fast: Counter[str] = field(default_factory=Counter)


def measure_fairness(settings: FairnessSettings) -> dict[str, Any]:
    """Raises RevisionError, ServiceStartError."""
    revision = read_revision(settings.checkpoint, policy=POLICY)
    requests = chunk_requests(revision, read_probe(revision)[0], policy=POLICY)
    with served(settings.checkpoint, settings.model, backend=settings.backend) as service:
        rounds = asyncio.run(_rounds(settings, service.grpc_address, requests))
    return _result(settings, rounds)


async def _rounds(
    settings: FairnessSettings, address: str, requests: Sequence[policy_pb2.PredictChunkRequest]
) -> list[tuple[_Block, _Block]]:
    """Of each round the block without the fast robot and the one with it. A first round warms up."""
    rounds = []
    for number in range(settings.rounds + 1):
        blocks = {}
        for with_fast in (False, True) if number % 2 else (True, False):
            blocks[with_fast] = await _block(settings, address, requests, with_fast=with_fast)
        if number:
            rounds.append((blocks[False], blocks[True]))
    return rounds


async def _block(
    settings: FairnessSettings,
    address: str,
    requests: Sequence[policy_pb2.PredictChunkRequest],
    *,
    with_fast: bool,
) -> _Block:
    block, ends_s = _Block(), time.perf_counter() + settings.block_s
    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as robots:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        for number in range(settings.robots):
            robots.create_task(_steady(settings, stub, requests, number, block, ends_s))
        if with_fast:
            robots.create_task(_fast(settings, stub, requests, block, ends_s))
    return block


async def _steady(
    settings: FairnessSettings,
    stub: policy_pb2_grpc.PolicyServiceStub,
    requests: Sequence[policy_pb2.PredictChunkRequest],
    number: int,
    block: _Block,
    ends_s: float,
) -> None:
    """Asks as a robot that plays chunks does: at its times, or as soon as it has its chunk when that came later."""
    period_s = 1 / settings.rate_hz
    # Spread over a period, as robots that know nothing of each other are.
    next_s = time.perf_counter() + period_s * number / settings.robots
    step = 0
    while next_s < ends_s:
        await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
        request = _request(requests, f"steady-{number}", step)
        started_s = time.perf_counter()
        answer = await _ask(stub, request)
        if isinstance(answer, str):
            block.failures[answer] += 1
        else:
            block.latencies_s.append(time.perf_counter() - started_s)
            block.service_latencies_s.append(decode_duration(answer.timing.total, field="timing.total"))
        step += 1
        next_s = max(next_s + period_s, time.perf_counter())


async def _fast(
    settings: FairnessSettings,
    stub: policy_pb2_grpc.PolicyServiceStub,
    requests: Sequence[policy_pb2.PredictChunkRequest],
    block: _Block,
    ends_s: float,
) -> None:
    """Asks at its times whether it has its chunks or not: its own requests supersede each other."""
    period_s, next_s, step = 1 / (FASTER * settings.rate_hz), time.perf_counter(), 0

    async def ask(request: policy_pb2.PredictChunkRequest) -> None:
        answer = await _ask(stub, request)
        block.fast[answer if isinstance(answer, str) else "OK"] += 1

    async with asyncio.TaskGroup() as asking:
        while next_s < ends_s:
            await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
            asking.create_task(ask(_request(requests, "fast", step)))
            step += 1
            next_s += period_s


def _request(
    requests: Sequence[policy_pb2.PredictChunkRequest], robot_id: str, step: int
) -> policy_pb2.PredictChunkRequest:
    request = policy_pb2.PredictChunkRequest()
    request.CopyFrom(requests[step % len(requests)])
    request.robot_id, request.request_id = robot_id, str(step)
    return request


async def _ask(
    stub: policy_pb2_grpc.PolicyServiceStub, request: policy_pb2.PredictChunkRequest
) -> policy_pb2.PredictChunkResponse | str:
    """A chunk, or the reason why there is none."""
    try:
        return await stub.PredictChunk(request, timeout=_TIMEOUT_S)
    except grpc.aio.AioRpcError as failed:
        error = read_error_metadata(failed.trailing_metadata())
        if error is None:
            return failed.code().name
        return policy_pb2.RequestError.Reason.Name(error.reason).removeprefix("REASON_")


def _result(settings: FairnessSettings, rounds: list[tuple[_Block, _Block]]) -> dict[str, Any]:
    alone = [np.array(block.latencies_s) * 1e3 for block, _ in rounds]
    beside = [np.array(block.latencies_s) * 1e3 for _, block in rounds]
    low, high = ratio_interval(alone, beside)
    blocks = [block for pair in rounds for block in pair]
    fast = sum((block.fast for block in blocks), Counter[str]())
    return {
        "p99_alone_ms": _p99(alone),
        "p99_beside_ms": _p99(beside),
        "ratio": _p99(beside) / _p99(alone),
        "ratio_low": low,
        "ratio_high": high,
        # Without the way there and back, on which the loads of this process share a thread.
        "service_p99_alone_ms": 1e3 * _p99([np.array(block.service_latencies_s) for block, _ in rounds]),
        "service_p99_beside_ms": 1e3 * _p99([np.array(block.service_latencies_s) for _, block in rounds]),
        "p50_alone_ms": float(np.median(np.concatenate(alone))),
        "p50_beside_ms": float(np.median(np.concatenate(beside))),
        "superseded": fast["SUPERSEDED"],
        "fast_requests": dict(fast),
        "steady_requests": sum(len(latencies) for latencies in (*alone, *beside)),
        "steady_failures": dict(sum((block.failures for block in blocks), Counter[str]())),
        "blocks": len(blocks),
        "robots": settings.robots,
        "rate_hz": settings.rate_hz,
        "backend": settings.backend,
    }


def ratio_interval(alone: Sequence[np.ndarray], beside: Sequence[np.ndarray]) -> tuple[float, float]:
    """95 % of the ratio of the 99th percentiles, beside over alone, when rounds are drawn again with replacement."""
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(_NUM_RESAMPLES):
        drawn = generator.integers(len(alone), size=len(alone))
        ratios.append(_p99([beside[index] for index in drawn]) / _p99([alone[index] for index in drawn]))
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


def _p99(latencies: Sequence[np.ndarray]) -> float:
    return float(np.percentile(np.concatenate(latencies), 99))


def missed_goals(result: dict[str, Any]) -> list[str]:
    missed = []
    if result["ratio"] > GOAL:
        missed.append(f"p99 beside the fast robot is {result['ratio']:.2f} times that alone, at most {GOAL:g}")
    if result["steady_failures"]:
        missed.append(f"requests of steady robots without a chunk: {result['steady_failures']}")
    return missed


def format_fairness(result: dict[str, Any]) -> str:
    return (
        f"p99 of {result['robots']} robots at {result['rate_hz']:g} Hz: {result['p99_alone_ms']:.1f} ms alone, "
        f"{result['p99_beside_ms']:.1f} ms beside one that asks {FASTER} times as fast: "
        f"{result['ratio']:.2f} times (95 % interval {result['ratio_low']:.2f} to {result['ratio_high']:.2f}, "
        f"goal {GOAL:g}); {result['blocks']} blocks\n"
        f"of that in the service: {result['service_p99_alone_ms']:.1f} and {result['service_p99_beside_ms']:.1f} ms\n"
        f"{result['steady_requests']} chunks, {sum(result['steady_failures'].values())} requests without one; "
        f"of the fast robot's {sum(result['fast_requests'].values())}, {result['superseded']} were superseded"
    )
