"""What a token can be, and how one looks."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from service.credentials import Caps, Scope, TokenSpec
from service.credentials.issuing import check_grace
from service.credentials.secret import digest, issue, new_token_id, token_id_of
from service.credentials.token import DEFAULT_MAX_IN_FLIGHT, DEFAULT_MAX_STREAMS
from service.gateway import GatewayLimits
from service.openpi import OpenpiLimits


def test_a_token_names_its_id_and_holds_256_bits_that_nobody_else_has():
    issued = [issue(new_token_id()) for _ in range(50)]
    assert all(re.fullmatch(r"pm_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", each.token) for each in issued)
    assert [token_id_of(each.token) for each in issued] == [each.token_id for each in issued]
    assert len({each.token_id for each in issued}) == len({each.token[16:] for each in issued}) == 50
    assert issued[0].sha256 == digest(issued[0].token) and re.fullmatch(r"[0-9a-f]{64}", issued[0].sha256)


def test_a_secret_does_not_slip_out_by_being_printed():
    issued = issue(new_token_id())
    assert issued.token[16:] not in repr(issued)


@pytest.mark.parametrize("text", ["", "pm_", "pm_0123456789ab_short", "sk_0123456789ab_" + "a" * 43, "x" * 10_000_000])
def test_what_no_token_looks_like_has_no_id(text):
    assert token_id_of(text) is None


def spec(**changes) -> TokenSpec:
    return TokenSpec(**{"name": "ada", "scopes": frozenset({Scope.INFER}), **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": " "}, "name is ' '"),
        ({"name": "a\nb"}, "printable"),
        ({"name": "a" * 97}, "1 to 96"),
        ({"scopes": frozenset()}, "no scope came, expected some of infer, observe, admin"),
        ({"policies": ("",)}, "expected names of 1 to 128"),
        ({"policies": ("a\0",)}, "printable"),
        ({"policies": ("a",), "scopes": frozenset({Scope.ADMIN})}, "policies came with scopes admin"),
        ({"policies": ("a",), "scopes": frozenset({Scope.INFER, Scope.OBSERVE})}, "expected infer alone"),
        ({"expires_at": datetime(2026, 1, 1)}, "expected a time with its zone"),
    ],
)
def test_a_spec_that_no_token_can_have_is_refused(changes, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        spec(**changes)
    assert spec(expires_at=datetime(2026, 1, 1, tzinfo=UTC)).policies == ()


@pytest.mark.parametrize("name", ["max_requests_per_s", "max_in_flight", "max_streams"])
@pytest.mark.parametrize("value", [0, -1, 1_000_001, float("nan"), float("inf")])
def test_a_cap_is_a_number_above_nothing(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, expected more than 0"):
        Caps(**{name: value})


def test_a_token_without_caps_has_half_of_what_the_gateway_takes_and_says_so():
    caps = spec().caps
    assert (caps.max_in_flight, caps.max_streams, caps.max_requests_per_s) == (128, 128, None)
    # As the registry has tokens of before, and as flags that did not come.
    assert Caps(max_in_flight=None, max_streams=None) == Caps()
    assert Caps(max_in_flight=1000).max_in_flight == 1000
    limits, openpi = GatewayLimits(), OpenpiLimits()
    assert limits.max_queued_per_policy >= 2 * DEFAULT_MAX_IN_FLIGHT
    assert min(limits.max_streams, openpi.max_connections) >= 2 * DEFAULT_MAX_STREAMS


@pytest.mark.parametrize("grace_s", [-1, float("nan"), float("inf"), 1e9])
def test_a_grace_has_an_end(grace_s):
    with pytest.raises(ValueError, match="grace_s is"):
        check_grace(grace_s)
