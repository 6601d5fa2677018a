"""What may leave: chunks of the right shape, finite, inside the limits of the body they are for."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from premotor.v1 import policy_pb2
from premotor.wire import read_error_metadata
from service.errors import OutputViolationError
from service.gateway.outputs import OutputCheck

HORIZON, TIMEOUT_S = 16, 10.0
# 3 + 1 + 2 dimensions.
BODY = policy_pb2.Embodiment(
    name="arm",
    action=[
        policy_pb2.Group(
            name="joints",
            dim=3,
            lower_limit=[-1.0, -2.0, -3.14158],
            upper_limit=[1.0, 2.0, 3.14158],
            step_limit=[0.1] * 3,
        ),
        policy_pb2.Group(name="gripper", dim=1, lower_limit=[0.0], upper_limit=[1.0]),
        policy_pb2.Group(name="base", dim=2, upper_limit=[0.3, 0.3]),
    ],
)


def chunk(**values: float) -> np.ndarray:
    """Zeros, with single values set: `t4_d1=2.0` is the second dimension of the fifth action."""
    actions = np.zeros((HORIZON, 6), np.float32)
    for place, value in values.items():
        step, dimension = (int(part[1:]) for part in place.split("_"))
        actions[step, dimension] = value
    return actions


def ramp(dimension: int, start: float, step: float) -> np.ndarray:
    actions = chunk()
    actions[:, dimension] = start + step * np.arange(HORIZON)
    return actions


@pytest.fixture
def check() -> OutputCheck:
    return OutputCheck(BODY, action_horizon=HORIZON)


@pytest.mark.parametrize(
    "actions",
    [
        chunk(),
        # On a limit, and beside it by what float32 makes of a decimal number.
        ramp(2, np.float32(3.14158), 0.0),
        ramp(2, np.nextafter(np.float32(3.14158), np.float32(4)), 0.0),
        ramp(3, -1e-7, 0.0),
        ramp(0, -0.75, 0.1),
        # A group without a limit on that side or on steps.
        chunk(t3_d4=-1e30, t4_d5=-3e38),
        chunk(t3_d3=1.0),
    ],
)
def test_a_chunk_inside_every_limit_may_leave(check: OutputCheck, actions: np.ndarray) -> None:
    check.check(actions)


@pytest.mark.parametrize(
    ("actions", "group", "says"),
    [
        (chunk(t3_d2=np.nan), "joints", "is not finite"),
        (chunk(t15_d3=np.inf), "gripper", "is not finite"),
        (chunk(t0_d5=-np.inf), "base", "is not finite"),
        (ramp(0, 1.0001, 0.0), "joints", "is above upper_limit"),
        (ramp(2, -3.1417, 0.0), "joints", "is below lower_limit"),
        (chunk(t7_d3=-0.001), "gripper", "is below lower_limit"),
        (chunk(t7_d4=0.31), "base", "is above upper_limit"),
        (chunk(t7_d1=0.11), "joints", "changes by more than step_limit"),
        (ramp(1, 0.0, -0.101), "joints", "changes by more than step_limit"),
        (chunk(t15_d0=0.2), "joints", "changes by more than step_limit"),
    ],
)
def test_a_broken_limit_is_named_with_its_group_and_without_its_values(
    check: OutputCheck, actions: np.ndarray, group: str, says: str
) -> None:
    with pytest.raises(OutputViolationError) as violation:
        check.check(actions)
    assert violation.value.group == group
    assert violation.value.message.endswith(f"action group {group!r} of 'arm' {says}")
    assert not any(character.isdigit() for character in violation.value.message)
    assert any(character.isdigit() for character in violation.value.detail)


@pytest.mark.parametrize(
    "actions",
    [
        np.zeros((HORIZON, 6), np.float64),
        np.zeros((HORIZON, 5), np.float32),
        np.zeros((HORIZON - 1, 6), np.float32),
        np.zeros((HORIZON * 6,), np.float32),
        np.zeros((0,), np.float32),
    ],
)
def test_another_shape_or_type_belongs_to_no_group(check: OutputCheck, actions: np.ndarray) -> None:
    with pytest.raises(OutputViolationError, match="shape or type") as violation:
        check.check(actions)
    assert violation.value.group == ""
    assert f"float32 [{HORIZON}, 6]" in violation.value.detail


def test_a_step_at_its_limit_far_from_zero_is_no_violation_and_one_beyond_it_is() -> None:
    body = policy_pb2.Embodiment(name="far", action=[policy_pb2.Group(name="rail", dim=1, step_limit=[0.1])])
    check = OutputCheck(body, action_horizon=HORIZON)
    steps = np.arange(HORIZON)[:, None]
    check.check((1000.0 + 0.1 * steps).astype(np.float32))
    with pytest.raises(OutputViolationError, match="step_limit"):
        check.check((1000.0 + 0.102 * steps).astype(np.float32))
    # The difference of these is beyond float32.
    with pytest.raises(OutputViolationError, match="step_limit"):
        check.check(np.float32(3e38) * np.where(steps % 2, 1, -1).astype(np.float32))


def test_a_limit_that_float32_cannot_hold_bounds_nothing() -> None:
    body = policy_pb2.Embodiment(name="wide", action=[policy_pb2.Group(name="rail", dim=1, lower_limit=[-1e300])])
    OutputCheck(body, action_horizon=1).check(np.full((1, 1), -3e38, np.float32))


def test_a_single_action_has_no_steps() -> None:
    body = policy_pb2.Embodiment(name="short", action=[policy_pb2.Group(name="rail", dim=1, step_limit=[0.1])])
    OutputCheck(body, action_horizon=1).check(np.full((1, 1), 5.0, np.float32))


@pytest.mark.asyncio
async def test_a_violation_is_a_status_with_the_groups_name_it_is_counted_and_its_values_are_only_logged(kit, caplog):
    # The sawyer's hand has a lower limit of -1 m.
    backend = kit.backend(make_actions=lambda request: np.full((HORIZON, 4), -1.25, np.float32))
    async with kit.serve(backend=backend) as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.stub.PredictChunk(kit.request(embodiment="sawyer"), timeout=TIMEOUT_S)
        error = read_error_metadata(failed.value.trailing_metadata())
        labels = {"policy": "tabletop", "revision": kit.revision.revision, "group": "hand"}
        assert gateway.registry.get_sample_value("premotor_output_violations_total", labels) == 1
        assert gateway.count(policy="tabletop", status="INTERNAL", reason="OUTPUT_VIOLATION") == 1
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert error is not None and error.reason == policy_pb2.RequestError.REASON_OUTPUT_VIOLATION
    assert "action group 'hand' of 'sawyer' is below lower_limit" in error.message
    assert (error.robot_id, error.request_id) == ("robot-1", "request-1")
    assert "1.25" not in str(error)
    (record,) = [record for record in caplog.records if record.getMessage() == "request failed"]
    assert "-1.25" in record.fields["error"] and record.fields["reason"] == "OUTPUT_VIOLATION"
