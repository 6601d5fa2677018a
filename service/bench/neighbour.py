"""A round trip beside one busy neighbour over one without: what another job on the machine costs a robot.

Owns the neighbour, a process that keeps one CPU busy and nothing else, the blocks with and without it, and their ratio.
Threads that spin at a barrier are what such a neighbour breaks: without the service's settings of OpenMP the same block
takes many times as long.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpc
import numpy as np
import psutil

from premotor.v1 import policy_pb2, policy_pb2_grpc
from service.bench.overhead import median_interval, of_size, probe_case
from service.bench.requests import chunk_requests
from service.bench.served import POLICY, served
from service.model_settings import BackendKind, ModelSettings
from service.revision import read_revision

GOAL = 2.2
_TIMEOUT_S = 60.0
_START_TIMEOUT_S = 30.0
# The first calls of a block find the neighbour, or its absence, only just begun.
_SETTLING_CALLS = 3
# Ends with whoever started it, also when that was killed.
_NEIGHBOUR = """
import os, sys
parent = os.getppid()
if sys.argv[1]:
    os.sched_setaffinity(0, {int(sys.argv[1])})
print("busy", flush=True)
while os.getppid() == parent:
    for _ in range(10**6):
        pass
"""


@dataclass(frozen=True, kw_only=True)
class NeighbourSettings:
    checkpoint: Path
    # Another architecture size, of random weights, for the same bodies; empty measures the checkpoint itself.
    size: Literal["", "tiny", "small"] = ""
    # Empty takes the first case of the probe.
    embodiment: str = ""
    rounds: int = 8
    calls_per_block: int = 20
    backend: BackendKind = "triton"
    model: ModelSettings

    def __post_init__(self) -> None:
        if self.rounds < 2 or self.calls_per_block < 1:
            raise ValueError(f"{self.rounds} rounds of {self.calls_per_block} calls, expected at least 2 of 1")


@dataclass(frozen=True, kw_only=True)
class _Block:
    seconds: list[float]
    # CPU seconds of the neighbour in a second of the block; 0 without one.
    neighbour_share: float


def measure_neighbour(settings: NeighbourSettings) -> dict[str, Any]:
    """p50 of PredictChunk with and without, and `p50_ratio`: the median of the rounds' ratios.

    Raises RevisionError, ServiceStartError; ValueError when the probe does not know the embodiment.
    """
    cpu = _cpu()
    with of_size(settings.checkpoint, settings.size) as checkpoint:
        revision = read_revision(checkpoint, policy=POLICY)
        case = probe_case(revision, settings.embodiment)
        messages = chunk_requests(revision, case, policy=POLICY)
        load_average = os.getloadavg()
        with (
            served(checkpoint, settings.model, backend=settings.backend) as service,
            grpc.insecure_channel(service.grpc_address) as channel,
        ):
            rounds = _rounds(settings, policy_pb2_grpc.PolicyServiceStub(channel), messages, cpu)
    return {
        **_ratios(rounds),
        "goal": GOAL,
        "rounds": settings.rounds,
        "calls_per_block": settings.calls_per_block,
        "size": settings.size,
        "revision": revision.revision,
        "embodiment": revision.description.embodiments[case.request.embodiment_index].name,
        "backend": settings.backend,
        "threads": settings.model.threads,
        "dtype": settings.model.dtype,
        "device": settings.model.device,
        "num_cpus": os.cpu_count(),
        "neighbour_cpu": cpu,
        # Before the service was started: a machine that is busy already has no quiet block.
        "load_average": list(load_average),
    }


def missed_goals(result: dict[str, Any]) -> list[str]:
    if result["p50_ratio"] <= result["goal"]:
        return []
    return [f"p50 with a busy neighbour is {result['p50_ratio']:.2f} times that without, at most {result['goal']:g}"]


def format_neighbour(result: dict[str, Any]) -> str:
    """The result as a table."""
    lines = [f"{'ms':<8}{'p50':>9}{'p90':>9}{'p99':>9}"]
    for name in ("quiet", "busy"):
        row = result[name]
        lines.append(f"{name:<8}{row['p50_ms']:>9.2f}{row['p90_ms']:>9.2f}{row['p99_ms']:>9.2f}")
    low, high = result["p50_ratio_interval"]
    lines.append(
        f"p50 ratio {result['p50_ratio']:.3f} (95 % {low:.3f} to {high:.3f}; goal at most {result['goal']:g}); the "
        f"slowest call {result['slowest_over_quiet_p50']:.1f} times the quiet p50; {result['rounds']} rounds of "
        f"{result['calls_per_block']} calls, {result['threads']} thread(s), {result['dtype']} on {result['device']}, "
        f"{result['num_cpus']} CPUs, the neighbour had {100 * result['neighbour_share']:.0f} % of one; load before "
        f"{result['load_average'][0]:.1f}"
    )
    return "\n".join(lines)


@contextlib.contextmanager
def busy_neighbour(cpu: int | None) -> Iterator[psutil.Process]:
    """A process that computes on that CPU, or on any, while the block lasts."""
    command = (sys.executable, "-c", _NEIGHBOUR, "" if cpu is None else str(cpu))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                if not selector.select(_START_TIMEOUT_S) or not process.stdout.readline():
                    raise RuntimeError("the busy neighbour did not start")
            yield psutil.Process(process.pid)
        finally:
            process.kill()


def _cpu() -> int | None:
    """Always the same one; None where a process cannot be kept on one."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(affinity(0)) if affinity is not None else None


