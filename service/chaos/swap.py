"""`chaos swap`: one revision after the other takes over under load, and no robot may notice.

Each swap is whole: load, warm, probe, promote, drain, unload; the next begins when the old one is gone.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.chaos.robots import Tally
from service.chaos.twin_service import POLICY_PATH, TwinService, TwinSettings, twin_service
from service.ctl.admin_client import AdminClient, AdminError

WORST_OVER_P50 = 4.0
_WARM_UP_S = 3.0
_NUM_SLOWEST = 5
# Between looks at whether this process itself was run.
_LAG_INTERVAL_S = 0.01


@dataclass(frozen=True, kw_only=True)
class SwapSettings(TwinSettings):
    swaps: int = 100


def measure_swaps(settings: SwapSettings) -> dict[str, Any]:
    """Raises what starting a service does, and AdminError when a swap fails."""
    with twin_service(settings) as service:
        return asyncio.run(_swap(settings, service))


async def _swap(settings: SwapSettings, service: TwinService) -> dict[str, Any]:
    robots, revisions = service.robots(), service.twins.revisions
    lags_s: list[tuple[float, float]] = []
    watch = asyncio.create_task(_watch_lag(lags_s))
    robots.start()
    try:
        await asyncio.sleep(_WARM_UP_S)
        # What the first seconds took is no part of the figure.
        robots.tally.latencies_s.clear()
        robots.tally.ended_s.clear()
        began_s, spent_s = [], []
        for number in range(settings.swaps):
            new, old = revisions[(number + 1) % 2], revisions[number % 2]
            began_s.append(started_s := time.perf_counter())
            await asyncio.to_thread(service.admin.carry_out, f"{POLICY_PATH}/revisions/{new}:promote")
            # Every gateway routes by it: whoever begins an episode now is answered by the new one.
            robots.allowed = frozenset({new})
            await asyncio.to_thread(_wait_unloaded, service.admin, old)
            spent_s.append(time.perf_counter() - started_s)
            robots.allowed = None
            print(f"chaos: swap {number + 1} of {settings.swaps}", file=sys.stderr, flush=True)
    finally:
        tally = await robots.stop()
        watch.cancel()
    return {**_result(settings, tally, spent_s), "slowest": _slowest(tally, began_s, lags_s)}


async def _watch_lag(lags_s: list[tuple[float, float]]) -> None:
    """Notes when this process was run too late, and by how much: what a machine does to robots, no service mends."""
    while True:
        due_s = time.perf_counter() + _LAG_INTERVAL_S
        await asyncio.sleep(_LAG_INTERVAL_S)
        lags_s.append((due_s, time.perf_counter() - due_s))


def _slowest(tally: Tally, began_s: list[float], lags_s: list[tuple[float, float]]) -> list[dict[str, float]]:
    """The slowest answers first.

    Of which swap each is, how long after its beginning it was asked for, and how late this process itself was run
    meanwhile, at most.
    """
    ended_s, latencies_s = np.array(tally.ended_s), np.array(tally.latencies_s)
    due_s, late_s = np.array(lags_s).reshape(-1, 2).T
    found = []
    for index in np.argsort(-latencies_s)[:_NUM_SLOWEST]:
        asked_s = ended_s[index] - latencies_s[index]
        swap = int(np.searchsorted(began_s, asked_s))
        meanwhile = late_s[(due_s >= asked_s - _LAG_INTERVAL_S) & (due_s <= ended_s[index])]
        found.append(
            {
                "latency_ms": latencies_s[index] * 1e3,
                # 0 is before the first.
                "swap": swap,
                "after_s": float(asked_s - began_s[max(0, swap - 1)]),
                "own_lag_ms": float(meanwhile.max(initial=0.0)) * 1e3,
            }
        )
    return found


def _wait_unloaded(admin: AdminClient, revision: str) -> None:
    give_up_s = time.monotonic() + 120.0
    while admin.get(f"{POLICY_PATH}/revisions/{revision}")["state"] != "unloaded":
        if time.monotonic() > give_up_s:
            raise AdminError(f"revision {revision} did not drain within 120 s")
        time.sleep(0.05)


def _result(settings: SwapSettings, tally: Tally, spent_s: list[float]) -> dict[str, Any]:
    latencies_ms = np.array(tally.latencies_s) * 1e3
    p50_ms, worst_ms = float(np.median(latencies_ms)), float(latencies_ms.max())
    return {
        "swaps": len(spent_s),
        "robots": settings.robots,
        "requests": tally.num_requests,
        "failed": tally.failures.total(),
        "failures": dict(tally.failures),
        "wrong_revision": len(tally.wrong_revision),
        "wrong_revision_examples": tally.wrong_revision[:10],
        "latency_p50_ms": p50_ms,
        "latency_p99_ms": float(np.percentile(latencies_ms, 99)),
        "latency_max_ms": worst_ms,
        "latency_max_over_p50": worst_ms / p50_ms,
        "swap_p50_s": float(np.median(spent_s)),
        "backend": settings.backend,
    }


def missed_goals(result: dict[str, Any]) -> list[str]:
    missed = []
    if result["failed"]:
        missed.append(f"{result['failed']} requests failed: {result['failures']}")
    if result["wrong_revision"]:
        missed.append(f"{result['wrong_revision']} answers of a wrong revision: {result['wrong_revision_examples']}")
    if result["latency_max_over_p50"] > WORST_OVER_P50:
        missed.append(
            f"the worst latency is {result['latency_max_over_p50']:.1f} times p50, at most {WORST_OVER_P50:g}"
        )
    return missed


def format_swaps(result: dict[str, Any]) -> str:
    ratio = result["latency_max_over_p50"]
    return (
        f"{result['swaps']} swaps under {result['robots']} robots, {result['swap_p50_s']:.1f} s each: "
        f"{result['requests']} requests, {result['failed']} failed {result['failures'] or ''}, "
        f"{result['wrong_revision']} of a wrong revision\n"
        f"latency p50 {result['latency_p50_ms']:.1f} ms, p99 {result['latency_p99_ms']:.1f} ms, "
        f"worst {result['latency_max_ms']:.1f} ms: {ratio:.1f} times p50 (goal {WORST_OVER_P50:g})\n"
        + "\n".join(
            f"slow: {each['latency_ms']:.0f} ms, asked {each['after_s']:.1f} s after swap {each['swap']} began; "
            f"these robots themselves were run up to {each['own_lag_ms']:.0f} ms late"
            for each in result["slowest"]
        )
    )
