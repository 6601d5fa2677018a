"""`chaos canary`: a share of the episodes goes to a second revision, then a broken one shadows; no robot may notice.

The share is judged by its binomial interval over episodes, the shadow by whether an operator is told of it in the log.
"""

from __future__ import annotations

import asyncio
import math
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from service.bench.served import Served
from service.chaos.robots import Robots
from service.chaos.twin_service import POLICY_PATH, TwinSettings, twin_service
from service.gateway.shadow import DIVERGES, FAILS

_POLL_INTERVAL_S = 0.2
_TIMEOUT_S = 600.0
# Copies are answered after their robots are.
_ALERT_TIMEOUT_S = 20.0
_REST_S = 5.0


@dataclass(frozen=True, kw_only=True)
class CanarySettings(TwinSettings):
    episodes: int = 200
    share: float = 0.2


def measure_canary(settings: CanarySettings) -> dict[str, Any]:
    """Raises ServiceStartError, AdminError."""
    with twin_service(settings) as service:
        admin, (stable, canary) = service.admin, service.twins.revisions
        admin.carry_out(f"{POLICY_PATH}:split", {"shares": {canary: settings.share}})
        split = asyncio.run(_episodes(service.robots(), settings.episodes))
        admin.carry_out(f"{POLICY_PATH}:rollBack")
        # Random weights, for all a robot knows: as broken as a revision can be that passes its own probe.
        admin.carry_out(f"{POLICY_PATH}/revisions/{canary}:shadow", {"share": 1.0})
        robots = service.robots()
        robots.allowed = frozenset({stable})
        event = _alert(service.service, canary, robots, max(20, settings.episodes // 4))
        return _result(settings, split, canary) | _shadow_result(service.service, robots, canary, event)


async def _episodes(robots: Robots, episodes: int) -> Robots:
    robots.start()
    async with asyncio.timeout(_TIMEOUT_S):
        while len(robots.tally.episodes) < episodes:  # noqa: ASYNC110  # robots end episodes, nobody says so
            await asyncio.sleep(_POLL_INTERVAL_S)
    await robots.stop()
    return robots


def _alert(service: Served, shadow: str, robots: Robots, episodes: int) -> str:
    """The event by which the service says that this shadow is broken; empty when it says nothing in time.

    The robots begin so many episodes, and as many again while nothing is said: copies that a busy model has left are
    answered while they rest.
    """
    asyncio.run(_episodes(robots, episodes))
    give_up_at_s = time.monotonic() + _ALERT_TIMEOUT_S
    while not (event := _event(service, shadow)) and time.monotonic() < give_up_at_s:
        asyncio.run(_episodes(robots, len(robots.tally.episodes) + episodes))
    return event


def _result(settings: CanarySettings, robots: Robots, canary: str) -> dict[str, Any]:
    began = Counter(robots.tally.episodes.values())
    total = sum(began.values())
    low, high = binomial_interval(total, settings.share)
    return {
        "episodes": total,
        "canary_episodes": began[canary],
        "share": settings.share,
        "interval_low": low,
        "interval_high": high,
        "within_interval": low <= began[canary] <= high,
        "requests": robots.tally.num_requests,
        "failed": robots.tally.failures.total(),
        "split_episodes_or_wrong_answers": len(robots.tally.wrong_revision),
        "examples": robots.tally.wrong_revision[:10],
        "backend": settings.backend,
    }


def _shadow_result(service: Served, robots: Robots, shadow: str, event: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{service.admin_url}/metrics", timeout=10.0) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples if sample.labels.get("revision") == shadow]
    ratios = [sample.value for sample in samples if sample.name == "premotor_shadow_divergence_ratio"]
    answered = sum(
        sample.value
        for sample in samples
        if sample.name == "premotor_shadow_requests_total" and sample.labels["outcome"] == "answered"
    )
    return {
        "shadowed_requests": robots.tally.num_requests,
        "shadow_failed": robots.tally.failures.total(),
        "shadow_changed_answers": len(robots.tally.wrong_revision),
        "shadow_answered": int(answered),
        "shadow_divergence_ratio": ratios[0] if ratios else None,
        "shadow_alert": bool(event),
        "shadow_alert_event": event,
    }


def _event(service: Served, shadow: str) -> str:
    """Empty when nothing is said while the robots rest."""
    rested_at_s = time.monotonic() + _REST_S
    while True:
        for event in (DIVERGES, FAILS):
            if any(fields["revision"] == shadow for fields in service.logged(event)):
                return event
        if time.monotonic() >= rested_at_s:
            return ""
        time.sleep(_POLL_INTERVAL_S)


def binomial_interval(trials: int, rate: float) -> tuple[int, int]:
    """The counts that hold at least 95 % of a binomial, as many left out on either side."""
    masses = [math.comb(trials, count) * rate**count * (1 - rate) ** (trials - count) for count in range(trials + 1)]
    low, below = 0, masses[0]
    while below < 0.025:
        low += 1
        below += masses[low]
    high, above = trials, masses[trials]
    while above < 0.025:
        high -= 1
        above += masses[high]
    return low, high


def missed_goals(result: dict[str, Any]) -> list[str]:
    missed = []
    if not result["within_interval"]:
        missed.append(
            f"{result['canary_episodes']} episodes of the canary, expected {result['interval_low']} to "
            f"{result['interval_high']}"
        )
    for name in ("failed", "split_episodes_or_wrong_answers", "shadow_failed", "shadow_changed_answers"):
        if result[name]:
            missed.append(f"{name} is {result[name]}, expected 0")
    if not result["shadow_alert"]:
        missed.append("a broken shadow raised no alert")
    return missed


def format_canary(result: dict[str, Any]) -> str:
    inside = "inside" if result["within_interval"] else "OUTSIDE"
    ratio = result["shadow_divergence_ratio"]
    return (
        f"canary: {result['canary_episodes']} of {result['episodes']} episodes, {inside} the 95 % interval "
        f"{result['interval_low']} to {result['interval_high']} of a share of {result['share']:.0%}; "
        f"{result['requests']} requests, {result['failed']} failed, "
        f"{result['split_episodes_or_wrong_answers']} split episodes or wrong answers\n"
        f"shadow: {result['shadow_answered']} copies of {result['shadowed_requests']} requests answered, "
        f"{result['shadow_changed_answers']} answers changed, {result['shadow_failed']} failed, divergence "
        f"{'unknown' if ratio is None else format(ratio, '.2f')} spreads: alert "
        f"{repr(result['shadow_alert_event']) if result['shadow_alert'] else 'NOT RAISED'}"
    )