def _rounds(
    settings: NeighbourSettings,
    stub: policy_pb2_grpc.PolicyServiceStub,
    messages: Sequence[policy_pb2.PredictChunkRequest],
    cpu: int | None,
) -> list[dict[str, _Block]]:
    """One block of each kind a round, in another order each time."""
    order, rng = ["quiet", "busy"], random.Random(0)
    rounds: list[dict[str, _Block]] = []
    for number in range(settings.rounds):
        rng.shuffle(order)
        blocks = {}
        for name in order:
            with busy_neighbour(cpu) if name == "busy" else contextlib.nullcontext() as neighbour:
                blocks[name] = _block(stub, messages, settings.calls_per_block, neighbour)
        rounds.append(blocks)
        print(f"bench: round {number + 1} of {settings.rounds}", file=sys.stderr, flush=True)
    return rounds


def _block(
    stub: policy_pb2_grpc.PolicyServiceStub,
    messages: Sequence[policy_pb2.PredictChunkRequest],
    calls: int,
    neighbour: psutil.Process | None,
) -> _Block:
    for call in range(_SETTLING_CALLS):
        stub.PredictChunk(messages[call % len(messages)], timeout=_TIMEOUT_S)
    seconds: list[float] = []
    began_s, spent_s = time.perf_counter(), _cpu_s(neighbour)
    for call in range(calls):
        started_s = time.perf_counter()
        stub.PredictChunk(messages[call % len(messages)], timeout=_TIMEOUT_S)
        seconds.append(time.perf_counter() - started_s)
    lasted_s = time.perf_counter() - began_s
    return _Block(seconds=seconds, neighbour_share=(_cpu_s(neighbour) - spent_s) / lasted_s)


def _cpu_s(process: psutil.Process | None) -> float:
    return 0.0 if process is None else process.cpu_times().user


def _ratios(rounds: Sequence[dict[str, _Block]]) -> dict[str, Any]:
    ratios = [float(np.median(found["busy"].seconds) / np.median(found["quiet"].seconds)) for found in rounds]
    seconds = {name: np.concatenate([found[name].seconds for found in rounds]) for name in ("quiet", "busy")}
    percentiles = {
        name: dict(
            zip(("p50_ms", "p90_ms", "p99_ms"), (1e3 * np.percentile(values, (50, 90, 99))).tolist(), strict=True)
        )
        for name, values in seconds.items()
    }
    return {
        "p50_ratio": float(np.median(ratios)),
        "p50_ratio_interval": median_interval(ratios),
        "round_ratios": ratios,
        **percentiles,
        "slowest_over_quiet_p50": float(seconds["busy"].max() / np.median(seconds["quiet"])),
        "neighbour_share": float(np.mean([found["busy"].neighbour_share for found in rounds])),
    }
