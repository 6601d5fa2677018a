"""The message that carries a chunk, and where the request's time went.

Owns its fields. Does not own the chunk, its check or the clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from premotor.v1 import policy_pb2
from premotor.wire import encode_duration, encode_tensor
from service.backend import BackendChunk, BackendRequest
from service.gateway.real_time_chunking import METHOD_NUMBERS
from service.observability.recent import Stages
from service.revision import Revision


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Where a request's time went in the gateway, the seconds of waiting not counted as decoding."""

    decode_s: float
    wait_s: float

    def stages(self, chunk: BackendChunk, total_s: float) -> Stages:
        """With what the backend says of its part."""
        return Stages(self.decode_s, self.wait_s + chunk.queue_s, chunk.inference_s, total_s)


def chunk_response(
    request: policy_pb2.PredictChunkRequest,
    *,
    revision: Revision,
    asked: BackendRequest,
    chunk: BackendChunk,
    stages_s: Stages,
) -> policy_pb2.PredictChunkResponse:
    """The ids of `request` come back as they came; `asked` is what the model was asked in its place."""
    response = policy_pb2.PredictChunkResponse(
        robot_id=request.robot_id,
        episode_id=request.episode_id,
        request_id=request.request_id,
        actions=encode_tensor(chunk.actions),
        revision=revision.revision,
        seed=asked.seed,
        schema_digest=revision.description.schema_digest,
    )
    if asked.real_time_chunking is not None:
        response.real_time_chunking_method = METHOD_NUMBERS[asked.real_time_chunking.method]
    if request.observation.HasField("capture_time"):
        response.capture_time.CopyFrom(request.observation.capture_time)
    timing = response.timing
    timing.decode.CopyFrom(encode_duration(stages_s.decode_s))
    timing.queue.CopyFrom(encode_duration(stages_s.queue_s))
    timing.inference.CopyFrom(encode_duration(stages_s.inference_s))
    timing.total.CopyFrom(encode_duration(stages_s.total_s))
    return response
