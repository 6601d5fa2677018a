"""Who may do what is answered from the tokens of that moment, and no answer repeats what was shown."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from service.credentials import Access, Caps, Scope, Surface
from service.credentials.token import DEFAULT_MAX_IN_FLIGHT, DEFAULT_MAX_STREAMS
from service.errors import AuthenticationError, NotAllowedError, OverloadedError
from service.logs import JsonFormatter

INFER = (Scope.INFER,)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def access(desk, registry) -> Access:
    return desk.credentials(registry).on(Surface.GRPC)


def shown(token: str) -> tuple[str, ...]:
    return (f"Bearer {token}",)


def refusal(access: Access, *authorization: str) -> str:
    with pytest.raises(AuthenticationError) as refused:
        access.caller(authorization)
    return refused.value.message


def test_while_there_is_no_token_everybody_may_do_everything(access):
    caller = access.caller(())
    assert caller == access.caller(("Bearer anything",))
    for scope in Scope:
        access.require(caller, [scope], policy="any")
    assert caller.actor == "operator"


def test_the_first_token_closes_the_door_to_all_others(desk, access):
    token = desk.give("admin", name="ada")
    assert "no credential came" in refusal(access)
    assert access.caller(shown(token)).actor == f"ada ({token[3:15]})"


def test_a_registry_that_has_lost_its_tokens_opens_nothing(desk, access):
    desk.give("infer")
    desk.cache.refresh(type("Empty", (), {"tokens": lambda self: []})())
    refusal(access)


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-1] + ("a" if token[-1] != "a" else "b"),
        lambda token: token[:3] + "0" * 12 + token[15:],
        lambda token: token[:-1],
        lambda token: token + "a",
        lambda token: "",
        lambda token: "é" * 60,
        lambda token: token.upper(),
        lambda token: token[3:],
    ],
)
def test_what_is_not_the_token_is_refused_without_repeating_it(desk, access, change):
    token = desk.give("infer")
    wrong = change(token)
    message = refusal(access, f"Bearer {wrong}")
    assert token[16:] not in message and (not wrong or wrong not in message)


def test_one_header_with_the_right_scheme_is_needed(desk, access, registry):
    token = desk.give("infer")
    refusal(access, f"Api-Key {token}")
    refusal(access, f"Basic {token}")
    refusal(access, token)
    refusal(access, f"Bearer {token}", f"Bearer {token}")
    assert access.caller((f"bearer  {token} ",)).token is not None
    robots = desk.credentials(CollectorRegistry()).on(Surface.OPENPI)
    assert robots.caller((f"Api-Key {token}",)) == robots.caller(shown(token))


def test_a_token_ends_when_it_expires_and_when_it_is_revoked(desk, access):
    brief = desk.give("infer", expires_at=desk.now + timedelta(seconds=10))
    other = desk.give("infer")
    access.caller(shown(brief))
    desk.now += timedelta(seconds=10)
    assert refusal(access, *shown(brief)) == "the token has expired"
    access.caller(shown(other))
    desk.revoke(other)
    assert refusal(access, *shown(other)) == "the token has been revoked"


def test_a_rotated_secret_is_good_for_its_grace_and_the_new_one_at_once(desk, access):
    old = desk.give("infer")
    new = desk.rotate(old, grace_s=60)
    access.caller(shown(old))
    assert access.caller(shown(new)).token is not None
    desk.now += timedelta(seconds=60)
    assert refusal(access, *shown(old)) == "the token has a new secret by now"
    newest = desk.rotate(new, grace_s=60)
    assert refusal(access, *shown(old)) == "the credential is not a valid one"
    access.caller(shown(newest))
    desk.revoke(newest)
    for each in (new, newest):
        refusal(access, *shown(each))


def test_admin_may_observe_but_not_infer_and_infer_nothing_else(desk, access):
    admin, observer, robot = (access.caller(shown(desk.give(scope))) for scope in ("admin", "observe", "infer"))
    may = {
        name: {scope.value for scope in Scope if caller.may([scope])}
        for name, caller in (("admin", admin), ("observer", observer), ("robot", robot))
    }
    assert may == {"admin": {"admin", "observe"}, "observer": {"observe"}, "robot": {"infer"}}
    with pytest.raises(NotAllowedError, match="needs a token with scope infer"):
        access.require(admin, INFER)
    access.require(observer, (Scope.INFER, Scope.OBSERVE))


def test_a_token_for_a_policy_is_for_no_other(desk, access):
    caller = access.caller(shown(desk.give("infer", policies=("tabletop",))))
    access.require(caller, INFER, policy="tabletop")
    access.require(caller, INFER)
    with pytest.raises(NotAllowedError, match="not for policy 'kitchen'"):
        access.require(caller, INFER, policy="kitchen")


def test_refusals_are_counted_by_surface_and_reason_and_logged_without_the_credential(desk, access, registry, caplog):
    caplog.set_level(logging.INFO)
    token = desk.give("infer", policies=("tabletop",), caps=Caps(max_in_flight=1), name="arm-7")
    wrong = token[:-1] + ("a" if token[-1] != "a" else "b")
    forged = token[:3] + "f" * 12 + token[15:]
    for authorization in ((), ("Bearer nonsense",), shown(wrong), shown(forged)):
        with pytest.raises(AuthenticationError):
            access.caller(authorization)
    caller = access.caller(shown(token))
    for arguments in ({"scopes": [Scope.ADMIN]}, {"scopes": INFER, "policy": "chosen-by-a-caller"}):
        with pytest.raises(NotAllowedError):
            access.require(caller, **arguments)
    with access.request(caller), pytest.raises(OverloadedError), access.request(caller):
        pass
    desk.revoke(token)
    with pytest.raises(AuthenticationError):
        access.caller(shown(token))
    counts = {
        sample.labels["reason"]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "premotor_refused_calls_total" and sample.labels["surface"] == "grpc" and sample.value
    }
    assert counts == {
        "missing": 1, "malformed": 1, "wrong": 2, "scope": 1, "policy": 1, "cap": 1, "revoked": 1,
    }  # fmt: skip
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    assert [(line["reason"], line["holder"]) for line in lines] == [
        ("missing", ""),
        ("malformed", ""),
        ("wrong", ""),
        ("wrong", ""),
        ("scope", "arm-7"),
        ("policy", "arm-7"),
        ("cap", "arm-7"),
        ("revoked", "arm-7"),
    ]
    logged = json.dumps(lines)
    assert token[16:24] not in logged and "f" * 12 not in logged and "chosen-by-a-caller" not in logged


def test_every_series_of_refusals_is_there_before_the_first(access, registry):
    samples = [
        sample
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "premotor_refused_calls_total"
    ]
    assert {sample.labels["surface"] for sample in samples} == set(Surface)
    assert all(sample.value == 0 for sample in samples)


def test_requests_in_flight_and_streams_are_bounded_by_token(desk, access):
    caps = Caps(max_in_flight=2, max_streams=1)
    caller, other = (access.caller(shown(desk.give("infer", caps=caps))) for _ in range(2))
    with access.request(caller), access.request(caller):
        with pytest.raises(OverloadedError, match="2 requests of this token are in flight") as refused:
            access.request(caller).__enter__()
        assert refused.value.retry_after_s is not None and refused.value.retry_after_s > 0
        with access.request(other):
            pass
    with access.request(caller), access.request(caller):
        pass
    with access.stream(caller):
        with pytest.raises(OverloadedError, match="1 streams of this token are open"):
            access.stream(caller).__enter__()
        with access.request(caller), access.stream(other):
            pass
    with access.stream(caller):
        pass


def test_a_token_that_says_no_caps_is_bounded_too(desk, access):
    caller, other = (access.caller(shown(desk.give("infer"))) for _ in range(2))
    for begin, bound in ((access.request, DEFAULT_MAX_IN_FLIGHT), (access.stream, DEFAULT_MAX_STREAMS)):
        with ExitStack() as held:
            for _ in range(bound):
                held.enter_context(begin(caller))
            with pytest.raises(OverloadedError, match=f"{bound} (requests|streams) of this token"):
                begin(caller).__enter__()
            held.enter_context(begin(other))


def test_a_bound_is_the_tokens_whatever_surface_it_is_used_on(desk, registry):
    credentials = desk.credentials(registry)
    grpc, openpi = credentials.on(Surface.GRPC), credentials.on(Surface.OPENPI)
    authorization = shown(desk.give("infer", caps=Caps(max_in_flight=1)))
    with grpc.request(grpc.caller(authorization)), pytest.raises(OverloadedError):
        openpi.request(openpi.caller(authorization)).__enter__()


def test_a_rate_lets_a_seconds_worth_through_at_once_and_then_one_at_a_time(desk, access):
    caller = access.caller(shown(desk.give("infer", caps=Caps(max_requests_per_s=4))))

    def passed(attempts: int) -> int:
        count = 0
        for _ in range(attempts):
            try:
                with access.request(caller):
                    count += 1
            except OverloadedError as error:
                retry_after_s.append(error.retry_after_s)
        return count

    retry_after_s: list[float | None] = []
    assert passed(10) == 4
    assert retry_after_s[0] == pytest.approx(0.25)
    desk.clock_s += 0.25
    assert passed(3) == 1
    desk.clock_s += 100.0
    assert passed(10) == 4


def test_less_than_one_request_a_second_is_a_rate_too(desk, access):
    caller = access.caller(shown(desk.give("infer", caps=Caps(max_requests_per_s=0.1))))
    with access.request(caller):
        pass
    with pytest.raises(OverloadedError) as refused:
        access.request(caller).__enter__()
    assert refused.value.retry_after_s == pytest.approx(10.0)
    desk.clock_s += 10.0
    with access.request(caller):
        pass
