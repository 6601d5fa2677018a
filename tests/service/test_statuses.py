"""The table of statuses is whole, and what it says reaches the caller."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest

import service.backend
import service.errors
from premotor.v1 import policy_pb2
from service.backend import BackendDeadlineError, InstructionRefusedError
from service.errors import STATUSES, Reason, ServiceError, reason_name, status
from service.gateway.refusal import refuse

# Nobody meets this one: the answerer makes InvalidRequestError of it.
RESTATED = {InstructionRefusedError}
# No robot meets these: only the admin plane raises them.
WITHOUT_REASON = {"UnknownOperationError", "UnknownTokenError", "ConflictError"}
# Which code goes with each reason is part of the wire.
CODES = {
    "INVALID": "INVALID_ARGUMENT",
    "UNKNOWN_POLICY": "NOT_FOUND",
    "UNKNOWN_REVISION": "NOT_FOUND",
    "EXPIRED": "DEADLINE_EXCEEDED",
    "SUPERSEDED": "ABORTED",
    "OVERLOADED": "RESOURCE_EXHAUSTED",
    "DRAINING": "UNAVAILABLE",
    "NOT_READY": "UNAVAILABLE",
    "UNAVAILABLE": "UNAVAILABLE",
    "OUTPUT_VIOLATION": "INTERNAL",
    "UNAUTHENTICATED": "UNAUTHENTICATED",
    "PERMISSION_DENIED": "PERMISSION_DENIED",
    "FAILED": "INTERNAL",
}


def raised_errors() -> set[type[Exception]]:
    """Everything that the service raises about a request, the roots of the trees left out."""
    found = [each for module in (service.errors, service.backend) for each in vars(module).values()]
    roots = (ServiceError, service.backend.BackendError)
    return {each for each in found if isinstance(each, type) and issubclass(each, roots)} - set(roots)


def test_every_error_has_its_own_status() -> None:
    assert set(STATUSES) == raised_errors() - RESTATED


def test_every_error_that_a_robot_meets_has_a_reason_and_every_reason_its_code() -> None:
    said = {
        (reason_name(reason), code.name)
        for error, (code, reason) in STATUSES.items()
        if error.__name__ not in WITHOUT_REASON
    }
    assert said == set(CODES.items())
    assert set(CODES) == {name.removeprefix("REASON_") for name, number in Reason.items() if number}
    assert {error.__name__ for error, (_, reason) in STATUSES.items() if not reason} == WITHOUT_REASON


def test_an_error_nobody_foresaw_has_failed_and_a_subclass_goes_by_its_parent() -> None:
    class Later(BackendDeadlineError):
        pass

    assert status(ZeroDivisionError()) == (grpc.StatusCode.INTERNAL, Reason.REASON_FAILED)
    assert status(Later("late")) == (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.REASON_EXPIRED)


@pytest.mark.parametrize("name", sorted(CODES))
def test_code_and_reason_of_a_refusal_are_those_of_the_table(name: str) -> None:
    # Made without their constructors, which are not the question.
    errors = [each for each, (_, reason) in STATUSES.items() if reason_name(reason) == name]
    for cls in errors:
        error = cls.__new__(cls)
        vars(error).update(message="what came, what was expected", field="", retry_after_s=None)
        refusal = refuse(error, policy_pb2.PredictChunkRequest(request_id="request-1"))
        assert (refusal.reason, refusal.request_id) == (Reason.Value(f"REASON_{name}"), "request-1")
        assert refusal.code == grpc.StatusCode[CODES[name]].value[0]


@pytest.mark.parametrize("method", ["PredictChunk", "GetPolicy", "ListPolicies"])
async def test_bytes_that_are_no_message_end_in_a_code_that_the_contract_lists(kit, method: str) -> None:
    contract = Path(policy_pb2.__file__).with_name("policy.proto").read_text()
    (listed,) = re.findall(rf"((?: +//.*\n)+) +rpc {method}\(", contract)
    async with kit.serve() as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.channel.unary_unary(f"/premotor.v1.PolicyService/{method}")(b"\xff", timeout=10)
    assert re.search(rf"{failed.value.code().name} .*\bwhat came is not the message", listed, re.DOTALL)
