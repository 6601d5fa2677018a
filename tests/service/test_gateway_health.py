"""Health follows the backend, per policy and as a whole; reflection and discovery tell what is served."""

from __future__ import annotations

import asyncio
import math

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from premotor.v1 import policy_pb2
from premotor.wire import read_error_metadata
from service.gateway import GatewayLimits
from service.policies import ServedPolicies

SERVICES = ["", "premotor.v1.PolicyService", "premotor.v1.PolicyService/tabletop"]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
TIMEOUT_S = 10.0
FAST = GatewayLimits(readiness_interval_s=0.01, readiness_timeout_s=0.05)


def health_of(gateway) -> health_pb2_grpc.HealthStub:
    return health_pb2_grpc.HealthStub(gateway.channel)


def asked_about(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


@pytest.mark.asyncio
@pytest.mark.parametrize(("is_ready", "status"), [(True, SERVING), (False, NOT_SERVING)])
async def test_health_is_right_from_the_first_answer_on(kit, is_ready, status):
    async with kit.serve(backend=kit.backend(is_ready=is_ready)) as gateway:
        for service in SERVICES:
            assert (await health_of(gateway).Check(asked_about(service), timeout=TIMEOUT_S)).status == status


@pytest.mark.asyncio
async def test_the_health_of_an_unknown_policy_is_not_found(kit):
    async with kit.serve() as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await health_of(gateway).Check(asked_about("premotor.v1.PolicyService/other"), timeout=TIMEOUT_S)
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health_of(gateway).Watch(asked_about("premotor.v1.PolicyService/other"), timeout=TIMEOUT_S)
        assert (await watch.read()).status == SERVICE_UNKNOWN
        watch.cancel()


@pytest.mark.asyncio
async def test_every_watcher_is_told_of_a_change_also_after_another_has_left(kit):
    async with kit.serve(limits=FAST) as gateway:
        leaving, staying = (health_of(gateway).Watch(asked_about(SERVICES[2]), timeout=TIMEOUT_S) for _ in range(2))
        assert (await leaving.read()).status == (await staying.read()).status == SERVING
        leaving.cancel()
        gateway.backend.is_ready = False
        assert (await staying.read()).status == NOT_SERVING
        gateway.backend.is_ready = True
        assert (await staying.read()).status == SERVING
        staying.cancel()


@pytest.mark.asyncio
async def test_a_drain_reports_not_serving_and_ends_the_watches(kit):
    backend = kit.backend(holds={1: asyncio.Event()})
    async with kit.serve(backend=backend) as gateway:
        watch = health_of(gateway).Watch(asked_about(""), timeout=TIMEOUT_S)
        assert (await watch.read()).status == SERVING
        held = asyncio.ensure_future(gateway.stub.PredictChunk(kit.request(seed=1), timeout=TIMEOUT_S))
        await backend.wait_for_requests(1)
        stopping = asyncio.create_task(gateway.server.stop(grace_s=TIMEOUT_S))
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        assert (await health_of(gateway).Check(asked_about(""), timeout=TIMEOUT_S)).status == NOT_SERVING
        backend.holds[1].set()
        await held
        await stopping


@pytest.mark.asyncio
async def test_where_no_episode_may_begin_balancers_send_them_elsewhere_and_those_in_progress_go_on(kit):
    own = type(kit)(kit.revision)
    async with own.serve(limits=FAST) as gateway:
        watch = health_of(gateway).Watch(asked_about(""), timeout=TIMEOUT_S)
        assert (await watch.read()).status == SERVING
        begun = kit.request()
        await gateway.stub.PredictChunk(begun, timeout=TIMEOUT_S)
        own.policies.begin_episodes_until(0.0)
        assert (await watch.read()).status == NOT_SERVING
        await gateway.stub.PredictChunk(begun, timeout=TIMEOUT_S)
        pinned = kit.request()
        pinned.episode_id, pinned.revision = "pinned", kit.revision.revision
        await gateway.stub.PredictChunk(pinned, timeout=TIMEOUT_S)
        new = kit.request()
        new.episode_id = "new"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await gateway.stub.PredictChunk(new, timeout=TIMEOUT_S)
        own.policies.begin_episodes_until(math.inf)
        assert (await watch.read()).status == SERVING
        await gateway.stub.PredictChunk(new, timeout=TIMEOUT_S)
        watch.cancel()
    error = read_error_metadata(refused.value.trailing_metadata())
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert error is not None and error.reason == policy_pb2.RequestError.REASON_NOT_READY
    assert error.HasField("retry_delay")


class SilentBackend:
    """Never says whether it is ready."""

    def capacity(self, revision: str) -> int:
        return 1

    async def ready(self, revision: str) -> bool:
        await asyncio.Event().wait()
        return True


class BrokenBackend:
    """Breaks the promise never to raise."""

    def capacity(self, revision: str) -> int:
        return 1

    async def ready(self, revision: str) -> bool:
        raise RuntimeError("no")


@pytest.mark.asyncio
@pytest.mark.parametrize("backend", [SilentBackend(), BrokenBackend()])
async def test_a_backend_that_does_not_say_is_not_ready(kit, backend):
    async with kit.serve(backend=backend, limits=FAST) as gateway:
        assert (await health_of(gateway).Check(asked_about(""), timeout=TIMEOUT_S)).status == NOT_SERVING


@pytest.mark.asyncio
async def test_reflection_lists_the_services_and_describes_the_policy_service(kit):
    async with kit.serve() as gateway:
        stub = reflection_pb2_grpc.ServerReflectionStub(gateway.channel)
        call = stub.ServerReflectionInfo(timeout=TIMEOUT_S)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {service.name for service in (await call.read()).list_services_response.service}
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol="premotor.v1.PolicyService"))
        described = (await call.read()).file_descriptor_response.file_descriptor_proto
        await call.done_writing()
    assert listed == {
        "premotor.v1.PolicyService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert any(b"PredictChunk" in descriptor for descriptor in described)


@pytest.mark.asyncio
async def test_get_and_list_publish_the_description_that_requests_are_validated_against(kit):
    async with kit.serve() as gateway:
        got = await gateway.stub.GetPolicy(policy_pb2.GetPolicyRequest(policy="tabletop"), timeout=TIMEOUT_S)
        listed = await gateway.stub.ListPolicies(policy_pb2.ListPoliciesRequest(), timeout=TIMEOUT_S)
    assert got.policy == kit.revision.description
    assert list(listed.policies) == [kit.revision.description]
    assert got.policy.revision and got.policy.schema_digest


@pytest.mark.asyncio
async def test_a_gateway_that_is_starting_lists_nothing_rather_than_no_policies(kit):
    policies, request = ServedPolicies(), policy_pb2.ListPoliciesRequest()
    starting = type(kit)(kit.revision)
    starting.policies = policies
    async with starting.serve() as gateway:
        for tell in (lambda: None, lambda: policies.apply({}, waiting=["tabletop"])):
            tell()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await gateway.stub.ListPolicies(request, timeout=TIMEOUT_S)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "the gateway is starting" in refused.value.details()
        policies.apply({})
        assert not (await gateway.stub.ListPolicies(request, timeout=TIMEOUT_S)).policies


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("policy", "is_ready", "code", "says"),
    [
        ("", True, grpc.StatusCode.INVALID_ARGUMENT, "required"),
        ("tabletops", True, grpc.StatusCode.NOT_FOUND, "the nearest name is 'tabletop'"),
        ("tabletop", False, grpc.StatusCode.UNAVAILABLE, "no revision of policy 'tabletop' is ready yet"),
    ],
)
async def test_a_policy_that_cannot_be_described_is_refused(kit, policy, is_ready, code, says):
    async with kit.serve(backend=kit.backend(is_ready=is_ready)) as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.stub.GetPolicy(policy_pb2.GetPolicyRequest(policy=policy), timeout=TIMEOUT_S)
    assert failed.value.code() is code
    assert says in (failed.value.details() or "")
    error = read_error_metadata(failed.value.trailing_metadata())
    assert error is not None and error.code == code.value[0]
    assert error.HasField("retry_delay") == (code is grpc.StatusCode.UNAVAILABLE)
