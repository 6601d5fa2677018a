"""The first frame of a connection: what the policy is, what it wants to see, what its actions mean.

Owns the words in which openpi's dialects are told what a Policy message says. Does not own the description.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from premotor.v1 import policy_pb2
from service.gateway.limits import GatewayLimits
from service.openpi.limits import OpenpiLimits
from service.openpi.observation_map import ObservationMap, find_body

_Group = policy_pb2.Group
# What a DROID robot controls its arm by, for what a policy's first action group is.
_ACTION_SPACES = {
    (_Group.KIND_JOINT_POSITION, _Group.REPRESENTATION_ABSOLUTE): "joint_position",
    (_Group.KIND_JOINT_VELOCITY, _Group.REPRESENTATION_ABSOLUTE): "joint_velocity",
    (_Group.KIND_END_EFFECTOR_POSITION, _Group.REPRESENTATION_ABSOLUTE): "cartesian_position",
}
_DROID_EXTERNAL = re.compile(r"observation/exterior_image_\d+_left")


def describe(
    description: policy_pb2.Policy,
    observation_map: ObservationMap,
    *,
    gateway_limits: GatewayLimits,
    limits: OpenpiLimits,
) -> dict[str, Any]:
    """`observation_map` has the cameras of its body. Raises ObservationMapError when the policy has no such body."""
    body = find_body(description, observation_map.embodiment)
    return {
        "policy": description.name,
        "revision": description.revision,
        "variant": description.variant,
        "schema_digest": description.schema_digest,
        "embodiment": body.name,
        "action_horizon": description.action_horizon,
        "execution_horizon": description.execution_horizon,
        "action_dim": sum(group.dim for group in body.action),
        "control_rate_hz": body.control_rate_hz,
        "actions_key": observation_map.actions,
        "actions": _groups(body.action),
        "image_keys": list(observation_map.images.values()),
        "images": {
            observation_map.images[camera.name]: {"camera": camera.name, "height": camera.height, "width": camera.width}
            for camera in body.cameras
        },
        "state_keys": list(observation_map.state),
        "state": _groups(body.state),
        "instruction_key": observation_map.instruction,
        "max_message_bytes": gateway_limits.max_message_bytes,
        "idle_policy": {
            "closes_when_idle": False,
            "ping_interval_s": limits.ping_interval_s,
            "lost_peer_s": limits.lost_peer_s,
        },
        **_for_roboarena(body, observation_map),
        **_for_starvla(description, body),
    }


def _for_roboarena(body: policy_pb2.Embodiment, observation_map: ObservationMap) -> dict[str, Any]:
    """What a DROID robot is to send and to do."""
    keys = list(observation_map.images.values())
    sizes = {(camera.height, camera.width) for camera in body.cameras}
    return {
        "image_resolution": list(*sizes) if len(sizes) == 1 else None,
        "n_external_cameras": sum(_DROID_EXTERNAL.fullmatch(key) is not None for key in keys),
        "needs_wrist_camera": "observation/wrist_image_left" in keys,
        "needs_stereo_camera": any(key.endswith("_right") for key in keys),
        "needs_session_id": False,
        "action_space": _action_space(body.action[0]),
    }


def _for_starvla(description: policy_pb2.Policy, body: policy_pb2.Embodiment) -> dict[str, Any]:
    return {"action_chunk_size": description.action_horizon, "available_unnorm_keys": [body.name]}


def _action_space(group: policy_pb2.Group) -> str:
    """A name that no DROID robot knows, where it has none for it: without one, it would play joint positions."""
    kind, representation = _names(group)
    return _ACTION_SPACES.get((group.kind, group.representation), f"{kind}_{representation}")


def _groups(groups: Iterable[policy_pb2.Group]) -> list[dict[str, Any]]:
    described = []
    for group in groups:
        kind, representation = _names(group)
        described.append(
            {
                "name": group.name,
                "dim": group.dim,
                "unit": group.unit,
                "kind": kind,
                "representation": representation,
                "lower_limit": list(group.lower_limit),
                "upper_limit": list(group.upper_limit),
            }
        )
    return described


def _names(group: policy_pb2.Group) -> tuple[str, str]:
    return (
        _Group.Kind.Name(group.kind).removeprefix("KIND_").lower(),
        _Group.Representation.Name(group.representation).removeprefix("REPRESENTATION_").lower(),
    )
