"""The service of another checkout beside this one's: what a change costs each request, in one run.

Both serve the same checkpoint at the same time and are asked in turns. Owns the comparison; one call is the client's.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from premotor.v1 import policy_pb2, policy_pb2_grpc
from service.bench.requests import chunk_requests
from service.bench.served import POLICY, Served, served
from service.model_settings import BackendKind, ModelSettings
from service.probe import read_probe
from service.revision import read_revision

GOAL = 1.15
_WARM_UP_CALLS = 20
_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class AgainstSettings:
    checkpoint: Path
    # The root of a checkout of the code to compare with.
    other: Path
    rounds: int = 12
    calls_per_round: int = 40
    backend: BackendKind = "triton"
    model: ModelSettings

    def __post_init__(self) -> None:
        if not (self.other / "service" / "__main__.py").is_file():
            raise ValueError(f"{self.other} is no checkout: it has no service/__main__.py")
        if self.rounds < 2 or self.calls_per_round < 1:
            raise ValueError(f"{self.rounds} rounds of {self.calls_per_round} calls, expected at least 2 of 1")


class _Side:
    """One of the two services."""

    def __init__(self, service: Served, requests: Sequence[policy_pb2.PredictChunkRequest]) -> None:
        self._channel = grpc.insecure_channel(service.grpc_address)
        self._stub = policy_pb2_grpc.PolicyServiceStub(self._channel)
        self._process = psutil.Process(service.process.pid)
        self._requests = requests
        self.latencies_s: list[list[float]] = []
        self.cpu_s: list[float] = []

    def ask(self, calls: int) -> None:
        """One round: the latency of each call, and the gateway's own CPU time for each."""
        before = self._cpu_s()
        latencies_s = []
        for number in range(calls):
            started_s = time.perf_counter()
            self._stub.PredictChunk(self._requests[number % len(self._requests)], timeout=_TIMEOUT_S)
            latencies_s.append(time.perf_counter() - started_s)
        self.latencies_s.append(latencies_s)
        self.cpu_s.append((self._cpu_s() - before) / calls)

    def forget(self) -> None:
        self.latencies_s.clear()
        self.cpu_s.clear()

    def close(self) -> None:
        self._channel.close()

    def _cpu_s(self) -> float:
        """Of the service's own process: neither Triton nor the model."""
        times = self._process.cpu_times()
        return times.user + times.system


def measure_against(settings: AgainstSettings) -> dict[str, Any]:
    """Raises what starting a service does."""
    revision = read_revision(settings.checkpoint, policy=POLICY)
    requests = chunk_requests(revision, read_probe(revision)[0], policy=POLICY)
    with ExitStack() as running:
        sides = {}
        for name, source in (("before", settings.other), ("after", None)):
            service = running.enter_context(
                served(settings.checkpoint.resolve(), settings.model, backend=settings.backend, source=source)
            )
            sides[name] = _Side(service, requests)
            running.callback(sides[name].close)
        for side in sides.values():
            side.ask(_WARM_UP_CALLS)
            side.forget()
        order = np.random.default_rng(0)
        for number in range(settings.rounds):
            for name in order.permutation(list(sides)):
                sides[name].ask(settings.calls_per_round)
            print(f"bench: round {number + 1} of {settings.rounds}", file=sys.stderr, flush=True)
        return _result(settings, sides["before"], sides["after"])


def _result(settings: AgainstSettings, before: _Side, after: _Side) -> dict[str, Any]:
    p50_s = [np.array([np.median(latencies) for latencies in side.latencies_s]) for side in (before, after)]
    cpu_s = [np.array(side.cpu_s) for side in (before, after)]
    return {
        "rounds": settings.rounds,
        "calls_per_round": settings.calls_per_round,
        "cpu_per_request_ms": {"before": _ms(cpu_s[0], np.mean), "after": _ms(cpu_s[1], np.mean)},
        "latency_p50_ms": {"before": _ms(p50_s[0], np.median), "after": _ms(p50_s[1], np.median)},
        # The system counts CPU time in steps of 10 ms, as much as several requests take: only means are finer.
        "cpu_ratio": _ratio(cpu_s[0], cpu_s[1], np.mean),
        "latency_ratio": _ratio(p50_s[0], p50_s[1], np.median),
        "goal": GOAL,
        "backend": settings.backend,
        "num_cpus": os.cpu_count(),
    }


def _ms(seconds: np.ndarray, centre: Callable[..., Any]) -> float:
    return float(centre(seconds)) * 1e3


def _ratio(before: np.ndarray, after: np.ndarray, centre: Callable[..., Any]) -> dict[str, float]:
    """The ratio of the rounds' means or medians, with the 95 % interval of rounds drawn again."""
    draws = np.random.default_rng(0).integers(0, len(before), (2000, len(before)))
    drawn = centre(after[draws], axis=1) / centre(before[draws], axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"ratio": float(centre(after) / centre(before)), "low": float(low), "high": float(high)}


def format_against(result: dict[str, Any]) -> str:
    lines = []
    for name, key, ratio in (
        ("gateway's own CPU a request", "cpu_per_request_ms", "cpu_ratio"),
        ("round trip p50", "latency_p50_ms", "latency_ratio"),
    ):
        spans, found = result[key], result[ratio]
        lines.append(
            f"{name:<28} {spans['before']:8.2f} ms before, {spans['after']:8.2f} ms after: {found['ratio']:.3f} "
            f"(95 % {found['low']:.3f} to {found['high']:.3f}; goal {result['goal']:g})"
        )
    return "\n".join(lines)
