"""What can go wrong with a call, named for what the caller can do next.

Owns the error tree and the tables from what the service says to an error class: by its reason where that says more, and
by gRPC status. Never retries: a resent observation is stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from premotor.v1 import policy_pb2
from premotor.wire import WireError, decode_duration, read_error_metadata


class PolicyError(Exception):
    """Any failed call. No chunk came: hold the robot, do not play zeros.

    `reason` is the service's own RequestError.Reason, REASON_UNSPECIFIED where it gave none or nothing came from it.
    """

    reason: int = policy_pb2.RequestError.REASON_UNSPECIFIED

    def __init__(self, message: str, *, code: grpc.StatusCode | None = None, request_id: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


class FixRequestError(PolicyError):
    """The same call will fail again: change it. `field` is the path at fault, "" when no single field is."""

    def __init__(
        self, message: str, *, field: str = "", code: grpc.StatusCode | None = None, request_id: str = ""
    ) -> None:
        super().__init__(message, code=code, request_id=request_id)
        self.field = field


class RetryableError(PolicyError):
    """The service cannot answer now: ask again with a fresh observation, after `retry_delay_s` if that is not None."""

    def __init__(
        self,
        message: str,
        *,
        retry_delay_s: float | None = None,
        code: grpc.StatusCode | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message, code=code, request_id=request_id)
        self.retry_delay_s = retry_delay_s


class DeadlineExceededError(PolicyError):
    """The chunk did not come in time, and would be stale by now: hold, then ask with a fresh observation."""


class ObservationSupersededError(PolicyError):
    """A newer request of this robot took this one's turn: nothing is lost, play the newer one's chunk."""


class ServerFailureError(PolicyError):
    """The service failed on this request: hold, and tell its operator the request id."""


class OutputViolationError(ServerFailureError):
    """The chunk broke a limit of the body, which the message names, and was not sent: hold."""


class ProtocolError(PolicyError):
    """An answer came that is not an answer to this request, or not a usable one: hold, and do not trust this server."""


class SchemaChangedError(PolicyError):
    """The policy's schema digest is another than the caller was told: widths, units or rates may be. Start anew."""


class ClosedError(PolicyError):
    """The client or the stream has been closed by its owner."""


_CLASSES: dict[grpc.StatusCode, type[PolicyError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: FixRequestError,
    grpc.StatusCode.NOT_FOUND: FixRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: FixRequestError,
    grpc.StatusCode.OUT_OF_RANGE: FixRequestError,
    grpc.StatusCode.ALREADY_EXISTS: FixRequestError,
    grpc.StatusCode.UNAUTHENTICATED: FixRequestError,
    grpc.StatusCode.PERMISSION_DENIED: FixRequestError,
    grpc.StatusCode.UNAVAILABLE: RetryableError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RetryableError,
    grpc.StatusCode.ABORTED: RetryableError,
    grpc.StatusCode.CANCELLED: RetryableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.INTERNAL: ServerFailureError,
    grpc.StatusCode.UNKNOWN: ServerFailureError,
    grpc.StatusCode.DATA_LOSS: ServerFailureError,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
}
# A reason that is not listed here, or not known to this client, leaves it to the code.
_CLASSES_BY_REASON: dict[int, type[PolicyError]] = {
    policy_pb2.RequestError.REASON_SUPERSEDED: ObservationSupersededError,
    policy_pb2.RequestError.REASON_OUTPUT_VIOLATION: OutputViolationError,
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# What gRPC itself answers, with RESOURCE_EXHAUSTED and no details, to a message beyond either side's cap.
_TOO_LARGE = "larger than max"


@contextmanager
def fix_request() -> Iterator[None]:
    """What the wire refuses inside is the caller's to fix: WireError becomes FixRequestError with its field."""
    try:
        yield
    except WireError as error:
        raise FixRequestError(str(error), field=error.field) from error


def error_from_call(error: grpc.RpcError, *, request_id: str = "") -> PolicyError:
    """The error for a call that ended with a status, from its details where it carries them."""
    assert isinstance(error, (grpc.Call, grpc.aio.AioRpcError))
    details = read_error_metadata(error.trailing_metadata())
    if details is not None:
        return error_from_details(details, request_id=request_id)
    return _error(error.code(), error.details() or "", request_id=request_id)


def error_from_details(details: policy_pb2.RequestError, *, request_id: str = "") -> PolicyError:
    """The error that a RequestError describes."""
    code = _CODES.get(details.code)
    if code is None or code is grpc.StatusCode.OK:
        return ProtocolError(f"an error with status {details.code} came: {details.message}", request_id=request_id)
    retry_delay_s = None
    if details.HasField("retry_delay"):
        try:
            retry_delay_s = max(decode_duration(details.retry_delay, field="retry_delay"), 0.0)
        except WireError as error:
            return ProtocolError(str(error), code=code, request_id=request_id)
    error = _error(
        code,
        details.message,
        request_id=request_id,
        field=details.field,
        retry_delay_s=retry_delay_s,
        reason=details.reason,
    )
    error.reason = details.reason
    return error


def _error(
    code: grpc.StatusCode,
    message: str,
    *,
    request_id: str,
    field: str = "",
    retry_delay_s: float | None = None,
    reason: int = policy_pb2.RequestError.REASON_UNSPECIFIED,
) -> PolicyError:
    error_class = _CLASSES_BY_REASON.get(reason) or _CLASSES[code]
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in message:
        error_class = FixRequestError
    text = f"{code.name}: {message}" if message else code.name
    if error_class is FixRequestError:
        return FixRequestError(text, field=field, code=code, request_id=request_id)
    if error_class is RetryableError:
        return RetryableError(text, retry_delay_s=retry_delay_s, code=code, request_id=request_id)
    return error_class(text, code=code, request_id=request_id)
