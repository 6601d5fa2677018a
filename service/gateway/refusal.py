"""An exception to the RequestError that a caller reads.

Owns what of a failure and of the request leaves the process. Does not own which status a failure has (service.errors).
"""

from __future__ import annotations

from premotor.v1 import policy_pb2
from premotor.wire import encode_duration
from service.errors import ServiceError, public_message, retry_after_s, status_code

# An id may be at most 128 bytes; a longer one is the error, and is not sent back whole.
_MAX_ECHO_CHARS = 128


def refuse(error: Exception, request: policy_pb2.PredictChunkRequest | None) -> policy_pb2.RequestError:
    """The answer to a request that failed with `error`; `request` is None when its bytes are not a request."""
    answer = policy_pb2.RequestError(
        code=status_code(error).value[0],
        message=public_message(error),
        field=error.field if isinstance(error, ServiceError) else "",
    )
    if request is not None:
        answer.robot_id = request.robot_id[:_MAX_ECHO_CHARS]
        answer.episode_id = request.episode_id[:_MAX_ECHO_CHARS]
        answer.request_id = request.request_id[:_MAX_ECHO_CHARS]
    retry_s = retry_after_s(error)
    if retry_s is not None:
        answer.retry_delay.CopyFrom(encode_duration(retry_s))
    return answer
