"""What is known of the fleet here, as metrics that are read when they are asked for.

Owns their names. Does not own the facts: they are the served policies' and the follower's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.policies import ServedPolicies
from service.registry import Fleet


class FollowsRegistry(Protocol):
    """The follower, as far as this goes."""

    @property
    def fleet(self) -> Fleet | None: ...

    @property
    def reachable(self) -> bool: ...

    @property
    def lease_s(self) -> float | None: ...


class FleetMetrics(Collector):
    """To be registered once. Read on the event loop that answers robots."""

    def __init__(self, *, policies: ServedPolicies, follower: FollowsRegistry) -> None:
        self._policies = policies
        self._follower = follower

    def collect(self) -> Iterator[GaugeMetricFamily]:
        episodes = GaugeMetricFamily(
            "premotor_episodes_in_progress",
            "Episodes that a revision answers, one robot each; one that was silent for a minute has ended.",
            labels=("policy", "revision"),
        )
        for policy in self._policies:
            for revision in self._policies.revisions(policy):
                count = self._policies.episodes.count(policy, revision.revision)
                episodes.add_metric((policy, revision.revision), count)
        yield episodes
        yield GaugeMetricFamily(
            "premotor_registry_reachable",
            "1 while the registry's database answers; what is served is served on without it.",
            value=float(self._follower.reachable),
        )
        lease_s = self._follower.lease_s
        yield GaugeMetricFamily(
            "premotor_registry_lease_seconds",
            "For how long this gateway begins episodes if its registry stays away; infinite for one that is alone.",
            value=math.inf if lease_s is None else lease_s,
        )
        fleet = self._follower.fleet
        yield GaugeMetricFamily(
            "premotor_fleet_generation",
            "Which state of the fleet this gateway routes by; gateways that differ for over a second disagree.",
            value=float(fleet.generation if fleet is not None else 0),
        )
