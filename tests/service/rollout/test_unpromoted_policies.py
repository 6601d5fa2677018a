"""A policy that is only registered: robots are told to wait, and nobody else's are turned away for it."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from service.errors import NotReadyError
from service.gateway.health import HealthFollower, policy_service
from service.gateway.limits import GatewayLimits
from service.gateway.metrics import GatewayMetrics


async def promoted(fleet, process, policy: str) -> None:
    location = fleet.checkpoint(policy)
    registered = await process.rollout.register(policy, location, actor="operator")
    revision = (await process.rollout.ended(registered.operation_id)).revision
    operation = await process.rollout.promote(policy, revision, actor="operator")
    assert (await process.rollout.ended(operation.operation_id)).error == ""


async def test_registering_a_new_policy_takes_no_gateway_out_of_service(fleet):
    process, metrics = fleet.process("a"), CollectorRegistry()
    await process.start()
    await promoted(fleet, process, "tabletop")
    registered = await process.rollout.register("kitchen", fleet.checkpoint("kitchen"), actor="operator")
    await process.rollout.ended(registered.operation_id)
    await process.until(lambda: process.follower.fleet is not None and "kitchen" in process.follower.fleet.policies)
    health = HealthFollower(
        policies=process.policies,
        backend=process.models,
        limits=GatewayLimits(),
        metrics=GatewayMetrics(metrics),
    )
    await health.refresh()
    assert health.servicer._serving[""] and health.servicer._serving[policy_service("tabletop")]
    assert metrics.get_sample_value("premotor_policy_ready", {"policy": "tabletop"}) == 1
    assert metrics.get_sample_value("premotor_policy_ready", {"policy": "kitchen"}) is None
    with pytest.raises(NotReadyError):
        process.policies.serving("kitchen")


async def test_a_policy_that_was_promoted_and_is_not_here_yet_is_missed(fleet):
    process = fleet.process("a")
    await process.start()
    await promoted(fleet, process, "tabletop")
    process.models.loaded.clear()
    metrics = CollectorRegistry()
    health = HealthFollower(
        policies=process.policies, backend=process.models, limits=GatewayLimits(), metrics=GatewayMetrics(metrics)
    )
    await health.refresh()
    assert not health.servicer._serving[""]
    assert metrics.get_sample_value("premotor_policy_ready", {"policy": "tabletop"}) == 0
