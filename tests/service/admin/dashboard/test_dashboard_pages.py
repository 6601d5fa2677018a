"""The pages as they are sent: what they say, who gets them, and what a form needs to change anything."""

from __future__ import annotations

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor

from service.backend import BackendFailedError
from service.revision import RevisionError

TIMEOUT_S = 10.0


def test_the_overview_says_who_serves_which_share_and_how_it_goes(house, http, serving):
    old, new = serving
    house.carried_out(house.rollout.split("tabletop", {new: 0.25}, actor="operator"))
    house.answered(12)
    said = http.read("/")
    assert f"75 % {old} no-prior stable" in said and f"25 % {new} history canary" in said
    assert "Latency p50 " in said and "Robots 12" in said and "Waiting 0" in said
    house.models.failure = BackendFailedError("out of memory at 0x7f")
    house.answered(3, robot="leg")
    said = http.read("/policies/tabletop")
    assert "Failed 3 20 %" in said and "the service failed FAILED 3" in said
    assert "0x7f" not in said


def test_a_policy_page_splits_latency_by_stage_and_requests_by_batch(house, http, serving):
    house.answered(5)
    said = http.read("/policies/tabletop")
    for stage in ("decode checks and images", "queue a turn and a batch", "inference the model", "total arrival"):
        assert re.search(rf"{stage}[^0-9]* [0-9.]+ ms [0-9.]+ ms", said), said
    assert re.search(r"inference the model (19|20|21) ms", said)
    assert "Size Share, drawn Share 2 100 %" in said


def test_a_policy_page_has_the_canary_s_errors_and_latency_beside_the_stable_one_s(house, http, serving):
    old, new = serving
    house.carried_out(house.rollout.split("tabletop", {new: 0.5}, actor="operator"))
    house.answered(20)
    num_new = house.gateway.outcomes.record("tabletop", new, since_s=0.0, window_s=300.0).num_requests
    assert 0 < num_new < 20
    house.models.failing = frozenset({new})
    house.answered(20)
    said = http.read("/policies/tabletop")
    num_old = 40 - 2 * num_new
    assert re.search(rf"By revision, .*{old} no-prior stable {num_old} 0 % 0 % [0-9.]+ ms", said), said
    assert re.search(rf"By revision, .*{new} history canary {2 * num_new} 50 % 0 % [0-9.]+ ms", said), said


def test_underruns_that_robots_report_are_shown_and_counted(house, http, serving):
    request = house.kit.request()
    request.num_underruns = 7
    house.run(house.gateway.answerer.answer(request, timeout_s=5.0))
    assert "Underruns 7" in http.read("/")
    assert house.metrics.get_sample_value("premotor_underruns_total", {"policy": "tabletop"}) == 7


def test_a_swap_is_a_numbered_event_over_the_curve_and_in_the_list_below_it(house, http, serving):
    old, new = serving
    house.answered(3)
    house.promoted(new)
    answer = http.get("/policies/tabletop?minutes=60")
    plot = re.search(r'<svg class="plot".*?</figure>', answer.text, re.DOTALL).group(0)
    assert re.search(r'class="mark-number"[^>]*>1', plot)
    assert f"<code>{old}</code> → <code>{new}</code>" in plot
    assert "Latency of chunks over the last 60 minutes" in plot


def test_an_operation_that_failed_says_why_and_what_serves(house, http, serving):
    old, new = serving
    house.models.refusals[new] = RevisionError("probe.npz: a chunk is off by 3")
    answer = http.send_form(f"/policies/tabletop/revisions/{new}/promote")
    assert answer.status_code == 303
    house.followed(answer.headers["location"])
    said = http.read(answer.headers["location"])
    assert "It failed, and what served goes on serving: probe.npz: a chunk is off by 3" in said
    assert house.route().stable == old


def test_the_audit_log_is_paged_and_filtered(house, http, serving):
    for number in range(60):
        house.registry.note(actor=f"actor-{number}", action="look", policy="other", detail={}, outcome="succeeded")
    first = http.get("/audit")
    assert "actor-59" in first.text and "actor-5<" not in first.text
    older = re.search(r'href="(/audit\?[^"]*before=\d+)"', first.text).group(1).replace("&amp;", "&")
    second = http.get(older)
    assert "actor-5<" in second.text and "actor-59" not in second.text
    assert "actor-" not in http.get("/audit?policy=tabletop").text


def test_what_an_operator_or_a_checkpoint_named_is_text_and_never_markup(house, http):
    house.registered("old", variant="<script>alert(1)</script>", policy='a "b" <i>c</i>')
    for path in ("/", "/policies/a%20%22b%22%20%3Ci%3Ec%3C%2Fi%3E".replace("%2F", ""), "/audit", "/operations"):
        answer = http.get(path)
        assert "<script>alert" not in answer.text and "<i>c" not in answer.text
    assert "&lt;i&gt;c" in http.get("/").text


