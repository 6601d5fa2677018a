"""How much of a model's time a robot has had lately, and how much it may have."""

from __future__ import annotations

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


def test_use_fades_and_the_share_is_twice_an_equal_one() -> None:
    present = Present()
    for robot in "abcd":
        present.note(robot, 0.0)
    # Two seconds are remembered: of them half, twice a quarter, is what a robot may have.
    present.note("a", 0.0, used_s=0.99)
    assert present.too_much_for_s("a", 0.0) == 0.0
    present.note("a", 0.0, used_s=1.0)
    wait_s = present.too_much_for_s("a", 0.0)
    assert wait_s == pytest.approx(2.0 * 0.688, rel=1e-2)
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
