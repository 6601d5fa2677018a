"""The service of another checkout beside this one's: what a change costs each request, in one run.

Both serve the same checkpoint at the same time and are asked in turns. Owns the comparison; one call is the client's.
What a round trip adds to Triton's own time is taken from Triton's counters of the same requests, since two checkouts
need not speak to Triton alike. Where one checkout's service does not hand them on, its model is taken to be as fast as
the other's in the same round.
"""

from __future__ import annotations

import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from premotor.v1 import policy_pb2, policy_pb2_grpc
from service.bench.requests import chunk_requests
from service.bench.served import POLICY, Served, served
from service.model_settings import BackendKind, ModelSettings
from service.probe import read_probe
from service.revision import read_revision

# Of the gateway's own CPU a request, and of the p50 that it adds to Triton's time.
GOAL = 1.15
_WARM_UP_CALLS = 20
# Of each round, not measured: reading the counters asks the gateway itself, and leaves it work and cold caches.
_SETTLING_CALLS = 2
_TIMEOUT_S = 30.0
_CPUCLOCK_SCHED = 2
TRITON_COUNTERS = ("nv_inference_request_duration_us", "nv_inference_request_success")


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
        metrics_url = f"{service.admin_url}/metrics/triton"
        self._metrics_url = metrics_url if _is_there(metrics_url) else ""
        self._channel = grpc.insecure_channel(service.grpc_address)
        self._stub = policy_pb2_grpc.PolicyServiceStub(self._channel)
        # What clock_getcpuclockid(3) gives: the CPU time of all its threads, in nanoseconds where /proc has 10 ms.
        self._cpu_clock = ~service.process.pid << 3 | _CPUCLOCK_SCHED
        self._requests = requests
        self.latencies_s: list[list[float]] = []
        self.cpu_s: list[float] = []
        # Mean seconds of a request in Triton, by round; none without Triton's counters.
        self.triton_s: list[float] = []

    def ask(self, calls: int) -> None:
        """One round: the latency of each call, Triton's part of it, and the gateway's own CPU time for each."""
        in_triton = self._counted()
        for number in range(_SETTLING_CALLS):
            self._call(number)
        before = self._cpu_s()
        latencies_s = [self._call(number) for number in range(calls)]
        self.latencies_s.append(latencies_s)
        self.cpu_s.append((self._cpu_s() - before) / calls)
        if self._metrics_url:
            spent_us, num_requests = self._counted() - in_triton
            self.triton_s.append(spent_us / 1e6 / num_requests)

    def _call(self, number: int) -> float:
        """Its seconds."""
        started_s = time.perf_counter()
        self._stub.PredictChunk(self._requests[number % len(self._requests)], timeout=_TIMEOUT_S)
        return time.perf_counter() - started_s

    def forget(self) -> None:
        self.latencies_s.clear()
        self.cpu_s.clear()
        self.triton_s.clear()

    def close(self) -> None:
        self._channel.close()

    def _counted(self) -> np.ndarray:
        """Microseconds that requests have been in Triton so far, and their number."""
        if not self._metrics_url:
            return np.zeros(2)
        with urllib.request.urlopen(self._metrics_url, timeout=_TIMEOUT_S) as answer:
            text = answer.read().decode()
        return np.array([total(text, name) for name in TRITON_COUNTERS])

    def _cpu_s(self) -> float:
        """Of the service's own process: neither Triton nor the model."""
        return time.clock_gettime(self._cpu_clock)


def _is_there(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return False
    return True


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
    rounds = compared(
        latencies_s=(before.latencies_s, after.latencies_s),
        cpu_s=(before.cpu_s, after.cpu_s),
        triton_s=(before.triton_s or after.triton_s, after.triton_s or before.triton_s),
    )
    return {
        "rounds": settings.rounds,
        "calls_per_round": settings.calls_per_round,
        **rounds,
        "goal": GOAL,
        "backend": settings.backend,
        "num_cpus": os.cpu_count(),
    }


_BothSides = tuple[Sequence[float], Sequence[float]]


def compared(
    *,
    latencies_s: tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]],
    cpu_s: _BothSides,
    triton_s: _BothSides,
) -> dict[str, Any]:
    """Of seconds before and after, by round and call or by round; those in Triton are empty without one."""
    p50_s = np.median(latencies_s, axis=2)
    kinds = {"cpu": (cpu_s, "cpu_per_request_ms"), "latency": (p50_s, "latency_p50_ms")}
    if triton_s[0]:
        # Triton counts sums: what is added to a round's calls is known in the mean, whose p50 is over the rounds.
        added_s = np.mean(latencies_s, axis=2) - np.asarray(triton_s)
        kinds["added"] = (added_s, "added_p50_ms")
    found = {}
    for kind, (seconds, name) in kinds.items():
        before, after = np.asarray(seconds)
        found[name] = {"before": float(np.median(before)) * 1e3, "after": float(np.median(after)) * 1e3}
        found[f"{kind}_ratio"] = _ratio(before, after)
    return found


def total(text: str, name: str) -> float:
    """The sum over a counter's series in Prometheus' text."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)", text, re.MULTILINE))


def missed_goals(result: dict[str, Any]) -> list[str]:
    judged = {"cpu_ratio": "the gateway's own CPU a request", "added_ratio": "the p50 that is added to Triton's"}
    return [
        f"{what} is {result[ratio]['ratio']:.2f} times what it was, at most {result['goal']:g}"
        for ratio, what in judged.items()
        if ratio in result and not result[ratio]["ratio"] <= result["goal"]
    ]


def _ratio(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """The ratio of the rounds' medians, with the 95 % interval of rounds drawn again."""
    draws = np.random.default_rng(0).integers(0, len(before), (2000, len(before)))
    drawn = np.median(after[draws], axis=1) / np.median(before[draws], axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"ratio": float(np.median(after) / np.median(before)), "low": float(low), "high": float(high)}


def format_against(result: dict[str, Any]) -> str:
    goal = f"; goal {result['goal']:g}"
    lines = []
    for name, key, ratio, judged in (
        ("gateway's own CPU a request", "cpu_per_request_ms", "cpu_ratio", goal),
        ("round trip p50", "latency_p50_ms", "latency_ratio", ""),
        ("p50 added to Triton's", "added_p50_ms", "added_ratio", goal),
    ):
        if key in result:
            spans, found = result[key], result[ratio]
            lines.append(
                f"{name:<28} {spans['before']:8.2f} ms before, {spans['after']:8.2f} ms after: {found['ratio']:.3f} "
                f"(95 % {found['low']:.3f} to {found['high']:.3f}{judged})"
            )
    return "\n".join(lines)