def test_every_page_forbids_what_is_not_its_own(http, serving, subtests):
    for path in http.PAGES:
        with subtests.test(path=path):
            answer = http.get(path)
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
            assert answer.headers["cache-control"] == "no-store"
            assert not re.search(r"<script>|<style|\sstyle=|\son[a-z]+=|(src|href)=\"(https?:)?//", answer.text)


def test_files_are_named_by_their_content_and_kept_by_browsers(http):
    names = re.findall(r"/static/[^\"]+", http.get("/sign-in").text)
    assert len(names) == 3
    for name in names:
        answer = http.get(name)
        assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
    assert http.get("/static/../dashboard.css").status_code == 404
    assert http.get("/static/dashboard.css").status_code == 404


def test_another_schema_is_said_before_it_is_confirmed_and_refused_unless_it_is_allowed(house, http, serving):
    old, new = serving
    house.kit.write_checkpoint(house.store / "other", config={"execution_horizon": 4})
    other = house.carried_out(house.rollout.register("tabletop", "other", actor="operator")).revision
    pages = {
        f"/policies/tabletop/revisions/{other}/promote": {},
        "/policies/tabletop/split": {f"share_of_{other}": "5"},
    }
    assert "Also with another schema" not in http.read(f"/policies/tabletop/revisions/{new}/promote")
    assert f"Its schema is another than that of {old}" in http.read(f"/policies/tabletop/revisions/{other}/promote")
    for path, fields in pages.items():
        assert "Also with another schema than what serves has" in http.read(path)
        refused = http.send_form(path, **fields)
        assert refused.status_code == 409 and f"{old}, which serves, has" in http.text_of(refused)
        allowed = http.send_form(path, **fields, allow_schema_change="on")
        assert house.followed(allowed.headers["location"]).error == ""
        house.carried_out(house.rollout.roll_back("tabletop", actor="operator"))


NO_PAGES = (
    ("/policies/tabeltop", 404, "the nearest name is &#39;tabletop&#39;"),
    ("/policies/tabletop/revisions/000000000000", 404, "is not loaded"),
    ("/policies/tabletop/revisions/xyz", 404, "no page has that address"),
    ("/operations/nothing", 404, "there is no operation"),
    ("/policies/tabletop/roll-back", 409, "roll back does not fit tabletop"),
    ("/audit?before=zero", 404, "no page has that address"),
    (f"/audit?before={10**20}", 404, "no page has that address"),
)


def test_a_page_that_is_none_says_why(http, serving, subtests):
    for path, status, message in NO_PAGES:
        with subtests.test(path=path):
            answer = http.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
            assert message.lower() in answer.text.lower()


WRONG_FIELDS = (
    ("split", {"share_of_NEW": "130"}, "share_of_NEW", "130 came, expected 0 to 100"),
    ("split", {"share_of_NEW": "a lot"}, "share_of_NEW", "is not a number"),
    ("split", {"share_of_NEW": "nan"}, "share_of_NEW", "expected 0 to 100"),
    ("guard", {"max_error_rate": "-1"}, "max_error_rate", "expected 0 to 100"),
    ("register", {"location": "../etc"}, "location", "plain path inside the store"),
    ("register", {}, "location", "this is needed"),
    ("register", {"location": "x", "revision": "xyz"}, "revision", "hexadecimal digits"),
)


def test_a_wrong_field_comes_back_with_what_was_typed_and_what_is_wrong(http, serving, subtests):
    _, new = serving
    for change, fields, field, message in WRONG_FIELDS:
        with subtests.test(change=change, **fields):
            typed = {name.replace("NEW", new): value for name, value in fields.items()}
            answer = http.send_form(f"/policies/tabletop/{change}", **typed)
            assert answer.status_code == 400, answer.text
            assert message in http.text_of(answer)
            wrong = re.search(r'<input id="([^"]+)"[^>]*aria-invalid="true"', answer.text)
            assert wrong.group(1) == field.replace("NEW", new)
            for value in typed.values():
                assert f'value="{value}"' in answer.text


def test_the_guard_is_set_in_the_units_of_the_form(house, http, serving):
    fields = {"max_error_rate": "2.5", "max_latency_p95_ms": "120", "window_s": "20", "watch_min": "5"}
    answer = http.send_form("/policies/tabletop/guard", **fields)
    assert answer.status_code == 303
    guard = house.route().guard
    assert (guard.max_error_rate, guard.max_violation_rate, guard.max_latency_p95_s) == (0.025, None, 0.12)
    assert (guard.window_s, guard.min_requests, guard.watch_s) == (20, 20, 300)
    said = http.read(answer.headers["location"])
    assert "The guard is set." in said and "over 2.5 % errors or a p95 above 120 ms" in said


