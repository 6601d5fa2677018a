"""What GetPolicy says, checked once and then read as plain values.

Owns the client's view of a policy and the refusal of a description no robot could act on.
"""

from __future__ import annotations

from dataclasses import dataclass

from premotor.client.errors import FixRequestError, ProtocolError
from premotor.client.real_time_chunking import RealTimeChunkingMethod, method_names
from premotor.v1 import policy_pb2


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera and the resolution of its training frames; other sizes are accepted and resized by the server."""

    name: str
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """A named run of dimensions. `representation` is "absolute" or "delta"; empty limits mean unbounded.

    `step_limit` is the largest change from one action of a chunk to the next: no chunk that changes more is sent.
    """

    name: str
    dim: int
    kind: str
    unit: str
    representation: str
    lower_limit: tuple[float, ...] = ()
    upper_limit: tuple[float, ...] = ()
    step_limit: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Embodiment:
    """One robot body."""

    name: str
    cameras: tuple[Camera, ...]
    state: tuple[Group, ...]
    action: tuple[Group, ...]
    control_rate_hz: float

    @property
    def state_dim(self) -> int:
        return sum(group.dim for group in self.state)

    @property
    def action_dim(self) -> int:
        return sum(group.dim for group in self.action)


@dataclass(frozen=True, kw_only=True)
class PolicyDescription:
    """What a policy expects and produces. Ask again when a chunk's revision is not this one.

    `max_inference_delay` is the largest of real-time chunking by "prefix", in control steps, 0 where it is not among
    `real_time_chunking_methods`.
    """

    name: str
    revision: str
    variant: str
    embodiments: tuple[Embodiment, ...]
    history_steps: int
    action_horizon: int
    execution_horizon: int
    num_inference_steps: int
    max_inference_steps: int
    schema_digest: str
    real_time_chunking_methods: tuple[RealTimeChunkingMethod, ...] = ()
    max_inference_delay: int = 0

    def embodiment(self, name: str = "") -> Embodiment:
        """The body of that name; "" means the only one. Raises FixRequestError when that names none."""
        if not name and len(self.embodiments) == 1:
            return self.embodiments[0]
        for embodiment in self.embodiments:
            if embodiment.name == name:
                return embodiment
        known = ", ".join(embodiment.name for embodiment in self.embodiments)
        raise FixRequestError(f"embodiment {name!r} came, policy {self.name!r} drives {known}", field="embodiment")


def read_description(policy: policy_pb2.Policy) -> PolicyDescription:
    """Raises ProtocolError naming the field that is missing or impossible."""
    description = PolicyDescription(
        name=policy.name,
        revision=policy.revision,
        variant=policy.variant,
        embodiments=tuple(_embodiment(embodiment) for embodiment in policy.embodiments),
        history_steps=policy.history_steps,
        action_horizon=policy.action_horizon,
        execution_horizon=policy.execution_horizon,
        num_inference_steps=policy.num_inference_steps,
        max_inference_steps=policy.max_inference_steps,
        schema_digest=policy.schema_digest,
        real_time_chunking_methods=method_names(policy),
        max_inference_delay=policy.max_inference_delay,
    )
    for field in ("name", "revision", "embodiments", "schema_digest"):
        _require(bool(getattr(description, field)), f"policy {policy.name!r}: {field} is empty")
    for field, least in (
        ("history_steps", 0),
        ("action_horizon", 1),
        ("execution_horizon", 1),
        ("num_inference_steps", 1),
        ("max_inference_steps", 1),
        ("max_inference_delay", 0),
    ):
        value = getattr(description, field)
        _require(value >= least, f"policy {policy.name!r}: {field} is {value}, expected at least {least}")
    return description


def _embodiment(embodiment: policy_pb2.Embodiment) -> Embodiment:
    name = embodiment.name
    _require(bool(name), "an embodiment has no name")
    for part in ("cameras", "state", "action"):
        _require(len(getattr(embodiment, part)) > 0, f"embodiment {name!r}: {part} is empty")
    rate_hz = embodiment.control_rate_hz
    _require(0 < rate_hz < float("inf"), f"embodiment {name!r}: control_rate_hz is {rate_hz}, expected more than 0")
    return Embodiment(
        name=name,
        cameras=tuple(_camera(camera) for camera in embodiment.cameras),
        state=tuple(_group(group, name) for group in embodiment.state),
        action=tuple(_group(group, name) for group in embodiment.action),
        control_rate_hz=rate_hz,
    )


def _camera(camera: policy_pb2.Camera) -> Camera:
    _require(
        bool(camera.name) and camera.height > 0 and camera.width > 0,
        f"camera {camera.name!r} is {camera.height} x {camera.width}, expected a name and positive extents",
    )
    return Camera(name=camera.name, height=camera.height, width=camera.width)


def _group(group: policy_pb2.Group, embodiment: str) -> Group:
    where = f"embodiment {embodiment!r}, group {group.name!r}"
    _require(group.dim > 0, f"{where}: dim is {group.dim}, expected at least 1")
    for name in ("lower_limit", "upper_limit", "step_limit"):
        limit = getattr(group, name)
        _require(len(limit) in (0, group.dim), f"{where}: {name} has {len(limit)} values, expected {group.dim} or none")
    _require(
        group.representation in _REPRESENTATIONS,
        f"{where}: representation {group.representation} is unknown, expected absolute or delta",
    )
    return Group(
        name=group.name,
        dim=group.dim,
        kind=_KINDS.get(group.kind, "other"),
        unit=group.unit,
        representation=_REPRESENTATIONS[group.representation],
        lower_limit=tuple(group.lower_limit),
        upper_limit=tuple(group.upper_limit),
        step_limit=tuple(group.step_limit),
    )


_KINDS = {number: name.removeprefix("KIND_").lower() for name, number in policy_pb2.Group.Kind.items() if number != 0}
# A delta played as a position moves a robot to nowhere it should be: what is not known to be either is refused.
_REPRESENTATIONS = {
    policy_pb2.Group.REPRESENTATION_ABSOLUTE: "absolute",
    policy_pb2.Group.REPRESENTATION_DELTA: "delta",
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ProtocolError(message)
