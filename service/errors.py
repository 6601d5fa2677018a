"""How a request can fail, and which status each way ends in.

Owns the tree of errors that the service raises about a request, and the one table from an error's class to its gRPC
status and the reason beside it. Does not own what a backend raises (backend.py), nor how a status is put on the wire
(gateway/refusal.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

import grpc

from premotor.v1 import policy_pb2
from service.backend import BackendDeadlineError, BackendFailedError, BackendUnavailableError

Reason = policy_pb2.RequestError.Reason

_MAX_QUOTED_CHARS = 64


class ServiceError(Exception):
    """A request has no chunk. The message is for the caller: it names no path, no class and nothing of this machine."""

    def __init__(self, message: str, *, field: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidRequestError(ServiceError):
    """A field does not fit the policy: the same request can never succeed."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message, field=field)


class UnknownPolicyError(ServiceError):
    """No policy of that name is served."""

    def __init__(self, name: str, known: Collection[str]) -> None:
        hint = nearest_name(name, known)
        served = f"the nearest name is {quoted(hint)}" if hint is not None else "no policy is served"
        super().__init__(f"policy: there is no policy {quoted(name)}; {served}", field="policy")


class UnknownRevisionError(ServiceError):
    """The policy is served, the pinned revision of it is not."""

    def __init__(self, policy: str, revision: str, loaded: Collection[str]) -> None:
        names = ", ".join(quoted(name) for name in loaded)
        message = f"revision: {quoted(revision)} of policy {quoted(policy)} is not loaded; loaded: {names}"
        super().__init__(message, field="revision")


class UnknownOperationError(ServiceError):
    """No operation of that id is known."""

    def __init__(self, operation_id: str) -> None:
        super().__init__(f"operation: there is no operation {quoted(operation_id)}", field="operation")


class UnknownTokenError(ServiceError):
    """No token of that id was ever created."""

    def __init__(self, token_id: str) -> None:
        super().__init__(f"token: there is no token {quoted(token_id)}", field="token")


class AuthenticationError(ServiceError):
    """No credential that counts came with the call. The message repeats nothing of what did come."""


class NotAllowedError(ServiceError):
    """The credential is a good one, for other things than this."""


class ConflictError(ServiceError):
    """What is asked for does not fit the state that things are in; the message says which that is."""


class OverloadedError(ServiceError):
    """More requests wait, or are in flight, than may: try again a little later."""


class SupersededError(ServiceError):
    """A newer request of the same robot came while this one waited for its turn, and takes it."""


class DeadlineExpiredError(ServiceError):
    """The caller's deadline passed before the chunk was ready."""


class NotReadyError(ServiceError):
    """No revision of the policy is ready yet."""


class DrainingError(ServiceError):
    """The gateway is stopping and takes no new requests: ask another replica."""


class OutputViolationError(ServiceError):
    """The model's answer failed the output check and is not sent. `detail` has the values and is for the log."""

    def __init__(self, broken: str, *, group: str = "", detail: str) -> None:
        """`broken` says which limit, of what; `group` is empty when the chunk as a whole is at fault."""
        super().__init__(f"the model's answer failed the output check and was not sent: {broken}")
        self.group = group
        self.detail = detail


# The reason is what the code leaves open. What only the admin plane raises has none: its answers carry no reason.
STATUSES: dict[type[Exception], tuple[grpc.StatusCode, Reason]] = {
    InvalidRequestError: (grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID),
    UnknownPolicyError: (grpc.StatusCode.NOT_FOUND, Reason.REASON_UNKNOWN_POLICY),
    UnknownRevisionError: (grpc.StatusCode.NOT_FOUND, Reason.REASON_UNKNOWN_REVISION),
    UnknownOperationError: (grpc.StatusCode.NOT_FOUND, Reason.REASON_UNSPECIFIED),
    UnknownTokenError: (grpc.StatusCode.NOT_FOUND, Reason.REASON_UNSPECIFIED),
    AuthenticationError: (grpc.StatusCode.UNAUTHENTICATED, Reason.REASON_UNAUTHENTICATED),
    NotAllowedError: (grpc.StatusCode.PERMISSION_DENIED, Reason.REASON_PERMISSION_DENIED),
    ConflictError: (grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_UNSPECIFIED),
    OverloadedError: (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.REASON_OVERLOADED),
    SupersededError: (grpc.StatusCode.ABORTED, Reason.REASON_SUPERSEDED),
    DeadlineExpiredError: (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.REASON_EXPIRED),
    NotReadyError: (grpc.StatusCode.UNAVAILABLE, Reason.REASON_NOT_READY),
    DrainingError: (grpc.StatusCode.UNAVAILABLE, Reason.REASON_DRAINING),
    OutputViolationError: (grpc.StatusCode.INTERNAL, Reason.REASON_OUTPUT_VIOLATION),
    BackendUnavailableError: (grpc.StatusCode.UNAVAILABLE, Reason.REASON_UNAVAILABLE),
    BackendDeadlineError: (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.REASON_EXPIRED),
    BackendFailedError: (grpc.StatusCode.INTERNAL, Reason.REASON_FAILED),
}
_UNFORESEEN_STATUS = grpc.StatusCode.INTERNAL, Reason.REASON_FAILED

# What a caller is told about an error whose own message may describe this machine.
_PUBLIC_MESSAGES: dict[type[Exception], str] = {
    BackendUnavailableError: "the backend is starting or restarting; retry, or ask another replica",
    BackendDeadlineError: "the deadline passed before the backend answered",
    BackendFailedError: "the backend failed on this request",
}
_UNFORESEEN_MESSAGE = "the gateway failed on this request"


def status(error: Exception) -> tuple[grpc.StatusCode, Reason]:
    """Code and reason of an error's nearest listed class; INTERNAL and FAILED for an error nobody foresaw."""
    for cls in type(error).__mro__:
        if cls in STATUSES:
            return STATUSES[cls]
    return _UNFORESEEN_STATUS


def status_code(error: Exception) -> grpc.StatusCode:
    return status(error)[0]


def reason_name(reason: Reason) -> str:
    """A reason without its prefix, such as "EXPIRED"; empty for the unspecified one."""
    return Reason.Name(reason).removeprefix("REASON_") if reason else ""


def public_message(error: Exception) -> str:
    """What the caller may read about an error."""
    if isinstance(error, ServiceError):
        return error.message
    for cls in type(error).__mro__:
        if cls in _PUBLIC_MESSAGES:
            return _PUBLIC_MESSAGES[cls]
    return _UNFORESEEN_MESSAGE


def retry_after_s(error: Exception) -> float | None:
    """How long to wait before the same request is worth sending again; None when that cannot help or is not known."""
    if isinstance(error, ServiceError | BackendUnavailableError):
        return error.retry_after_s
    return None


def quoted(text: str) -> str:
    """A caller's text as it may appear in a message: printable ASCII, quoted, of bounded length."""
    clipped = text if len(text) <= _MAX_QUOTED_CHARS else text[: _MAX_QUOTED_CHARS - 3] + "..."
    return ascii(clipped)


def nearest_name(name: str, known: Collection[str]) -> str | None:
    """The known name that looks most like `name`; None when nothing is known."""
    # The cost grows with the square of the length, which the caller chooses.
    matches = difflib.get_close_matches(name[:_MAX_QUOTED_CHARS], sorted(known), n=1, cutoff=0.0)
    return matches[0] if matches else None
