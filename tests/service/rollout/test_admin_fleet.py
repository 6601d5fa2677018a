"""Operators change what serves over HTTP: every change is an operation to follow, every refusal says why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from urllib.parse import quote

import httpx
import pytest
from prometheus_client import CollectorRegistry

from service.admin import FleetParts, create_admin_app
from service.policies import check_policy_name
from service.registry import RevisionState
from service.revision import RevisionError

POLICY = "/v1/fleet/policies/tabletop"


@pytest.fixture
async def process(fleet):
    process = fleet.process("a")
    await process.start()
    return process


def client_of(process) -> httpx.AsyncClient:
    app = create_admin_app(
        policies=process.policies,
        backend=process.models,
        metrics_registry=CollectorRegistry(),
        fleet=FleetParts(registry=process.registry, follower=process.follower, rollout=process.rollout),
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://admin")


@pytest.fixture
async def http(process) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(process) as client:
        yield client


async def carried_out(http: httpx.AsyncClient, path: str, body: dict | None = None) -> dict:
    """Starts an operation and polls it to its end."""
    answer = await http.post(path, json=body)
    assert answer.status_code == 202, answer.text
    async with asyncio.timeout(10):
        while True:
            operation = (await http.get(f"/v1/operations/{answer.json()['operation']}")).json()
            if operation["state"] != "running":
                return operation
            await asyncio.sleep(0.01)


async def registered(http: httpx.AsyncClient, location: str) -> str:
    operation = await carried_out(http, f"{POLICY}/revisions", {"location": location})
    assert (operation["kind"], operation["error"]) == ("register", "")
    record = (await http.get(f"{POLICY}/revisions/{operation['revision']}")).json()
    assert (record["state"], record["location"]) == ("registered", location)
    return operation["revision"]


async def status(http: httpx.AsyncClient) -> dict:
    return (await http.get(POLICY)).json()


async def test_a_revision_from_registration_to_deletion(fleet, http, process):
    old = await registered(http, fleet.checkpoint("old", variant="no-prior"))
    new = await registered(http, fleet.checkpoint("new", variant="history"))
    assert (await carried_out(http, f"{POLICY}/revisions/{old}:promote"))["state"] == "succeeded"
    assert (await carried_out(http, f"{POLICY}:split", {"shares": {new: 0.25}}))["state"] == "succeeded"
    shares = {each["variant"]: each["share"] for each in (await status(http))["revisions"]}
    assert shares == {"no-prior": 0.75, "history": 0.25}
    assert (await carried_out(http, f"{POLICY}/revisions/{new}:promote", {"keep_previous": True}))["error"] == ""
    assert ((await status(http))["stable"], (await status(http))["previous"]) == (new, old)
    rolled_back = await carried_out(http, f"{POLICY}:rollBack", {"reason": "it shakes"})
    assert (rolled_back["kind"], rolled_back["revision"], rolled_back["error"]) == ("roll back", old, "")
    await process.until(lambda: process.registry.revision("tabletop", new).state == "unloaded")
    assert (await http.delete(f"{POLICY}/revisions/{new}")).status_code == 204
    assert [each["revision"] for each in (await status(http))["revisions"]] == [old]
    entries = (await http.get("/v1/audit", params={"policy": "tabletop"})).json()["entries"]
    states = {str(state) for state in RevisionState}
    own = [entry["action"] for entry in reversed(entries) if entry["actor"] == "operator"]
    actions = [action for action in own if action not in states]
    assert actions == ["register", "register", "promote", "split", "promote", "roll back", "delete"]


async def test_an_entry_of_the_audit_log_that_no_registry_can_have_is_refused(fleet, http):
    await registered(http, fleet.checkpoint("old"))
    for before, status_code in ((10**20, 422), (0, 422), (2**63 - 1, 200)):
        assert (await http.get("/v1/audit", params={"before": before})).status_code == status_code


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "a\x7fb", "a\x9fb"])
async def test_a_policys_name_has_no_control_characters(fleet, http, name):
    path = f"/v1/fleet/policies/{quote(name)}/revisions"
    assert (await http.post(path, json={"location": fleet.checkpoint("old")})).status_code == 422
    with pytest.raises(ValueError, match="control character"):
        check_policy_name(name)


async def test_a_text_that_the_database_does_not_take_is_an_invalid_request(postgres_fleet):
    process = postgres_fleet.process("a")
    await process.start()
    async with client_of(process) as http:
        for path in ("/v1/audit?policy=a%00b", "/v1/operations/a%00b", "/audit?policy=a%00b", "/operations/a%00b"):
            answer = await http.get(path)
            assert (answer.status_code, "NUL" in answer.text) == (400, True), answer.text


async def test_another_schema_is_refused_by_promotion_and_split_until_it_is_allowed(fleet, http):
    old = await registered(http, fleet.checkpoint("old"))
    new = await registered(http, fleet.checkpoint("new", config={"execution_horizon": 4}))
    await carried_out(http, f"{POLICY}/revisions/{old}:promote")
    digests = {each["revision"]: each["schema_digest"][:12] for each in (await status(http))["revisions"]}
    for path, body in ((f"{POLICY}/revisions/{new}:promote", {}), (f"{POLICY}:split", {"shares": {new: 0.5}})):
        refused = await http.post(path, json=body)
        assert refused.status_code == 409
        assert all(digest in refused.json()["message"] for digest in digests.values())
        assert (await carried_out(http, path, {**body, "allow_schema_change": True}))["error"] == ""
        await carried_out(http, f"{POLICY}:rollBack")
    assert (await status(http))["stable"] == old


async def test_a_shadow_and_a_guard_are_set_and_shown(fleet, http):
    old = await registered(http, fleet.checkpoint("old"))
    new = await registered(http, fleet.checkpoint("new", variant="history-2"))
    await carried_out(http, f"{POLICY}/revisions/{old}:promote")
    await carried_out(http, f"{POLICY}/revisions/{new}:shadow", {"share": 0.5})
    answer = await http.put(f"{POLICY}/guard", json={"max_error_rate": 0.1, "min_requests": 5})
    assert answer.status_code == 200
    shown = await status(http)
    assert shown["shadow"] == {"revision": new, "share": 0.5}
    assert (shown["guard"]["max_error_rate"], shown["guard"]["max_latency_p95_s"]) == (0.1, None)
    await carried_out(http, f"{POLICY}/revisions/{new}:shadow", {"share": 0.0})
    assert (await status(http))["shadow"] is None


async def test_the_progress_of_an_operation_is_streamed_to_its_end(fleet, http, process):
    old = await registered(http, fleet.checkpoint("old"))
    answer = await http.post(f"{POLICY}/revisions/{old}:promote")
    async with http.stream("GET", f"/v1/operations/{answer.json()['operation']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in stream.aiter_lines() if line]
    events = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in _pairs(lines)]
    assert [name for name, _ in events] == ["progress"] * (len(events) - 1) + ["ended"]
    assert events[-1][1]["state"] == "succeeded"
    assert events[-1][1]["steps"][-1] == "every gateway routes by it"


def _pairs(lines: list[str]) -> list[tuple[str, str]]:
    return list(zip(lines[::2], lines[1::2], strict=True))


async def test_an_operation_that_fails_says_why_and_the_old_revision_serves(fleet, http, process):
    old = await registered(http, fleet.checkpoint("old"))
    new = await registered(http, fleet.checkpoint("new", variant="history-2"))
    await carried_out(http, f"{POLICY}/revisions/{old}:promote")
    process.models.refusals[new] = RevisionError("probe.npz: a chunk is off by 3")
    operation = await carried_out(http, f"{POLICY}/revisions/{new}:promote")
    assert (operation["state"], operation["error"]) == ("failed", "probe.npz: a chunk is off by 3")
    assert (await status(http))["stable"] == old


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "message"),
    [
        ("GET", "/v1/fleet/policies/tabeltop", None, 404, "nearest name is 'tabletop'"),
        ("POST", "/v1/fleet/policies/tabletop/revisions/000000000000:load", None, 404, "is not loaded"),
        ("POST", "/v1/fleet/policies/tabletop/revisions/xyz:load", None, 422, "pattern"),
        ("POST", "/v1/fleet/policies/tabletop/revisions", {"location": "../etc"}, 400, "plain path inside the store"),
        ("POST", "/v1/fleet/policies/tabletop/revisions", {"location": "nothing"}, 400, "no such directory"),
        ("POST", "/v1/fleet/policies/tabletop/revisions", {"location": "x", "pickle": 1}, 422, "Extra inputs"),
        ("POST", "/v1/fleet/policies/tabletop:rollBack", None, 409, "serves nothing yet"),
        ("POST", "/v1/fleet/policies/tabletop:split", {"shares": {"a": 2.0}}, 409, "serves nothing yet"),
        ("PUT", "/v1/fleet/policies/tabletop/guard", {"max_error_rate": 2}, 422, "less than or equal to 1"),
        ("GET", "/v1/operations/nothing", None, 404, "there is no operation"),
        ("GET", "/v1/audit?limit=0", None, 422, "greater than or equal to 1"),
    ],
)
async def test_a_wrong_call_is_refused_with_what_is_wrong(fleet, http, method, path, body, code, message):
    await registered(http, fleet.checkpoint("old"))
    answer = await http.request(method, path, json=body)
    assert answer.status_code == code, answer.text
    assert message in answer.text


async def test_gateways_and_placements_are_shown_and_a_dead_gateway_can_be_removed(fleet, http, process):
    old = await registered(http, fleet.checkpoint("old"))
    await carried_out(http, f"{POLICY}/revisions/{old}:promote")
    process.registry.beat("dead", address="elsewhere:1", generation=0, placements=[])
    gateways = (await http.get("/v1/gateways")).json()["gateways"]
    assert [each["gateway"] for each in gateways] == ["a", "dead"]
    placements = await http.get("/v1/gateways/placements", params={"policy": "tabletop", "revision": old})
    assert placements.json()["placements"][0]["state"] == "ready"
    assert (await http.delete("/v1/gateways/dead")).status_code == 204
    assert [each["gateway"] for each in (await http.get("/v1/gateways")).json()["gateways"]] == ["a"]
    assert (await http.get("/v1/audit")).json()["entries"][0]["action"] == "remove gateway"


async def test_a_registry_that_is_away_is_said_to_be(fleet, http, process, tmp_path):
    process.registry.close()
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"registry.db{suffix}").unlink(missing_ok=True)
    (tmp_path / "registry.db").mkdir()
    answer = await http.get("/v1/fleet/policies")
    assert (answer.status_code, answer.json()["field"]) == (503, "")
    assert "goes on being served" in answer.json()["message"]


async def test_the_audit_log_says_the_shares_of_splits_and_shadows(fleet, http):
    old = await registered(http, fleet.checkpoint("old"))
    new = await registered(http, fleet.checkpoint("new", variant="history-2"))
    for verb, body in (
        (f"/revisions/{old}:promote", None),
        (":split", {"shares": {new: 0.25}}),
        (":rollBack", {"reason": "it shakes"}),
        (f"/revisions/{new}:shadow", {"share": 0.5}),
        (f"/revisions/{new}:shadow", {"share": 0.0}),
    ):
        assert (await carried_out(http, POLICY + verb, body))["error"] == ""
    entries = (await http.get("/v1/audit", params={"policy": "tabletop"})).json()["entries"]
    details = [entry["detail"] for entry in reversed(entries) if entry["action"] in ("split", "roll back", "shadow")]
    assert details == [
        {"shares": {old: 0.75, new: 0.25}},
        {"reason": "it shakes", "shares": {old: 1.0}},
        {"shadow": {new: 0.5}},
        {"shadow": {}},
    ]


OBSERVATION_MAP = {
    "policy": "tabletop",
    "embodiment": "panda",
    "images": {"front": "image/0", "wrist": "image/1"},
    "state": ["joints"],
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policy": "kitchen"}, "policy is 'kitchen', expected 'tabletop'"),
        ({"images": {"front": "image/0"}}, "the cameras of 'panda' are ['front', 'wrist']"),
        ({"embodiment": "pandas"}, "'pandas' is no body"),
        ({"stat": ["joints"]}, "there is no 'stat'; the nearest name is 'state'"),
    ],
)
async def test_an_observation_map_that_no_robot_could_use_is_refused(fleet, http, changes, said):
    old = await registered(http, fleet.checkpoint("old"))
    await carried_out(http, f"{POLICY}/revisions/{old}:promote")
    answer = await http.put(f"{POLICY}/observationMap", json=OBSERVATION_MAP | changes)
    assert (answer.status_code, answer.json()["field"]) == (400, "observation_map")
    assert said in answer.json()["message"]
    assert (await status(http))["observation_map"] == {}


async def test_an_observation_map_is_kept_with_its_policy_and_taken_away_again(fleet, http):
    await registered(http, fleet.checkpoint("old"))
    for kept in (OBSERVATION_MAP, {}):
        assert (await http.put(f"{POLICY}/observationMap", json=kept)).status_code == 200
        assert (await status(http))["observation_map"] == kept
