"""How much of a model's time a robot has had lately, and how much it may have."""

from __future__ import annotations

import math

import pytest

from service.gateway.sharing import ALONE_AFTER_S, Present

MODEL, OTHER = "revision-1", "revision-2"


def test_a_robot_is_alone_until_another_asks_and_again_ten_seconds_after_it() -> None:
    present = Present()
    present.note("a", 0.0)
    assert present.is_alone("a", 0.0) and not present.is_alone("b", 0.0)
    present.note("b", 1.0)
    present.note("a", 5.0)
    assert not present.is_alone("a", 1.0 + ALONE_AFTER_S - 0.1)
    assert present.is_alone("a", 1.0 + ALONE_AFTER_S)


def test_a_robot_may_have_twice_an_equal_share_and_fades_to_one_when_it_has_had_more() -> None:
    present = Present()
    for robot in "abcd":
        present.note_asking(robot, 0.0, model=MODEL)
    # Two seconds are remembered: of them half, twice a quarter, is what a robot may have.
    present.note_use("a", 0.0, 0.99, model=MODEL)
    assert present.too_much_for_s("a", 0.0) == 0.0
    present.note_use("a", 0.0, 1.0, model=MODEL)
    wait_s = present.too_much_for_s("a", 0.0)
    assert wait_s == pytest.approx(2.0 * math.log(1.99 / 0.5))
    assert present.too_much_for_s("a", wait_s / 2) == pytest.approx(wait_s / 2), "also once it is below twice a share"
    assert present.too_much_for_s("a", wait_s + 1e-6) == 0.0
    assert present.too_much_for_s("b", 0.0) == 0.0


def test_two_robots_may_have_all_of_a_model_each() -> None:
    present = Present()
    for turn in range(100):
        present.note_asking("b", turn * 0.05, model=MODEL)
        present.note_use("a", turn * 0.05, 0.05, model=MODEL)
        assert present.too_much_for_s("a", turn * 0.05) == 0.0


def test_whoever_has_gone_raises_the_share_of_those_who_stay() -> None:
    present = Present()
    for robot in "abcd":
        present.note_asking(robot, 0.0, model=MODEL)
    present.note_use("a", 8.0, 1.5, model=MODEL)
    assert present.too_much_for_s("a", 8.0) > 0.0
    assert present.too_much_for_s("a", ALONE_AFTER_S) == 0.0


def test_a_robot_is_expected_a_period_after_it_asked_until_it_is_half_a_period_late() -> None:
    present = Present()
    for turn in range(4):
        present.note_asking("a", turn * 0.5, model=MODEL)
        present.note_asking("b", 0.1 + turn * 0.5, model=MODEL)
    assert present.next_asking_s(1.7, model=MODEL, but="c") == pytest.approx(2.0)
    assert present.next_asking_s(1.7, model=MODEL, but="a") == pytest.approx(2.1)
    assert present.next_asking_s(2.05, model=MODEL, but="b") == pytest.approx(2.05), (
        "it is late, and may ask at any moment"
    )
    assert present.next_asking_s(2.3, model=MODEL, but="b") == math.inf


def test_nobody_waits_for_a_robot_that_has_had_too_much_or_has_asked_once() -> None:
    present = Present()
    for turn in range(4):
        for robot in "abc":
            present.note_asking(robot, turn * 0.5, model=MODEL)
    present.note_use("a", 1.5, 5.0, model=MODEL)
    present.note_asking("d", 1.6, model=MODEL)
    assert present.next_asking_s(1.6, model=MODEL, but="") == pytest.approx(2.0)
    present.note_use("b", 1.6, 5.0, model=MODEL)
    present.note_use("c", 1.6, 5.0, model=MODEL)
    assert present.next_asking_s(1.6, model=MODEL, but="") == math.inf


def test_whoever_is_alone_on_a_model_has_no_more_of_a_policy_than_those_who_share_another() -> None:
    """The first on a new revision, the last on an old one, and the one on a canary."""
    present = Present()
    for turn in range(200):
        now_s = turn * 0.1
        for robot in "abcdefg":
            present.note_asking(robot, now_s, model=MODEL)
            present.note_use(robot, now_s, 0.1 / 7, model=MODEL)
        present.note_asking("h", now_s, model=OTHER)
        present.note_use("h", now_s, 0.1, model=OTHER)
        assert [present.too_much_for_s(robot, now_s) for robot in "abcdefgh"] == [0.0] * 8
    # One that asks them both has what it has of both: here all of one, which seven others ask.
    for turn in range(200, 240):
        present.note_asking("h", turn * 0.1, model=MODEL)
        present.note_use("h", turn * 0.1, 0.1, model=MODEL)
    assert present.too_much_for_s("h", 24.0) > 0.0


def test_only_those_who_ask_a_model_are_expected_there() -> None:
    present = Present()
    for turn in range(4):
        present.note_asking("a", turn * 0.5, model=OTHER)
        present.note_asking("b", 0.1 + turn * 0.5, model=MODEL)
    assert present.next_asking_s(1.7, model=MODEL, but="") == pytest.approx(2.1)
    assert present.next_asking_s(1.7, model=OTHER, but="") == pytest.approx(2.0)
