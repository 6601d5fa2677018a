"""Operators make, rotate and revoke tokens over HTTP: at once, noted by name, and the secret in one answer alone."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.admin.app import MAX_BODY_BYTES
from service.credentials import Caps


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def created(http, *, headers=None, **values) -> dict:
    answer = await http.post("/v1/tokens", json={"name": "ada", "scopes": ["admin"], **values}, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


async def test_the_first_token_is_made_by_anybody_and_from_then_on_it_takes_one(http, registry):
    first = await created(http)
    admin = bearer(first["token"])
    assert (await http.get("/v1/tokens")).status_code == 401
    assert (await http.post("/v1/tokens", json={})).status_code == 401
    robot = await created(http, headers=admin, name="arm-7", scopes=["infer"], policies=["tabletop"], max_in_flight=2)
    listed = (await http.get("/v1/tokens", headers=admin)).json()["tokens"]
    assert [(each["name"], each["scopes"], each["policies"], each["max_in_flight"]) for each in listed] == [
        ("ada", ["admin"], [], 128),
        ("arm-7", ["infer"], ["tabletop"], 2),
    ]
    assert [each["token_id"] for each in listed] == [each["token"][3:15] for each in (first, robot)]
    assert listed[1] == robot["description"]
    actors = [(entry.actor, entry.detail["name"]) for entry in registry.audit()[::-1]]
    assert actors == [("operator", "ada"), (f"ada ({first['token'][3:15]})", "arm-7")]


async def test_a_rotation_and_a_revocation_count_from_the_answer_on(http):
    admin = bearer((await created(http))["token"])
    watcher = (await created(http, headers=admin, name="watcher", scopes=["observe"]))["token"]
    path = f"/v1/tokens/{watcher[3:15]}"

    async def works(token: str) -> bool:
        return (await http.get("/v1/tokens", headers=bearer(token))).status_code == 200

    rotated = (await http.post(f"{path}:rotate", json={}, headers=admin)).json()["token"]
    assert (await works(watcher), await works(rotated)) == (False, True)
    again = (await http.post(f"{path}:rotate", json={"grace_s": 3600}, headers=admin)).json()["token"]
    assert (await works(rotated), await works(again)) == (True, True)
    assert (await http.post(f"{path}:revoke", headers=admin)).json()["revoked_at"] is not None
    assert (await works(rotated), await works(again)) == (False, False)


async def test_no_secret_is_listed_or_logged_for_audit(http):
    first = await created(http)
    admin = bearer(first["token"])
    for path in ("/v1/tokens", "/v1/audit", "/metrics"):
        answer = await http.get(path, headers=admin)
        assert answer.status_code == 200 and first["token"][16:] not in answer.text
        assert "sha256" not in answer.text


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("", {"name": "", "scopes": ["infer"]}, 400, "name is ''"),
        ("", {"name": "a", "scopes": []}, 400, "no scope came"),
        ("", {"name": "a", "scopes": ["admin"], "policies": ["b"]}, 400, "expected infer alone"),
        ("", {"name": "a", "scopes": ["infer"], "max_streams": 0}, 400, "max_streams is 0"),
        ("", {"name": "a", "scopes": ["infer"], "expires_at": "2020-01-01T00:00:00Z"}, 409, "expected a time to come"),
        ("", {"name": "a", "scopes": ["infer"], "expires_at": "2099-01-01T00:00:00"}, 422, "timezone"),
        ("", {"name": "a", "scopes": ["infer"], "expires_at": "9999-12-31T23:59:59-12:00"}, 400, "1 to 9999"),
        ("", {"name": "a", "scopes": ["infer"], "expires_at": "0001-01-01T00:00:00+12:00"}, 400, "1 to 9999"),
        ("", {"name": "a", "scopes": ["root"]}, 422, "infer"),
        ("", {"name": "a", "scopes": ["infer"], "secret": "mine"}, 422, "Extra inputs"),
        ("/0123:rotate", {}, 404, "there is no token '0123'"),
        ("/0123:rotate", {"grace_s": -1}, 400, "grace_s is -1.0"),
        ("/0123:revoke", None, 404, "there is no token '0123'"),
    ],
)
async def test_a_wrong_call_is_refused_with_what_is_wrong(http, registry, path, body, status, said):
    answer = await http.post(f"/v1/tokens{path}", json=body)
    assert (answer.status_code, said in answer.text) == (status, True), answer.text
    assert registry.tokens() == ()


async def test_a_refusal_says_how_to_do_better(http, desk):
    watcher = desk.give("observe")
    missing = await http.get("/v1/policies")
    assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
    assert "Bearer TOKEN" in missing.json()["message"]
    denied = await http.post("/v1/tokens", headers=bearer(watcher), json={"name": "a", "scopes": ["admin"]})
    assert denied.status_code == 403 and "www-authenticate" not in denied.headers
    assert denied.json()["message"] == "this needs a token with scope admin"


async def test_two_headers_are_as_wrong_as_none(http, desk):
    token = desk.give("admin")
    headers = [("authorization", f"Bearer {token}"), ("authorization", f"Bearer {token}")]
    assert (await http.get("/v1/policies", headers=headers)).status_code == 401


async def test_a_tokens_rate_holds_here_too_and_the_answer_says_when_to_come_back(http, desk):
    headers = bearer(desk.give("observe", caps=Caps(max_requests_per_s=0.5, max_in_flight=1)))
    assert (await http.get("/v1/policies", headers=headers)).status_code == 200
    over = await http.get("/v1/policies", headers=headers)
    assert (over.status_code, over.headers["retry-after"]) == (429, "2")
    desk.clock_s += 2.0
    assert (await http.get("/v1/policies", headers=headers)).status_code == 200


async def test_a_body_is_not_read_beyond_its_cap_whatever_length_was_announced(http, desk):
    desk.give("admin")
    assert (await http.post("/v1/tokens", content=b"x" * (MAX_BODY_BYTES + 1))).status_code == 413

    async def endless():
        while True:
            yield b"x" * 65536

    assert (await http.post("/v1/tokens", content=endless())).status_code == 413


async def test_the_stream_of_an_operation_ends_soon_after_its_token(http, registry, monkeypatch):
    admin = bearer((await created(http))["token"])
    watcher = await created(http, headers=admin, name="screen", scopes=["observe"])
    operation = registry.start_operation(kind="load", policy="tabletop", revision="a", actor="ada", gateway_id="a")
    path = f"/v1/operations/{operation.operation_id}/events"
    look, looked = registry.operation, threading.Event()

    def looking(operation_id: str):
        looked.set()
        return look(operation_id)

    monkeypatch.setattr(registry, "operation", looking)
    # The transport of these tests gives an answer when it is whole.
    watching = asyncio.create_task(http.get(path, headers=bearer(watcher["token"])))
    assert await asyncio.to_thread(looked.wait, 5)
    answer = await http.post(f"/v1/tokens/{watcher['description']['token_id']}:revoke", headers=admin)
    assert answer.status_code == 200
    async with asyncio.timeout(5):
        seen = await watching
    assert seen.status_code == 200 and seen.text.startswith("event: progress") and "ended" not in seen.text
    assert (await http.get(path, headers=bearer(watcher["token"]))).status_code == 401
