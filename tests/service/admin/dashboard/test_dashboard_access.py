"""Who gets a page, and whose forms change anything: sessions, tokens, and pages of other sites."""

from __future__ import annotations

import re

import httpx

from service.admin.dashboard.sessions import COOKIE


def test_forms_of_other_sites_change_nothing_even_where_no_token_is_needed(house, http, serving):
    _, new = serving
    path = f"/policies/tabletop/revisions/{new}/promote"
    token = http.form_token(path)
    with httpx.Client(base_url=house.url) as stranger:
        assert stranger.post(path, data={"form_token": token}).status_code == 403
        assert stranger.post(path, data={}).status_code == 403
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert http.post(path, data={"form_token": token}, headers=headers).status_code == 403
        # Not by way of the API either, which a browser of the operator's reaches as well.
        api = f"/v1/fleet/policies/tabletop/revisions/{new}:promote"
        assert http.post(api, headers=headers).status_code == 403
    assert http.post(path, data={"form_token": "0" * 64}).status_code == 403
    assert house.registry.operations(running=True) == () and house.route().stable != new
    own = {"origin": house.url, "sec-fetch-site": "same-origin"}
    assert http.post(path, data={"form_token": token}, headers=own).status_code == 303


def test_with_tokens_every_page_asks_for_one_and_goes_on_to_where_one_was_going(house, http, serving):
    _, token = house.token("admin", name="Ada")
    for path in http.PAGES:
        answer = http.get(path)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert "no-prior" not in answer.text and f'name="going_to" value="{path}"' in answer.text
    answer = http.sign_in(token, going_to="/audit")
    assert (answer.status_code, answer.headers["location"]) == (303, "/audit")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and token not in cookie
    assert "Ada" in http.get("/").text


def test_a_session_on_tls_never_travels_without(house, http):
    _, token = house.token("admin")

    async def signed_in() -> str:
        transport = httpx.ASGITransport(house.app)
        async with httpx.AsyncClient(transport=transport, base_url="https://admin") as client:
            form_token = http.form_token_of(await client.get("/sign-in"))
            fields = {"form_token": form_token, "token": token}
            return (await client.post("/sign-in", data=fields)).headers["set-cookie"]

    assert "Secure" in house.run(signed_in())


def test_what_is_no_token_signs_nobody_in_and_is_not_sent_back(house, http, subtests):
    house.token("admin")
    for token in ("", "nonsense", "pm_000000000000_" + "a" * 43):
        with subtests.test(token=token):
            answer = http.sign_in(token)
            assert answer.status_code == 401 and 'role="alert"' in answer.text
            assert token == "" or token not in answer.text
            assert http.get("/").status_code == 401


def test_a_robots_token_opens_no_page(house, http):
    _, token = house.token("infer")
    answer = http.sign_in(token)
    assert answer.status_code == 401 and "needs a token with scope observe" in http.text_of(answer)


def test_a_revoked_token_ends_its_session_with_the_next_page(house, http, serving):
    token_id, token = house.token("admin")
    http.sign_in(token)
    assert http.get("/").status_code == 200
    house.revoke(token_id)
    answer = http.get("/")
    assert answer.status_code == 401 and "The token has been revoked" in http.text_of(answer)


def test_an_observer_sees_everything_and_can_change_nothing(house, http, serving):
    _, new = serving
    _, admin = house.token("admin")
    path = f"/policies/tabletop/revisions/{new}/promote"
    http.sign_in(admin)
    token_of_admin = http.form_token(path)
    _, token = house.token("observe", name="Eve")
    http.sign_in(token)
    for page in ("/", "/policies/tabletop", f"/policies/tabletop/revisions/{new}"):
        answer = http.get(page)
        assert answer.status_code == 200 and "observing" in answer.text
        assert not re.search(r"/(promote|split|guard|register|load|delete)\"", answer.text)
    looked = http.get(path)
    assert '<button type="submit">Promote' not in looked.text and "yours may observe" in http.text_of(looked)
    assert http.send_form(path).status_code == 403
    assert http.post(path, data={"form_token": token_of_admin}).status_code == 403
    assert house.route().stable != new


def test_a_form_from_before_signing_in_is_not_taken(house, http, serving):
    _, new = serving
    path = f"/policies/tabletop/revisions/{new}/promote"
    before = http.form_token(path)
    _, token = house.token("admin")
    http.sign_in(token)
    assert http.post(path, data={"form_token": before}).status_code == 403


def test_signing_out_ends_the_session_for_whoever_kept_the_cookie(house, http, serving):
    _, token = house.token("admin")
    http.sign_in(token)
    kept = http.cookies[COOKIE]
    answer = http.post("/sign-out", data={"form_token": http.form_token("/")})
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    with httpx.Client(base_url=house.url, cookies={COOKIE: kept}) as other:
        assert other.get("/").status_code == 401


def test_signing_in_leads_to_no_other_site(house, http, subtests):
    _, token = house.token("admin")
    for going_to in ("https://evil.example", "//evil.example", "/\\evil.example", "evil", ""):
        with subtests.test(going_to=going_to):
            assert http.sign_in(token, going_to=going_to).headers["location"] == "/"


def test_the_name_of_whoever_is_signed_in_goes_into_the_audit_log(house, http, serving):
    _, new = serving
    token_id, token = house.token("admin", name="Ada")
    http.sign_in(token)
    answer = http.send_form(f"/policies/tabletop/revisions/{new}/promote", keep_previous="on")
    house.followed(answer.headers["location"])
    entry = next(each for each in house.registry.audit("tabletop") if each.action == "promote")
    assert entry.actor == f"Ada ({token_id})"
    assert house.route().keep_previous
