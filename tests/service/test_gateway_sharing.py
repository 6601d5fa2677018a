"""How much of a model's time a robot has had lately, and how much it may have."""

from __future__ import annotations

import math

import pytest

from service.gateway.sharing import ALONE_AFTER_S, Present


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
        present.note(robot, 0.0)
    # Two seconds are remembered: of them half, twice a quarter, is what a robot may have.
    present.note("a", 0.0, used_s=0.99)
    assert present.too_much_for_s("a", 0.0) == 0.0
    present.note("a", 0.0, used_s=1.0)
    wait_s = present.too_much_for_s("a", 0.0)
    assert wait_s == pytest.approx(2.0 * math.log(1.99 / 0.5))
    assert present.too_much_for_s("a", wait_s / 2) == pytest.approx(wait_s / 2), "also once it is below twice a share"
    assert present.too_much_for_s("a", wait_s + 1e-6) == 0.0
    assert present.too_much_for_s("b", 0.0) == 0.0


def test_two_robots_may_have_all_of_a_model_each() -> None:
    present = Present()
    for turn in range(100):
        present.note("b", turn * 0.05)
        present.note("a", turn * 0.05, used_s=0.05)
        assert present.too_much_for_s("a", turn * 0.05) == 0.0


def test_whoever_has_gone_raises_the_share_of_those_who_stay() -> None:
    present = Present()
    for robot in "abcd":
        present.note(robot, 0.0)
    present.note("a", 8.0, used_s=1.5)
    assert present.too_much_for_s("a", 8.0) > 0.0
    assert present.too_much_for_s("a", ALONE_AFTER_S) == 0.0


def test_a_robot_is_expected_a_period_after_it_asked_until_it_is_half_a_period_late() -> None:
    present = Present()
    for turn in range(4):
        present.note_asking("a", turn * 0.5)
        present.note_asking("b", 0.1 + turn * 0.5)
    assert present.next_asking_s(1.7, but="c") == pytest.approx(2.0)
    assert present.next_asking_s(1.7, but="a") == pytest.approx(2.1)
    assert present.next_asking_s(2.05, but="b") == pytest.approx(2.05), "it is late, and may ask at any moment"
    assert present.next_asking_s(2.3, but="b") == math.inf


def test_nobody_waits_for_a_robot_that_has_had_too_much_or_has_asked_once() -> None:
    present = Present()
    for turn in range(4):
        for robot in "abc":
            present.note_asking(robot, turn * 0.5)
    present.note("a", 1.5, used_s=5.0)
    present.note_asking("d", 1.6)
    assert present.next_asking_s(1.6, but="") == pytest.approx(2.0)
    present.note("b", 1.6, used_s=5.0)
    present.note("c", 1.6, used_s=5.0)
    assert present.next_asking_s(1.6, but="") == math.inf
