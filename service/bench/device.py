"""What a chunk costs on a device: the bare forward and the served path, in both precisions, alone and in company.

Owns the grid of measurements. Each service compares values with the checkpoint's probe before it counts as ready, so a
figure here is also a proof that the path works on the device.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from premotor.v1 import policy_pb2_grpc
from service.bench.overhead import BareForward
from service.bench.requests import chunk_requests
from service.bench.served import POLICY, ServiceStartError, served
from service.model_settings import BackendKind, ModelSettings
from service.probe import ProbeCase, read_probe
from service.revision import Revision, read_revision

BATCH_SIZES = (1, 8)
_BACKENDS: tuple[BackendKind, ...] = ("local", "triton")
_TIMEOUT_S = 60.0
_WARMUP_CALLS = 10


@dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    checkpoint: Path
    iterations: int = 200
    # Its precision is not read: both are measured.
    model: ModelSettings

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}, expected at least 1")


def measure_device(settings: DeviceSettings) -> dict[str, Any]:
    """A row per way, precision and batch size; a backend that does not serve there has its reason instead.

    Raises RevisionError, DeviceMissingError.
    """
    revision = read_revision(settings.checkpoint, policy=POLICY)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    device_name = ""
    for dtype in ("fp32", "bf16"):
        model = replace(settings.model, dtype=dtype, max_batch_size=max(BATCH_SIZES))
        forward = BareForward(revision, model)
        device_name = forward.device_name
        rows += [{"way": "bare forward", "dtype": dtype, **row} for row in _forwards(forward, revision, settings)]
        for backend in _BACKENDS:
            try:
                served_rows = _round_trips(revision, model, backend, settings.iterations)
            except ServiceStartError as error:
                problems.append(f"{backend} does not serve on {model.device} in {dtype}: {error}")
            else:
                rows += [{"way": f"served, {backend}", "dtype": dtype, **row} for row in served_rows]
    return {
        "device": settings.model.device,
        "device_name": device_name,
        "revision": revision.revision,
        "iterations": settings.iterations,
        "rows": rows,
        "problems": problems,
    }


def format_device(result: dict[str, Any]) -> str:
    """The result as a table."""
    lines = [f"{'':<18}{'':<6}{'batch or robots':>16}{'p50 ms':>10}{'p99 ms':>10}{'chunks/s':>10}"]
    for row in result["rows"]:
        lines.append(
            f"{row['way']:<18}{row['dtype']:<6}{row['batch_size']:>16}"
            f"{row['p50_ms']:>10.2f}{row['p99_ms']:>10.2f}{row['chunks_per_s']:>10.1f}"
        )
    lines.append(f"{result['device_name']}, revision {result['revision']}, {result['iterations']} calls of each kind")
    return "\n".join([*lines, *result["problems"]])


def _forwards(forward: BareForward, revision: Revision, settings: DeviceSettings) -> Iterator[dict[str, Any]]:
    requests = [case.request for case in read_probe(revision)]
    for batch_size in BATCH_SIZES:
        batch = [requests[row % len(requests)] for row in range(batch_size)]
        seconds = []
        for _ in range(_WARMUP_CALLS + settings.iterations):
            started_s = time.perf_counter()
            forward(batch)
            seconds.append(time.perf_counter() - started_s)
        yield _row(batch_size, seconds[_WARMUP_CALLS:])


def _round_trips(
    revision: Revision, model: ModelSettings, backend: BackendKind, iterations: int
) -> list[dict[str, Any]]:
    cases = read_probe(revision)
    with served(revision.directory, model, backend=backend) as service:
        return [
            asyncio.run(_robots(service.grpc_address, revision, cases, num_robots, iterations))
            for num_robots in BATCH_SIZES
        ]


async def _robots(
    address: str, revision: Revision, cases: tuple[ProbeCase, ...], num_robots: int, iterations: int
) -> dict[str, Any]:
    """Robots that ask again as soon as they have their chunk, `iterations` times each."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)

        async def robot(number: int) -> list[float]:
            case = cases[number % len(cases)]
            messages = chunk_requests(revision, case, policy=POLICY, robot_id=f"robot-{number}")
            seconds = []
            for call in range(_WARMUP_CALLS + iterations):
                started_s = time.perf_counter()
                await stub.PredictChunk(messages[call % len(messages)], timeout=_TIMEOUT_S)
                seconds.append(time.perf_counter() - started_s)
            return seconds[_WARMUP_CALLS:]

        answered = await asyncio.gather(*(robot(number) for number in range(num_robots)))
    return _row(num_robots, [seconds for one in answered for seconds in one])


def _row(batch_size: int, seconds: list[float]) -> dict[str, Any]:
    """In a closed loop, and for a batch, `batch_size` chunks come in the mean of these times."""
    p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
    rate = batch_size / float(np.mean(seconds))
    return {"batch_size": batch_size, "p50_ms": float(p50), "p99_ms": float(p99), "chunks_per_s": rate}
