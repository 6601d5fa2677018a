"""Whether what a request says of the chunk being played fits the policy, and which method continues it.

Owns the checks of RealTimeChunking's fields and the choice that a request may leave to the server. Does not own what a
method does (policy/real_time.py).
"""

from __future__ import annotations

import numpy as np

from premotor.v1 import policy_pb2
from premotor.wire import decode_tensor
from service.backend import RealTimeChunking, RealTimeChunkingMethod
from service.errors import InvalidRequestError
from service.gateway.limits import GatewayLimits
from service.gateway.numbers import require_plausible

# The paper's (arXiv 2506.07339, section 4.2).
DEFAULT_MAX_GUIDANCE_WEIGHT = 5.0
# One Euler step moves a chunk by the weight times the step: far beyond the number of steps nothing but noise grows.
LARGEST_GUIDANCE_WEIGHT = 100.0
_PREFIX = policy_pb2.RealTimeChunking.METHOD_PREFIX
_NAMES: dict[int, RealTimeChunkingMethod] = {
    policy_pb2.RealTimeChunking.METHOD_GUIDANCE: "guidance",
    _PREFIX: "prefix",
}
METHOD_NUMBERS: dict[RealTimeChunkingMethod, policy_pb2.RealTimeChunking.Method] = {
    "guidance": policy_pb2.RealTimeChunking.METHOD_GUIDANCE,
    "prefix": policy_pb2.RealTimeChunking.METHOD_PREFIX,
}


def check_real_time_chunking(
    request: policy_pb2.PredictChunkRequest, description: policy_pb2.Policy, *, action_dim: int, limits: GatewayLimits
) -> RealTimeChunking | None:
    """None when the request does not ask for it. Raises InvalidRequestError or WireError for a field that is wrong."""
    if not request.HasField("real_time_chunking"):
        return None
    chunking, horizon = request.real_time_chunking, description.action_horizon
    previous_actions = _previous_actions(chunking, horizon, action_dim, most=limits.max_abs_value)
    most = min(len(previous_actions), horizon - 1)
    _require_between("inference_delay", chunking.inference_delay, 0, most)
    execution_horizon = description.execution_horizon
    if chunking.HasField("execution_horizon"):
        execution_horizon = chunking.execution_horizon
        _require_between("execution_horizon", execution_horizon, 1, horizon)
    weight = DEFAULT_MAX_GUIDANCE_WEIGHT
    if chunking.HasField("max_guidance_weight"):
        weight = chunking.max_guidance_weight
        if not 0 < weight <= LARGEST_GUIDANCE_WEIGHT:
            raise _refusal(
                "max_guidance_weight", f"{weight} came, expected more than 0, at most {LARGEST_GUIDANCE_WEIGHT:g}"
            )
    return RealTimeChunking(
        previous_actions=previous_actions,
        inference_delay=chunking.inference_delay,
        execution_horizon=execution_horizon,
        method=_method(chunking, description),
        max_guidance_weight=weight,
    )


def _previous_actions(
    chunking: policy_pb2.RealTimeChunking, horizon: int, action_dim: int, *, most: float
) -> np.ndarray:
    name = "previous_actions"
    if not chunking.HasField(name):
        raise _refusal(name, f"none came, expected float32 [num_actions, {action_dim}]")
    field = f"real_time_chunking.{name}"
    actions = decode_tensor(chunking.previous_actions, field=field, dtype=np.float32, shape=(None, action_dim))
    if not 1 <= len(actions) <= horizon:
        raise _refusal(name, f"{len(actions)} actions came, expected 1 to {horizon}, the action horizon")
    require_plausible(actions, field=field, most=most)
    return actions


def _method(chunking: policy_pb2.RealTimeChunking, description: policy_pb2.Policy) -> RealTimeChunkingMethod:
    supported, asked = description.real_time_chunking_methods, chunking.method
    fits = chunking.inference_delay <= description.max_inference_delay
    if not asked:
        return "prefix" if _PREFIX in supported and fits else "guidance"
    if asked not in supported:
        name = policy_pb2.RealTimeChunking.Method.Name(asked) if asked in _NAMES else asked
        listed = ", ".join(policy_pb2.RealTimeChunking.Method.Name(method) for method in supported)
        raise _refusal("method", f"{name} came, the policy supports {listed}")
    if asked == _PREFIX and not fits:
        raise _refusal(
            "inference_delay",
            f"{chunking.inference_delay} came, expected 0 to {description.max_inference_delay} of METHOD_PREFIX, "
            "which is what the policy was trained for",
        )
    return _NAMES[asked]


def _require_between(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise _refusal(name, f"{value} came, expected {least} to {most}")


def _refusal(name: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"real_time_chunking.{name}", message)
