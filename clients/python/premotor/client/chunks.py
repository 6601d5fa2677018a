"""One question and its answer: building a PredictChunkRequest, and accepting or refusing what comes back.

Owns what the synchronous client, the asynchronous client and the streams have in common. Does no I/O.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypedDict

import numpy as np

from premotor.client.description import PolicyDescription
from premotor.client.errors import FixRequestError, ProtocolError, SchemaChangedError, fix_request
from premotor.client.history import HistoryBuffer
from premotor.client.images import ImageEncoding, encode_frame
from premotor.client.real_time_chunking import (
    RealTimeChunking,
    RealTimeChunkingMethod,
    encode_real_time_chunking,
    read_method,
)
from premotor.v1 import policy_pb2
from premotor.wire import WireError, decode_duration, decode_tensor, encode_duration, encode_tensor, require_finite

# In one request; what is more waits for the next.
MAX_UNDERRUNS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ServerTiming:
    """Where the time went on the server, in seconds of its own clock."""

    decode_s: float
    queue_s: float
    inference_s: float
    total_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """The next actions, and where they came from.

    `actions` is float32 [action_horizon, action_dim] in the embodiment's units; row i is meant for the instant
    i / control_rate_hz after the observation. `round_trip_s` runs from the request's hand-over to gRPC to its parsed
    answer, image encoding excluded. `real_time_chunking_method` is how it continues the previous chunk, None where it
    does not: the request did not ask, or left the method to a server that knows none. `schema_digest` is that of the
    revision that answered, "" from a server that does not say.
    """

    actions: np.ndarray
    revision: str
    seed: int
    timing: ServerTiming
    robot_id: str
    episode_id: str
    request_id: str
    capture_time_s: float | None
    round_trip_s: float
    real_time_chunking_method: RealTimeChunkingMethod | None = None
    schema_digest: str = ""


class _RequiredArguments(TypedDict):
    policy: str
    robot_id: str
    episode_id: str
    images: Mapping[str, np.ndarray | bytes]
    state: np.ndarray
    instruction: str


class ChunkArguments(_RequiredArguments, total=False):
    """What `predict_chunk` takes, its timeout apart."""

    embodiment: str
    history: HistoryBuffer | None
    capture_time_s: float | None
    seed: int | None
    num_inference_steps: int | None
    num_underruns: int | None
    real_time_chunking: RealTimeChunking | None
    revision: str
    episode_revision: str
    image_encoding: ImageEncoding


def build_request(
    *,
    policy: str,
    robot_id: str,
    episode_id: str,
    images: Mapping[str, np.ndarray | bytes],
    state: np.ndarray,
    instruction: str,
    embodiment: str = "",
    history: HistoryBuffer | None = None,
    capture_time_s: float | None = None,
    seed: int | None = None,
    num_inference_steps: int | None = None,
    num_underruns: int | None = None,
    real_time_chunking: RealTimeChunking | None = None,
    revision: str = "",
    episode_revision: str = "",
    image_encoding: ImageEncoding = "jpeg",
) -> policy_pb2.PredictChunkRequest:
    """The message, with a request id of its own. Raises FixRequestError for what no policy could accept."""
    request = policy_pb2.PredictChunkRequest(
        policy=_required("policy", policy),
        revision=revision,
        robot_id=_required("robot_id", robot_id),
        episode_id=_required("episode_id", episode_id),
        request_id=uuid.uuid4().hex,
        embodiment=embodiment,
        episode_revision=episode_revision or None,
    )
    observation = request.observation
    for camera, frame in images.items():
        field = f"observation.images[{camera}]"
        observation.images[camera].CopyFrom(encode_frame(frame, image_encoding, field=field))
    observation.state.CopyFrom(_vector(state, field="observation.state"))
    observation.instruction = _required("observation.instruction", instruction)
    if capture_time_s is not None:
        with fix_request():
            observation.capture_time.CopyFrom(encode_duration(capture_time_s, field="observation.capture_time"))
    if history is not None:
        states, actions, num_valid_steps = history.window()
        first_valid = len(states) - num_valid_steps
        request.history.states.CopyFrom(encode_tensor(states[first_valid:], field="history.states"))
        request.history.actions.CopyFrom(encode_tensor(actions[first_valid:], field="history.actions"))
    if seed is not None:
        request.seed = _integer("seed", seed, least=0, most=2**63 - 1)
    if num_inference_steps is not None:
        request.num_inference_steps = _integer("num_inference_steps", num_inference_steps, least=1, most=2**31 - 1)
    if num_underruns is not None:
        request.num_underruns = _integer("num_underruns", num_underruns, least=0, most=MAX_UNDERRUNS)
    if real_time_chunking is not None:
        request.real_time_chunking.CopyFrom(encode_real_time_chunking(real_time_chunking))
    return request


def read_response(
    request: policy_pb2.PredictChunkRequest,
    response: policy_pb2.PredictChunkResponse,
    *,
    description: PolicyDescription | None,
    round_trip_s: float,
) -> Chunk:
    """The chunk, or ProtocolError where the answer is another request's, or its actions must not be played.

    `description` is what the caller knows of the policy: an answer of another schema raises SchemaChangedError. Where
    the server does not say whose schema it is, the description's shapes bind only the revision that it describes.
    """
    try:
        return _read_response(request, response, description, round_trip_s)
    except WireError as error:
        raise ProtocolError(f"the answer's {error}", request_id=request.request_id) from error


def _read_response(
    request: policy_pb2.PredictChunkRequest,
    response: policy_pb2.PredictChunkResponse,
    description: PolicyDescription | None,
    round_trip_s: float,
) -> Chunk:
    _check_echo(request, response)
    if description is not None and response.schema_digest not in ("", description.schema_digest):
        raise SchemaChangedError(
            f"policy {request.policy!r}: revision {response.revision}, which answered, has schema "
            f"{response.schema_digest[:12]}; it was described as {description.schema_digest[:12]} (revision "
            f"{description.revision}): do not play its actions, ask for its description again",
            request_id=request.request_id,
        )
    actions = decode_tensor(
        response.actions,
        field="actions",
        dtype=np.float32,
        shape=_expected_shape(request, response, description),
    )
    if actions.size == 0:
        raise WireError("actions", f"shape is {list(actions.shape)}, expected at least one action")
    require_finite(actions, field="actions")
    capture_time_s = None
    if response.HasField("capture_time"):
        capture_time_s = decode_duration(response.capture_time, field="capture_time")
    return Chunk(
        # A copy: the decoded view is read-only and keeps the whole message alive.
        actions=actions.copy(),
        revision=response.revision,
        seed=response.seed,
        timing=_read_timing(response),
        robot_id=response.robot_id,
        episode_id=response.episode_id,
        request_id=response.request_id,
        capture_time_s=capture_time_s,
        round_trip_s=round_trip_s,
        real_time_chunking_method=read_method(request, response),
        schema_digest=response.schema_digest,
    )


def _check_echo(request: policy_pb2.PredictChunkRequest, response: policy_pb2.PredictChunkResponse) -> None:
    for field in ("request_id", "robot_id", "episode_id"):
        _expect_same(field, getattr(response, field), getattr(request, field))
    sent, came = request.observation, response
    _expect_same("capture_time", came.HasField("capture_time"), sent.HasField("capture_time"))
    _expect_same("capture_time", came.capture_time, sent.capture_time)
    if not response.revision:
        raise WireError("revision", "none came")
    if request.revision:
        _expect_same("revision", response.revision, request.revision)
    if request.HasField("seed"):
        _expect_same("seed", response.seed, request.seed)


def _expect_same(field: str, came: object, sent: object) -> None:
    if came != sent:
        raise WireError(field, f"{came!r} came, the request's was {sent!r}")


def _expected_shape(
    request: policy_pb2.PredictChunkRequest,
    response: policy_pb2.PredictChunkResponse,
    description: PolicyDescription | None,
) -> tuple[int | None, int | None]:
    # A schema that is said has been found to be the description's.
    if description is not None and (response.schema_digest or description.revision == response.revision):
        return description.action_horizon, description.embodiment(request.embodiment).action_dim
    if request.history.HasField("actions"):
        return None, request.history.actions.shape[1]
    return None, None


def _read_timing(response: policy_pb2.PredictChunkResponse) -> ServerTiming:
    spans: dict[str, float] = {}
    for field in fields(ServerTiming):
        name = field.name.removesuffix("_s")
        if not response.timing.HasField(name):
            raise WireError(f"timing.{name}", "none came")
        spans[field.name] = decode_duration(getattr(response.timing, name), field=f"timing.{name}")
    return ServerTiming(**spans)


def _required(field: str, text: str) -> str:
    if not text.strip():
        raise FixRequestError(f"{field}: {text!r} came, expected a text that is not blank", field=field)
    return text


def _vector(values: np.ndarray, *, field: str) -> policy_pb2.Tensor:
    with np.errstate(over="ignore"):
        vector = np.asarray(values, np.float32)
    if vector.ndim != 1 or vector.size == 0:
        raise FixRequestError(f"{field}: shape {list(vector.shape)} came, expected [state_dim]", field=field)
    with fix_request():
        require_finite(vector, field=field)
    return encode_tensor(vector, field=field)


def _integer(field: str, value: int, *, least: int, most: int) -> int:
    if not least <= value <= most:
        raise FixRequestError(f"{field}: {value} came, expected {least} to {most}", field=field)
    return value
