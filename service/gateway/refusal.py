"""An exception to the RequestError that a caller reads, and a call ended with one.

Owns what of a failure and of the request leaves the process. Does not own which status a failure has (service.errors).
"""

from __future__ import annotations

from typing import NoReturn

import grpc

from premotor.v1 import policy_pb2
from premotor.wire import encode_duration, error_metadata
from service.errors import ServiceError, public_message, retry_after_s, status

# An id may be at most 128 bytes; a longer one is the error, and is not sent back whole.
_MAX_ECHO_CHARS = 128
_STATUS_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


def refuse(error: Exception, request: policy_pb2.PredictChunkRequest | None) -> policy_pb2.RequestError:
    """The answer to a request that failed with `error`; `request` is None when its bytes are not a request."""
    code, reason = status(error)
    answer = policy_pb2.RequestError(
        code=code.value[0],
        message=public_message(error),
        field=error.field if isinstance(error, ServiceError) else "",
        reason=reason,
    )
    if request is not None:
        answer.robot_id = request.robot_id[:_MAX_ECHO_CHARS]
        answer.episode_id = request.episode_id[:_MAX_ECHO_CHARS]
        answer.request_id = request.request_id[:_MAX_ECHO_CHARS]
    retry_s = retry_after_s(error)
    if retry_s is not None:
        answer.retry_delay.CopyFrom(encode_duration(retry_s))
    return answer


async def abort(context: grpc.aio.ServicerContext, error: policy_pb2.RequestError) -> NoReturn:
    """Ends a call with the error's status, the error itself in the trailing metadata."""
    await context.abort(_STATUS_BY_NUMBER[error.code], error.message, trailing_metadata=error_metadata(error))
    raise AssertionError("abort returned")
