"""Chunks per second of many robots with batching on and off.

Owns two services that differ in nothing else, asked in turns by the same closed-loop robots, and the ratio of their
throughput. The robots share the machine with the service, so the ratio counts, not the rate.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from premotor.v1 import policy_pb2, policy_pb2_grpc
from service.bench.requests import chunk_requests
from service.bench.served import POLICY, served
from service.model_settings import BackendKind, ModelSettings
from service.probe import read_probe
from service.revision import read_revision

# Of batching_ratio, which must be more.
GOAL = 1.0
_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class BatchingSettings:
    checkpoint: Path
    concurrency: int = 8
    rounds: int = 6
    block_s: float = 3.0
    backend: BackendKind = "triton"
    # Its `batching` is not read: both are measured.
    model: ModelSettings

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.rounds < 1 or not self.block_s > 0:
            raise ValueError(
                f"concurrency is {self.concurrency}, rounds {self.rounds}, block_s {self.block_s}; expected more than 0"
            )


@dataclass(frozen=True, kw_only=True)
class _Block:
    """What the robots got in one stretch of time."""

    chunks_per_s: float
    latencies_s: list[float]


def measure_batching(settings: BatchingSettings) -> dict[str, Any]:
    """Chunks per second of each, and `batching_ratio`: the median of the rounds' ratios, on over off.

    Raises RevisionError, ServiceStartError.
    """
    revision = read_revision(settings.checkpoint, policy=POLICY)
    cases = read_probe(revision)
    robots = [
        chunk_requests(revision, cases[robot % len(cases)], policy=POLICY, robot_id=f"robot-{robot}")
        for robot in range(settings.concurrency)
    ]
    with (
        served(settings.checkpoint, replace(settings.model, batching=True), backend=settings.backend) as batching,
        served(settings.checkpoint, replace(settings.model, batching=False), backend=settings.backend) as single,
    ):
        blocks = asyncio.run(_rounds(settings, robots, {"on": batching.grpc_address, "off": single.grpc_address}))
    return _result(settings, revision.revision, blocks)


def missed_goals(result: dict[str, Any]) -> list[str]:
    if result["batching_ratio"] > result["goal"]:
        return []
    return [
        f"batching makes {result['batching_ratio']:.2f} times as many chunks a second, more than {result['goal']:g}"
    ]


def format_batching(result: dict[str, Any]) -> str:
    """The result as a table."""
    lines = [f"{'batching':<12}{'chunks/s':>10}{'p50 ms':>9}{'p99 ms':>9}"]
    for name, row in result["batching"].items():
        lines.append(f"{name:<12}{row['chunks_per_s']:>10.1f}{row['p50_ms']:>9.1f}{row['p99_ms']:>9.1f}")
    lines.append(
        f"batching_ratio {result['batching_ratio']:.2f} (goal more than {result['goal']:g}; "
        f"rounds {min(result['round_ratios']):.2f} to {max(result['round_ratios']):.2f}); "
        f"{result['concurrency']} robots, batches of up to {result['max_batch_size']}, "
        f"{result['threads']} thread(s), {result['dtype']} on {result['device']}"
    )
    return "\n".join(lines)


async def _rounds(
    settings: BatchingSettings, robots: list[list[policy_pb2.PredictChunkRequest]], addresses: dict[str, str]
) -> dict[str, list[_Block]]:
    blocks: dict[str, list[_Block]] = {name: [] for name in addresses}
    # The first round warms up. The order turns round each time, so that a slow change of the machine favours neither.
    for round_number in range(settings.rounds + 1):
        names = sorted(addresses, reverse=round_number % 2 == 0)
        for name in names:
            block = await _block(addresses[name], robots, settings.block_s)
            if round_number > 0:
                blocks[name].append(block)
    return blocks


async def _block(address: str, robots: list[list[policy_pb2.PredictChunkRequest]], block_s: float) -> _Block:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        started_s = time.perf_counter()
        latencies = await asyncio.gather(*(_robot(stub, messages, started_s + block_s) for messages in robots))
        elapsed_s = time.perf_counter() - started_s
    latencies_s = [latency_s for robot in latencies for latency_s in robot]
    return _Block(chunks_per_s=len(latencies_s) / elapsed_s, latencies_s=latencies_s)


async def _robot(
    stub: policy_pb2_grpc.PolicyServiceStub, messages: list[policy_pb2.PredictChunkRequest], until_s: float
) -> list[float]:
    latencies_s: list[float] = []
    while (asked_s := time.perf_counter()) < until_s:
        await stub.PredictChunk(messages[len(latencies_s) % len(messages)], timeout=_TIMEOUT_S)
        latencies_s.append(time.perf_counter() - asked_s)
    return latencies_s


def _result(settings: BatchingSettings, revision: str, blocks: dict[str, list[_Block]]) -> dict[str, Any]:
    ratios = [on.chunks_per_s / off.chunks_per_s for on, off in zip(blocks["on"], blocks["off"], strict=True)]
    return {
        "batching_ratio": float(np.median(ratios)),
        "goal": GOAL,
        "round_ratios": ratios,
        "batching": {name: _summary(blocks[name]) for name in ("on", "off")},
        "revision": revision,
        "concurrency": settings.concurrency,
        "max_batch_size": settings.model.max_batch_size,
        "backend": settings.backend,
        "threads": settings.model.threads,
        "dtype": settings.model.dtype,
        "device": settings.model.device,
        "num_cpus": os.cpu_count(),
    }


def _summary(blocks: list[_Block]) -> dict[str, float]:
    p50, p99 = np.percentile([latency_s for block in blocks for latency_s in block.latencies_s], (50, 99)) * 1e3
    rate = float(np.median([block.chunks_per_s for block in blocks]))
    return {"chunks_per_s": rate, "p50_ms": float(p50), "p99_ms": float(p99)}
