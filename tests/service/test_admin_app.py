"""The admin plane reads what is served: liveness, readiness, policies, revisions, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from service.admin import create_admin_app
from service.backend import Backend
from service.policies import ServedPolicies, ServedPolicy
from service.revision import read_revision


async def get(
    kit,
    path: str,
    *,
    backend: Backend | None = None,
    policies: ServedPolicies | None = None,
    registry=None,
    reachable: bool = True,
    lease_s: float | None = None,
):
    follower = SimpleNamespace(reachable=reachable, lease_s=lease_s)
    app = create_admin_app(
        policies=policies if policies is not None else kit.policies,
        backend=backend or kit.backend(),
        metrics_registry=registry or CollectorRegistry(),
        fleet=SimpleNamespace(follower=follower),  # These routes ask nothing more of it.
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://admin") as client:
        return await client.get(path)


@pytest.fixture
def fetch(kit) -> Callable[..., httpx.Response]:
    return lambda path, **parts: asyncio.run(get(kit, path, **parts))


def test_the_process_is_live_whatever_the_backend_says(kit, fetch):
    answer = fetch("/healthz", backend=kit.backend(is_ready=False))
    assert (answer.status_code, answer.json()) == (200, {"status": "live"})


def test_readiness_needs_every_policy_and_says_which_are_missing(kit, fetch, tmp_path):
    second = read_revision(kit.write_checkpoint(tmp_path / "second", variant="no-prior"), policy="second")
    policies = ServedPolicies.fixed({"tabletop": [kit.revision], "second": [second]})

    class OneReady:
        async def ready(self, revision: str) -> bool:
            return revision == kit.revision.revision

    answer = fetch("/readyz", policies=policies, backend=OneReady())
    assert answer.status_code == 503
    assert answer.json() == {
        "ready": False,
        "registry": "reachable",
        "lease_s": None,
        "policies": [
            {"policy": "second", "revision": second.revision, "ready": False},
            {"policy": "tabletop", "revision": kit.revision.revision, "ready": True},
        ],
    }
    ready = fetch("/readyz", policies=policies)
    assert ready.status_code == 200 and ready.json()["ready"] is True


def test_a_policy_that_should_be_served_and_of_which_nothing_is_here_is_missed(kit, fetch):
    policies = ServedPolicies.fixed({"tabletop": [kit.revision]})
    served = ServedPolicy(revisions={kit.revision.revision: kit.revision}, shares=((kit.revision.revision, 1.0),))
    policies.apply({"tabletop": served}, waiting=["kitchen"], unpromoted=["lab"])
    answer = fetch("/readyz", policies=policies)
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert answer.json()["policies"] == [
        {"policy": "kitchen", "revision": "", "ready": False},
        {"policy": "tabletop", "revision": kit.revision.revision, "ready": True},
    ]
    policies.apply({}, waiting=["kitchen"])
    assert fetch("/readyz", policies=policies).status_code == 503


def test_nothing_to_serve_and_nothing_known_yet_are_not_ready(fetch):
    for policies in (ServedPolicies(), ServedPolicies({})):
        answer = fetch("/readyz", policies=policies)
        assert (answer.status_code, answer.json()["policies"]) == (503, [])


def test_a_gateway_without_its_registry_says_so_and_is_not_ready_once_it_is_cut_off(kit, fetch):
    policies = ServedPolicies.fixed({"tabletop": [kit.revision]})
    lost = fetch("/readyz", policies=policies, reachable=False, lease_s=3.5)
    assert lost.status_code == 200
    assert (lost.json()["ready"], lost.json()["registry"], lost.json()["lease_s"]) == (True, "lost", 3.5)
    policies.begin_episodes_until(0.0)
    cut_off = fetch("/readyz", policies=policies, reachable=False, lease_s=0.0)
    assert cut_off.status_code == 503
    assert (cut_off.json()["ready"], cut_off.json()["registry"], cut_off.json()["lease_s"]) == (False, "cut off", 0.0)


def test_the_policies_are_what_the_gateway_publishes(kit, fetch):
    listed = fetch("/v1/policies").json()["policies"]
    got = fetch("/v1/policies/tabletop").json()
    assert listed == [got]
    description = kit.revision.description
    for field in ("name", "revision", "variant", "schema_digest", "history_steps", "action_horizon"):
        assert got[field] == getattr(description, field)
    sawyer = got["embodiments"][0]
    assert sawyer["cameras"] == [{"name": "corner", "height": 96, "width": 96}]
    assert sawyer["action"][0] == {
        "name": "hand",
        "dim": 3,
        "unit": "m",
        "kind": "end_effector_position",
        "representation": "absolute",
        "lower_limit": [-1.0, -1.0, -1.0],
        "upper_limit": [],
        "step_limit": [],
    }
    assert sawyer["control_rate_hz"] == 80


def test_the_revisions_say_which_serves_and_which_is_ready(kit, fetch, tmp_path):
    second = read_revision(kit.write_checkpoint(tmp_path / "second", variant="no-prior"), policy="tabletop")
    policies = ServedPolicies.fixed({"tabletop": [kit.revision, second]})
    answer = fetch("/v1/policies/tabletop/revisions", policies=policies).json()
    assert [(r["revision"], r["variant"], r["serving"], r["ready"]) for r in answer["revisions"]] == [
        (kit.revision.revision, "history", True, True),
        (second.revision, "no-prior", False, True),
    ]


@pytest.mark.parametrize("path", ["/v1/policies/tabletops", "/v1/policies/tabletops/revisions"])
def test_an_unknown_policy_is_404_with_the_nearest_name(fetch, path):
    answer = fetch(path)
    assert answer.status_code == 404
    assert answer.json() == {
        "message": "policy: there is no policy 'tabletops'; the nearest name is 'tabletop'",
        "field": "policy",
    }


def test_metrics_are_prometheus_text_of_the_registry_that_was_given(fetch):
    registry = CollectorRegistry()
    Counter("premotor_things", "Things.", registry=registry).inc(3)
    answer = fetch("/metrics", registry=registry)
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "premotor_things_total 3.0" in answer.text


def test_the_schema_types_every_response(fetch):
    paths = fetch("/openapi.json").json()["paths"]
    for path in ("/healthz", "/readyz", "/v1/policies", "/v1/policies/{policy}", "/v1/policies/{policy}/revisions"):
        assert "$ref" in paths[path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
