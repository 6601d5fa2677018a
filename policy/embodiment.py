"""What a robot body is to a policy: its cameras, its named state and action groups, its rate.

Owns the declarative EmbodimentSpec and its JSON form. Does not own statistics (normalization.py) or pixels (images.py),
and imports nothing but the standard library, so that any process may read a spec.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class GroupKind(StrEnum):
    JOINT_POSITION = "joint_position"
    JOINT_VELOCITY = "joint_velocity"
    END_EFFECTOR_POSITION = "end_effector_position"
    END_EFFECTOR_ROTATION = "end_effector_rotation"
    GRIPPER = "gripper"
    BASE = "base"
    OTHER = "other"


class Normalization(StrEnum):
    """How a group is brought to about [-1, 1]."""

    IDENTITY = "identity"
    MIN_MAX = "min_max"
    MEAN_STD = "mean_std"
    QUANTILE = "q01_q99"


class Representation(StrEnum):
    """What an action's numbers mean; states are always absolute."""

    ABSOLUTE = "absolute"
    DELTA = "delta"


@dataclass(frozen=True, kw_only=True)
class Group:
    """A named run of dimensions of a state or action vector.

    `relative_to` names a state group of the same width: the model then sees an absolute action minus that group's value
    at the observation, while data, wire and robot keep the absolute one. `step_limit`, of absolute actions only, is the
    largest change from one action of a chunk to the next; a chunk that changes more is not served.
    """

    name: str
    dim: int
    kind: GroupKind
    unit: str
    representation: Representation = Representation.ABSOLUTE
    normalization: Normalization = Normalization.QUANTILE
    relative_to: str | None = None
    lower_limit: tuple[float, ...] = ()
    upper_limit: tuple[float, ...] = ()
    step_limit: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"group {self.name!r} has dim {self.dim}, expected at least 1")
        for name in ("lower_limit", "upper_limit", "step_limit"):
            limit = getattr(self, name)
            if limit and len(limit) != self.dim:
                raise ValueError(f"group {self.name!r}: {name} has {len(limit)} values, expected {self.dim} or none")
            # One number has one JSON form: 1 and 1.0 are equal and must not differ in the digest.
            object.__setattr__(self, name, tuple(float(value) for value in limit))
        for name in ("lower_limit", "upper_limit"):
            if any(math.isnan(value) for value in getattr(self, name)):
                raise ValueError(f"group {self.name!r} has {name} {list(getattr(self, name))}, expected numbers")
        for place, (low, high) in enumerate(zip(self.lower_limit, self.upper_limit, strict=False)):
            if low > high:
                raise ValueError(f"group {self.name!r} has lower_limit[{place}] {low} above upper_limit {high}")
        if self.step_limit and self.representation is not Representation.ABSOLUTE:
            raise ValueError(f"group {self.name!r} is {self.representation}, only absolute groups have a step_limit")
        if not all(0 <= limit < math.inf for limit in self.step_limit):
            raise ValueError(f"group {self.name!r} has step_limit {list(self.step_limit)}, expected 0 or more each")


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera's name and the resolution of its recorded frames."""

    name: str
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(
                f"camera {self.name!r} is {self.height} pixels high and {self.width} wide, expected at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class EmbodimentSpec:
    """One robot body. Equal specs have equal digests; any change is another body to the statistics."""

    name: str
    cameras: tuple[Camera, ...]
    state: tuple[Group, ...]
    action: tuple[Group, ...]
    control_rate_hz: float

    def __post_init__(self) -> None:
        if not self.cameras or not self.state or not self.action:
            raise ValueError(f"embodiment {self.name!r} needs at least one camera, state group and action group")
        if not 0 < self.control_rate_hz < math.inf:
            raise ValueError(
                f"embodiment {self.name!r} has control_rate_hz {self.control_rate_hz}, expected more than 0"
            )
        object.__setattr__(self, "control_rate_hz", float(self.control_rate_hz))
        for part, names in (
            ("camera", [camera.name for camera in self.cameras]),
            ("state group", [group.name for group in self.state]),
            ("action group", [group.name for group in self.action]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"embodiment {self.name!r} names a {part} twice: {names}")
        state_groups = {group.name: group for group in self.state}
        for group in self.state:
            if group.relative_to is not None:
                raise ValueError(f"embodiment {self.name!r}: state group {group.name!r} cannot be relative")
            if group.step_limit:
                raise ValueError(f"embodiment {self.name!r}: state group {group.name!r} cannot have a step_limit")
        for group in self.action:
            if group.relative_to is None:
                continue
            target = state_groups.get(group.relative_to)
            if target is None or target.dim != group.dim or group.representation is not Representation.ABSOLUTE:
                raise ValueError(
                    f"embodiment {self.name!r}: action group {group.name!r} must be absolute and as wide as "
                    f"the state group {group.relative_to!r} it is relative to"
                )

    @property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self.cameras)

    @property
    def state_dim(self) -> int:
        return sum(group.dim for group in self.state)

    @property
    def action_dim(self) -> int:
        return sum(group.dim for group in self.action)

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON form, as hex."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        fields = json.loads(json.dumps(asdict(self)))
        for group in (*fields["state"], *fields["action"]):
            # Younger than the format: a spec without it keeps the JSON, and so the digest, that recordings and
            # checkpoints were made with.
            if not group["step_limit"]:
                del group["step_limit"]
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> EmbodimentSpec:
        """Raises ValueError that names an unknown or missing key, or a value that cannot be."""
        try:
            fields = dict(fields)
            fields["cameras"] = tuple(Camera(**camera) for camera in fields["cameras"])
            fields["state"] = tuple(_group(group) for group in fields["state"])
            fields["action"] = tuple(_group(group) for group in fields["action"])
            return cls(**fields)
        except KeyError as error:
            raise ValueError(f"the spec lacks {error}") from None
        except TypeError as error:
            raise ValueError(f"the spec does not fit: {error}") from None


def group_slices(groups: tuple[Group, ...]) -> Iterator[tuple[Group, slice]]:
    """Each group with the columns it owns."""
    start = 0
    for group in groups:
        yield group, slice(start, start + group.dim)
        start += group.dim


def _group(fields: Mapping[str, Any]) -> Group:
    fields = dict(fields)
    fields["kind"] = GroupKind(fields["kind"])
    for key, kind in (("representation", Representation), ("normalization", Normalization)):
        if key in fields:
            fields[key] = kind(fields[key])
    for key in ("lower_limit", "upper_limit", "step_limit"):
        fields[key] = tuple(fields.get(key, ()))
    return Group(**fields)