def test_a_new_policy_is_registered_from_its_name_and_place(house, http):
    house.kit.write_checkpoint(house.store / "fresh")
    answer = http.send_form("/register", policy="kitchen", location="fresh")
    assert answer.status_code == 303
    house.followed(answer.headers["location"])
    assert [each.location for each in house.registry.policy("kitchen").revisions.values()] == ["fresh"]
    refused = http.send_form("/register", policy="a/b", location="fresh")
    assert refused.status_code == 400 and "none of them /, : or a control character" in http.text_of(refused)


def test_a_revision_is_deleted_only_after_it_was_asked(house, http, serving):
    _, new = serving
    path = f"/policies/tabletop/revisions/{new}/delete"
    assert f"{new} is forgotten" in http.read(path)
    assert new in house.registry.policy("tabletop").revisions
    assert http.send_form(path).headers["location"] == "/policies/tabletop?done=delete"
    assert new not in house.registry.policy("tabletop").revisions


def test_a_policy_is_retired_and_deleted_and_what_was_done_to_it_stays(house, http, serving):
    old, _ = serving
    assert "Delete policy" not in http.read("/policies/tabletop")
    assert "No new episode of tabletop begins" in http.read("/policies/tabletop/retire")
    answer = http.send_form("/policies/tabletop/retire")
    assert house.followed(answer.headers["location"]).error == ""
    house.until(lambda: house.registry.revision("tabletop", old).state == "unloaded")
    assert "tabletop is forgotten" in http.read("/policies/tabletop/delete-policy")
    answer = http.send_form("/policies/tabletop/delete-policy")
    assert answer.headers["location"] == "/audit?policy=tabletop"
    log = http.get("/audit?policy=tabletop")
    assert '<option value="tabletop" selected>' in log.text
    assert "delete policy" in log.text and "retire" in log.text
    assert http.get("/policies/tabletop").status_code == 404


def test_an_operation_that_runs_is_cancelled_from_its_page(house, http, serving):
    old, new = serving
    house.models.holds[new] = asyncio.Event()
    page = http.send_form(f"/policies/tabletop/revisions/{new}/promote").headers["location"]
    token = http.form_token(page)
    answer = http.post(f"{page}/cancel", data={"form_token": token})
    assert (answer.status_code, answer.headers["location"]) == (303, page)
    assert house.followed(page).error == "operator cancelled it"
    said = http.get(page)
    assert "operator cancelled it" in said.text and "/cancel" not in said.text
    assert http.post(f"{page}/cancel", data={"form_token": token}).status_code == 409
    assert house.route().stable == old


def test_a_probe_is_asked_from_a_revision_s_page(house, http, serving):
    old, _ = serving
    page = http.send_form(f"/policies/tabletop/revisions/{old}/probe").headers["location"]
    # The probe of these checkpoints holds nothing that could be read.
    assert "probe.npz cannot be read" in house.followed(page).error
    assert "probe.npz cannot be read" in http.read(f"/policies/tabletop/revisions/{old}")


def test_a_change_that_the_state_does_not_allow_is_refused_on_the_form(house, http, serving):
    _, new = serving
    path = f"/policies/tabletop/revisions/{new}/delete"
    form_token = http.form_token(path)
    house.carried_out(house.rollout.load("tabletop", new, actor="operator"))
    answer = http.post(path, data={"form_token": form_token})
    assert answer.status_code == 409
    assert "Nothing was changed: revision" in (said := http.text_of(answer))
    assert "expected it to be unloaded first" in said


def test_the_registry_being_away_is_said_on_a_page(house, http, serving, tmp_path):
    house.registry.close()
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"registry.db{suffix}").unlink(missing_ok=True)
    (tmp_path / "registry.db").mkdir()
    answer = http.get("/")
    assert answer.status_code == 503 and "goes on being served" in answer.text


def test_robots_are_answered_while_a_page_is_worked_out(house, http, serving):
    house.answered(1)
    asked, go_on = threading.Event(), threading.Event()

    def slowly() -> int:
        asked.set()
        assert go_on.wait(TIMEOUT_S)
        return 42

    house.gateway.recent.of("tabletop").num_queued = slowly
    with ThreadPoolExecutor(1) as elsewhere:
        page = elsewhere.submit(http.get, "/policies/tabletop")
        assert asked.wait(TIMEOUT_S)
        house.answered(1)
        assert not page.done()
        go_on.set()
        assert "Waiting 42" in http.text_of(page.result(TIMEOUT_S))
