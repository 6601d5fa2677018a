"""Cookies: signed, of this process alone, and worth something for as long as their session lasts."""

from __future__ import annotations

import pytest

from service.admin.dashboard.sessions import SESSION_S, Sessions

SHA256 = "5" * 64


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def sessions(clock) -> Sessions:
    return Sessions(clock_s=lambda: clock[0])


def test_a_session_lasts_half_a_day_and_then_is_none(sessions, clock):
    cookie = sessions.sign_in("0123456789ab", SHA256)
    clock[0] += SESSION_S - 1
    assert sessions.session(cookie).token_id == "0123456789ab"
    clock[0] += 1
    assert sessions.session(cookie) is None


def test_a_cookie_that_was_changed_or_made_elsewhere_is_nobodys(sessions):
    cookie = sessions.sign_in("0123456789ab", SHA256)
    visit, _, signature = cookie.partition(".")
    for other in ("", "x", visit, f"{visit}.", f"{visit}.{'0' * 64}", f"x{cookie}", f"ü.{signature}"):
        assert not sessions.made(other) and sessions.session(other) is None
    assert Sessions().session(cookie) is None


def test_a_visitor_without_a_token_has_a_cookie_that_signs_nobody_in(sessions):
    cookie = sessions.new_cookie()
    assert sessions.made(cookie) and sessions.session(cookie) is None


def test_a_form_token_is_of_one_cookie_and_is_not_the_cookie(sessions):
    one, other = sessions.new_cookie(), sessions.new_cookie()
    assert sessions.form_token(one) == sessions.form_token(one) != sessions.form_token(other)
    assert sessions.form_token(one) not in one


def test_signing_out_ends_one_session(sessions):
    one, other = sessions.sign_in("0123456789ab", SHA256), sessions.sign_in("0123456789ab", SHA256)
    sessions.sign_out(one)
    assert sessions.session(one) is None and sessions.session(other) is not None


def test_sessions_are_bounded_and_the_oldest_goes_first(sessions, clock):
    first = sessions.sign_in("0123456789ab", SHA256)
    second = sessions.sign_in("0123456789ab", SHA256)
    for _ in range(999):
        last = sessions.sign_in("0123456789ab", SHA256)
    assert sessions.session(first) is None
    assert sessions.session(second) is not None and sessions.session(last) is not None
