"""Which of an openpi robot's keys is which of a policy's inputs.

Owns the map as a value and its JSON form. Does not own its use (observations.py) nor where it is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from premotor.v1 import policy_pb2
from service.errors import nearest_name

# What the wire's dialects say beside the observation; it is taken out before the map is read.
RESERVED_KEYS = ("endpoint", "session_id", "seed", "mode")
# What a reply says beside the actions.
REPLY_KEYS = ("server_timing", "policy_timing", "revision", "seed")


class ObservationMapError(ValueError):
    """A map that cannot be, or does not fit the policy that is served."""


@dataclass(frozen=True, kw_only=True)
class ObservationMap:
    """A key of theirs may reach into maps and lists by `/`: `images/cam_high`, `image/0`."""

    policy: str
    # Empty means the policy's only body.
    embodiment: str = ""
    # Our camera to their key.
    images: Mapping[str, str]
    # Their keys, joined in this order.
    state: tuple[str, ...]
    instruction: str = "prompt"
    # Under which key a reply holds the chunk.
    actions: str = "actions"

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", dict(self.images))
        for name in ("policy", "instruction", "actions"):
            if not getattr(self, name):
                raise ObservationMapError(f"{name} is empty, expected a name")
        for name, keys in (("images", [*self.images.values()]), ("state", [*self.state])):
            if not keys or not all(keys) or len(set(keys)) != len(keys):
                raise ObservationMapError(f"{name} has the keys {keys}, expected at least one, each once and not empty")
        if not all(self.images):
            raise ObservationMapError("images has a camera without a name")
        for key in (*self.images.values(), *self.state, self.instruction):
            if key in RESERVED_KEYS:
                raise ObservationMapError(f"{key!r} cannot be mapped, for the wire itself uses {list(RESERVED_KEYS)}")
        if self.actions in REPLY_KEYS:
            raise ObservationMapError(f"actions is {self.actions!r}, which a reply holds already")

    @classmethod
    def from_json(cls, content: Any) -> ObservationMap:
        """From parsed JSON, every key of which must be one of ours. Raises ObservationMapError."""
        if not isinstance(content, dict):
            raise ObservationMapError(f"{type(content).__name__} came, expected an object")
        names = [field.name for field in fields(cls)]
        for name in content:
            if name not in names:
                raise ObservationMapError(f"there is no {name!r}; the nearest name is {nearest_name(name, names)!r}")
        for name in ("policy", "images", "state"):
            if name not in content:
                raise ObservationMapError(f"{name} is missing")
        for name in ("policy", "embodiment", "instruction", "actions"):
            _check(name, isinstance(content.get(name, ""), str), "a text")
        images, state = content["images"], content["state"]
        _check("images", isinstance(images, dict) and _texts(images.values()), "an object of texts")
        _check("state", isinstance(state, list) and _texts(state), "a list of texts")
        return cls(**{**content, "state": tuple(state)})

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {
            "policy": self.policy,
            "embodiment": self.embodiment,
            "images": dict(self.images),
            "state": list(self.state),
            "instruction": self.instruction,
            "actions": self.actions,
        }


def read_observation_map(path: Path) -> ObservationMap:
    """Raises ObservationMapError for a file that is none, OSError for one that cannot be read."""
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
        return ObservationMap.from_json(content)
    except (ValueError, RecursionError) as error:
        raise ObservationMapError(f"{path.name} is no observation map: {error}") from None


def matching_map(description: policy_pb2.Policy) -> ObservationMap:
    """For robots that use our names: `observation/<camera>`, `observation/state`, `prompt`.

    Raises ObservationMapError when the policy drives several bodies.
    """
    body = find_body(description, "")
    return ObservationMap(
        policy=description.name,
        embodiment=body.name,
        images={camera.name: f"observation/{camera.name}" for camera in body.cameras},
        state=("observation/state",),
    )


def find_body(description: policy_pb2.Policy, embodiment: str) -> policy_pb2.Embodiment:
    """The body of that name, or the only one. Raises ObservationMapError."""
    names = [body.name for body in description.embodiments]
    if not embodiment and len(names) == 1:
        return description.embodiments[0]
    if embodiment not in names:
        came = f"{embodiment!r} is no body" if embodiment else "the map names no body"
        raise ObservationMapError(f"{came} of policy {description.name!r}, which drives {names}")
    return description.embodiments[names.index(embodiment)]


def check_fits(observation_map: ObservationMap, description: policy_pb2.Policy) -> None:
    """Raises ObservationMapError when the map leaves out a camera of its body, or has one too many."""
    body = find_body(description, observation_map.embodiment)
    cameras = [camera.name for camera in body.cameras]
    if set(cameras) != set(observation_map.images):
        raise ObservationMapError(
            f"the cameras of {body.name!r} are {cameras}, images names {list(observation_map.images)}"
        )


def _check(name: str, fits: bool, expected: str) -> None:
    if not fits:
        raise ObservationMapError(f"{name} is not {expected}")


def _texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError(f"a key repeats among {[key for key, _ in pairs]}")
    return content
