"""What the benches ask: the checkpoint's own probe, as a robot would send it.

Owns turning a probe case into wire messages, JPEG frames included, whose frames differ from one to the next. Does not
own timing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import simplejpeg

from premotor.v1 import policy_pb2
from premotor.wire import encode_image, encode_tensor
from service.backend import BackendRequest
from service.gateway.images import decode_frames, inspect_image
from service.gateway.limits import GatewayLimits
from service.probe import ProbeCase
from service.revision import Revision

NUM_VARIANTS = 8
_JPEG_QUALITY = 90


def chunk_requests(
    revision: Revision, case: ProbeCase, *, policy: str, robot_id: str = "bench"
) -> list[policy_pb2.PredictChunkRequest]:
    """NUM_VARIANTS requests: the case's frames, each rolled by another number of columns."""
    embodiment = revision.description.embodiments[case.request.embodiment_index]
    return [
        _chunk_request(
            replace(case.request, images=_rolled(case.request, variant)), embodiment, policy, robot_id, variant
        )
        for variant in range(NUM_VARIANTS)
    ]


def _rolled(request: BackendRequest, variant: int) -> tuple[np.ndarray, ...]:
    return tuple(np.ascontiguousarray(np.roll(frame, 3 * variant, axis=1)) for frame in request.images)


def _chunk_request(
    request: BackendRequest, embodiment: policy_pb2.Embodiment, policy: str, robot_id: str, variant: int
) -> policy_pb2.PredictChunkRequest:
    message = policy_pb2.PredictChunkRequest(
        policy=policy,
        robot_id=robot_id,
        episode_id="bench",
        request_id=str(variant),
        embodiment=embodiment.name,
        seed=request.seed,
        num_inference_steps=request.num_inference_steps,
    )
    for camera, frame in zip(embodiment.cameras, request.images, strict=True):
        jpeg = simplejpeg.encode_jpeg(frame, quality=_JPEG_QUALITY)
        message.observation.images[camera.name].CopyFrom(encode_image(jpeg))
    message.observation.state.CopyFrom(encode_tensor(request.state))
    message.observation.instruction = request.instruction
    if len(request.history_states):
        message.history.states.CopyFrom(encode_tensor(request.history_states))
        message.history.actions.CopyFrom(encode_tensor(request.history_actions))
    return message


def decoded_request(message: policy_pb2.PredictChunkRequest, case: ProbeCase, revision: Revision) -> BackendRequest:
    """The backend request that the gateway makes of a message of this module, by the gateway's own decoding."""
    cameras = revision.description.embodiments[case.request.embodiment_index].cameras
    frames = tuple(
        inspect_image(message.observation.images[camera.name], field=camera.name, limits=GatewayLimits())
        for camera in cameras
    )
    return replace(case.request, images=decode_frames(frames))
