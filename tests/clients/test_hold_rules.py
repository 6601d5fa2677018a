"""A robot without a valid action stays where it is, whatever its groups mean."""

from __future__ import annotations

import numpy as np
import pytest

from premotor.client import Embodiment, Group, LastPosition, ZeroVelocity, unmeasured_at_zero
from premotor.client.description import Camera
from premotor.client.hold import Hold


def group(
    name: str, dim: int, *, kind: str = "joint_position", unit: str = "rad", delta: bool = False, **limits
) -> Group:
    return Group(name=name, dim=dim, kind=kind, unit=unit, representation="delta" if delta else "absolute", **limits)


def body(state: tuple[Group, ...], action: tuple[Group, ...]) -> Embodiment:
    return Embodiment(
        name="body",
        cameras=(Camera(name="front", height=8, width=8),),
        state=state,
        action=action,
        control_rate_hz=10.0,
    )


ARM = body((group("arm", 2), group("gripper", 1, unit="m")), (group("gripper", 1, unit="m"), group("arm", 2)))
MIXED = body(
    (group("arm", 1), group("hand", 1)),
    (group("arm", 1), group("hand", 1, delta=True), group("base", 1, kind="base", unit="m/s")),
)
UNMEASURED = body((group("arm", 1),), (group("arm", 1), group("gripper", 1, kind="gripper", unit="effort")))
STATE = np.array([0.5, -0.5, 0.02], np.float32)


def test_before_the_first_command_the_measured_position_is_held() -> None:
    np.testing.assert_array_equal(Hold(ARM, LastPosition()).action(STATE, None), STATE[[2, 0, 1]])


def test_after_it_the_last_command_is_repeated() -> None:
    command = np.array([0.01, 1.0, 2.0], np.float32)
    held = Hold(ARM, LastPosition()).action(STATE, command)
    np.testing.assert_array_equal(held, command)
    assert held is not command


def test_a_robot_may_stop_where_it_is_measured() -> None:
    held = Hold(ARM, LastPosition(at="measured")).action(STATE, np.ones(3, np.float32))
    np.testing.assert_array_equal(held, STATE[[2, 0, 1]])


def test_a_measured_position_outside_the_limits_is_held_at_the_limit() -> None:
    embodiment = body((group("arm", 2),), (group("arm", 2, lower_limit=(-0.4, -0.4), upper_limit=(0.4, 0.4)),))
    np.testing.assert_allclose(Hold(embodiment, LastPosition()).action(STATE[:2], None), [0.4, -0.4])


def test_deltas_and_velocities_are_zero_and_positions_never_are() -> None:
    hold = Hold(MIXED, LastPosition())
    np.testing.assert_array_equal(hold.action(np.array([0.7, 0.3]), None), np.array([0.7, 0, 0], np.float32))
    np.testing.assert_array_equal(hold.action(np.array([0.7, 0.3]), np.array([0.6, 1, 1])), np.float32([0.6, 0, 0]))


def test_a_position_that_nothing_measures_needs_a_word_of_the_caller() -> None:
    with pytest.raises(ValueError, match=r"'body': no state group .* of gripper \(effort\).*first={'gripper'"):
        Hold(UNMEASURED, LastPosition())
    hold = Hold(UNMEASURED, LastPosition(first={"gripper": [-1.0]}))
    np.testing.assert_array_equal(hold.action(np.array([0.25]), None), [0.25, -1])


def test_what_nothing_measures_stays_as_commanded_where_the_rest_stops_as_measured() -> None:
    hold = Hold(UNMEASURED, LastPosition(at="measured", first={"gripper": [-1.0]}))
    np.testing.assert_array_equal(hold.action(np.array([0.25]), np.array([0.5, 0.75])), [0.25, 0.75])


def test_what_a_body_does_not_measure_may_begin_at_zero_and_nothing_else_is_named() -> None:
    mode = group("mode", 2, kind="other", unit="1")
    mobile = body((group("arm", 1),), (group("arm", 1), *UNMEASURED.action[1:], mode))
    assert unmeasured_at_zero(ARM) == unmeasured_at_zero(MIXED) == {}
    assert unmeasured_at_zero(UNMEASURED) == {"gripper": [0.0]}
    assert unmeasured_at_zero(mobile) == {"gripper": [0.0], "mode": [0.0, 0.0]}
    for embodiment in (ARM, MIXED, UNMEASURED, mobile):
        Hold(embodiment, LastPosition(first=unmeasured_at_zero(embodiment)))
    blind = body((group("arm", 1),), (group("arm", 1), group("wrist", 1)))
    with pytest.raises(ValueError, match="'body': where wrist are is not measured, say how they hold"):
        unmeasured_at_zero(blind)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({"gripper": [0.0], "arm": [0.0]}, "first names arm, which embodiment 'body' measures"),
        ({"gripper": [0.0, 1.0]}, "expected 1 finite numbers"),
        ({"gripper": [np.nan]}, "expected 1 finite numbers"),
    ],
)
def test_a_word_about_anything_else_is_refused(first: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hold(UNMEASURED, LastPosition(first=first))


def test_zero_velocity_is_refused_where_zero_is_a_place() -> None:
    with pytest.raises(ValueError, match="arm are absolute positions, where zero is a place to go to"):
        Hold(MIXED, ZeroVelocity())
    moving = body((group("arm", 1),), (group("arm", 1, kind="joint_velocity", unit="rad/s"),))
    np.testing.assert_array_equal(Hold(moving, ZeroVelocity()).action(np.ones(1), np.ones(1)), [0])


def test_a_function_decides_and_is_held_to_the_bodys_shape() -> None:
    hold = Hold(ARM, lambda state, last: state[::-1])
    np.testing.assert_array_equal(hold.action(STATE, None), STATE[::-1])
    with pytest.raises(ValueError, match="expected 3 finite numbers"):
        Hold(ARM, lambda state, last: state[:2]).action(STATE, None)
    with pytest.raises(ValueError, match="expected 3 finite numbers"):
        Hold(ARM, lambda state, last: state * np.nan).action(STATE, None)


def test_a_rule_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="expected LastPosition, ZeroVelocity or a function"):
        Hold(ARM, "zeros")  # pyright: ignore[reportArgumentType]
