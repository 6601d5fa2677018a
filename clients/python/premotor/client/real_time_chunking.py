"""What a request says of the chunk that is being played, so that the next one continues it.

Owns the caller's side of real-time chunking: its fields, the checks that need no server, and the names of its methods.
Does not own when to ask or what to play.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from premotor.client.errors import FixRequestError, fix_request
from premotor.v1 import policy_pb2
from premotor.wire import WireError, encode_tensor, require_finite

RealTimeChunkingMethod = Literal["guidance", "prefix"]

_FIELD = "real_time_chunking"
_LARGEST_GUIDANCE_WEIGHT = 100
_NUMBERS: dict[str, policy_pb2.RealTimeChunking.Method] = {
    "auto": policy_pb2.RealTimeChunking.METHOD_UNSPECIFIED,
    "guidance": policy_pb2.RealTimeChunking.METHOD_GUIDANCE,
    "prefix": policy_pb2.RealTimeChunking.METHOD_PREFIX,
}
_NAMES: dict[int, RealTimeChunkingMethod] = {
    policy_pb2.RealTimeChunking.METHOD_GUIDANCE: "guidance",
    policy_pb2.RealTimeChunking.METHOD_PREFIX: "prefix",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class RealTimeChunking:
    """The unplayed actions of the previous chunk, and how many of them will be played before the new one takes over.

    `previous_actions` is float32 [num_actions, action_dim] in the embodiment's units, row 0 for the instant of the
    observation; `inference_delay` counts control steps, 0 to num_actions. `execution_horizon` is how many actions are
    played before the robot asks again, None for the policy's. `method` "auto" leaves the choice to the server;
    "guidance" is arXiv 2506.07339, "prefix" arXiv 2512.05964. `max_guidance_weight` None is the server's 5.
    """

    previous_actions: np.ndarray
    inference_delay: int
    execution_horizon: int | None = None
    method: Literal["auto", "guidance", "prefix"] = "auto"
    max_guidance_weight: float | None = None


def encode_real_time_chunking(chunking: RealTimeChunking) -> policy_pb2.RealTimeChunking:
    """The message. Raises FixRequestError for what no policy could accept."""
    field = f"{_FIELD}.previous_actions"
    with np.errstate(over="ignore"):
        actions = np.asarray(chunking.previous_actions, np.float32)
    if actions.ndim != 2 or actions.size == 0:
        _refuse("previous_actions", f"shape {list(actions.shape)}", "[num_actions, action_dim], at least 1 of each")
    with fix_request():
        require_finite(actions, field=field)
    if not 0 <= chunking.inference_delay <= len(actions):
        _refuse(
            "inference_delay", chunking.inference_delay, f"0 to {len(actions)}, the number of rows of previous_actions"
        )
    if chunking.method not in _NUMBERS:
        _refuse("method", repr(chunking.method), "'auto', 'guidance' or 'prefix'")
    message = policy_pb2.RealTimeChunking(
        previous_actions=encode_tensor(actions, field=field),
        inference_delay=chunking.inference_delay,
        method=_NUMBERS[chunking.method],
    )
    if chunking.execution_horizon is not None:
        if not 1 <= chunking.execution_horizon < 2**31:
            _refuse("execution_horizon", chunking.execution_horizon, "1 to the policy's action_horizon")
        message.execution_horizon = chunking.execution_horizon
    if chunking.max_guidance_weight is not None:
        if not 0 < chunking.max_guidance_weight <= _LARGEST_GUIDANCE_WEIGHT:
            _refuse(
                "max_guidance_weight", chunking.max_guidance_weight, f"more than 0, at most {_LARGEST_GUIDANCE_WEIGHT}"
            )
        message.max_guidance_weight = chunking.max_guidance_weight
    return message


def read_method(
    request: policy_pb2.PredictChunkRequest, response: policy_pb2.PredictChunkResponse
) -> RealTimeChunkingMethod | None:
    """How the answer continues the previous chunk, None where it does not.

    Raises WireError for a method that was not asked for: a robot may rely on the one that it named.
    """
    field, came = "real_time_chunking_method", response.real_time_chunking_method
    asked = request.real_time_chunking.method
    if came and (came not in _NAMES or not request.HasField(_FIELD)):
        raise WireError(field, f"{came} came, and the request did not ask for it")
    if asked and came != asked:
        used = repr(_NAMES[came]) if came else "no real-time chunking"
        raise WireError(field, f"{used} came, the request's was {_NAMES[asked]!r}")
    return _NAMES.get(came)


def method_names(policy: policy_pb2.Policy) -> tuple[RealTimeChunkingMethod, ...]:
    """What a policy supports, as far as this client knows it."""
    return tuple(_NAMES[method] for method in policy.real_time_chunking_methods if method in _NAMES)


def _refuse(name: str, came: object, expected: str) -> None:
    field = f"{_FIELD}.{name}"
    raise FixRequestError(f"{field}: {came} came, expected {expected}", field=field)
