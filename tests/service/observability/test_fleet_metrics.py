"""Metrics of what the fleet is, read at the moment they are asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.episodes import Episode
from service.observability.fleet_metrics import FleetMetrics
from service.policies import ServedPolicies
from service.registry import Fleet


@dataclass
class Follower:
    fleet: Fleet | None = None
    reachable: bool = True
    lease_s: float | None = None


@pytest.fixture
def follower() -> Follower:
    return Follower()


def test_episodes_in_progress_are_counted_by_revision(kit, follower):
    policies = ServedPolicies.fixed({"tabletop": [kit.revision]})
    registry = CollectorRegistry()
    registry.register(FleetMetrics(policies=policies, follower=follower))
    labels = {"policy": "tabletop", "revision": kit.revision.revision}
    assert registry.get_sample_value("premotor_episodes_in_progress", labels) == 0
    for robot in ("arm-1", "arm-2"):
        policies.routed(Episode(policy="tabletop", robot_id=robot, episode_id="1"))
    assert registry.get_sample_value("premotor_episodes_in_progress", labels) == 2


def test_a_registry_that_is_lost_and_the_generation_that_is_routed_by_are_told(kit, follower):
    registry = CollectorRegistry()
    registry.register(FleetMetrics(policies=ServedPolicies(), follower=follower))
    assert registry.get_sample_value("premotor_registry_reachable") == 1
    assert registry.get_sample_value("premotor_fleet_generation") == 0
    assert registry.get_sample_value("premotor_registry_lease_seconds") == math.inf
    follower.reachable, follower.lease_s, follower.fleet = False, 2.5, Fleet(generation=7, policies={})
    assert registry.get_sample_value("premotor_registry_reachable") == 0
    assert registry.get_sample_value("premotor_registry_lease_seconds") == 2.5
    assert registry.get_sample_value("premotor_fleet_generation") == 7
    assert b"premotor_fleet_generation 7.0" in generate_latest(registry)
